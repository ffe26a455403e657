"""Power cuts without a power switch: what durable writing does is recorded, and the files are made anew as a cut may leave them.

Killing a process does not test fsync, because the page cache survives it. A cut takes what was not synced: data of a file since its last
fsync, and names of a folder since its last one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.workspace.atomic import FileSystem

Operation = tuple[Any, ...]


class Recorder(FileSystem):
    """Does everything but syncing, which only a cut would show, and notes it.

    ``left_out`` is a seeded fault: ``sync`` (data is renamed without fsync) or ``syncdir`` (names are not made durable) does not happen.
    A process may be killed between an operation and its note. So a rename is noted before it is done, and a removal afterwards: what the
    next process finds has been noted, or will be done again.
    """

    def __init__(self, left_out: str = "") -> None:
        super().__init__()
        self.left_out = left_out
        self.log: list[Operation] = []

    def note(self, *operation: Any) -> None:
        """Remember an operation."""
        self.log.append(operation)

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self.note("create", descriptor, path)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        written = super().write(descriptor, data[:1000])  # short writes are allowed
        self.note("write", descriptor, bytes(data[:written]))
        return written

    def sync(self, descriptor: int) -> None:
        if self.left_out != "sync":
            self.note("sync", descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.note("rename", source, target)
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.note("remove", path)

    def make_directory(self, path: Path) -> None:
        self.note("mkdir", path)
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        if self.left_out != "syncdir":
            self.note("syncdir", path)


def rebuild(
    log: Sequence[Operation], source: Path, target: Path, chance: random.Random, base: Mapping[Path, bytes | None] | None = None
) -> None:
    """Write to ``target`` what a power cut after ``log`` may leave of the folder ``source``, which had the files (and, without content,
    folders) of ``base`` before.

    Changes of a folder since its last sync happened or not, each on its own; data since a file's last sync is there, cut, zero or missing.
    """
    data: dict[int, bytes] = {}  # inode -> content
    synced: dict[int, bytes] = {}
    opened: dict[int, int] = {}  # descriptor -> inode
    names: dict[Path, int] = {}  # as the running system sees it; -1 is a folder
    durable: dict[Path, int] = {source: -1}
    pending: list[tuple[Path, int | None]] = []  # name -> inode, or None for a removal
    for path, content in (base or {}).items():
        inode = durable[path] = -1 if content is None else len(data)
        if content is not None:
            names[path], data[inode], synced[inode] = inode, content, content
    for operation, *arguments in log:
        match operation, *arguments:
            case "create", descriptor, path:
                inode = opened[descriptor] = len(data)
                data[inode] = b""
                names[path] = inode
                pending.append((path, inode))
            case "write", descriptor, written:
                data[opened[descriptor]] += written
            case "sync", descriptor:
                synced[opened[descriptor]] = data[opened[descriptor]]
            case "rename", old, new:
                names[new] = names.pop(old)
                pending += [(new, names[new]), (old, None)]
            case "remove", path:
                names.pop(path, None)
                pending.append((path, None))
            case "mkdir", path:
                pending.append((path, -1))
            case "syncdir", path:
                for name, entry in [item for item in pending if item[0].parent == path]:
                    _settle(durable, name, entry)
                pending = [item for item in pending if item[0].parent != path]
    for name, entry in pending:
        if chance.random() < 0.5:
            _settle(durable, name, entry)
    for path in sorted(durable):
        if path.is_relative_to(source) and all(parent in durable for parent in path.parents if parent.is_relative_to(source)):
            copy = target / path.relative_to(source)
            inode = durable[path]
            if inode == -1:
                copy.mkdir(parents=True, exist_ok=True)
            elif inode in synced and synced[inode] == data[inode]:
                copy.write_bytes(data[inode])
            else:
                content = data[inode]
                copy.write_bytes(chance.choice([b"", content[: len(content) // 2], bytes(len(content)), content]))


def contents(folder: Path) -> dict[Path, bytes | None]:
    """A folder and what is in it, files with their content and folders without: the ``base`` of what happens next."""
    paths = [folder, *sorted(folder.rglob("*"))] if folder.is_dir() else []
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def _settle(durable: dict[Path, int], name: Path, entry: int | None) -> None:
    if entry is None:
        durable.pop(name, None)
    else:
        durable[name] = entry
