"""What this room tells: errors that stop, notes that do not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class DataError(ValueError):
    """Something in the user's data is wrong: one line that says where, what, and what to do about it.

    Attributes:
        what: the problem, for example "the file is empty".
        path: the file or folder, or "".
        line: line number counted from 1, or None.
        field: the field of a record, for example "messages[2].role", or "".
        fix: what the user can do, or "".
    """

    def __init__(self, what: str, *, path: str | Path = "", line: int | None = None, field: str = "", fix: str = "") -> None:
        self.what, self.path, self.line, self.field, self.fix = what, str(path), line, field, fix
        place = [str(path)] if str(path) else []
        place += [f"line {line}"] if line is not None else []
        place += [f"field '{field}'"] if field else []
        message = f"{', '.join(place)}: {what}" if place else what
        super().__init__(f"{message} ({fix})" if fix else message)

    def __reduce__(self) -> tuple[type[DataError], tuple[str], dict[str, object]]:
        """Pickle by the finished message, so that the error crosses process boundaries unchanged."""
        return type(self), (str(self),), dict(self.__dict__)


class Note(NamedTuple):
    """Something the user should know, that is not an error: a skipped file, a repaired encoding, a removed line."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A suggestion such as "did you mean 'report.pdf'?", or "" when no known name is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wanted.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean '{lowered[near[0]]}'?" if near else ""
