"""Consolidation: when to refresh what protects old knowledge, and the refreshing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """Due after ``documents`` documents (a volume), after ``updates`` updates (a count), whichever comes first; 0 switches one off."""

    documents: int = 8
    updates: int = 0

    def __post_init__(self) -> None:
        if self.documents < 0 or self.updates < 0:
            raise ValueError("a consolidation schedule counts from 0 (never)")

    def due(self, updates_since: int, documents_since: int) -> bool:
        """Whether it is time, by what has been learned since the last consolidation."""
        by_updates = 0 < self.updates <= updates_since
        return by_updates or 0 < self.documents <= documents_since


@dataclass
class Consolidation:
    """Runs the given refreshes on schedule: learning and consolidating take turns (Progress & Compress, 1805.06370, section 2.1).

    ``refreshes``: name -> what to call, in order: EWC's (``ewc.refresh(objective, replayed, params)``: Fisher information and anchor
    anew), replay's (``replay.refresh``: the rubric's losses anew), DER++'s (stored logits anew), the merging of adapters. Each is
    called once per consolidation. When one raises, the counters stay, so that the next update tries again.
    """

    schedule: Schedule
    refreshes: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    updates_since: int = 0
    documents_since: int = 0
    runs: int = 0

    def record(self, documents: int = 1) -> bool:
        """Count one update with so many documents; returns whether consolidation is due now."""
        self.updates_since += 1
        self.documents_since += documents
        return self.due

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self.schedule.due(self.updates_since, self.documents_since)

    def run(self) -> dict[str, float]:
        """Call every refresh, whether due or not; returns the seconds that each took."""
        seconds: dict[str, float] = {}
        for name, refresh in self.refreshes.items():
            started = time.perf_counter()
            refresh()
            seconds[name] = time.perf_counter() - started
        self.updates_since = self.documents_since = 0
        self.runs += 1
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"updates_since": self.updates_since, "documents_since": self.documents_since, "runs": self.runs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.updates_since, self.documents_since = int(state["updates_since"]), int(state["documents_since"])
        self.runs = int(state["runs"])
