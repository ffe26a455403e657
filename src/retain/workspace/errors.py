"""What can go wrong on the durable side, each error saying what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class WorkspaceError(RuntimeError):
    """Base of every recoverable error of the workspace."""


class Locked(WorkspaceError):
    """Another process (or another lock object of this one) is writing to the workspace."""


class NotFound(WorkspaceError, LookupError):
    """A document, update, checkpoint or object that does not exist; `near` holds names that look alike."""

    def __init__(self, what: str, name: str, known: Iterable[str] = (), near: Iterable[str] = ()) -> None:
        self.name = name
        self.near = list(near) or difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(self.near)}?" if self.near else ""
        super().__init__(f"no {what} {name!r}{hint}")


class Damaged(WorkspaceError):
    """A file whose content is not what was written; `path` is the file, `remedy` what to do."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = path, problem, remedy
        super().__init__(f"{path}: {problem}. {remedy}")


class InvalidName(WorkspaceError, ValueError):
    """A name that is not a key: names are looked up in the ledger and never become paths."""

    def __init__(self, name: object) -> None:
        super().__init__(f"invalid name {name!r}: 1 to 64 of letters, digits, '.', '_' and '-', beginning with a letter or a digit")


class DiskFull(WorkspaceError):
    """No space left; what was acknowledged before is intact and nothing half-written remains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"no space left while writing {path}: nothing was lost; free some space and try again")


class Conflict(WorkspaceError):
    """The workspace is not in the state that the caller assumed (another HEAD, another base model)."""


class TooNew(WorkspaceError):
    """The workspace was written by a newer version of retain."""


class DurabilityLost(BaseException):
    """fsync failed: the kernel may have dropped the written pages, so nothing more may be acknowledged; the process must stop.

    Not an `Exception`: a handler that keeps a worker or a server alive must not swallow it.
    """


def check_name(name: str) -> str:
    """`name` itself when it is valid, else `InvalidName`."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidName(name)
    return name
