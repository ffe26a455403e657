"""What arrived and is not learned yet: a durable queue with leases, in the ledger's file.

An arrival is acknowledged when it is committed, once for each content: what is sent again is found, not stored twice. Whoever learns
takes the most important ones on a lease; what is taken and not finished in time, because its holder died, is there again for the next.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, get_args

from retain.workspace.database import Database, now
from retain.workspace.errors import Conflict, NotFound, WorkspaceError

ArrivalStatus = Literal["pending", "learning", "done", "failed", "held"]
STATUSES: tuple[ArrivalStatus, ...] = get_args(ArrivalStatus)
MOST_ATTEMPTS = 3
GATHERED = 2000  # arrivals in one commit
_RECORD = "id, kind, name, source, domain, importance, status, reason, attempts, documents, received_at"

_NEW = """INSERT INTO inbox(kind, name, source, domain, importance, body, received_at, id, status)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending')"""
_AGAIN = """UPDATE inbox SET kind = ?, name = ?, source = ?, domain = ?, importance = ?, body = ?, received_at = ?, status = 'pending',
    reason = '', attempts = 0, not_before = 0, released = 0, documents = '[]' WHERE id = ?"""
Receipts = list[tuple[str, bool]]


class QueueFull(WorkspaceError):
    """As many arrivals are waiting as may wait, of all or (``source``) of one source; nothing of what was sent was stored."""

    def __init__(self, source: str | None = None) -> None:
        whose = "" if source is None else f" of the source {source[:80]!r}" if source else " without a source"
        super().__init__(f"too many documents{whose} are waiting to be learned already: send this again later")


@dataclass(frozen=True)
class Arrival:
    """Something to be learned, as it came: ``kind`` text (UTF-8), file (the bytes of a file; ``name`` ends as its format does) or url
    (an address). ``source`` is where it came from, ``importance`` 0 to 1."""

    body: bytes
    kind: Literal["text", "file", "url"] = "text"
    name: str = ""
    source: str = ""
    domain: str = "general"
    importance: float = 0.5

    @property
    def id(self) -> str:
        """From the content alone: what is sent twice is one arrival. Files that are read differently differ."""
        ending = self.name.rpartition(".")[2].lower() if self.kind == "file" else ""
        return "a" + hashlib.sha256(f"{self.kind}\0{ending}\0".encode() + self.body).hexdigest()[:24]


@dataclass(frozen=True)
class ArrivalRecord:
    """An arrival as the ledger knows it, without its content. ``documents``: those that it became."""

    id: str
    kind: str
    name: str
    source: str
    domain: str
    importance: float
    status: ArrivalStatus
    reason: str
    attempts: int
    documents: tuple[str, ...]
    received_at: str


@dataclass(frozen=True)
class Leased:
    """An arrival that is being learned by the holder of the lease. ``released``: it was held, and somebody looked at it."""

    id: str
    arrival: Arrival
    attempts: int
    released: bool = False


class Inbox(Database):
    """The part of the ledger that knows arrivals."""

    def receive(self, arrivals: Sequence[Arrival], room: int | None = None, source_depth: int | None = None) -> list[tuple[str, bool]]:
        """Store arrivals durably, all in one commit; for each its id and whether it is new.

        One that failed, or whose documents were all forgotten, is new when it is sent again. Raises QueueFull, and stores none, when more
        of them are new than there is ``room`` for, or when more than ``source_depth`` of one of their sources would wait.
        """
        taken: list[tuple[str, bool]] = []
        with self.transaction():
            for arrival in arrivals:
                key = arrival.id
                known = self._rows("SELECT status, documents FROM inbox WHERE id = ?", (key,))
                again = bool(known) and (known[0][0] == "failed" or (known[0][0] == "done" and self._all_forgotten(known[0][1])))
                taken.append((key, again or not known))
                if known and not again:
                    continue
                values = (arrival.kind, arrival.name, arrival.source, arrival.domain, arrival.importance, arrival.body, now(), key)
                self._connection.execute(_AGAIN if known else _NEW, values)
            if room is not None and sum(new for _, new in taken) > room:
                raise QueueFull
            fresh = {arrival.source for arrival, (_, new) in zip(arrivals, taken, strict=True) if new and source_depth is not None}
            for source in sorted(fresh):
                if (
                    self._rows("SELECT count(*) FROM inbox WHERE source = ? AND status IN ('pending', 'learning')", (source,))[0][0]
                    > source_depth
                ):
                    raise QueueFull(source)
        return taken

    def waiting(self) -> int:
        """Arrivals that are not learned yet and not given up."""
        return int(self._rows("SELECT count(*) FROM inbox WHERE status IN ('pending', 'learning')")[0][0])

    def waiting_by_source(self, limit: int = 20) -> dict[str, int]:
        """The sources of which most arrivals wait, with their number."""
        statement = """SELECT source, count(*) AS number FROM inbox WHERE status IN ('pending', 'learning') GROUP BY source
            ORDER BY number DESC, source LIMIT ?"""
        return dict(self._rows(statement, (limit,)))

    def arrival_counts(self) -> dict[str, int]:
        """How many arrivals have each status."""
        return dict(self._rows("SELECT status, count(*) FROM inbox GROUP BY status"))

    def arrival(self, key: str) -> ArrivalRecord:
        """One arrival by its id. Raises NotFound."""
        rows = self._rows(f"SELECT {_RECORD} FROM inbox WHERE id = ?", (key,))
        if not rows:
            raise NotFound("arrival", key)
        return _record(rows[0])

    def arrivals(
        self, status: ArrivalStatus | None = None, limit: int = 100, *, after: str | None = None, ids: Sequence[str] | None = None
    ) -> list[ArrivalRecord]:
        """The latest arrivals, newest first: all or those with one status, those that came before the one with the id ``after``, those
        with these ids. Raises NotFound when there is none with the id ``after``."""
        where: dict[str, Any] = {
            "status = ?": status,
            "id IN (SELECT value FROM json_each(?))": None if ids is None else json.dumps(list(ids)),
        }
        if after is not None:
            self.arrival(after)
            where["sequence < (SELECT sequence FROM inbox WHERE id = ?)"] = after
        given = {text: value for text, value in where.items() if value is not None}
        statement = f"SELECT {_RECORD} FROM inbox WHERE {' AND '.join(given) or 'TRUE'} ORDER BY sequence DESC LIMIT ?"
        return [_record(row) for row in self._rows(statement, (*given.values(), limit))]

    def lease(self, owner: str, seconds: float, limit: int = 1) -> list[Leased]:
        """Take the most important arrivals that may be tried now, of equal ones the oldest, for so many seconds."""
        moment = time.time()
        with self.transaction():
            self._end_leases("leased_until < ?", (moment,), "its learning was interrupted")
            rows = self._rows(
                """SELECT id, kind, name, source, domain, importance, body, attempts, released FROM inbox INDEXED BY inbox_by_turn
                WHERE status = 'pending' AND not_before <= ? ORDER BY importance DESC, sequence LIMIT ?""",
                (moment, limit),
            )
            self._connection.executemany(
                "UPDATE inbox SET status = 'learning', owner = ?, leased_until = ? WHERE id = ?",
                [(owner, moment + seconds, row[0]) for row in rows],
            )
        return [
            Leased(key, Arrival(body, kind, name, source, domain, importance), attempts, bool(released))
            for key, kind, name, source, domain, importance, body, attempts, released in rows
        ]

    def owners(self) -> list[str]:
        """Who holds leases."""
        return [row[0] for row in self._rows("SELECT DISTINCT owner FROM inbox WHERE status = 'learning'")]

    def end_leases(self, owner: str) -> None:
        """End the leases of an owner that is dead."""
        with self.transaction():
            self._end_leases("owner = ?", (owner,), "its learning was interrupted")

    def _end_leases(self, which: str, values: tuple[Any, ...], why: str) -> None:
        for key, attempts in self._rows(f"SELECT id, attempts FROM inbox WHERE status = 'learning' AND {which}", values):
            self._again(key, attempts + 1, why, 0.0)

    def extend(self, key: str, owner: str, seconds: float) -> None:
        """Hold an arrival for longer. Raises Conflict when the lease has ended and somebody else took it."""
        self._change(key, owner, "leased_until = ?", (time.time() + seconds,))

    def finish(self, key: str, owner: str, documents: Sequence[str], reason: str = "") -> None:
        """What arrived became these documents (or none, for a reason): its content is erased here. Raises Conflict, see :meth:`extend`."""
        with self.transaction():
            self._change(key, owner, "status = 'done', body = x'', documents = ?, reason = ?", (json.dumps(list(documents)), reason))
            if self._all_forgotten(json.dumps(list(documents))):  # by somebody who was faster
                self._connection.execute("UPDATE inbox SET name = '', source = '' WHERE id = ?", (key,))
            self.log_event("done", key, {"documents": list(documents)})

    def fail(self, key: str, owner: str, reason: str) -> None:
        """It cannot be learned, however often it is tried. Its content stays until it is dropped or sent again."""
        with self.transaction():
            self._change(key, owner, "status = 'failed', reason = ?, attempts = attempts + 1", (reason,))
            self.log_event("failed", key)

    def hold(self, key: str, owner: str, reason: str) -> None:
        """It waits for somebody to look at it."""
        with self.transaction():
            self._change(key, owner, "status = 'held', reason = ?", (reason,))
            self.log_event("held", key)

    def retry(self, key: str, owner: str, reason: str, delay: float) -> None:
        """It could not be learned this time: try again after ``delay`` seconds, or give up after ``MOST_ATTEMPTS``."""
        with self.transaction():
            self._change(key, owner, "reason = ?", (reason,))
            self._again(key, self.arrival(key).attempts + 1, reason, time.time() + delay)

    def give_back(self, key: str, owner: str, reason: str, delay: float) -> None:
        """It was not its fault (the disk is full, another process writes): try again after ``delay`` seconds; this was no attempt."""
        self._change(key, owner, "status = 'pending', reason = ?, not_before = ?", (reason, time.time() + delay))

    def release(self, key: str) -> None:
        """One that is held or failed may be learned; what was held is not checked again. Raises Conflict for any other."""
        with self.transaction():
            known = self.arrival(key)
            if known.status not in ("held", "failed"):
                raise Conflict(f"arrival {key} is {known.status}: only one that is held or failed can be released")
            statement = """UPDATE inbox SET released = status = 'held', status = 'pending', reason = '', attempts = 0, not_before = 0
                WHERE id = ?"""
            self._connection.execute(statement, (key,))

    def drop(self, key: str) -> None:
        """Take out an arrival with its content. Raises Conflict while it is being learned."""
        with self.transaction():
            if self.arrival(key).status == "learning":
                raise Conflict(f"arrival {key} is being learned: wait until it is done")
            self._connection.execute("DELETE FROM inbox WHERE id = ?", (key,))

    def _again(self, key: str, attempts: int, reason: str, not_before: float) -> None:
        status = "pending" if attempts < MOST_ATTEMPTS else "failed"
        why = reason if status == "pending" else f"given up after {attempts} attempts: {reason}"
        statement = "UPDATE inbox SET status = ?, attempts = ?, reason = ?, not_before = ?, owner = '' WHERE id = ?"
        self._connection.execute(statement, (status, attempts, why, not_before, key))
        self.log_event(status, key, {"attempts": attempts})

    def _change(self, key: str, owner: str, what: str, values: tuple[Any, ...]) -> None:
        with self.transaction():
            done = self._connection.execute(
                f"UPDATE inbox SET {what} WHERE id = ? AND owner = ? AND status = 'learning'", (*values, key, owner)
            )
            if done.rowcount != 1:
                raise Conflict(f"arrival {key} is not leased to {owner} (any more)")

    def _all_forgotten(self, documents: str) -> bool:
        keys = json.loads(documents)
        rows = self._rows(f"SELECT status FROM documents WHERE id IN ({', '.join('?' * len(keys))})", keys)
        return bool(keys) and all(row[0] == "forgotten" for row in rows)


def _record(row: tuple[Any, ...]) -> ArrivalRecord:
    values = dict(zip(_RECORD.split(", "), row, strict=True))
    return ArrivalRecord(**{**values, "documents": tuple(json.loads(values["documents"]))})


class GroupCommit:
    """Many threads hand in arrivals; those that come while a commit is being written share the next one.

    A commit waits for the disk, some milliseconds whatever is in it: alone that is a few hundred arrivals a second, together thousands.
    ``depth``: how many may wait to be learned; ``source_depth``: how many of one source.
    """

    def __init__(self, inbox: Inbox, depth: int = 100_000, source_depth: int | None = None) -> None:
        self.inbox, self.depth, self.source_depth = inbox, depth, source_depth
        self._handed: queue.SimpleQueue[tuple[Sequence[Arrival], Future[Receipts]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="group-commit", daemon=True)
        self._thread.start()

    def hand_in(self, arrivals: Sequence[Arrival]) -> Future[Receipts]:
        """Done when they are durable, with what :meth:`Inbox.receive` gives; or with QueueFull, when none of them was stored."""
        future: Future[Receipts] = Future()
        self._handed.put((arrivals, future))
        return future

    def close(self) -> None:
        """Write what was handed in, then stop."""
        self._handed.put(None)
        self._thread.join()

    def _write(self) -> None:
        ended = False
        while not ended and (first := self._handed.get()) is not None:
            gathered, size = [first], len(first[0])
            while size < GATHERED and not ended:
                try:
                    item = self._handed.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                else:
                    gathered.append(item)
                    size += len(item[0])
            self._commit(gathered)

    def _commit(self, gathered: Sequence[tuple[Sequence[Arrival], Future[Receipts]]]) -> None:
        """One transaction. A group for which there is no room is left out, the others are stored."""
        results: list[Receipts | QueueFull] = []
        try:
            with self.inbox.transaction():
                room = self.depth - self.inbox.waiting()
                for arrivals, _ in gathered:
                    try:
                        receipts = self.inbox.receive(arrivals, room, self.source_depth)
                    except QueueFull as full:
                        results.append(full)
                    else:
                        results.append(receipts)
                        room -= sum(new for _, new in receipts)
        except BaseException as error:  # also DurabilityLost: nobody waits for ever
            for _, future in gathered:
                future.set_exception(error)
            return
        for (_, future), result in zip(gathered, results, strict=True):
            if isinstance(result, QueueFull):
                future.set_exception(result)
            else:
                future.set_result(result)
