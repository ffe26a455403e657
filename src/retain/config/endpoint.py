"""A model behind an OpenAI-compatible API, as a part of the configuration."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from retain.config.section import Count, Positive, Section, Whole


class EndpointConfig(Section):
    """Where a model is asked over HTTP, and with what patience. Its key stays in the environment."""

    url: str | None = Field(None, description="Address of the API, up to where /chat/completions follows: http://localhost:11434/v1")
    model: str | None = Field(None, description="Name that the API knows the model by")
    timeout: Positive = Field(120.0, description="Longest time for one request, in seconds")
    key_env: str | None = Field("OPENAI_API_KEY", description="Environment variable that holds the key; null sends none")
    max_tokens: Count = Field(4096, description="Longest answer to one request, in tokens")
    retries: Whole = Field(3, description="Further tries when the API is busy, fails or cannot be reached")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError("secret", "must hold no user, key or query: the key is read from the environment")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or re.search(r"\s", value):
            raise ValueError("must be an address such as http://localhost:11434/v1")
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("key_env")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise PydanticCustomError("secret", "must be the name of an environment variable, not the key itself")
        return value
