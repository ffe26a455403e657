"""A content-addressed store: every object is named by the SHA-256 of its bytes, and checked against it whenever it is read.

objects/ab/cdef...      one file per object
quarantine/abcdef...    damaged objects, kept for inspection
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retain.data.durable import TEMPORARY
from retain.workspace.atomic import DISK, FileSystem, make_folder, move_file, sync_folder, write_file
from retain.workspace.errors import Damaged, NotFound

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = re.compile(r"[0-9a-f]{64}")
_REMEDY = "Move it away with quarantine(), then store the same content again or restore the file from a backup"


def digest_of(data: bytes) -> str:
    """The name of an object: SHA-256 of its bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


class Store:
    """Objects below one folder. Any number of readers; writers hold the workspace's `WriterLock`."""

    def __init__(self, root: Path, files: FileSystem = DISK) -> None:
        self.root = root
        self.files = files
        self._guard = threading.Lock()  # between put and collect

    def path(self, digest: str) -> Path:
        """Where an object is, or would be."""
        if not DIGEST.fullmatch(digest):
            raise NotFound("object", digest)
        return self.root / "objects" / digest[:2] / digest[2:]

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def __iter__(self) -> Iterator[str]:
        """All digests, sorted; temporary and foreign files are not objects."""
        for folder in sorted((self.root / "objects").glob("[0-9a-f][0-9a-f]")):
            for digest in sorted(folder.name + path.name for path in folder.iterdir()):
                if DIGEST.fullmatch(digest):
                    yield digest

    def put(self, data: bytes) -> str:
        """Store bytes; durable when it returns. Storing the same content again changes nothing (and mends a damaged copy)."""
        digest = digest_of(data)
        path = self.path(digest)
        for folder in (self.root, path.parent.parent, path.parent):
            make_folder(folder, self.files)
        with self._guard:
            intact = path.is_file() and path.read_bytes() == data
            if intact:
                os.utime(path)  # young again: garbage collection must not take what is about to be referenced
        if intact:
            sync_folder(path.parent, self.files)  # whoever wrote it may have died before this
        else:
            write_file(path, data, self.files)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of an object; `NotFound`, or `Damaged` when they are not what was stored."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound("object", digest) from None
        if digest_of(data) != digest:
            raise Damaged(path, "the content does not match its SHA-256", _REMEDY)
        return data

    def put_tensors(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
        """Store tensors as a safetensors file; the same names, values and metadata give the same digest."""
        return self.put(tensor_bytes(tensors, metadata or {}))

    def get_tensors(self, digest: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of an object that `put_tensors` stored."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        data = self.get(digest)
        try:
            tensors = load(data)
            header, _ = _split(data)
        except (SafetensorError, ValueError, struct.error) as error:
            problem = f"not a safetensors file ({error})"
            raise Damaged(self.path(digest), problem, "It was stored as something else: check the digest") from error
        return dict(sorted(tensors.items())), header.get("__metadata__", {})

    def verify(self, expected: Iterable[str] = ()) -> list[Damaged]:
        """Read everything; one error per damaged object and per `expected` object that is missing."""
        damaged = []
        for digest in self:
            try:
                self.get(digest)
            except Damaged as error:
                damaged.append(error)
            except NotFound:
                continue  # collected meanwhile
            except OSError as error:
                damaged.append(Damaged(self.path(digest), f"cannot be read ({error.strerror})", _REMEDY))
        for digest in sorted(set(expected)):
            if digest not in self:
                remedy = "Restore it from a backup, or revert to a state without it"
                damaged.append(Damaged(self.path(digest), "the file is missing", remedy))
        return damaged

    def quarantine(self, digest: str) -> Path:
        """Move an object out of the store, for inspection; returns where it went. The digest is then `NotFound` and can be stored again."""
        if digest not in self:
            raise NotFound("object", digest)
        target = self.root / "quarantine" / digest
        make_folder(target.parent, self.files)
        move_file(self.path(digest), target, self.files)
        return target

    def sizes(self) -> dict[str, int]:
        """Bytes of every object."""
        sizes = {}
        for digest in self:
            with contextlib.suppress(FileNotFoundError):
                sizes[digest] = self.path(digest).stat().st_size
        return sizes

    def collect(self, keep: set[str], grace: float = 3600) -> list[str]:
        """Remove the objects that are not in `keep` and were not stored within the last `grace` seconds, and left-over temporary files.

        The grace protects what a running update has stored but not yet committed; use 0 only when no update is running.
        Returns the digests removed; their absence is durable.
        """
        limit = time.time() - grace
        removed = []
        for digest in self:
            with self._guard:
                if digest not in keep and self._older(self.path(digest), limit):
                    self.files.remove(self.path(digest))
                    removed.append(digest)
        for path in (self.root / "objects").glob(f"??/{TEMPORARY}*"):
            if self._older(path, limit):
                self.files.remove(path)
        for folder in sorted({self.path(digest).parent for digest in removed}):
            sync_folder(folder, self.files)  # what is forgotten must not come back with a power cut
        return removed

    @staticmethod
    def _older(path: Path, limit: float) -> bool:
        try:
            return path.stat().st_mtime <= limit
        except FileNotFoundError:
            return False


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """safetensors bytes that depend on the content only. The library writes metadata in random order, so the header is written anew."""
    from safetensors.torch import save

    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if (storage := tensor.untyped_storage().data_ptr()) in seen:  # views of one storage are stored as separate tensors
            tensor = tensor.clone()
        seen.add(storage)
        plain[name] = tensor
    header, body = _split(save(plain))
    if metadata:
        header["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, body))


def _split(data: bytes) -> tuple[dict[str, dict[str, str]], memoryview]:
    """Header and tensor bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
