"""Reports of experiments: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from retain.cli.command import command

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.report import Report

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write the page; RUN/report.html unless given.")]


@command(
    ("retain report runs/digits", "runs/digits/report.html"),
    ("retain report runs/digits --out page.html", "write it elsewhere"),
    ("retain report runs/digits --json", "the metrics for programs"),
)
def report(here: Session, run: RunDirectory, out: Out = None) -> None:
    """Write the report of an experiment: one HTML file with its figures and numbers beside it.

    It shows tables, figures, the exact configuration and where it ran, opens without a network, and works for a run that is not finished.
    """
    from retain.evaluation.report import write_report

    with here.waiting("drawing"):
        made = write_report(run, out)
    if here.json:
        here.emit(made)
        return
    from retain.cli.output import count, home

    here.out.print(Text.assemble(("✓ ", "green"), f"{home(made.html)}: {made.title}"), soft_wrap=True)
    if made.metrics:
        here.out.print(_table(made))
    beside = [home(made.csv), *([f"{count(len(made.plots), 'file')} in {home(made.plots[0].parent)}"] if made.plots else [])]
    here.note("beside it: " + ", ".join(beside))
    if not made.finished:
        here.note("the run is not finished: the report holds no results yet", "yellow")
    for warning in made.warnings:
        here.note(f"warning: {warning}", "yellow")


def _table(made: Report) -> object:
    """The metrics that a terminal has room for; the page has all of them."""
    from retain.cli.output import DASH, number, table

    shown = [name for name in ("average_accuracy", "learning_accuracy", "forgetting", "retention_area")
             if any(name in metrics for metrics in made.metrics.values())]  # fmt: skip
    heads = {"average_accuracy": "average", "learning_accuracy": "learned"}
    columns = [heads.get(name, name.replace("_", " ")) for name in shown]
    rows = table("method", "seeds", *columns, right=("seeds", *columns))
    for method, metrics in made.metrics.items():
        values = [number(metrics.get(name)) for name in shown]
        rows.add_row(Text(method), str(metrics["seeds"]), *(DASH if value is None else f"{value:.3f}" for value in values))
    return rows
