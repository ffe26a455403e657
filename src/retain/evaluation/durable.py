"""Files that are there in full or not at all, and a log whose last line may be torn."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from retain.data.durable import TEMPORARY, sync


def open_log(path: Path) -> int:
    """A descriptor that appends to a file of lines, after a last line that was torn has been cut off."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.ftruncate(descriptor, data.rfind(b"\n") + 1)
    return descriptor


def make_folder(path: Path) -> None:
    """Make a folder whose name is durable."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`; durable, and in full, when it returns."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
