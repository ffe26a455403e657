"""Training of a model on tasks from a YAML file: train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.errors import CommandError
from retain.cli.experiment.options import DryRun, Out, Resume, Set, Track

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.runs import Run
    from retain.multitask import Plan

RECORDED = 200  # steps of a phase that are written to the events of its run


@command(
    ("retain train news.yaml", "into a new run"),
    ("retain train news.yaml --dry-run", "check everything"),
    ("retain train news.yaml --set training.epochs=3", "another setting"),
    ("retain train news.yaml --resume", "after an interruption"),
)
def train(
    here: Session,
    file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="YAML file with a backbone and tasks.")],
    values: Set = None,
    out: Out = None,
    resume: Resume = False,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Train a model on one or many tasks: classification, named entities, numbers, anomalies.

    Records are checked before anything is learned. The best step by the chosen metric is kept; `retain predict` answers with it.
    """
    from retain.cli.experiment.options import place_of, resumable, settings, writers_of
    from retain.cli.kinds import meant_for
    from retain.cli.progress import watching
    from retain.evaluation.runs import Run
    from retain.multitask import assemble, load_experiment, plan_experiment
    from retain.multitask import train as learn

    with meant_for("train", file):
        config = load_experiment(file, settings(values, {}))
    with here.waiting("reading records and loading the backbone"):
        experiment = assemble(config)
    if dry_run:
        with here.waiting("trying a step of every task"):
            plan = plan_experiment(experiment)
        show_plan(here, plan)
        return
    recorded = config.recorded()
    place = place_of(config.name, out, resume, recorded)
    with (
        Run.create(place, recorded, resume=resume, seeds=[config.seed], writers=writers_of(track, place)) as run,
        resumable(here, place),
    ):
        if run.results is not None:
            raise CommandError(f"{place}: this run is finished: retain predict {place} answers with it")
        with watching(here):
            results = learn(experiment, place, resume=resume, tell=listener(here, run))
        run.complete(results)
    if here.json:
        here.emit({"run": str(place), **results})
        return
    from retain.cli.output import amount, duration, home

    here.out.print(results_table(results))
    numbers = results["parameters"]
    trained = f"{amount(numbers['trained'])} of {amount(numbers['all'])} parameters trained in {duration(results['seconds'])}"
    here.note(f"{trained}; the best step was {results['best_step']:,}, by {results['chosen_by']} on the validation records")
    here.note(f"the model is in {home(place)}; retain predict {home(place)} --input FILE answers with it")


def listener(here: Session, run: Run) -> Callable[[str, Mapping[str, Any]], None]:
    """What training tells: to the events of the run, to the progress bar, and as lines."""
    from retain.workspace.reports import Event

    smooth: dict[str, float] = {}

    def tell(event: str, fields: Mapping[str, Any]) -> None:
        if event == "note":
            run.warn(fields["message"])
            here.note(fields["message"], "yellow")
            return
        if event == "step":
            for name, loss in fields["losses"].items():
                smooth[name] = loss if name not in smooth else 0.9 * smooth[name] + 0.1 * loss
            if here.watcher is not None:
                shown = {"loss": sum(smooth.values()) / len(smooth)}
                here.watcher(Event("train", f"phase {fields['phase'] + 1}", fields["step"], fields["steps"], shown))
            if fields["step"] % max(1, fields["steps"] // RECORDED):
                return
        elif event == "evaluation" and not here.json:
            here.note(evaluation_line(fields), style="")
        run.event(event, **fields)

    return tell


def evaluation_line(fields: Mapping[str, Any]) -> str:
    """One evaluation: the value that decides, and each task's loss."""
    losses = ", ".join(f"{name} {metrics['loss']:.3f}" for name, metrics in fields["metrics"].items())
    return f"step {fields['step']:,}: {fields['chosen_by']} {fields['value']:.4f}; validation loss {losses}"


def results_table(results: Mapping[str, Any]) -> Any:
    """Every metric of every task: before training, and at the best step."""
    from retain.cli.output import DASH, number, table

    splits = ["before", "validation", *(["test"] if any(task["test"] for task in results["tasks"].values()) else [])]
    rows = table("task", "metric", *splits, right=splits)
    for name, task in results["tasks"].items():
        for metric in task["validation"]:
            cells = [number((task[split] or {}).get(metric)) for split in splits]
            style = "bold" if metric == task["main"] else ""
            rows.add_row(Text(name), Text(metric, style=style), *(DASH if value is None else f"{value:.4g}" for value in cells))
            name = ""
    return rows


def show_plan(here: Session, plan: Plan) -> None:
    """What a training would do."""
    if here.json:
        here.emit(plan)
        return
    from retain.cli.output import data_size, duration, facts, shorten, table

    rows = table(
        "task",
        "kind",
        "train",
        "validation",
        "test",
        "batches",
        "labels of the training records",
        right=("train", "validation", "test", "batches"),
    )
    for task in plan.tasks:
        counts = ", ".join(f"{label} {count:,}" for label, count in task.counts.items())
        sizes = [f"{task.rows[split]:,}" for split in ("train", "validation", "test")]
        rows.add_row(Text(task.name), task.kind, *sizes, f"{task.batches:,}", Text(shorten(counts, 200)))
    here.out.print(rows)
    for task in plan.tasks:
        here.out.print(
            facts([(f"{task.name} {number + 1}", Text(f"{text} → {label}")) for number, (text, label) in enumerate(task.samples)])
        )
    phases = (
        "" if len(plan.phases) == 1 else f" in {len(plan.phases)} phases: " + ", then ".join(" + ".join(group) for group in plan.phases)
    )
    where = f"{plan.device} in {plan.precision}"
    here.out.print(
        facts([
            ("steps", f"{plan.steps:,}{phases}"),
            ("trained", f"{plan.trained:,} of {plan.parameters:,} parameters"),
            ("memory", f"about {data_size(plan.memory)} for weights, optimizer and the largest batch"),
            ("time", f"about {duration(plan.seconds)} on {where}"),
        ])
    )  # fmt: skip
    for note in plan.notes:
        here.note(note, "yellow")
    here.note("dry run: nothing was learned")
