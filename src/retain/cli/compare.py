"""`retain compare`: ways of learning side by side, on documents and questions of your own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.errors import CommandError
from retain.cli.experiment.options import DryRun, Model, Out, Resume, Track

if TYPE_CHECKING:
    from retain.cli.session import Session

_FAR = 0.01  # loss of general knowledge that is worth a colour


@command(
    ("retain compare a.md --questions q.jsonl", "all ways"),
    ("retain compare a.md b.md --questions q.jsonl --seeds 3", "three times"),
    ("retain compare a.md --questions q.jsonl --learners lora,jitrl", "two"),
    ("retain compare a.md --questions q.jsonl --dry-run", "only plan"),
)
def compare(
    here: Session,
    paths: Annotated[list[Path], typer.Argument(metavar="DOC...", help="Documents, learned in this order.")],
    questions: Annotated[Path, typer.Option(help="JSON lines: question, answer, and the document where not clear.", metavar="FILE")],
    learners: Annotated[str, typer.Option(help="Learners joined by commas, or all.", metavar="A,B")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...", metavar="N")] = 1,
    model: Model = None,
    out: Out = None,
    resume: Resume = False,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Compare ways of learning: the same documents and questions, each from a fresh state of its own.

    Beside them: nothing learned, the document in the prompt, and plain fine-tuning on the text. The questions are never trained on.
    Learners of adapters are also asked with retrieved passages in the prompt (+passages).

    Shown are right answers, what was lost of earlier documents and of general knowledge, and what it cost.
    """
    from retain.cli.experiment.options import load, place_of, resumable, writers_of
    from retain.cli.learning import gather, read_questions
    from retain.cli.progress import watching
    from retain.data.cleanup import clean_documents
    from retain.data.readers import read_path
    from retain.evaluation.runs import Run
    from retain.workspace.comparison import arms_of, assign_questions, run_comparison

    arms = arms_of(learners)
    found = [document for path in gather(here, paths) if isinstance(path, Path) for document in read_path(path)]
    documents = clean_documents(found).kept
    if not documents:
        raise CommandError("nothing to learn: no document is left after clean-up (retain learn --dry-run says why)")
    asked = assign_questions(documents, read_questions(questions) or [], questions)
    if dry_run:
        plan = {"arms": arms, "documents": [document.title for document in documents], "questions": len(asked), "seeds": seeds}
        if here.json:
            here.emit(plan)
            return
        here.out.print(f"{len(arms)} arms ({', '.join(arms)}), {len(documents)} documents, {len(asked)} questions, {seeds} seeds")
        here.note("dry run: nothing was learned")
        return
    config = here.config
    language = load(here, model or config.model.name, config.model.precision)
    recorded = {
        "documents": [{"id": document.id, "title": document.title} for document in documents], "questions": len(asked), "arms": arms,
        "seeds": seeds, "model": language.name,
        "config": config.model_dump(mode="json", exclude={"workspace", "model"}),
    }  # fmt: skip
    place = place_of(f"compare-{documents[0].title}", out, resume, recorded)
    with (
        Run.create(place, recorded, resume=resume, seeds=range(seeds), writers=writers_of(track, place)) as run,
        resumable(here, place),
        watching(here),
    ):

        def tell(at: Any) -> None:
            if not here.json:
                score = f"{at.contains:.0%} right"
                here.note(f"{at.arm}, seed {at.seed}: {at.document} learned, {score} ({at.done}/{at.total})", style="")

        results = run_comparison(documents, asked, arms, seeds, language, config, run, tell, here.watcher)
    if here.json:
        here.emit({"run": str(place), **{key: value for key, value in results.items() if key != "methods"}})
        return
    from retain.cli.experiment.tasks import finish

    here.out.print(comparison_table(results))
    finish(here, results, place)


def comparison_table(results: Mapping[str, Any]) -> Any:
    """One row for each arm, best first."""
    from retain.cli.output import data_size, table

    rows = table("", "right", "F1", "log-lik.", "forgotten", "control lost", "learn", "answer", "stored",
                 right=("right", "F1", "log-lik.", "forgotten", "control lost", "learn", "answer", "stored"))  # fmt: skip
    found = results["comparison"]
    for name in sorted(found, key=lambda arm: -found[arm]["contains"]):
        row = found[name]
        lost = Text(
            "" if row["control_lost"] is None else f"{row['control_lost']:+.1%}", style="red" if (row["control_lost"] or 0) > _FAR else ""
        )
        low, high = row["low"], row["high"]
        between = f" ({low:.0%} - {high:.0%})" if low == low and low is not None and high is not None else ""
        rows.add_row(
            Text(name), f"{row['contains']:.1%}{between}", f"{row['f1']:.2f}", f"{row['log_likelihood']:.2f}",
            "" if row["forgetting"] is None else f"{row['forgetting']:+.1%}", lost, f"{row['learn_seconds']:.1f} s",
            f"{row['answer_seconds']:.2f} s", data_size(row["bytes_per_document"]),
        )  # fmt: skip
    return rows
