"""What an experiment may name: kinds of backbones, of tasks, of callbacks. A kind is a class and a registration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from retain.config import ConfigError
from retain.data.errors import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by the names that configuration uses. ``what`` is the word for one of them in messages."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._known: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorator: the class is found by this name, and has it as its ``kind``. Raises ConfigError for a taken name."""

        def add(cls: type[T]) -> type[T]:
            if name in self._known:
                raise ConfigError(f"{self.what} {name!r} is registered twice")
            cls.kind = name  # type: ignore[attr-defined]
            self._known[name] = cls
            return cls

        return add

    def find(self, name: Any, where: str) -> type[T]:
        """The class of that name. Raises ConfigError, beginning with ``where``, with the nearest name."""
        if not isinstance(name, str) or name not in self._known:
            there = f"there is {', '.join(self)}"
            hint = did_you_mean(name, self) if isinstance(name, str) else ""
            raise ConfigError(f"{where}: there is no {self.what} {name!r}: {hint or there}")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))
