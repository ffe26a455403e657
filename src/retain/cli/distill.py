"""Distillation into a student: distill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retain.cli.command import command
from retain.cli.experiment.options import DryRun, Resume, Set
from retain.cli.pretrain import ConfigFile, Out, Progress, going_on, show_plan, show_results

if TYPE_CHECKING:
    from retain.cli.session import Session


@command(
    ("retain distill student.yaml", "a student from a teacher"),
    ("retain distill student.yaml --dry-run", "what it would do"),
    ("retain distill student.yaml --resume", "after an interruption"),
    ("retain distill student.yaml --set loss.alpha=0.9", "another setting"),
)
def distill(
    here: Session, config: ConfigFile, values: Set = None, out: Out = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Teach a small model what a larger one knows: its logits on your texts, or its answers over an API.

    Causal models, encoder-decoders and encoders learn from logits; the vocabularies have to be the same. An OpenAI-compatible API is asked
    prompt by prompt, the answers are filtered and learned.
    """
    from retain.cli.experiment.options import settings
    from retain.cli.kinds import meant_for
    from retain.pretraining import DistillConfig, plan_distillation, read_config
    from retain.pretraining import distill as run

    with meant_for("distill", config):
        wanted = read_config(DistillConfig, config, settings(values, {"out": out}))
    with Progress(here) as progress:
        if dry_run:
            show_plan(here, plan_distillation(wanted, progress.watch()))
            return
        with going_on(here, wanted.out):
            results = run(wanted, resume, progress.watch())
    if results is not None:
        show_results(here, results)
