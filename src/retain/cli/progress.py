"""Progress on standard error: bars on a terminal, lines elsewhere, nothing but notes when standard output is for programs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from retain.cli.output import amount, duration, number, shorten

if TYPE_CHECKING:
    from retain.cli.session import Session

STAGES = {"read": "reading", "study": "preparing", "train": "training", "check": "checking", "commit": "committing"}
SENTENCES = ("study", "check", "commit")  # their messages are sentences that need no word before them
LINE_EVERY = 10.0  # seconds between two lines about the same stage
MESSAGE = 48  # characters of a message beside a bar


@contextlib.contextmanager
def watching(here: Session) -> Iterator[None]:
    """Show the events of the opened workspace while the block runs."""
    watcher: Bars | Lines | Notes = Notes(here) if here.json else Bars(here) if here.err.is_terminal else Lines(here)
    here.watcher = watcher
    try:
        with watcher:
            yield
    finally:
        here.watcher = None


class Notes:
    """Notes only."""

    def __init__(self, here: Session) -> None:
        self.here = here

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Any) -> None:
        """Take an event."""
        if event.kind == "note" and event.message:
            self.here.note(event.message)


class Lines(Notes):
    """A line when a stage begins or ends, and every ten seconds in between."""

    def __init__(self, here: Session) -> None:
        super().__init__(here)
        self.stage: tuple[str, str] | None = None
        self.began = self.told = 0.0

    def __call__(self, event: Any) -> None:
        """Take an event."""
        if event.kind == "note":
            super().__call__(event)
            return
        now, stage = time.monotonic(), (event.kind, event.message or "")
        fresh = stage != self.stage
        finished = bool(event.total) and event.done == event.total
        if fresh:
            self.stage, self.began = stage, now
        if fresh or finished or now - self.told >= LINE_EVERY:
            self.told = now
            self.here.note(self._line(event, now), style="")

    def _line(self, event: Any, now: float) -> str:
        parts = [f"{event.done}/{event.total}"] if event.total else []
        parts += details(event.fields)
        if event.total and event.done and event.done < event.total:
            parts.append(f"{duration((now - self.began) / event.done * (event.total - event.done))} left")
        return ": ".join(part for part in (label(event), event.message or "", ", ".join(parts)) if part)


class Bars(Notes):
    """One live line with a bar; what was committed stays above it."""

    def __init__(self, here: Session) -> None:
        super().__init__(here)
        self.progress = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("[bold]{task.fields[stage]}"),
            TextColumn("{task.fields[about]}"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green", pulse_style="cyan"),
            TextColumn("{task.fields[count]}"),
            TextColumn("[dim]{task.fields[details]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=here.err,
            transient=True,
        )
        self.task = self.progress.add_task("", total=None, stage="opening", about="", count="", details="")
        self.stage: tuple[str, str] | None = None

    def __enter__(self) -> None:
        self.progress.start()

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Any) -> None:
        """Take an event."""
        if event.kind == "note":
            super().__call__(event)  # the live display makes room above itself
            return
        stage = (event.kind, event.message or "")
        if stage != self.stage:
            self.stage = stage
            self.progress.reset(self.task, total=event.total or None)
        if event.kind == "commit" and event.message:
            self.here.err.print(Text.assemble(("✓ ", "green"), event.message))
        self.progress.update(
            self.task,
            completed=event.done or 0,
            total=event.total or None,
            stage=label(event),
            about=_plain(shorten(event.message or "", MESSAGE)),
            count=f"{event.done}/{event.total}" if event.total else "",
            details=_plain("  ".join(details(event.fields))),
        )


def label(event: Any) -> str:
    """The word for a stage; empty where the message says it."""
    return "" if event.kind in SENTENCES and event.message else STAGES.get(event.kind, event.kind)


def details(fields: Any) -> list[str]:
    """What an event tells beside its count: loss, speed, the attempt."""
    shown = []
    for name, value in (fields or {}).items():
        figure = number(value)
        if name == "loss" and figure is not None:
            shown.append(f"loss {figure:.3f}")
        elif name == "tokens_per_second" and figure is not None:
            shown.append(f"{amount(figure)} tokens/s")
        elif name in ("attempt", "epoch") and figure is not None and figure > 0:
            shown.append(f"{name} {figure:.0f}")
    return shown


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", "\\[")
