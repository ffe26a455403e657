"""The learner behind a service: takes what arrived, reads it, learns it, and says what became of it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from retain.data.document import Document
from retain.data.errors import DataError
from retain.data.fetch import Fetched, Unreachable, fetch
from retain.data.readers.isolated import read_isolated
from retain.learners.base import LearnerError
from retain.learners.checks import check_ready
from retain.learners.teacher import TeacherError
from retain.training.loop import TrainingError
from retain.workspace.continual import ContinualLM
from retain.workspace.errors import Conflict, DiskFull, Locked, WorkspaceError
from retain.workspace.inbox import Arrival, Leased
from retain.workspace.reports import Event
from retain.workspace.suspicion import suspicion
from retain.workspace.upkeep import Upkeep

LEASE = 120.0  # seconds that a lease lasts unless it is held on to
WAIT = 30.0  # seconds before the first try again; twice as many before the next
BUSY = 2.0  # seconds before another look while somebody else writes
FULL = 60.0  # and while the disk is full


class Worker:
    """Learns a workspace's arrivals one after another. Each is finished, tried again later, or given up with its reason; when the process
    dies, the next worker finds it again, and what was committed already is known and not learned twice. Between two of them it does what
    is due (:class:`Upkeep`).

    ``tell``: hears what happens, besides the workspace's own progress; ``fetcher``: gets what is at a web address, where serve.fetch
    allows that at all.
    """

    def __init__(
        self, lm: ContinualLM, tell: Callable[[Event], None] | None = None, fetcher: Callable[[str], Fetched] | None = None
    ) -> None:
        self.lm, self.owner = lm, f"{socket.gethostname()}:{os.getpid()}"
        self._tell = tell or (lambda event: None)
        self._upkeep = Upkeep(lm, self._tell)
        self._ready = False  # whether the base and the settings were looked at
        self._fetch = fetcher or (lambda url: fetch(url, largest=int(lm.config.serve.body_megabytes * 2**20)))

    def run(self, stop: threading.Event, idle: float = 1.0) -> None:
        """Learn until ``stop`` is set, looking for arrivals every ``idle`` seconds."""
        while not stop.is_set():
            self._bury()
            if not self.once():
                stop.wait(idle)

    def _bury(self) -> None:
        """What a worker of this machine held when it died is there again at once, not only when its lease ends."""
        host = self.owner.rpartition(":")[0]
        for owner in self.lm.ledger.owners():
            where, _, pid = owner.rpartition(":")
            if where == host and not _alive(int(pid)):
                self.lm.ledger.end_leases(owner)

    def once(self) -> bool:
        """Take one arrival and learn it, then do what is due; False when there is none that may be tried now.

        What is wrong with an arrival is kept with it. Any other error is raised, for the process to start anew: with an attempt counted,
        or one arrival could do it for ever; without, where the base or the settings allow no learning or the workspace itself is in
        trouble.
        """
        if not self._ready and self.lm.ledger.waiting():
            check_ready(self.lm.model, self.lm.config)  # before the lease: what keeps every arrival from being learned is no one's fault
            self._ready = True
        leased = self.lm.ledger.lease(self.owner, LEASE)
        for one in leased:
            self._take(one)
        self._upkeep.run(idle=not leased)
        return bool(leased)

    def _take(self, one: Leased) -> None:
        ledger = self.lm.ledger
        try:
            with self._holding(one):
                self._learn(one)
        except DataError as error:
            ledger.fail(one.id, self.owner, str(error))
            what = str(error) if error.path else f"{one.arrival.name or one.id}: {error}"
            self._tell(Event("note", f"cannot be learned: {what}"))
        except (TrainingError, LearnerError, TeacherError, MemoryError, Unreachable) as error:
            self._retry(one, error)
        except (Locked, DiskFull) as error:
            ledger.give_back(one.id, self.owner, str(error), FULL if isinstance(error, DiskFull) else BUSY)
            self._tell(Event("note", str(error)))
        except Conflict as error:  # the lease was lost: somebody else has it
            self._tell(Event("note", str(error)))
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, WorkspaceError):
                self._retry(one, error)
            else:
                ledger.give_back(one.id, self.owner, "interrupted", 0.0)
            raise

    def _retry(self, one: Leased, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        self.lm.ledger.retry(one.id, self.owner, reason, WAIT * 2**one.attempts)
        self._tell(Event("note", f"{one.arrival.name or one.id} was not learned this time: {reason}"))

    def _learn(self, one: Leased) -> None:
        documents = self._read(one.arrival)
        if self.lm.config.serve.hold_suspects and not one.released:
            reason = suspicion(documents, self.lm.ledger.known_probes())
            if reason:
                self.lm.ledger.hold(one.id, self.owner, reason)
                return self._tell(Event("note", f"{one.arrival.name or one.id} waits for somebody to look at it: {reason}"))
        updates = self.lm.learn_all(documents, consolidate=False, since=self.lm.ledger.arrival(one.id).received_at)
        refused = [update.reason for update in updates if update.status == "rejected"]
        keys = list(dict.fromkeys(key for update in updates for key in update.documents))
        self.lm.ledger.finish(one.id, self.owner, keys, refused[0] if refused else "")

    def _read(self, arrival: Arrival) -> list[Document]:
        told = {"domain": arrival.domain, "importance": arrival.importance}
        if arrival.kind == "file":
            found = self._parsed(arrival.body, arrival.name, told)
            return [replace(document, source=arrival.source) for document in found] if arrival.source else found
        if arrival.kind == "url":
            if not self.lm.config.serve.fetch:
                raise DataError("web addresses are not fetched here", path=arrival.name, fix="retain config set serve.fetch true")
            got = self._fetch(arrival.body.decode())
            return [replace(document, source=got.url) for document in self._parsed(got.body, got.name, told)]
        text = arrival.body.decode("utf-8", "replace")
        return [Document.from_text(text, arrival.name or None, arrival.source or "sent", **told)]  # type: ignore[arg-type]

    def _parsed(self, body: bytes, name: str, told: dict[str, Any]) -> list[Document]:
        found = read_isolated(body, name, on_note=lambda note: self._tell(Event("note", str(note))), **told)
        if not found:
            raise DataError("there is nothing to learn in it", path=name)
        return found

    @contextmanager
    def _holding(self, one: Leased) -> Iterator[None]:
        """The lease lasts as long as the learning does."""
        done = threading.Event()

        def hold() -> None:
            while not done.wait(LEASE / 4):
                try:
                    self.lm.ledger.extend(one.id, self.owner, LEASE)
                except Conflict:
                    return

        thread = threading.Thread(target=hold, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
