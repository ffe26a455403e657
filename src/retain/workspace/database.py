"""The connection under the ledger: settings, transactions, migrations, errors in our words, facts about the workspace, and its events."""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from retain.workspace import schema
from retain.workspace.atomic import make_folder, sync_folder
from retain.workspace.errors import Conflict, Damaged, DiskFull, DurabilityLost, Locked, NotFound, TooNew, WorkspaceError
from retain.workspace.records import Event, to_json
from retain.workspace.store import Store

_SETTINGS = ("busy_timeout = 5000", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON", "cache_size = -16000")
_FSYNC_FAILED = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}


def now() -> str:
    """The time in UTC, as the ledger writes it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Database:
    """One SQLite file in WAL mode with full synchronisation: what a method has returned survives a power cut.

    One object may be used from many threads; other processes read through their own, also while this one writes.
    """

    def __init__(self, path: Path, store: Store, connection: sqlite3.Connection) -> None:
        self.path = path
        self.store = store
        self._connection = connection
        self._mutex = threading.RLock()

    @classmethod
    def open(cls, path: Path, store: Store, create: bool = True, seed: int = 0) -> Self:
        """Open the ledger at `path`, bringing an older file up to date; `store` holds the objects that it refers to."""
        is_new = not path.exists()
        if is_new and not create:
            raise NotFound("ledger", str(path))
        if is_new:
            make_folder(path.parent, store.files)
        with _translated(path, store):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                for setting in _SETTINGS:
                    connection.execute(f"PRAGMA {setting}")
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
                self = cls(path, store, connection)
                self._migrate(seed)
            except BaseException:
                connection.close()
                raise
        if is_new:
            sync_folder(path.parent, store.files)
        return self

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        with self._mutex:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is durable together at the end, or not done at all. Inside another transaction: part of it."""
        with self._mutex, _translated(self.path, self.store):
            if self.store.files.broken:
                raise DurabilityLost(self.store.files.broken)
            nested = self._connection.in_transaction
            self._connection.execute("SAVEPOINT nested" if nested else "BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("RELEASE nested" if nested else "COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have rolled back by itself
                    for statement in ("ROLLBACK TO nested", "RELEASE nested") if nested else ("ROLLBACK",):
                        self._connection.execute(statement)
                raise

    def check(self) -> list[str]:
        """Problems of the ledger file itself, in SQLite's words; empty when it is sound. Reads the whole file."""
        try:
            found = [row[0] for row in self._rows("PRAGMA integrity_check")]
            with self.transaction():
                self._connection.execute("INSERT INTO chunks_fts(chunks_fts, rank) VALUES ('integrity-check', 1)")
        except Damaged as error:
            return [error.problem]
        return [] if found == ["ok"] else found

    def meta(self) -> dict[str, Any]:
        """Facts about the workspace: id, created, format, seed, base (name and fingerprint), and what `set_meta` added."""
        return {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM meta")}

    def set_meta(self, key: str, value: Any) -> None:
        """Record a fact, as JSON."""
        with self.transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta(key, value) VALUES (?, ?)", (key, to_json(value)))

    def bind_base(self, name: str, fingerprint: str, place: str = "") -> None:
        """Tie the workspace to its base model, once; another model is a `Conflict`. `place` (its file or folder) follows when it moves."""
        with self.transaction():
            known = self.meta().get("base") or {}
            if known and known["fingerprint"] != fingerprint:
                made = f"{known['name']} ({known['fingerprint'][:12]})"
                raise Conflict(f"this workspace was made with {made}, not with {name} ({fingerprint[:12]})")
            base = {"name": name, "fingerprint": fingerprint} | known | ({"place": place} if place else {})
            if base != known:
                self.set_meta("base", base)

    def log_event(self, kind: str, subject: str = "", detail: Mapping[str, Any] | None = None) -> None:
        """Add a line to the learning history. Never put a document's text into it: forgetting does not rewrite history."""
        with self.transaction():
            self._connection.execute(
                "INSERT INTO events(at, kind, subject, detail) VALUES (?, ?, ?, ?)", (now(), kind, subject, to_json(detail or {}))
            )

    def events(self, limit: int = 100, subject: str | None = None) -> list[Event]:
        """The latest lines of the history, newest first; those about one document, update or checkpoint with `subject`."""
        where, values = ("WHERE subject = ?", (subject,)) if subject is not None else ("", ())
        rows = self._rows(f"SELECT id, at, kind, subject, detail FROM events {where} ORDER BY id DESC LIMIT ?", (*values, limit))
        return [Event(key, at, name, about, json.loads(text)) for key, at, name, about, text in rows]

    def events_after(self, last: int, limit: int = 1000) -> list[Event]:
        """The lines of the history that follow the one with this id, oldest first."""
        rows = self._rows("SELECT id, at, kind, subject, detail FROM events WHERE id > ? ORDER BY id LIMIT ?", (last, limit))
        return [Event(key, at, name, about, json.loads(text)) for key, at, name, about, text in rows]

    def _rows(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """The rows of one query."""
        with self._mutex, _translated(self.path, self.store):
            return self._connection.execute(statement, values).fetchall()

    def _migrate(self, seed: int) -> None:
        """Bring the tables to the newest version, one transaction per step."""
        newest = len(schema.MIGRATIONS)
        while (version := self._version()) != newest:
            if version > newest:
                raise TooNew(f"{self.path} has format {version}; this version of retain knows up to {newest}: update retain")
            with self.transaction():
                if self._version() != version:
                    continue  # another process was faster
                for statement in schema.MIGRATIONS[version]:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {version + 1}")
                if version == 0:
                    for key, value in {"id": secrets.token_hex(8), "created": now(), "seed": seed}.items():
                        self.set_meta(key, value)
                self.set_meta("format", version + 1)

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])


@contextlib.contextmanager
def _translated(path: Path, store: Store) -> Iterator[None]:
    """SQLite's errors as the workspace's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _FSYNC_FAILED:
            store.files.broken = f"fsync of {path} failed; restart the process and check the disk"
            raise DurabilityLost(store.files.broken) from error
        primary = code & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            raise DiskFull(path) from error
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Locked(f"{path} is being written to by another process") from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Damaged(path, str(error), "Restore the file from a backup; the objects of the store are not affected") from error
        raise WorkspaceError(f"{path}: {error}") from error
