"""The configuration as a flat list of dotted keys: what `retain config show` lists, what error messages suggest, what files save."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from retain.config.schema import Config
from retain.config.section import Section
from retain.config.values import put


@dataclass(frozen=True)
class Setting:
    """One row of `retain config show`. `source` is a file, `environment`, `command line`, `default` or `program`."""

    key: str
    type: str
    default: Any
    value: Any
    help: str
    source: str


def place_of(config: Config, key: str) -> str:
    """Where the value of a dotted key was set, for an error to begin with: a file, `environment`, `command line`, else `configuration`."""
    return config._sources.get(key, "configuration")


def describe(config: Config | None = None) -> list[Setting]:
    """Every key with its type, default, present value, help text and the source of the value."""
    config = config or Config()
    rows = []
    for key, name, owner in walk(config):
        field = type(owner).model_fields[name]
        source = config._sources.get(key, "program" if name in owner.model_fields_set else "default")
        default, value = field.get_default(call_default_factory=True, validated_data={}), getattr(owner, name)
        rows.append(Setting(key, type_name(field.annotation), plain(default), plain(value), field.description or "", source))
    return rows


@lru_cache(maxsize=1)
def known_keys() -> tuple[str, ...]:
    """Every dotted key of the configuration, sections included."""
    return keys_of(Config())


def keys_of(section: Section) -> tuple[str, ...]:
    """Every dotted key of a section, the sections in it included."""
    keys = [key for key, _, _ in walk(section)]
    sections = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
    return (*keys, *sorted(sections))


def explicit(config: Config) -> dict[str, Any]:
    """The values that were set rather than left at their defaults, nested, as YAML has them."""
    values: dict[str, Any] = {}
    for key, name, owner in walk(config):
        if name in owner.model_fields_set:
            put(values, key, plain(getattr(owner, name)))
    return values


def walk(section: Section, prefix: str = "") -> Iterator[tuple[str, str, Section]]:
    """Dotted key, attribute name and owning section of every value below a section."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{field.alias or name}"
        if isinstance(value, Section):
            yield from walk(value, f"{key}.")
        else:
            yield key, name, section


def plain(value: Any) -> Any:
    """A value as JSON and YAML have it."""
    return str(value) if isinstance(value, Path) else value


def type_name(annotation: Any) -> str:
    """A type as a person reads it: `integer`, `auto|cpu|cuda|mps`, `list of text`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return "|".join(type_name(argument) for argument in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    names = {str: "text", int: "integer", float: "number", bool: "true|false", Path: "path", type(None): "null"}
    return names.get(annotation, str(annotation))
