"""Errors of the configuration, each one line: where, which key, what is wrong, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class ConfigError(ValueError):
    """A configuration that cannot be used. The message is one line."""


def unknown_key(where: str, key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist, with the closest keys that do."""
    keys = list(known)
    name = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    near += [known_key for known_key in keys if known_key.rpartition(".")[2] == name]  # right key, wrong section
    if not near:
        last = difflib.get_close_matches(name, [known_key.rpartition(".")[2] for known_key in keys], n=1, cutoff=0.6)
        near = [known_key for known_key in keys if last and known_key.rpartition(".")[2] == last[0]]
    hint = f"; did you mean {' or '.join(dict.fromkeys(near[:3]))}?" if near else ""
    return ConfigError(f"{where}: {key}: unknown key{hint}")


def explain(error: ValidationError, where: str, known: Sequence[str]) -> ConfigError:
    """The first of pydantic's errors in our words. `known` are all dotted keys, sections included."""
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    key = _dotted(first, known)
    if first["type"] == "extra_forbidden":
        return unknown_key(where, key, known)
    same = [detail for detail in details if _dotted(detail, known) == key]
    problem = " or ".join(dict.fromkeys(_lower(detail["msg"]) for detail in same))
    given = "" if first["type"] in ("model_type", "secret") else f", not {first['input']!r}"
    return ConfigError(f"{where}: {key}: {problem}{given}")


def _dotted(detail: ErrorDetails, known: Sequence[str]) -> str:
    """Where an error is, as a dotted key. pydantic appends the members of unions and list positions, which are no keys."""
    parts = [str(part) for part in detail["loc"]]
    if detail["type"] != "extra_forbidden":
        while len(parts) > 1 and ".".join(parts) not in known:
            parts.pop()
    return ".".join(parts)


def _lower(message: str) -> str:
    """pydantic's sentence, made to follow a colon."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if "must be a valid dictionary" in message:
        return "must hold `key: value` entries"
    return message[:1].lower() + message[1:]
