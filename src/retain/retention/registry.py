"""Methods by name: what configuration may ask for, what each method declares about itself, and how a list of names becomes objects."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from retain.config import RetentionConfig
from retain.data.examples import Example
from retain.retention.base import Retention

Kind = Literal["penalty", "rehearsal", "distillation", "projection"]


class RetentionError(ValueError):
    """A retention method is unknown, or lacks what it needs; the message is one line."""


@dataclass(frozen=True)
class Resources:
    """What methods need beside their settings.

    ``general``: examples of general text (for "kl"); ``earlier``: LoRA tensors of the adapters learned before, oldest first (for
    "olora"); ``seed``: of everything random in a method.
    """

    general: Sequence[Example] = ()
    earlier: Sequence[Mapping[str, Tensor]] = ()
    seed: int = 0


Builder = Callable[[RetentionConfig, Resources], Retention]


@dataclass(frozen=True)
class Description:
    """What a method says about itself: its name, the paper it follows (arXiv number), how it protects, one line on what it does."""

    name: str
    paper: str
    kind: Kind
    summary: str
    cls: type[Retention]
    build: Builder


_METHODS: dict[str, Description] = {}
M = TypeVar("M", bound=type[Retention])


def method(name: str, *, paper: str, kind: Kind, summary: str, build: Builder) -> Callable[[M], M]:
    """Register a class of :class:`Retention`; ``build`` makes one from the configuration. Raises RetentionError for a taken name."""

    def register(cls: M) -> M:
        if name in _METHODS:
            raise RetentionError(f"retention method {name!r} is registered twice")
        cls.name = name
        _METHODS[name] = Description(name, paper, kind, summary, cls, build)
        return cls

    return register


def methods() -> tuple[Description, ...]:
    """All methods in the order of their names."""
    return tuple(_METHODS[name] for name in sorted(_METHODS))


def describe(name: str) -> Description:
    """The method of that name. Raises RetentionError with the nearest name."""
    if name in _METHODS:
        return _METHODS[name]
    plain = "".join(letter for letter in name.lower().replace("+", "p") if letter.isalnum())
    near = difflib.get_close_matches(plain, _METHODS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(_METHODS))}"
    raise RetentionError(f"there is no retention method {name!r}: {hint}")


def check_methods(names: Sequence[str]) -> list[Description]:
    """The named methods, in that order. Raises RetentionError for an unknown or repeated name."""
    found = [describe(name) for name in names]
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise RetentionError(f"retention method {repeated[0]!r} is asked for twice")
    return found


def build(names: Sequence[str], config: RetentionConfig | None = None, resources: Resources | None = None) -> list[Retention]:
    """The named methods, made, in that order. Raises RetentionError for an unknown or repeated name."""
    config, resources = config or RetentionConfig(), resources or Resources()
    return [description.build(config, resources) for description in check_methods(names)]
