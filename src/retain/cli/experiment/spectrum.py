"""`retain experiment curvature`: the largest eigenvalues of a task's loss at what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli.command import command, flag
from retain.cli.errors import CommandError
from retain.cli.experiment.options import Data, Limit, Out, Resume, Track

if TYPE_CHECKING:
    from retain.cli.session import Session


@command(
    ("retain experiment curvature runs/a-b", "after each task"),
    ("retain experiment curvature runs/a-b --top 5 --trace", "fewer, with the trace"),
    ("retain experiment curvature out/ --tasks a.jsonl", "an adapter of peft"),
    ("retain experiment curvature runs/a-b --density", "how all are spread"),
)
def curvature(
    here: Session,
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Directory of a run, or of an adapter in peft's format.")],
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks whose loss it is (default: the run's first).", metavar="A")] = None,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues of largest magnitude.", metavar="K")] = 20,
    space: Annotated[str, typer.Option(help="factors: of A and B; product: of dW = scale B A; both.", metavar="SPACE")] = "factors",
    trace: Annotated[bool, flag("--trace", "Also the trace, by Hutch++ (99 products).")] = False,
    density: Annotated[bool, flag("--density", "Also the density of all eigenvalues (8 x 60 products).")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the examples that the loss is taken on.", metavar="N")] = 512,
    products: Annotated[int, typer.Option(min=2, help="Most Hessian-vector products for the eigenvalues.", metavar="N")] = 60,
    memory: Annotated[float, typer.Option(help="Memory for the vectors of the search.", metavar="GB")] = 4.0,
    method: Annotated[str, typer.Option(help="Method of the run (default: its first).", metavar="NAME")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run, and of what is drawn at random.", metavar="N")] = 0,
    model: Annotated[str | None, typer.Option(help="Base model (default: the run's, or the configured one).", metavar="NAME")] = None,
    limit: Limit = None,
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    track: Track = None,
) -> None:
    """The largest eigenvalues, with their signs, of the Hessian of a task's loss at what was learned.

    By exact Hessian-vector products and Lanczos iteration; an eigenvalue lies within the residual of each value. At every checkpoint of a
    run, or at an adapter that was exported.
    """
    from retain.cli.experiment.options import load, place_of, resumable, writers_of
    from retain.cli.experiment.progress import Watch
    from retain.cli.experiment.tasks import finish
    from retain.evaluation.forgetting import CurvatureConfig, checkpoints, is_run, peft_checkpoint, run_curvature
    from retain.evaluation.forgetting.spectra import file_examples, run_examples, settings_of
    from retain.evaluation.runs import Run

    spaces = {"factors": ["factors"], "product": ["product"], "both": ["factors", "product"]}
    if space not in spaces:
        raise CommandError(f"--space {space}: it is one of {', '.join(spaces)}")
    if not checkpoint.expanduser().is_dir():
        raise CommandError(f"{checkpoint}: there is no such directory")
    source = checkpoint.expanduser()
    settings = CurvatureConfig.model_validate({
        "compute": "yes", "spaces": spaces[space], "top": top, "tokens": tokens, "products": products, "memory": memory,
        "trace": 99 if trace else 0, "density": 8 if density else 0,
    })  # fmt: skip
    names = [name.strip() for text in tasks or [] for name in text.split(",") if name.strip()]
    if is_run(source):
        opened = Run.open(source)
        config = settings_of(opened)
        language = load(here, model or config.model, "float32")
        chosen, examples, every = run_examples(config, language, seed, names)
        found = checkpoints(opened, every, language, method, seed)
    else:
        if not names:
            raise CommandError("--tasks: name the task whose loss it is, for example --tasks exam.jsonl")
        language = load(here, model or here.config.model.name, "float32")
        chosen, examples = file_examples(names, language, data=data, seed=seed, limit=limit)
        found = [peft_checkpoint(source, language)]
    recorded = {
        "checkpoint": str(checkpoint), "tasks": chosen, "model": language.name, "method": method, "seed": seed,
        "curvature": settings.model_dump(mode="json"),
    }  # fmt: skip
    place = place_of(f"curvature-{source.resolve().name}", out, resume, recorded)
    with (
        Run.create(place, recorded, resume=resume, seeds=[seed], writers=writers_of(track, place)) as run,
        resumable(here, place),
        Watch(here) as watch,
    ):
        results = run_curvature(settings, run, language, found, examples, chosen, seed, watch.product)
    if here.json:
        here.emit({"run": str(place), **results})
        return
    for name, facts in results["curvature"].items():
        here.out.print(spectrum_table(name, facts))
        here.note(said(facts))
    finish(here, results, place)


def spectrum_table(name: str, facts: Mapping[str, Any]) -> Any:
    """The eigenvalues with their signs, residuals and whether they converged, those of largest magnitude first."""
    from retain.cli.output import table

    rows = table("", "eigenvalue", "residual", "converged", right=("", "eigenvalue", "residual"), title=name)
    found = sorted(zip(facts["eigenvalues"], facts["residuals"], facts["converged"], strict=True), key=lambda row: -abs(row[0]))
    for number, (value, residual, converged) in enumerate(found, 1):
        rows.add_row(str(number), f"{value:+.6g}", f"{residual:.1e}", "yes" if converged else "no")
    return rows


def said(facts: Mapping[str, Any]) -> str:
    """What the eigenvalues are of."""
    from retain.cli.output import count

    parts = [
        f"loss {facts['loss']:.4f} nats on {count(facts['examples'], 'example')} ({facts['tokens']:,} tokens)",
        f"gradient norm {facts['gradient_norm']:.3g}", f"{facts['parameters']:,} parameters", f"{facts['products']} products",
    ]  # fmt: skip
    if facts["trace"] is not None:
        error = "" if facts["trace_error"] is None else f" ± {facts['trace_error']:.2g}"
        parts.append(f"trace {facts['trace']:.5g}{error}")
    return ", ".join(parts)
