"""`retain train-hypernetwork`: the network that writes adapters for the learner doc2lora."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.learners.doc2lora import Plan, Progress, Trained

EVERY = 10.0  # seconds between two lines of progress
ARMS = ("base", "own", "wrong", "random", "bias", "context")

Settings = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file: base model, data, sizes, steps.")]
Resume = Annotated[bool, flag("--resume", "Go on from the last checkpoint.")]
DryRun = Annotated[bool, flag("--dry-run", "Say what would be trained, and stop.")]


@command(
    ("retain train-hypernetwork my.yaml", "train"),
    ("retain train-hypernetwork my.yaml --dry-run", "parameters, tokens, memory"),
    ("retain train-hypernetwork my.yaml --resume", "after an interruption"),
)
def train_hypernetwork(here: Session, config: Settings, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Train the network that writes a document's adapter in one pass, for the learner doc2lora.

    The base model with the document in its prompt teaches the base model with the adapter. Checkpoints, metrics and the finished network
    are in the directory that the file names (out).
    """
    from retain.cli.kinds import meant_for
    from retain.evaluation.control import load_control
    from retain.learners.doc2lora import Run, load_settings
    from retain.lm.loading import load_model

    with meant_for("hypernetwork", config):
        settings = load_settings(config)
    where = here.config.model
    with here.waiting("loading the model"):
        precision, cache = settings.precision, where.cache_dir
        model = load_model(settings.model, device=where.device, precision=precision, cache_dir=cache, threads=where.threads)
        run = Run(settings, model, control=load_control().texts)
    plan = run.plan()
    if dry_run:
        show_plan(here, plan)
        return
    try:
        trained = run.train(Watch(here), resume)
    except KeyboardInterrupt:
        here.note(f"what was trained up to the last checkpoint is in {settings.out}: the same command with --resume goes on", "yellow")
        raise
    if here.json:
        here.emit(trained)
        return
    show_trained(here, trained)


def show_plan(here: Session, plan: Plan) -> None:
    """What would be trained."""
    if here.json:
        here.emit(plan)
        return
    from retain.cli.output import amount, count, data_size, facts, home

    rows = [
        ("base model", plan.model),
        ("reads", "documents" if plan.mode == "document" else "descriptions of tasks"),
        ("parameters", f"{plan.parameters:,}"),
        ("texts", f"{count(plan.texts, 'text')} with {count(plan.questions, 'question')} to train on, {plan.held_out:,} held out"),
        ("optimizer steps", f"{plan.steps:,}, about {amount(plan.tokens)} tokens through the base"),
        ("memory", f"{data_size(plan.memory_bytes)} for base, network and optimizer, and what a step computes beside it"),
        ("directory", home(plan.out)),
    ]
    here.out.print(facts([(name, Text(text)) for name, text in rows]))


def show_trained(here: Session, trained: Trained) -> None:
    """What was measured, and where the network is."""
    from retain.cli.output import amount, duration, home

    here.out.print(Text.assemble(("✓ ", "green"), f"{home(trained.network)}: {trained.steps:,} steps"), soft_wrap=True)
    here.out.print(arms_table(trained.measured))
    control = trained.measured.get("control")
    if control:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in control.items())
        here.note(f"perplexity of control texts: {figures}")
    here.note(f"{duration(trained.seconds)}, {amount(trained.tokens)} tokens")
    here.note(f"to use it: retain config set doc2lora.weights {home(trained.network)}")
    arms = trained.measured["arms"]
    if arms["own"]["log_likelihood"] <= max(arms[name]["log_likelihood"] for name in ("base", "wrong", "bias") if name in arms):
        here.note("warning: a text's own adapter is not better than none, another text's or the bias alone: train longer", "yellow")


def arms_table(measured: Mapping[str, Any]) -> Any:
    """The arms on held-out texts, and the needles below them."""
    from retain.cli.output import percent, table

    rows = table("arm", "right", "log-likelihood per token", right=("right", "log-likelihood per token"))
    for name in (name for name in ARMS if name in measured["arms"]):
        arm = measured["arms"][name]
        rows.add_row(name, percent(arm["accuracy"]), f"{arm['log_likelihood']:.3f}")
    for row in measured.get("needle", ()):
        own = row["own"]
        rows.add_row(f"needle at {row['depth']:g} of {row['tokens']} tokens", percent(own["accuracy"]), f"{own['log_likelihood']:.3f}")
    return rows


class Watch:
    """Progress as lines on standard error, and every measurement."""

    def __init__(self, here: Session) -> None:
        self.here, self.began, self.first, self.told = here, time.monotonic(), 0, 0.0

    def __call__(self, progress: Progress) -> None:
        """Take what training tells."""
        from retain.cli.output import duration

        now, at = time.monotonic(), f"{progress.step:,}/{progress.steps:,}"
        if progress.measured is not None:
            arms = progress.measured["arms"]
            shown = ", ".join(f"{name} {arms[name]['log_likelihood']:.3f}" for name in ARMS if name in arms)
            self.here.note(f"{at} held-out texts, log-likelihood per token: {shown}", style="")
            return
        self.first = self.first or progress.step
        if self.here.json or now - self.told < EVERY:
            return
        self.told, done = now, progress.step - self.first
        left = f", {duration((now - self.began) / done * (progress.steps - progress.step))} left" if done else ""
        self.here.note(f"{at} loss {progress.loss:.3f}, KL {progress.divergence:.3f}, size {progress.size:.2g}{left}", style="")
