"""`retain experiment forgetting`: what a second task costs the first, and what foretells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli.command import command, flag
from retain.cli.experiment.options import Data, DryRun, Epochs, Limit, Methods, Model, Out, Rate, Resume, Seeds, Set, Track

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.forgetting import ForgettingConfig

_EIGENVALUES = 6  # shown in a line


@command(
    ("retain experiment forgetting --task1 founders --task2 bridges", "they ship"),
    ("retain experiment forgetting --task1 a.jsonl --task2 b.jsonl", "two files"),
    ("retain experiment forgetting ... --preset lora-seft", "a larger one"),
    ("retain experiment forgetting ... --methods naive,er,ewc", "side by side"),
    ("retain experiment forgetting ... --set rank=8 --no-curvature", "settings"),
    ("retain experiment forgetting ... --study rank=4,16", "predictors"),
)
def forgetting(
    here: Session,
    task1: Annotated[str, typer.Option(help="First task: founders, bridges, a file of questions, or mmlu:SUBJECT.", metavar="A")],
    task2: Annotated[str, typer.Option(help="Second task.", metavar="B")],
    preset: Annotated[str, typer.Option(help="Settings to start from: lora-small, lora-seft.", metavar="NAME")] = "lora-small",
    methods: Methods = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapter.", metavar="N")] = None,
    learning_rate: Rate = None,
    model: Model = None,
    limit: Limit = None,
    data: Data = None,
    curvature: Annotated[
        bool | None, flag("--curvature/--no-curvature", "Eigenvalues, bound and path at the first task's solution (default: where small).")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option(help="Repeat with every combination; what foretells forgetting?", metavar="KEY=A,B")
    ] = None,
    values: Set = None,
    out: Out = None,
    resume: Resume = False,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune on one task, then on another: what the second costs the first.

    Score and loss of both tasks before, between and after; how far the parameters moved; the largest eigenvalues of the loss at the first
    task's solution, the bound g·dw + ½ λ ‖dw‖² with its terms, the second-order prediction, the loss along the way.

    lora-small: rank 16 on q, k, v, o, batch 16, 3 epochs, 2e-4. lora-seft: rank 64 on all seven, batch 8 x 2, 10 epochs, 3e-4.
    """
    from retain.cli.experiment.options import load, place_of, resumable, settings, writers_of
    from retain.cli.experiment.progress import Watch
    from retain.cli.experiment.tasks import finish, show_plan
    from retain.evaluation.forgetting import load_forgetting, run_forgetting, run_study
    from retain.evaluation.runs import Run
    from retain.evaluation.sequences import make_sequence, plan_sequence

    shortcuts: dict[str, Any] = {
        "methods": methods, "seeds": seeds, "training.epochs": epochs, "rank": rank, "training.learning_rate": learning_rate,
        "model": model, "limit": limit, "data": data, "curvature.compute": None if curvature is None else ("no", "yes")[curvature],
    }  # fmt: skip
    given = settings(values, shortcuts)
    config = load_forgetting(task1, task2, preset, given)
    cells = _cells(task1, task2, preset, given, study or [])
    language = load(here, config.model, config.precision)
    plans = [plan_sequence(each, make_sequence(each, 0, language)) for _, each in cells] if cells else []
    plan = plan_sequence(config, make_sequence(config, 0, language))
    if dry_run:
        show_plan(here, plan)
        if cells and not here.json:
            here.note(f"{len(cells)} such runs with {', '.join(cells[0][0])}: {sum(each.total for each in plans):,} optimizer steps in all")
        return
    recorded = {**config.model_dump(mode="json"), **({"study": [dict(cell) for cell, _ in cells]} if cells else {})}
    place = place_of(f"forgetting-{plan.tasks[0][0]}-{plan.tasks[1][0]}{'-study' if cells else ''}", out, resume, recorded)
    watch = Watch(here, plan.score, len(plan.tasks))
    with (
        Run.create(place, recorded, resume=resume, seeds=range(config.seeds), writers=writers_of(track, place)) as run,
        resumable(here, place),
        watch,
    ):
        if cells:
            results = run_study(cells, run, language, watch.learned, watch.step, watch.product, watch.cell)
        else:
            results = run_forgetting(config, run, language, watch.learned, watch.step, watch.product)
    if here.json:
        here.emit({"run": str(place), **results})
        return
    if cells:
        here.out.print(study_table(results))
    else:
        show(here, results)
    finish(here, results, place)


def _cells(
    task1: str, task2: str, preset: str, given: Mapping[str, Any], study: Sequence[str]
) -> list[tuple[dict[str, Any], ForgettingConfig]]:
    """Every combination of a study with its configuration."""
    from retain.evaluation.forgetting import load_forgetting, study_cells, study_values

    if not study:
        return []
    names = {"learning_rate": "training.learning_rate", "learning-rate": "training.learning_rate", "epochs": "training.epochs"}
    values = {names.get(key, key): found for key, found in study_values(study).items()}
    cheap = {"curvature.top": 1}  # the bound needs the largest eigenvalue alone
    return [(cell, load_forgetting(task1, task2, preset, {**cheap, **given, **cell})) for cell in study_cells(values)]


def show(here: Session, results: Mapping[str, Any]) -> None:
    """The tables of one experiment."""
    here.out.print(tasks_table(results))
    here.out.print(costs_table(results))
    bounds = [entry for entry in results["bound"] if "lambda_max" in entry]
    if bounds:
        here.out.print(bounds_table(bounds))
    from retain.cli.output import count

    for name, facts in results["curvature"].items():
        values = sorted(facts["eigenvalues"], key=abs, reverse=True)
        shown = ", ".join(f"{value:.4g}" for value in values[:_EIGENVALUES]) + (", ..." if len(values) > _EIGENVALUES else "")
        where = f"{count(facts['examples'], 'example')}, {facts['tokens']} tokens, {facts['products']} products"
        here.note(f"{name}: λ = {shown} ({sum(facts['converged'])} of {len(values)} converged; {where})")


def tasks_table(results: Mapping[str, Any]) -> Any:
    """Score and loss of both tasks before, between and after; means over seeds."""
    from retain.cli.output import table

    times = ("before", "after task 1", "after task 2")
    columns = [f"{what} {time}" for what in (results["score"], "loss") for time in times]
    rows = table("method", "task", *columns, right=columns)
    for name, method in results["methods"].items():
        for number, task in enumerate(results["tasks"]):
            cells = [_mean(method, key, time, number) for key in ("matrix", "loss_matrix") for time in range(3)]
            rows.add_row(name if not number else "", task, *(f"{value:.3f}" for value in cells))
    return rows


def costs_table(results: Mapping[str, Any]) -> Any:
    """What the second task cost the first, and what was spent; means over seeds."""
    from retain.cli.output import DASH, amount, percent, table

    score = "accuracy" if results["score"] == "accuracy" else results["score"]
    columns = (f"F1 in {score}", "share lost", "F1 in loss", "‖dw‖ factors", "‖dw‖ of B A", "steps", "parameters")
    rows = table("method", *columns, right=columns)
    for name, method in results["methods"].items():
        own = [move for move in results["moves"] if move["method"] == name]
        if not own:
            continue
        record = next(iter(method["seeds"].values()))
        means = {key: _known(move[key] for move in own) for key in own[0] if key not in ("method", "seed")}
        distances = [DASH if value is None else f"{value:.3f}" for value in (means["distance_factors"], means["distance_product"])]
        lost = (f"{means['forgetting_score']:+.3f}", percent(means["forgetting_rate"]), f"{means['forgetting_loss']:+.3f}")
        rows.add_row(name, *lost, *distances, f"{record['steps']:,}", amount(record["parameters"]))
    return rows


def bounds_table(bounds: Sequence[Mapping[str, Any]]) -> Any:
    """What second order says of each move, and what was measured."""
    from retain.cli.output import table

    columns = ("‖dw‖", "largest λ", "g·dw", "½ λ ‖dw‖²", "bound", "second order", "measured")
    keys = ("displacement", "lambda_max", "gradient_term", "without_gradient", "bound", "second_order", "measured")
    rows = table("method", "space", *columns, right=columns)
    for entry in bounds:
        rows.add_row(entry["label"], entry["space"], *(f"{entry[key]:.4g}" for key in keys))
    return rows


def study_table(results: Mapping[str, Any]) -> Any:
    """How well each predictor orders the runs by what they forgot."""
    from retain.cli.output import DASH, number, table
    from retain.evaluation.forgetting import PREDICTORS, TARGETS

    found = results["study"]["correlations"]
    spaces = list(dict.fromkeys(entry["space"] for entry in found))
    targets = [key for key in TARGETS if any(number(entry["rho"]) is not None for entry in found if entry["target"] == key)]
    columns = [TARGETS[key] for key in targets]
    rows = table("predictor", "space", "runs", *columns, right=("runs", *columns))
    for space in spaces:
        for predictor, meaning in PREDICTORS.items():
            own = {entry["target"]: entry for entry in found if entry["space"] == space and entry["predictor"] == predictor}
            if not own:
                continue
            cells = []
            for key in targets:
                rho, low, high = (number(own[key][name]) for name in ("rho", "low", "high"))
                cells.append(DASH if rho is None else f"{rho:+.2f}" + ("" if low is None else f" ({low:+.2f} to {high:+.2f})"))
            rows.add_row(meaning, space, str(max(entry["n"] for entry in own.values())), *cells)
    return rows


def _mean(method: Mapping[str, Any], key: str, row: int, task: int) -> float:
    values = [record[key][row][task] for record in method["seeds"].values()]
    return float(sum(values) / len(values))


def _known(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
