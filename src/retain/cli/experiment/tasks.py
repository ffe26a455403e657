"""`retain experiment sequence`: methods learn the same tasks one after another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.experiment.options import Data, DryRun, Epochs, Limit, Methods, Model, Out, Rate, Resume, Seeds, Set, Track

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retain.cli.session import Session

COLUMNS = {"average_accuracy": "average", "learning_accuracy": "learned", "forgetting": "forgetting", "intransigence": "intransigence"}


@command(
    ("retain experiment sequence permuted-digits --seeds 3", "handwritten digits"),
    ("retain experiment sequence split-digits --epochs 5", "with other settings"),
    ("retain experiment sequence tasks.yaml", "tasks of your own"),
    ("retain experiment sequence tasks.yaml --dry-run", "what it would do"),
    ("retain experiment sequence tasks.yaml --resume", "after an interruption"),
)
def sequence(
    here: Session,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="permuted-digits, split-digits, or a YAML file.")],
    methods: Methods = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    model: Model = None,
    limit: Limit = None,
    data: Data = None,
    values: Set = None,
    out: Out = None,
    resume: Resume = False,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Learn a sequence of tasks by several methods, and measure what each keeps of the tasks before.

    Methods: naive, ewc, l2, replay (er), der++, agem, ogd, kl (with er: er+kl), o-lora, packnet, progressive, joint.

    The run's directory holds configuration, events, checkpoints and results; `retain report` draws it.
    """
    from retain.cli.experiment.options import load, place_of, resumable, settings, writers_of
    from retain.cli.experiment.progress import Watch
    from retain.evaluation.runs import Run
    from retain.evaluation.sequences import load_config, make_sequence, plan_sequence, run_sequence

    shortcuts = {"methods": methods, "seeds": seeds, "training.epochs": epochs, "training.learning_rate": learning_rate, "model": model}
    config = load_config(stream, settings(values, {**shortcuts, "limit": limit, "data": data}))
    language = load(here, config.model, config.precision) if config.tasks else None
    plan = plan_sequence(config, make_sequence(config, 0, language))
    if dry_run:
        show_plan(here, plan)
        return
    recorded = config.model_dump(mode="json")
    place = place_of(config.stream, out, resume, recorded)
    watch = Watch(here, plan.score, len(plan.tasks))
    with (
        Run.create(place, recorded, resume=resume, seeds=range(config.seeds), writers=writers_of(track, place)) as run,
        resumable(here, place),
        watch,
    ):
        results = run_sequence(config, run, language, watch.learned, watch.step)
    if here.json:
        here.emit({"run": str(place), **results})
        return
    here.out.print(summary_table(results))
    told = [name for name, found in results["methods"].items() if any(row["knows_task"] for row in found["seeds"].values())]
    if told:
        here.note(f"{', '.join(told)}: told which task a question belongs to; the others are not")
    finish(here, results, place)


def show_plan(here: Session, plan: Any) -> None:
    """What an experiment would do."""
    if here.json:
        here.emit(plan)
        return
    from retain.cli.experiment.progress import plan_lines
    from retain.cli.output import facts

    here.out.print(facts([(name, Text(text)) for name, text in plan_lines(plan)]))
    for warning in plan.warnings:
        here.note(f"warning: {warning}", "yellow")


def summary_table(results: Mapping[str, Any]) -> Any:
    """The metrics that a terminal has room for: mean over seeds and half of the 95 % interval."""
    from retain.cli.output import number, table

    keys = [key for key in COLUMNS if any(number(found["summary"][key]["mean"]) is not None for found in results["methods"].values())]
    heads = [COLUMNS[key] for key in keys]
    costs = ["steps", "seconds"]
    rows = table("method", "seeds", *heads, *costs, right=("seeds", *heads, *costs))
    for name, found in results["methods"].items():
        records = list(found["seeds"].values())
        means = [sum(record[key] for record in records) / len(records) for key in costs]
        rows.add_row(name, str(len(records)), *(mean_of(found["summary"][key]) for key in keys), f"{means[0]:,.0f}", f"{means[1]:.1f}")
    return rows


def mean_of(summary: Mapping[str, Any]) -> str:
    """A mean with half of its interval, where it has one."""
    from retain.cli.output import DASH, number

    mean, low, high = (number(summary[key]) for key in ("mean", "low", "high"))
    if mean is None:
        return DASH
    text = f"{mean + 0.0:.3f}"
    return text if low is None or high is None else f"{text} ± {(high - low) / 2:.3f}"


def finish(here: Session, results: Mapping[str, Any], place: Path) -> None:
    """Warnings, where the run is, and what to do with it."""
    from retain.cli.output import home

    for warning in results["warnings"]:
        here.note(f"warning: {warning}", "yellow")
    here.note(f"the run is in {home(place)}; retain report {home(place)} draws it")
