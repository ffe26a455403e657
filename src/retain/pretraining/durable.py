"""Folders that are there in full or not at all, and files of JSON lines whose last line may be torn."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retain.data.durable import TEMPORARY, sync


@contextlib.contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A temporary folder to fill. When the block ends it is at ``place``, in place of what was there, durably; when the block fails, it is
    gone and ``place`` is as before."""
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (place.parent / f"{TEMPORARY}{place.name}-{secrets.token_hex(4)}" for _ in range(2))
    scratch.mkdir()
    try:
        yield scratch
        for folder, _, names in os.walk(scratch):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        if place.exists():
            place.rename(old)
        scratch.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Put a JSON value at ``path``; durable, and in full, when it returns."""
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Put JSON objects at ``path``, one a line; durable, and in full, when it returns."""
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what an interrupted process left half-written in a folder."""
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


class Lines:
    """A file of JSON objects, one a line, that only grows. A last line that was torn by an interruption is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)

    def append(self, record: Mapping[str, Any], durable: bool = False) -> None:
        """Add a record; with ``durable`` it is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Every record, oldest first."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()] if self.path.exists() else []

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Leave out the records that are not wanted."""
        write_lines(self.path, [record for record in self.read() if wanted(record)])
