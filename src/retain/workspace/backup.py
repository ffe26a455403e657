"""Backups of a workspace while it is used: one tar file with a snapshot of the ledger, the objects that it names, and the configuration.

The snapshot is one read transaction of SQLite, so it is the workspace at one moment, whatever is learned meanwhile. Objects never change,
so they can be read afterwards; when one was forgotten in between, the snapshot is taken again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retain.data.durable import TEMPORARY
from retain.workspace.atomic import sync_folder
from retain.workspace.database import now
from retain.workspace.errors import Conflict, Damaged, DiskFull, NotFound
from retain.workspace.ledger import Ledger
from retain.workspace.store import Store

FORMAT = 1
TRIES = 5  # snapshots, when objects go away while they are copied
_MEMBER = re.compile(r"manifest\.json|ledger\.db|config\.yaml|objects/[0-9a-f]{2}/[0-9a-f]{62}")
_LARGEST_MANIFEST = 1 << 20
_REMEDY = "It is incomplete or was changed; use another backup"


@dataclass(frozen=True)
class Backup:
    """What is in a backup: when it was made, how many objects, and the bytes of the file."""

    created_at: str
    objects: int
    bytes: int


def back_up(root: Path, target: Path) -> Backup:
    """Write a backup of the workspace at ``root`` to the file ``target``, which appears when it is complete and on the disk.

    Raises NotFound (no workspace), Conflict (the file exists), Damaged (the workspace is: nothing is written), DiskFull.
    """
    if not (root / "ledger.db").is_file():
        raise NotFound("workspace", str(root))
    if target.exists():
        raise Conflict(f"{target} exists already: name another file")
    if not target.parent.is_dir():
        raise NotFound("folder", str(target.parent))
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    with _full_is_told(target), contextlib.ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        for last in [False] * (TRIES - 1) + [True]:
            try:
                made = _write(root, temporary)
                break
            except NotFound as gone:
                if last:
                    problem, remedy = f"{gone}, which the ledger names", "Run retain verify"
                    raise Damaged(root / "objects", problem, remedy) from gone
        temporary.replace(target)
        undo.pop_all()
        sync_folder(target.parent)
    return Backup(made["created_at"], made["objects"], target.stat().st_size)


def restore(archive: Path, root: Path) -> Backup:
    """Make the workspace of a backup at ``root``, which does not exist or is empty; it appears when every byte is checked and on the disk.

    Raises NotFound, Conflict (something is at ``root``), Damaged (the archive is no backup, incomplete or changed), TooNew, DiskFull.
    """
    if not archive.is_file():
        raise NotFound("file", str(archive))
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise Conflict(f"{root} is not empty: name a new place (--workspace), or move away what is there")
    parent = root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with _full_is_told(root), contextlib.ExitStack() as undo:
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}-restoring-", dir=parent))
        undo.callback(shutil.rmtree, beside, ignore_errors=True)
        manifest = _unpack(archive, beside)
        _check(archive, beside, manifest)
        beside.chmod(0o755)
        for folder, _, _ in os.walk(beside):
            sync_folder(Path(folder))
        beside.rename(root.absolute())
        undo.pop_all()
        sync_folder(parent)
    return Backup(str(manifest["created_at"]), int(manifest["objects"]), archive.stat().st_size)


def _write(root: Path, temporary: Path) -> dict[str, Any]:
    """One try at the archive; raises NotFound when an object went away."""
    with tempfile.TemporaryDirectory(prefix=".retain-backup-", dir=temporary.parent) as folder:
        snapshot = Path(folder) / "ledger.db"
        _copy_ledger(root / "ledger.db", snapshot)
        store = Store(root)
        with contextlib.closing(Ledger.open(snapshot, store, create=False)) as ledger:
            digests = sorted(digest for digest in ledger.referenced_digests())
        _to_one_file(snapshot)
        manifest = {"format": FORMAT, "created_at": now(), "ledger": _digest(snapshot), "objects": len(digests)}
        temporary.touch(mode=0o600)  # every document is in it
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                _add(tar, "manifest.json", json.dumps(manifest).encode())
                tar.add(snapshot, "ledger.db", filter=_plain)
                if (root / "config.yaml").is_file():
                    _add(tar, "config.yaml", (root / "config.yaml").read_bytes())
                for digest in digests:
                    _add(tar, f"objects/{digest[:2]}/{digest[2:]}", store.get(digest))
            file.flush()
            os.fsync(file.fileno())
    return manifest


def _copy_ledger(source: Path, target: Path) -> None:
    """The whole ledger as it is at one moment; writers do not wait for it."""
    with contextlib.closing(sqlite3.connect(source, timeout=30)) as live, contextlib.closing(sqlite3.connect(target)) as copy:
        live.backup(copy, pages=-1)


def _to_one_file(path: Path) -> None:
    """Without a write-ahead log beside it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _unpack(archive: Path, folder: Path) -> dict[str, Any]:
    """Put the members where they belong, each object checked against its name; the manifest."""
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if not member.isreg() or not _MEMBER.fullmatch(member.name):
                    raise Damaged(archive, f"{member.name[:80]!r} does not belong into a backup of retain", _REMEDY)
                body = tar.extractfile(member)
                assert body is not None
                if member.name == "manifest.json":
                    manifest = _manifest(archive, body.read(_LARGEST_MANIFEST))
                    continue
                found = _store(body, folder / member.name, member.size)
                if member.name.startswith("objects/") and found != member.name.removeprefix("objects/").replace("/", ""):
                    raise Damaged(archive, f"the object {member.name[8:20]} is not what was stored", _REMEDY)
                if member.name == "ledger.db" and found != (manifest or {}).get("ledger"):
                    raise Damaged(archive, "its ledger is not what was stored", _REMEDY)
    except (tarfile.TarError, EOFError) as error:
        raise Damaged(archive, f"cannot be read to its end ({error})", _REMEDY) from None
    if manifest is None or not (folder / "ledger.db").is_file():
        raise Damaged(archive, "is no backup of retain", _REMEDY)
    return manifest


def _manifest(archive: Path, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
        if found["format"] != FORMAT or not isinstance(found["objects"], int):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Damaged(archive, "was not made by this version of retain", "Update retain, or use another backup") from None
    return dict(found)


def _store(body: IO[bytes], path: Path, size: int) -> str:
    """Write a member to a file that is on the disk afterwards; its SHA-256. Raises EOFError when it is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, read = hashlib.sha256(), 0
    with path.open("xb") as file:
        while part := body.read(1 << 20):
            digest.update(part)
            read += len(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    if read != size:
        raise EOFError("it is cut off")
    return digest.hexdigest()


def _check(archive: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Everything that the ledger names is there. What was being learned then is waiting again."""
    store = Store(folder)
    with contextlib.closing(Ledger.open(folder / "ledger.db", store, create=False)) as ledger:
        problems = ledger.check()
        try:
            missing = [digest for digest in ledger.referenced_digests() if digest not in store]
        except NotFound as gone:
            missing = [gone.name]
        if len(list(store)) != manifest["objects"] and not missing:
            problems = problems or [f"{manifest['objects']} objects were stored, {len(list(store))} are in it"]
        if problems or missing:
            raise Damaged(archive, problems[0] if problems else f"{len(missing)} of its objects are missing", _REMEDY)
        for owner in ledger.owners():
            ledger.end_leases(owner)


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names and numbers of who made it."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _full_is_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path) from error
        raise
