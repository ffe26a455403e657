"""`retain compare`: ways of learning side by side, on documents and questions of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.errors import CommandError
from retain.cli.experiment.options import DryRun, Model, Out, Resume, Track

if TYPE_CHECKING:
    from rich.console import Console

    from retain.cli.session import Session

_FAR = 0.01  # loss of general knowledge that is worth a colour
_UNCUT = 1000  # columns: nothing is folded
_LEAST = ("log-lik.", "stored", "control\nlost", "interval")  # columns that a narrow terminal goes without, the first first


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
    from retain.cli.configuration import known_names
    from retain.cli.experiment.options import load, place_of, resumable, writers_of
    from retain.cli.learning import gather, read_questions
    from retain.cli.progress import watching
    from retain.data.cleanup import clean_documents
    from retain.data.readers import read_path
    from retain.evaluation.runs import Run
    from retain.workspace.comparison import arms_of, assign_questions, lacking, run_comparison

    known_names(here.config)
    arms = arms_of(learners)
    found = [document for path in gather(here, paths) if isinstance(path, Path) for document in read_path(path)]
    documents = clean_documents(found).kept
    if not documents:
        raise CommandError("nothing to learn: no document is left after clean-up (retain learn --dry-run says why)")
    asked = assign_questions(documents, read_questions(questions) or [], questions)
    config = here.config
    language = load(here, model or config.model.name, config.model.precision)
    missing = lacking(arms, language, config)
    for name, reason in missing.items():
        here.note(f"{name} cannot learn: {reason}", "yellow")
    if dry_run:
        plan = {
            "arms": arms, "documents": [document.title for document in documents], "questions": len(asked), "seeds": seeds,
            "cannot_learn": missing,
        }  # fmt: skip
        if here.json:
            here.emit(plan)
            return
        here.out.print(f"{len(arms)} arms ({', '.join(arms)}), {len(documents)} documents, {len(asked)} questions, {seeds} seeds")
        here.note("dry run: nothing was learned")
        return
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

    here.out.print(comparison_table(results, here.out))
    finish(here, results, place)


def comparison_table(results: Mapping[str, Any], console: Console) -> Any:
    """One row for each arm, best first. Where the console is narrow, the columns that matter least are left out; the report has all."""
    made = _table(results["comparison"])
    for number in range(1, len(_LEAST) + 1):
        if console.measure(made, options=console.options.update(width=_UNCUT)).maximum <= console.width:
            break
        made = _table(results["comparison"], _LEAST[:number])
    return made


def _table(found: Mapping[str, Any], without: Sequence[str] = ()) -> Any:
    from retain.cli.output import table

    cells = {name: _cells(found[name]) for name in sorted(found, key=lambda arm: -found[arm]["contains"])}
    shown = [column for column in next(iter(cells.values())) if column not in without]
    rows = table("", *shown, right=shown)
    for name, row in cells.items():
        rows.add_row(Text(name), *(row[column] for column in shown))
    return rows


def _cells(row: Mapping[str, Any]) -> dict[str, str | Text]:
    """What is shown of an arm, by column."""
    from retain.cli.output import amount, data_size

    low, high, lost = row["low"], row["high"], row["control_lost"]
    return {
        "right": f"{row['contains']:.1%}",
        "interval": f"{low * 100:.0f} - {high:.0%}" if low == low and low is not None and high is not None else "",
        "EM": f"{row['exact']:.1%}",
        "F1": f"{row['f1']:.2f}",
        "log-lik.": f"{row['log_likelihood']:.2f}",
        "forgotten": "" if row["forgetting"] is None else f"{row['forgetting']:+.1%}",
        "control\nlost": "" if lost is None else Text(f"{lost:+.1%}", style="red" if lost > _FAR else ""),
        "tokens": amount(row["tokens"]),
        "learn": f"{row['learn_seconds']:.1f} s",
        "answer": f"{row['answer_seconds']:.2f} s",
        "stored": data_size(row["bytes_per_document"]),
    }
