"""The history: updates that move HEAD from one state to the next, each in one transaction, and checkpoints that name states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from retain.workspace.database import now
from retain.workspace.errors import Conflict, Damaged, NotFound, check_name
from retain.workspace.index import Index
from retain.workspace.records import UPDATE_KINDS, Checkpoint, Chunk, DocumentStatus, State, UpdateKind, UpdateRecord, UpdateStatus, to_json

FORGETTING = "forgetting"
"""Among the ledger's facts, the document that was forgotten until what it left in the store is gone, too."""
_COLUMNS = """id, sequence, kind, coalesce(parent, ''), created_at, coalesce(before, ''), coalesce(after, ''), certificate, status,
    expired"""


class Updates(Index):
    """The part of the ledger that knows what was learned, undone and forgotten."""

    def head(self) -> str | None:
        """Digest of the current state; None before the first update."""
        rows = self._rows("SELECT state FROM head")
        return rows[0][0] if rows else None

    def head_update(self) -> str | None:
        """The update that made the current state."""
        rows = self._rows("SELECT update_id FROM head")
        return rows[0][0] if rows else None

    def state(self, digest: str | None = None) -> State:
        """The state with this digest, or the current one (an empty state before the first update)."""
        wanted = digest or self.head()
        if wanted is None:
            return State()
        try:
            return State.from_bytes(self.store.get(wanted))
        except ValueError as error:
            raise Damaged(self.store.path(wanted), str(error), "It was stored as something else: check the digest") from error

    def updates(self, limit: int = -1, document: str | None = None) -> list[UpdateRecord]:
        """The history, newest first; with `document`, the updates about it."""
        where, values = "", ()  # type: tuple[str, tuple[Any, ...]]
        if document is not None:
            where, values = "WHERE id IN (SELECT update_id FROM update_documents WHERE document = ?)", (document,)
        rows = self._rows(f"SELECT {_COLUMNS} FROM updates {where} ORDER BY sequence DESC LIMIT ?", (*values, limit))
        return [self._record(row) for row in rows]

    def learned_since(self, document: str, moment: str) -> bool:
        """Whether an update learned the document at this time (as `now` writes it) or later, whatever became of it since."""
        statement = """SELECT 1 FROM updates JOIN update_documents ON update_id = id
            WHERE document = ? AND kind = 'learn' AND status <> 'rejected' AND created_at >= ? LIMIT 1"""
        return bool(self._rows(statement, (document, moment)))

    def update(self, id_or_prefix: str) -> UpdateRecord:
        """One update, by its id or an unambiguous beginning of it."""
        return self._record(self._one("updates", "update", _COLUMNS, id_or_prefix))

    def commit_update(
        self,
        kind: UpdateKind,
        before: str | None,
        after: str | None,
        *,
        documents: Sequence[str] = (),
        chunks: Iterable[Chunk] = (),
        certificate: Mapping[str, Any] | None = None,
        mark: DocumentStatus | None = "committed",
        reason: str = "",
        reverts: str = "",
    ) -> UpdateRecord:
        """Move HEAD from the state `before` to the stored state `after`, in one transaction; durable when it returns.

        Records the update, gives its documents the status `mark` (None: they stay as they are), and replaces their chunks where `chunks`
        has some. Chunks exist exactly for committed documents, so another `mark` removes them. `reverts` names an update that this one
        undoes.
        Raises `Conflict` when HEAD is not `before`, and `NotFound` when an object that `after` needs is not in the store.
        """
        if after is not None and after != before:
            self._require(after)
            for digest in sorted(self.state(after).digests()):
                self._require(digest)
        with self.transaction():
            if self.head() != before:
                raise Conflict(f"HEAD is {self.head()}, not {before}: another update was committed meanwhile")
            record = self._insert(kind, documents, before, after, "committed", certificate)
            gone = [key for key in record.documents if self.document(key).status == "forgotten"]
            if gone and mark != "forgotten":
                raise Conflict(f"{', '.join(gone)} was forgotten meanwhile: what was learned from it must not be committed")
            if mark is not None:
                self._mark(record.id, record.documents, mark, reason)
            touched: set[str] = set()
            for chunk in chunks:
                if mark != "committed" or chunk.document not in record.documents:
                    raise ValueError(f"chunks of {chunk.document}, which this update does not commit")
                if chunk.document not in touched:
                    self._remove_chunks(chunk.document)
                    touched.add(chunk.document)
                self._add_chunk(chunk)
            if reverts:
                undone = self.update(reverts)
                if undone.status != "committed":
                    raise Conflict(f"update {undone.id} is {undone.status}: there is nothing to revert")
                self._connection.execute("UPDATE updates SET status = 'reverted' WHERE id = ?", (undone.id,))
                self.log_event("reverted", undone.id, {"by": record.id})
            self._connection.execute("INSERT OR REPLACE INTO head(single, state, update_id) VALUES (1, ?, ?)", (after, record.id))
            self.log_event(kind, record.id, {"documents": len(record.documents)})
        return record

    def reject_update(
        self, kind: UpdateKind, documents: Sequence[str], reason: str, certificate: Mapping[str, Any] | None = None
    ) -> UpdateRecord:
        """Record an update that failed its checks: HEAD stays, and the documents are kept, rejected with the reason, one attempt more."""
        with self.transaction():
            record = self._insert(kind, documents, self.head(), None, "rejected", certificate)
            queued = [key for key in record.documents if self.document(key).status not in ("committed", "forgotten")]
            for key in queued:
                statement = "UPDATE documents SET status = 'rejected', reason = ?, attempts = attempts + 1, update_id = ? WHERE id = ?"
                self._connection.execute(statement, (reason, record.id, key))
                self.log_event("rejected", key, {"update": record.id, "reason": reason})
            self.log_event("rejected", record.id, {"reason": reason, "documents": len(record.documents)})
        return record

    def forget_document(
        self,
        document: str,
        before: str | None,
        after: str | None,
        certificate: Mapping[str, Any] | None = None,
        drop_checkpoints: bool = False,
    ) -> UpdateRecord:
        """Commit a forget update whose state `after` no longer holds the document, and remove all that the ledger has of it.

        Goes with it: chunks, probes, study set, text, title, source and signature, and the name and source that the inbox has. States of
        the history since the document was first learned expire: the next `store.collect(referenced_digests())` removes them and their
        adapters, so nothing can return to them.
        `FORGETTING` says so until whoever collects clears it.
        A checkpoint of such a state is a `Conflict`, unless it is an automatic one or `drop_checkpoints` removes it too. The document's
        id stays.
        """
        key = self.document(document).id
        with self.transaction():
            if after is not None and key in self.state(after).documents():
                raise Conflict(f"the state after forgetting {key} still has an adapter that was learned from it")
            tainted = self._states_since(key) - {after}
            held = [checkpoint for checkpoint in self.list_checkpoints() if checkpoint.state in tainted]
            asked = [checkpoint.name for checkpoint in held if not checkpoint.automatic]
            if asked and not drop_checkpoints:
                raise Conflict(f"{key} is also in the checkpoints {', '.join(asked)}: delete them too with --drop-checkpoints, or keep it")
            for checkpoint in held:
                self.delete_checkpoint(checkpoint.name)
            self._connection.executemany("UPDATE updates SET expired = 1 WHERE after = ?", [(state,) for state in tainted])
            record = self.commit_update("forget", before, after, documents=[key], certificate=certificate, mark="forgotten")
            self.set_meta(FORGETTING, key)
            self._connection.execute(  # what arrived and became it: its content is gone since, its name and origin go now
                "UPDATE inbox SET name = '', source = '' WHERE EXISTS (SELECT 1 FROM json_each(inbox.documents) WHERE value = ?)", (key,)
            )
        if not self._connection.in_transaction:
            self._rows("PRAGMA wal_checkpoint(TRUNCATE)")  # the removed text leaves the write-ahead log as well
        return record

    def save_checkpoint(self, name: str, state: str | None = None) -> Checkpoint:
        """Name a stored state, by default the current one; a name in use moves."""
        check_name(name)
        wanted = state or self.head()
        if wanted is None:
            raise Conflict("nothing has been learned yet: there is no state to save")
        for digest in (wanted, *sorted(self.state(wanted).digests())):
            self._require(digest)
        checkpoint = Checkpoint(name, wanted, now())
        with self.transaction():
            values = (checkpoint.name, checkpoint.state, checkpoint.created_at)
            self._connection.execute("INSERT OR REPLACE INTO checkpoints(name, state, created_at) VALUES (?, ?, ?)", values)
            self.log_event("checkpoint", name, {"state": wanted})
        return checkpoint

    def save_automatic_checkpoint(self, after: int, kept: int) -> Checkpoint | None:
        """Name the current state by the number of its update, once there are `after` updates since the latest automatic checkpoint; of
        those the latest `kept` stay. All of it happens, or nothing."""
        with self.transaction():
            head = self.head_update()
            number = self.update(head).sequence if head else 0
            made = sorted((int(item.name.partition("-")[2]), item.name) for item in self.list_checkpoints() if item.automatic)
            if number < after + (made[-1][0] if made else 0):
                return None
            for _, name in made[: max(0, len(made) + 1 - kept)]:
                self.delete_checkpoint(name)
            return self.save_checkpoint(f"auto-{number:06d}")

    def load_checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint with this name. Looks it up only: `commit_update` with its state makes it current."""
        check_name(name)
        known = {checkpoint.name: checkpoint for checkpoint in self.list_checkpoints()}
        if name not in known:
            raise NotFound("checkpoint", name, known)
        return known[name]

    def list_checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, by name."""
        return [Checkpoint(*row) for row in self._rows("SELECT name, state, created_at FROM checkpoints ORDER BY name")]

    def delete_checkpoint(self, name: str) -> None:
        """Remove a name; what only it kept goes with the next garbage collection."""
        self.load_checkpoint(name)
        with self.transaction():
            self._connection.execute("DELETE FROM checkpoints WHERE name = ?", (name,))
            self.log_event("checkpoint deleted", name)

    def referenced_digests(self) -> set[str]:
        """Every object that is needed: texts, study sets, and the states of HEAD, checkpoints and unexpired history with all they name.

        Raises when HEAD or a checkpoint cannot be read: then nothing may be collected.
        """
        with self.transaction():
            needed = {row[0] for row in self._rows("SELECT blob FROM documents WHERE blob <> '' UNION SELECT digest FROM study")}
            current = {row[0] for row in self._rows("SELECT state FROM head WHERE state IS NOT NULL UNION SELECT state FROM checkpoints")}
            history = {row[0] for row in self._rows("SELECT after FROM updates WHERE after IS NOT NULL AND NOT expired")}
            for digest in current | history:
                if digest in current or digest in self.store:  # a quarantined state of the past protects nothing any more
                    needed |= {digest} | self.state(digest).digests()
        return needed

    def _insert(
        self,
        kind: UpdateKind,
        documents: Sequence[str],
        before: str | None,
        after: str | None,
        status: UpdateStatus,
        certificate: Mapping[str, Any] | None,
    ) -> UpdateRecord:
        """Add the row of an update and the documents that it is about."""
        if kind not in UPDATE_KINDS:
            raise ValueError(f"unknown kind of update {kind!r}; known: {', '.join(UPDATE_KINDS)}")
        keys = tuple(dict.fromkeys(self.document(key).id for key in documents))
        sequence = self._rows("SELECT coalesce(max(sequence), 0) + 1 FROM updates")[0][0]
        content = to_json([self.meta()["id"], sequence, kind, self.head_update(), before, after, keys])
        full = hashlib.sha256(content.encode()).hexdigest()
        length = next(n for n in range(8, 65) if not self._rows("SELECT 1 FROM updates WHERE id = ?", (f"u{full[:n]}",)))
        key = f"u{full[:length]}"
        self._connection.execute(
            """INSERT INTO updates(sequence, id, kind, parent, created_at, before, after, certificate, status)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (sequence, key, kind, self.head_update(), now(), before, after, to_json(certificate or {}), status),
        )
        rows = [(key, ordinal, document) for ordinal, document in enumerate(keys)]
        self._connection.executemany("INSERT INTO update_documents(update_id, ordinal, document) VALUES (?, ?, ?)", rows)
        return self.update(key)

    def _mark(self, update: str, documents: Collection[str], mark: DocumentStatus, reason: str) -> None:
        """Give documents the status that an update decided, removing what does not go with it."""
        for key in documents:
            self._connection.execute("UPDATE documents SET status = ?, reason = ?, update_id = ? WHERE id = ?", (mark, reason, update, key))
            if mark != "committed":
                self._remove_chunks(key)
            if mark == "forgotten":
                self._connection.execute("DELETE FROM probes WHERE document = ?", (key,))
                self._connection.execute("DELETE FROM study WHERE document = ?", (key,))
                self._connection.execute(
                    "UPDATE documents SET title = '', source = '', blob = '', signature = x'', chars = 0, tokens = 0 WHERE id = ?", (key,)
                )
                self._connection.execute("INSERT INTO chunks_fts(chunks_fts) VALUES ('optimize')")  # else deleted words stay in the index
            self.log_event(mark, key, {"update": update} | ({"reason": reason} if reason else {}))

    def _states_since(self, document: str) -> set[str]:
        """States made since the document was first learned (or learned anew after being forgotten), unless known from before."""
        ((first,),) = self._rows(
            """SELECT min(sequence) FROM updates JOIN update_documents ON update_id = id WHERE document = :key AND status <> 'rejected'
                AND sequence > (SELECT coalesce(max(sequence), 0) FROM updates JOIN update_documents ON update_id = id
                    WHERE document = :key AND kind = 'forget')""",
            {"key": document},
        )
        if first is None:
            return set()
        statement = """SELECT after FROM updates WHERE after IS NOT NULL AND sequence >= :first
            EXCEPT SELECT after FROM updates WHERE after IS NOT NULL AND sequence < :first"""
        return {state for (state,) in self._rows(statement, {"first": first})}

    def _record(self, row: Sequence[Any]) -> UpdateRecord:
        key, sequence, kind, parent, created_at, before, after, certificate, status, expired = row
        documents = self._rows("SELECT document FROM update_documents WHERE update_id = ? ORDER BY ordinal", (key,))
        names = tuple(document for (document,) in documents)
        return UpdateRecord(key, sequence, kind, parent, created_at, names, before, after, json.loads(certificate), status, bool(expired))
