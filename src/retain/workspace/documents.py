"""Documents and what belongs to them: the durable queue, signatures, study sets, and probes."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from retain.workspace.database import Database, now
from retain.workspace.errors import Conflict, NotFound, WorkspaceError, check_name
from retain.workspace.lock import WriterLock
from retain.workspace.records import DOCUMENT_STATUSES, DocumentRecord, DocumentStatus, Probe

_COLUMNS = """id, title, source, domain, importance, kind, blob, chars, tokens, status, reason, attempts, signature, added_at,
    coalesce(update_id, '')"""
_PROBE = "coalesce(document, ''), question, answer, baseline, importance, held_out, id"
_SCAN = 4096  # up to this many probes, drawing looks at all of them
_FLOOR = 0.01  # the least weight of a probe


class Documents(Database):
    """The part of the ledger that knows documents."""

    def add_document(
        self, document: Mapping[str, Any], blob: str, *, chars: int = 0, tokens: int = 0, signature: bytes = b""
    ) -> tuple[str, bool]:
        """Queue a document (keys id, and optionally title, source, domain, importance, kind) whose text is the object `blob`.

        Returns its id and whether it is new. A known document stays as it is, except a forgotten one, which is pending again. To add many
        at the price of one, wrap the calls in `transaction()`.
        """
        key = check_name(document["id"])
        self._require(blob)
        given: dict[str, Any] = {"title": "", "source": "", "domain": "general", "importance": 0.5, "kind": "text"} | dict(document)
        words = (str(given[name]) for name in ("title", "source", "domain", "kind"))
        values = (*words, float(given["importance"]), blob, chars, tokens, signature, now(), key)
        with self.transaction():
            status = self._rows("SELECT status FROM documents WHERE id = ?", (key,))
            if status and status[0][0] != "forgotten":
                return key, False
            if not status:
                statement = """INSERT INTO documents(title, source, domain, kind, importance, blob, chars, tokens, signature, added_at, id,
                    status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending')"""
            else:
                statement = """UPDATE documents SET title = ?, source = ?, domain = ?, kind = ?, importance = ?, blob = ?, chars = ?,
                    tokens = ?, signature = ?, added_at = ?, status = 'pending', reason = '', attempts = 0 WHERE id = ?"""
            self._connection.execute(statement, values)
            self.log_event("added", key)
        return key, True

    def documents(self, status: DocumentStatus | None = None, limit: int = -1) -> list[DocumentRecord]:
        """Documents in the order of their arrival, all or those with one status."""
        where, values = ("WHERE status = ?", (status,)) if status else ("", ())
        rows = self._rows(f"SELECT {_COLUMNS} FROM documents {where} ORDER BY sequence LIMIT ?", (*values, limit))
        return [DocumentRecord(*row) for row in rows]

    def latest_documents(self, limit: int, after: str | None = None) -> list[DocumentRecord]:
        """The latest documents, newest first; with ``after`` those that came before the one with this id. Raises NotFound."""
        where, values = (
            ("", ()) if after is None else ("WHERE sequence < (SELECT sequence FROM documents WHERE id = ?)", (self.document(after).id,))
        )
        return [
            DocumentRecord(*row)
            for row in self._rows(f"SELECT {_COLUMNS} FROM documents {where} ORDER BY sequence DESC LIMIT ?", (*values, limit))
        ]

    def statuses(self, ids: Sequence[str]) -> dict[str, DocumentStatus]:
        """The status of each of these documents that there is."""
        return dict(self._rows("SELECT id, status FROM documents WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)))

    def document(self, id_or_prefix: str) -> DocumentRecord:
        """One document, by its id or an unambiguous beginning of it."""
        return DocumentRecord(*self._one("documents", "document", _COLUMNS, id_or_prefix))

    def named_document(self, name: str) -> DocumentRecord:
        """One document as a person names it: by its id or the beginning of it, its title, or the file it came from (the path, or its last
        part). Raises NotFound, with the ids where several have that name, and with near titles and ids where none has."""
        with suppress(NotFound):
            return self.document(name)
        here = [document for document in self.documents() if document.status != "forgotten"]
        found = [document for document in here if name in (document.title, document.source, PurePath(document.source).name)]
        if len(found) != 1:
            known = [text for document in here for text in (document.id, document.title, PurePath(document.source).name)]
            raise NotFound("document", name, known, near=[document.id for document in found])
        return found[0]

    def counts(self) -> dict[str, int]:
        """How many documents have each status."""
        found = dict(self._rows("SELECT status, count(*) FROM documents GROUP BY status"))
        return {status: found.get(status, 0) for status in DOCUMENT_STATUSES}

    def set_status(self, documents: Collection[str], status: DocumentStatus, reason: str = "") -> None:
        """Move documents within the queue: to pending, learning, rejected or failed. Committed and forgotten are the work of updates.

        Failing or being rejected while learning counts as an attempt.
        """
        if status not in ("pending", "learning", "rejected", "failed"):
            raise ValueError(f"{status!r} is set by commit_update and forget_document only")
        with self.transaction():
            for key in documents:
                known = self.document(key)
                if known.status in ("committed", "forgotten"):
                    todo = "revert or forget it" if known.status == "committed" else "add it again"
                    raise Conflict(f"document {key} is {known.status}: {todo}")
                failed = known.status == "learning" and status in ("rejected", "failed")
                self._connection.execute(
                    "UPDATE documents SET status = ?, reason = ?, attempts = attempts + ? WHERE id = ?", (status, reason, failed, known.id)
                )
                self.log_event(status, known.id, {"reason": reason} if reason else {})

    def claim(self, limit: int) -> list[DocumentRecord]:
        """Take the oldest pending documents for learning: at most `limit`, now "learning"."""
        with self.transaction():
            claimed = [document.id for document in self.documents("pending", limit)]
            self.set_status(claimed, "learning")
            return [self.document(key) for key in claimed]

    def recover(self, lock: WriterLock) -> list[str]:
        """What a dead process was learning is pending again, with one attempt more; returns it. Only the holder of the lock can know."""
        if not lock.held:
            raise WorkspaceError("recover needs the workspace's writer lock: without it the documents may be in work")
        with self.transaction():
            interrupted = [document.id for document in self.documents("learning")]
            for key in interrupted:
                self._connection.execute("UPDATE documents SET status = 'pending', attempts = attempts + 1 WHERE id = ?", (key,))
                self.log_event("interrupted", key)
        return interrupted

    def signatures(self) -> dict[str, bytes]:
        """Minhash signatures of the documents that have one and are not forgotten, for near-duplicate search."""
        return dict(self._rows("SELECT id, signature FROM documents WHERE length(signature) > 0"))

    def set_study(self, document: str, digest: str) -> None:
        """Remember the stored study set of a document."""
        self._require(digest)
        with self.transaction():
            self._connection.execute("INSERT OR REPLACE INTO study(document, digest) VALUES (?, ?)", (self.document(document).id, digest))

    def study(self, document: str) -> str | None:
        """Digest of a document's study set."""
        rows = self._rows("SELECT digest FROM study WHERE document = ?", (document,))
        return rows[0][0] if rows else None

    def add_probes(self, probes: Iterable[Probe]) -> list[int]:
        """Store probes, returning their ids."""
        added = []
        with self.transaction():
            for probe in probes:
                document = self.document(probe.document).id if probe.document else None
                values = (document, probe.question, probe.answer, probe.baseline, probe.importance, int(probe.held_out))
                statement = "INSERT INTO probes(document, question, answer, baseline, importance, held_out) VALUES (?, ?, ?, ?, ?, ?)"
                added.append(int(self._connection.execute(statement, values).lastrowid or 0))
        return added

    def remove_probes(self, document: str) -> None:
        """Drop the probes of a document."""
        with self.transaction():
            self._connection.execute("DELETE FROM probes WHERE document = ?", (document,))

    def set_baselines(self, scores: Mapping[int, float]) -> None:
        """Record what probes scored."""
        with self.transaction():
            self._connection.executemany("UPDATE probes SET baseline = ? WHERE id = ?", [(score, probe) for probe, score in scores.items()])

    def probes(self, document: str | None = None) -> list[Probe]:
        """All probes, those of one document, or ("") those about general knowledge."""
        where, values = ("WHERE document IS ?", (document or None,)) if document is not None else ("", ())
        return [_probe(row) for row in self._rows(f"SELECT {_PROBE} FROM probes {where} ORDER BY id", values)]

    def known_probes(self) -> list[Probe]:
        """The probes of committed documents and of general knowledge."""
        return self._eligible("ORDER BY probes.id", (), (), None)

    def sample_probes(self, budget: int, seed: int, exclude: Collection[str] = (), held_out: bool | None = None) -> list[Probe]:
        """At most `budget` probes of committed documents and of general knowledge, drawn by importance without replacement.

        The same ledger and seed give the same probes. Neither drawing nor asking them takes longer as documents accumulate.
        """
        generator = random.Random(seed)
        newest = self._rows("SELECT coalesce(max(id), 0) FROM probes")[0][0]
        drawn: dict[int, Probe] = {}
        if newest > _SCAN:  # by rejection: the same distribution as below, looking at a few rows only
            for _ in range(100 * budget):
                if len(drawn) == budget:
                    return list(drawn.values())
                key, chance = generator.randint(1, newest), generator.random()
                if key in drawn:
                    continue
                for probe in self._eligible("AND probes.id = ?", (key,), exclude, held_out):
                    if chance < max(probe.importance, _FLOOR):
                        drawn[key] = probe
        everything = self._eligible("ORDER BY probes.id", (), exclude, held_out)  # Efraimidis and Spirakis 2006: largest u ** (1 / weight)
        keys = [(math.log(1.0 - generator.random()) / max(probe.importance, _FLOOR), probe.id, probe) for probe in everything]
        return [probe for _, _, probe in heapq.nlargest(budget, keys)]

    def _eligible(self, condition: str, values: tuple[Any, ...], exclude: Collection[str], held_out: bool | None) -> list[Probe]:
        statement = f"""SELECT {_PROBE} FROM probes WHERE
            (document IS NULL OR (SELECT status FROM documents WHERE documents.id = probes.document) = 'committed') {condition}"""
        found = [_probe(row) for row in self._rows(statement, values)]
        return [probe for probe in found if probe.document not in exclude and held_out in (None, probe.held_out)]

    def _require(self, digest: str) -> None:
        """The ledger never refers to an object that the store does not have."""
        if digest not in self.store:
            raise NotFound("object", digest)

    def _one(self, table: str, what: str, columns: str, id_or_prefix: str) -> tuple[Any, ...]:
        """The row with an id, or with an id that begins so."""
        rows = self._rows(f"SELECT {columns} FROM {table} WHERE id = ?", (id_or_prefix,))
        if not rows and id_or_prefix:
            span = (id_or_prefix, id_or_prefix + chr(0x10FFFF))
            rows = self._rows(f"SELECT {columns} FROM {table} WHERE id BETWEEN ? AND ? LIMIT 4", span)
        if len(rows) != 1:
            known = [row[0] for row in self._rows(f"SELECT id FROM {table} ORDER BY sequence DESC LIMIT 5000")]
            raise NotFound(what, id_or_prefix, known, near=[row[0] for row in rows])
        return tuple(rows[0])


def _probe(row: tuple[Any, ...]) -> Probe:
    document, question, answer, baseline, importance, held_out, key = row
    return Probe(question, answer, document, baseline, importance, bool(held_out), key)
