"""Pre-training of the own decoder: pretrain; and what it shares with distill."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.experiment.options import DryRun, Resume, Set

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.pretraining import Step, Watch

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run (default: the file's out, or in runs/).", metavar="DIR")]
EVERY = 10.0  # seconds between plain lines
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 48  # characters of the loss curve


@command(
    ("retain pretrain little.yaml", "a decoder from texts"),
    ("retain pretrain little.yaml --dry-run", "tokens, memory, time"),
    ("retain pretrain little.yaml --resume", "after an interruption"),
    ("retain pretrain little.yaml --set training.epochs=2", "another setting"),
)
def pretrain(
    here: Session, config: ConfigFile, values: Set = None, out: Out = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train a decoder of your own from scratch on texts: tokenizer, data, weights.

    The result is a Hugging Face checkpoint that retain and transformers read. Several processes: torchrun --nproc-per-node N -m retain.cli
    pretrain CONFIG.
    """
    from retain.cli.experiment.options import settings
    from retain.cli.kinds import meant_for
    from retain.pretraining import PretrainConfig, plan, read_config
    from retain.pretraining import pretrain as run

    with meant_for("pretrain", config):
        wanted = read_config(PretrainConfig, config, settings(values, {"out": out}))
    with Progress(here) as progress:
        if dry_run:
            show_plan(here, plan(wanted, progress.watch()))
            return
        with going_on(here, wanted.out):
            results = run(wanted, resume, progress.watch())
    if results is not None:
        show_results(here, results)


def show_plan(here: Session, plan: Any) -> None:
    """What a run would do."""
    from retain.cli.output import amount, data_size, duration, facts, words

    if here.json:
        here.emit(plan)
        return
    found = {name: value for name, value in vars(plan).items() if value is not None and value != {}}
    show = {"seconds": duration, "memory": data_size, "state": data_size, "tokens": amount, "held_out": amount}
    names = {
        "seconds": "time, at the speed of two steps", "memory": "memory, measured", "state": "weights, gradients, moments",
        "dropped": "left out", "held_out": "held out", "tokens": "tokens to learn", "step_tokens": "tokens of a step",
        "teacher": "parameters of the teacher",
    }  # fmt: skip
    here.out.print(facts([(names.get(name, name), Text(show.get(name, words)(value))) for name, value in found.items()]))


def show_results(here: Session, results: Mapping[str, Any]) -> None:
    """What came out, the loss curve, and how to use the model."""
    if here.json:
        here.emit(results)
        return
    from retain.cli.output import amount, duration, facts, home, words

    rows = [("filter", words(results["filter"]))] if "filter" in results else []
    if "model" in results:
        place = Path(results["model"]).parent
        training, validation = curve(place)
        seconds = max(results["seconds"], 1e-9)
        rows += [
            ("parameters", words(results["parameters"])),
            ("learned", f"{amount(results['tokens'])} tokens in {results['step']:,} steps, {duration(results['seconds'])}, "
                        f"{amount(results['tokens'] / seconds)} tokens/s"),
            ("loss", f"{spark([loss for _, loss in training])} {training[0][1]:.3f} → {training[-1][1]:.3f}"),
        ]  # fmt: skip
        if results.get("validation") is not None:
            rows.append(("validation", f"loss {results['validation']:.3f}, perplexity {results['perplexity']:.2f}"))
        rows.append(("model", f"{home(results['model'])} (step {results['model_step']:,})"))
        with contextlib.suppress(ImportError):
            rows.append(("figure", home(draw(place, training, validation))))
    here.out.print(facts([(name, Text(str(value))) for name, value in rows]))


def curve(place: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Tokens and losses of the steps and of the checks that a run logged."""
    lines = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [(line["tokens"], line["loss"]) for line in lines if line["event"] == "step"]
    checks = [(line["tokens"], line["validation"]) for line in lines if line["event"] == "check" and line["validation"] is not None]
    return training, checks


def spark(losses: list[float]) -> str:
    """A curve of one line, in at most 48 characters, each the mean of its part."""
    size = max(1, -(-len(losses) // WIDE))
    means = [sum(part) / len(part) for part in (losses[first : first + size] for first in range(0, len(losses), size))]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((mean - low) / (high - low or 1.0) * (len(BLOCKS) - 1))] for mean in means)


def draw(place: Path, training: list[tuple[int, float]], validation: list[tuple[int, float]]) -> Path:
    """The loss curve as a picture beside the run. Raises ImportError without matplotlib."""
    import matplotlib  # noqa: F401 - the reason of the error

    from retain.evaluation.plots import save
    from retain.evaluation.plots.learning import learning_curve

    return save(learning_curve(training, validation), place, "loss")[0]


@contextlib.contextmanager
def going_on(here: Session, out: str | None) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        here.note(f"the same command with --resume goes on from the last checkpoint in {out}", "yellow")
        raise


class Progress:
    """What happens, on standard error: a live line on a terminal, plain lines elsewhere, nothing with --json or in further processes."""

    def __init__(self, here: Session) -> None:
        self.here, self.quiet = here, here.json or os.environ.get("RANK", "0") != "0"
        self.told = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.here.err.is_terminal and not self.quiet:
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (SpinnerColumn(style="cyan"), TextColumn("{task.description}"), BarColumn(bar_width=16, complete_style="cyan"))
            self.bar = Bar(*columns, TextColumn("[dim]{task.fields[details]}"), console=self.here.err, transient=True)
            self.task = self.bar.add_task("", total=None, details="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def watch(self) -> Watch:
        """What the run is to tell."""
        from retain.pretraining import Watch

        return Watch(self.stage, self.step, self.check)

    def stage(self, stage: str, count: int) -> None:
        """Preparation goes on."""
        self._show(stage, None, None, f"{count:,}" if count else "")

    def step(self, step: Step) -> None:
        """An optimizer step."""
        from retain.cli.output import amount, duration

        speed = f"{amount(step.speed)} tokens/s"
        left = f"{duration(step.left)} left" if step.left else "done"
        self._show("training", step.step, step.steps, f"{step.step:,}/{step.steps:,}, loss {step.loss:.3f}, {speed}, {left}")

    def check(self, record: Mapping[str, Any]) -> None:
        """A check: always a line, with the sample texts below it."""
        if self.quiet:
            return
        parts = [f"step {record['step']:,}"]
        if record["validation"] is not None:
            parts += [f"validation loss {record['validation']:.3f}", f"perplexity {record['perplexity']:.2f}"]
        self.here.note(", ".join(parts), style="")
        for sample in record.get("samples", ()):
            self.here.note(f"  {sample['prompt']}▸{' '.join(sample['text'].split())}")

    def _show(self, about: str, done: int | None, total: int | None, details: str) -> None:
        now = time.monotonic()
        if self.quiet or (self.bar is None and now - self.told < EVERY):
            return
        self.told = now
        if self.bar is not None:
            self.bar.update(self.task, description=about, completed=done or 0, total=total, details=details)
        else:
            self.here.note(f"{about}: {details}", style="")
