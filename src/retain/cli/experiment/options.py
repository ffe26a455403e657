"""What the commands of experiments share: options, settings from them, the directory of a run, what an interruption leaves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli.command import flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.writers import EventWriter
    from retain.lm.model import LanguageModel

Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, for example training.epochs=2.", metavar="KEY=VALUE")]
Methods = Annotated[str | None, typer.Option(help="Methods to compare, joined with commas; + joins two in one.", metavar="A,B")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0, 1, ...", metavar="N")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over a task's examples.", metavar="N")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.", metavar="X")]
Model = Annotated[str | None, typer.Option(help="Base model: name, folder or GGUF file.", metavar="NAME")]
Limit = Annotated[int | None, typer.Option(min=2, help="At most this many questions of a task.", metavar="N")]
Data = Annotated[Path | None, typer.Option(help="Folder with MMLU's files.", metavar="DIR")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Directory of the run (default: a new one in runs/).", metavar="DIR")]
Resume = Annotated[bool, flag("--resume", "Go on with the run that was interrupted.")]
Track = Annotated[str | None, typer.Option(help="Record also in mlflow, tensorboard, or both, joined by a comma.", metavar="A,B")]
DryRun = Annotated[bool, flag("--dry-run", "Say what would be done, and stop.")]
RUNS = Path("runs")


def settings(pairs: Sequence[str] | None, shortcuts: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by dotted key: the shortcuts that were given, and over them what --set says."""
    from retain.config.values import parse_yaml

    found = {key: str(value) if isinstance(value, Path) else value for key, value in shortcuts.items() if value is not None}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise CommandError(f"--set {pair}: it is KEY=VALUE, for example training.epochs=2")
        try:
            found[key.strip()] = "null" if value.strip() == "null" else parse_yaml(value)
        except Exception as error:
            raise CommandError(f"--set {pair}: {' '.join(str(error).split())}") from error
        if found[key.strip()] is None:
            raise CommandError(f"--set {pair}: the value is missing; null stands for none")
    return found


def writers_of(track: str | None, place: Path) -> list[EventWriter]:
    """The writers that --track names: beside the runs, MLflow in a SQLite file and TensorBoard in a folder."""
    from retain.data.errors import did_you_mean
    from retain.evaluation.writers import MLflowWriter, TensorBoardWriter

    known: dict[str, Callable[[], EventWriter]] = {
        "mlflow": lambda: MLflowWriter(place.parent / "mlflow.db"),
        "tensorboard": lambda: TensorBoardWriter(place.parent / "tensorboard" / place.name),
    }
    names = [name.strip() for name in (track or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise CommandError(f"--track {name}: {did_you_mean(name, known) or 'it is mlflow, tensorboard, or both joined by a comma'}")
    return [known[name]() for name in names]


def place_of(name: str, out: Path | None, resume: bool, config: Mapping[str, Any]) -> Path:
    """The directory of a run: the one asked for; to go on, the latest in runs/ with this configuration; else a new one in runs/."""
    from retain.evaluation.runs import Run, RunError

    if out is not None:
        return out.expanduser()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60] or "run"
    taken = [RUNS / stem]
    while taken[-1].exists():
        taken.append(RUNS / f"{stem}-{len(taken) + 1}")
    if not resume:
        return taken[-1]
    for place in reversed(taken[:-1]):
        with contextlib.suppress(RunError):
            if Run.open(place).config == config:
                return place
    raise CommandError(f"--resume: there is no run of this configuration in {RUNS}/: leave --resume out, or name it with --out")


def load(here: Session, name: str, precision: str) -> LanguageModel:
    """The base model of an experiment, where and with as many threads as configured."""
    from retain.lm.loading import load_model

    where = here.config.model
    with here.waiting("loading the model"):
        return load_model(name, device=where.device, precision=precision, cache_dir=where.cache_dir, threads=where.threads)


@contextlib.contextmanager
def resumable(here: Session, place: Path) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        from retain.cli.output import home

        here.note(f"what is finished is kept in {home(place)}: the same command with --resume --out {home(place)} goes on", "yellow")
        raise
