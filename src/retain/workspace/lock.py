"""One writer per workspace: an advisory `flock` that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType

from retain.workspace.errors import Locked, WorkspaceError

_WAIT = 0.05
_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _after_fork() -> None:
    """A child closes its copies, or it would keep the lock of a parent that has died."""
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_after_fork)


class WriterLock:
    """The right to change a workspace; readers need none.

    The lock is on the open file, not on its existence: the file stays, and a lock left by a dead process does not hold. A forked child
    does not inherit it.

        with WriterLock(folder / "lock").acquire(timeout=5):
            ...
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        _locks.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, timeout: float = 0) -> WriterLock:
        """Take the lock, waiting at most `timeout` seconds; `Locked` says who has it."""
        if self.held:
            raise WorkspaceError(f"{self.path} is already held by this object")
        deadline = time.monotonic() + timeout
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Locked(f"{self.path.parent} is being written to by {self.holder() or 'another process'}") from None
                    time.sleep(min(_WAIT, max(0.0, deadline - time.monotonic())))
            start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            note = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200], "start": start}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Let others write; harmless when not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
        self._forget()  # closing the only descriptor of the open file releases it

    def holder(self) -> str:
        """Who wrote their name into the lock file, in words; empty when nobody did. Says nothing about whether they still hold it."""
        try:
            note = json.loads(self.path.read_bytes())
            return f"process {note['pid']} on {note['host']} ({note['command']}), since {note['start']}"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> WriterLock:
        return self if self.held else self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        self._forget()
