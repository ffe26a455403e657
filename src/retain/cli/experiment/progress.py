"""Progress of experiments on standard error: one live line with rate and time left on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from retain.cli.output import count, duration, shorten

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.forgetting import Product
    from retain.evaluation.sequences import Learned, Step

EVERY = 10.0  # seconds between plain lines
NARROW = 26  # characters beside the bar, so that a line of 80 has room for the rest
OFTEN = 5.0  # seconds after which a finished task is worth a line of its own


class Watch:
    """`learned`, `step`, `product`, `cell` take what experiments tell. Silent with --json."""

    def __init__(self, here: Session, score: str = "accuracy", tasks: int = 0) -> None:
        self.here, self.score, self.tasks, self.prefix = here, score, tasks, ""
        self.stage, self.began, self.first = "", 0.0, 0  # what is going on, since when, from which count
        self.told = self.said = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Watch:
        if self.here.err.is_terminal and not self.here.json:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            columns = (SpinnerColumn(style="cyan"), TextColumn("{task.description}"), BarColumn(bar_width=8, complete_style="cyan"))
            self.bar = Progress(*columns, TextColumn("[dim]{task.fields[details]}"), console=self.here.err, transient=True)
            self.task = self.bar.add_task("", total=None, details="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def cell(self, name: str, number: int, cells: int) -> None:
        """A run of a study begins."""
        self.prefix = f"{number + 1}/{cells} {name}: "
        self.stage = ""

    def step(self, step: Step) -> None:
        """An optimizer step."""
        self._show("train", _who(step.method, step.seed, step.task), step.done, step.total, f"loss {step.loss:.3f}", "steps")

    def product(self, product: Product) -> None:
        """A Hessian-vector product."""
        found = product.found
        extra = f"{found.converged} of {found.wanted} converged, residual {found.residual:.0e}" if found else ""
        self._show(product.about, product.about, product.done, product.most, extra, "products", at_most=True)

    def learned(self, learned: Learned) -> None:
        """A task was learned: a line for the last task of a method, and for others where they take long."""
        now, last = time.monotonic(), len(learned.scores) == self.tasks
        if self.here.json or learned.again or not (last or now - self.said >= OFTEN):
            return
        self.said = now
        scores = " ".join(f"{score:.2f}" for score in learned.scores)
        mean = sum(learned.scores) / len(learned.scores)
        line = f"{self.prefix}{_who(learned.method, learned.seed, learned.task)} learned: {self.score} {scores}, mean {mean:.3f}"
        self.here.note(f"{line} ({learned.done}/{learned.total} tasks)", style="")

    def _show(self, stage: str, about: str, done: int, total: int, extra: str, unit: str, at_most: bool = False) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.first = stage, now, done - 1
            self.told = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        if self.here.json or (self.bar is None and now - self.told < EVERY):
            return
        self.told = now
        known = done - self.first > 1
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        left = f"{duration((total - done) / rate)} left" if known and done < total and not at_most else ""
        parts = [f"{done:,}/{total:,}" + (" at most" if at_most else ""), extra, f"{speed} {unit}/s" if known else "", left]
        details = ", ".join(part for part in parts if part)
        if self.bar is not None:
            text = shorten(self.prefix + about, NARROW).replace("[", "\\[")
            self.bar.update(self.task, description=text, completed=done, total=total, details=details)
        else:
            self.here.note(f"{self.prefix}{about}: {details}", style="")


def _who(method: str, seed: int, task: str) -> str:
    return f"{method}, seed {seed}, {task}"


def plan_lines(plan: Any, unit: str = "examples") -> list[tuple[str, str]]:
    """What an experiment would do, as names and values."""
    methods = ", ".join(f"{name} {steps:,}" for name, steps in plan.steps.items())
    tasks = "\n".join(f"{name}: {learned:,} {unit} to learn, {asked:,} to ask" for name, learned, asked in plan.tasks)
    return [
        ("tasks", tasks),
        ("optimizer steps", f"{methods} for each seed; {plan.total:,} for {count(plan.seeds, 'seed')} together"),
        ("trainable parameters", f"{plan.parameters:,} in one network or adapter"),
        ("examples", "\n".join(shorten(text, 300) for text in plan.examples)),
    ]
