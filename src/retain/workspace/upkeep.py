"""What a workspace that goes on learning needs now and then: a checkpoint, adapters joined, and the disk's room given back."""

from __future__ import annotations

import time
from collections.abc import Callable

from retain.workspace.continual import ContinualLM
from retain.workspace.errors import Locked
from retain.workspace.reports import Event

DAY = 86_400.0  # seconds after which the store is cleared up, when nothing waits to be learned
WEEK = 7 * DAY  # and whatever waits
CLEARED = "cleared_up"  # when that was, among the ledger's facts


class Upkeep:
    """Does what is due between two updates, so that nobody waits for it who waits for a document or for the right to write.

    ``tell`` hears of trouble, which is never raised: what was learned stays learned, and what failed is tried again after the next
    update (the store: after a day).
    """

    def __init__(self, lm: ContinualLM, tell: Callable[[Event], None]) -> None:
        self.lm, self._tell = lm, tell
        self._seen: str | None = ""  # the update after which everything was looked at
        self._cleared: float | None = None  # when the store was cleared up; None: the ledger knows

    def run(self, idle: bool) -> None:
        """Look at what is due, and do it; ``idle``: nothing waits to be learned. While somebody else writes, it waits for the next call."""
        try:
            head = self.lm.ledger.head_update()
            if head != self._seen:
                self._try("a checkpoint was not made", self._checkpoint)
                self._try("adapters were not consolidated", self.lm.consolidate_when_due)
                self._seen = head
            self._try("the store was not cleared up", lambda: self._clear_up(idle))
        except Locked:
            return

    def _try(self, failed: str, what: Callable[[], object]) -> None:
        try:
            what()
        except Locked:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._tell(Event("note", f"{failed}: {reason}"))

    def _checkpoint(self) -> None:
        settings = self.lm.config.serve
        if settings.checkpoint_after:
            made = self.lm.ledger.save_automatic_checkpoint(settings.checkpoint_after, settings.checkpoints_kept)
            if made is not None:
                self._tell(Event("note", f"{made.name} is a checkpoint of what is known now"))

    def _clear_up(self, idle: bool) -> None:
        """Once a day; the time is kept in the ledger, so that a start anew does not repeat it."""
        if self._cleared is None:
            self._cleared = float(self.lm.ledger.meta().get(CLEARED, 0.0))
        now = time.time()
        if now < self._cleared + (DAY if idle else WEEK):
            return
        self._cleared = now  # also when it fails
        try:
            gone = self.lm.collect()
        except Locked:
            self._cleared = None
            raise
        self.lm.ledger.set_meta(CLEARED, now)
        if gone:
            self._tell(Event("note", f"objects removed from the store, since nothing needs them any more: {gone}"))
