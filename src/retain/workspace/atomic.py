"""Files that are either there in full or not there at all, also after a power cut.

Temporary name in the same folder -> write -> fsync -> rename -> fsync of the folder. Every operation goes through a `FileSystem`, so that
tests can record it, leave it out, or make it fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from retain.data.durable import TEMPORARY, sync
from retain.workspace.errors import DiskFull, DurabilityLost

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FileSystem:
    """The operations that durable writing needs, as the operating system does them.

    Once an fsync has failed, `broken` is set and every later write through this object is refused: retrying an fsync can report success
    for pages that the kernel has already thrown away.
    """

    def __init__(self) -> None:
        self.broken = ""
        self._known: set[Path] = set()  # folders whose own entry this process has made durable
        self._guard = threading.Lock()

    def create(self, path: Path) -> int:
        """Open a new file for writing; it must not exist."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`, returning how much."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """fsync of an open file."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file that `create` opened."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source`."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove one file."""
        path.unlink()

    def make_directory(self, path: Path) -> None:
        """Create one folder; it may exist."""
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        """fsync of a folder: makes the names in it durable."""
        sync(path, os.O_DIRECTORY)


DISK = FileSystem()


def write_file(path: Path, data: bytes, files: FileSystem = DISK) -> None:
    """Put `data` at `path`, replacing what was there; durable when it returns.

    Raises `DiskFull` (the temporary file is removed, `path` is as before) and `DurabilityLost` (stop the process).
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    with _translated(path, files):
        try:
            descriptor = files.create(temporary)
            try:
                view = memoryview(data)
                while view:
                    view = view[files.write(descriptor, view) :]
                _sync(path, partial(files.sync, descriptor), files, renamed=False)
            finally:
                files.close(descriptor)
            files.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                files.remove(temporary)
            raise
        _sync(path.parent, partial(files.sync_directory, path.parent), files)


def make_folder(path: Path, files: FileSystem = DISK) -> None:
    """Create a folder and its missing parents, each durable when it returns."""
    with files._guard:
        if path in files._known:
            return
    if not path.parent.is_dir():
        make_folder(path.parent, files)
    with _translated(path, files):
        files.make_directory(path)
        _sync(path.parent, partial(files.sync_directory, path.parent), files)
    with files._guard:
        files._known.add(path)


def sync_folder(path: Path, files: FileSystem = DISK) -> None:
    """Make the names in a folder durable."""
    with _translated(path, files):
        _sync(path, partial(files.sync_directory, path), files)


def move_file(source: Path, target: Path, files: FileSystem = DISK) -> None:
    """Move a file to another folder of the same file system, durably."""
    with _translated(target, files):
        files.rename(source, target)
        for folder in (target.parent, source.parent):
            _sync(folder, partial(files.sync_directory, folder), files)


def _sync(path: Path, fsync: Callable[[], None], files: FileSystem, renamed: bool = True) -> None:
    """Run one fsync; its failure is final, except a full disk before anything was renamed (the file is dropped then)."""
    try:
        fsync()
    except (PermissionError, FileNotFoundError):
        raise  # the folder could not be opened: nothing was asked of the disk
    except OSError as error:
        if error.errno in _FULL and not renamed:
            raise
        files.broken = f"fsync of {path} failed ({error.strerror}); restart the process and check the disk"
        raise DurabilityLost(files.broken) from error


@contextlib.contextmanager
def _translated(path: Path, files: FileSystem) -> Iterator[None]:
    """Refuse to write after a failed fsync; name a full disk."""
    if files.broken:
        raise DurabilityLost(files.broken)
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(path) from error
        raise
