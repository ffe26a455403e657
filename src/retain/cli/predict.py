"""Answers from a trained model: predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session


@command(
    ("retain predict runs/news -i new.jsonl", "as JSON lines"),
    ("retain predict runs/news -i new.csv --out answers.jsonl", "to a file"),
    ("retain predict runs/news -i new.csv --task topic", "one task"),
    ("retain predict runs/news -i test.jsonl --measure", "by the labels"),
)
def predict(
    here: Session,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run of retain train.")],
    input: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="Records: .jsonl, .json, .csv, .tsv.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write JSON lines here.", dir_okay=False)] = None,
    task: Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only this task; again for more.")] = None,
    measure: Annotated[bool, flag("--measure", "Measure the answers by the labels in the file.")] = False,
) -> None:
    """Answer records with a trained model: its heads, labels, scales and thresholds are those of the training.

    Each answer is the record with `predictions`, one for each task. With --measure the records have labels, and the metrics are shown.
    """
    from retain.cli.progress import watching
    from retain.multitask import Predictor, read_rows
    from retain.workspace.reports import Event

    if measure and out is not None:
        raise CommandError("--measure shows metrics and --out writes answers: choose one")
    if out is not None and not out.expanduser().absolute().parent.is_dir():
        raise CommandError(f"--out {out}: there is no directory {out.parent}")
    with here.waiting("loading the model"):
        model = Predictor.load(run, here.config.model.device)
    if measure:
        show_metrics(here, {name: model.evaluate(input, name) for name in task or model.tasks})
        return

    def tell(done: int, records: int) -> None:
        if here.watcher is not None:
            here.watcher(Event("check", "answering", done, records))

    with watching(here):
        if out is not None:
            count = model.predict_file(input, out, task, tell)
        else:
            rows = read_rows(input.expanduser())
            answers = model.answers(rows, task, tell)
    if out is not None:
        if here.json:
            here.emit({"out": str(out), "records": count})
        else:
            here.note(f"{count:,} records answered in {out}")
        return
    made: list[dict[str, Any]] = [{**row.values, "predictions": answer} for row, answer in zip(rows, answers, strict=True)]
    if here.json:
        here.emit(made)
        return
    for record in made:
        print(json.dumps(record, ensure_ascii=False))


def show_metrics(here: Session, measured: dict[str, dict[str, float | None]]) -> None:
    """The metrics of each task."""
    if here.json:
        here.emit(measured)
        return
    from retain.cli.output import DASH, number, table

    rows = table("task", "metric", "value", right=("value",))
    for name, metrics in measured.items():
        for metric, value in metrics.items():
            rows.add_row(Text(name), Text(metric), DASH if number(value) is None else f"{value:.4g}")
            name = ""
    here.out.print(rows)
