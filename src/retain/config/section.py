"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator


def _split(value: object) -> object:
    """Comma-separated text is a list: convenient in environment variables and on the command line."""
    return [part.strip() for part in value.strip("[] ").split(",") if part.strip()] if isinstance(value, str) else value


_NAMES = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}  # what a file may hold
Names = Annotated[list[str], BeforeValidator(_split), WithJsonSchema(_NAMES)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration. An empty section in a file (`learn:`) means its defaults."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, coerce_numbers_to_str=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        return {} if data is None else data
