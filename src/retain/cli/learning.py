"""`retain learn`: documents in, certificates out."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli.command import command, flag
from retain.cli.errors import INTERRUPTED, REFUSED, CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.data import Document
    from retain.workspace.reports import Update

_WEB = re.compile(r"(https?):/+(.+)", re.IGNORECASE)


@command(
    ("retain learn notes.md", "learn one document"),
    ("retain learn handbook/ report.pdf", "a folder and a file"),
    ("retain learn law.txt --domain law --importance 0.9", "what it is about"),
    ("retain learn notes.md --questions exam.jsonl", "with your own questions"),
    ("pdftotext a.pdf - | retain learn - --title A", "standard input"),
    ("retain learn --pending", "after an interruption"),
)
def learn(
    here: Session,
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Files or folders; - reads standard input.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain of documents that do not name their own.", metavar="NAME")] = None,
    importance: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="From 0 (may be forgotten first) to 1 (must be kept).", metavar="X")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the document (one document only).", metavar="TEXT")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="JSON lines with question and answer: learned with the document.", metavar="FILE")
    ] = None,
    learner: Annotated[str | None, typer.Option(help="Way of learning, such as jitrl (default: learn.learner).", metavar="NAME")] = None,
    task: Annotated[str | None, typer.Option(help="With doc2lora: what the adapter is for, instead of PATH.", metavar="TEXT")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: name, folder or GGUF file (default: model.name).", metavar="NAME")] = None,
    pending: Annotated[bool, flag("--pending", "Learn what is pending: queued or interrupted earlier.")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Read and prepare, say what would be learned, and stop.")] = False,
) -> None:
    """Learn documents; prove that nothing else was forgotten.

    Each document is learned in a transaction of its own: a candidate is trained, asked what the document says, checked against
    what was known before, and committed or dropped. A document that is known already is left alone.

    Reads text, Markdown, HTML, PDF, Word, JSON lines (texts, questions with answers, conversations) and source code.

    Exit code 3: a document was rejected; `retain log` says why.
    """
    from retain.cli.progress import watching

    if task is not None and (learner or here.config.learn.learner) != "doc2lora":
        raise CommandError("--task describes what an adapter is for, which only --learner doc2lora can read")
    if task is not None and (paths or pending or not task.strip()):
        raise CommandError("--task stands for the PATH: give a description, and neither PATH nor --pending")
    if pending and (paths or title or questions or domain or importance is not None):
        raise CommandError("--pending goes on with what was queued: it takes no PATH, --title, --domain, --importance or --questions")
    sources = [] if pending else [described(task, title)] if task is not None else gather(here, paths or [], title)
    asked = read_questions(questions)
    lm = here.open(model=model, learner=learner, create=not pending)
    try:
        with watching(here):
            if pending:
                updates = lm.learn_pending(dry_run=dry_run)
            else:
                updates = lm.learn_all(sources, domain=domain, importance=importance, title=title, questions=asked, dry_run=dry_run)
    except KeyboardInterrupt:
        todo = "nothing was changed" if dry_run else "the document stays pending; run retain learn --pending to go on"
        here.note(f"interrupted: {todo}", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    show(here, updates, dry_run)
    if any(update.status == "rejected" for update in updates):
        raise typer.Exit(REFUSED)


@command(
    ("retain consolidate", "in the domain with the most adapters"),
    ("retain consolidate --domain law", "the documents of one domain"),
    ("retain consolidate --json", "for programs"),
)
def consolidate(
    here: Session,
    domain: Annotated[str | None, typer.Option(help="Domain to consolidate (default: that with most adapters).", metavar="NAME")] = None,
) -> None:
    """Let the documents of a domain share one adapter.

    One adapter is trained on all of them together, starting from the one that they share already. It is asked what the documents
    taught and checked like everything that is learned; then it takes the place of theirs, or nothing is changed.
    `retain revert` brings the separate adapters back.

    Exit code 3: it was refused, because more would be lost than the gate allows.
    """
    from retain.cli.certificates import consolidated_text
    from retain.cli.history import told
    from retain.cli.progress import watching

    lm = here.open()
    with watching(here):
        update = lm.consolidate(domain)
    if update is not None:
        told(here, update, consolidated_text(update))
    elif here.json:
        here.emit(None)
    else:
        reason = f"{domain} has fewer than two adapters to join" if domain else "no domain has two adapters to join"
        here.out.print(f"nothing to consolidate: {reason}", markup=False, soft_wrap=True)


def described(task: str, title: str | None) -> Document:
    """The description of a task as a document."""
    from retain.data import Document

    return Document.from_text(task, title or task.strip()[:60], "description", kind="task")


def gather(here: Session, paths: Sequence[Path], title: str | None = None) -> list[Path | Document]:
    """The paths, checked to exist, with standard input as a document."""
    from retain.data import Document, read_path

    if not paths:
        raise CommandError("nothing to learn: give a PATH, - for standard input, or --pending")
    if title and len(paths) > 1:
        raise CommandError(f"--title names one document, and there are {len(paths)} paths")
    if [str(path) for path in paths].count("-") > 1:
        raise CommandError("standard input (-) can be read once only")
    found: list[Path | Document] = []
    for path in paths:
        if str(path) == "-":
            if sys.stdin.isatty():
                here.note("reading standard input; Ctrl-D ends it")
            found.append(Document.from_text(sys.stdin.read(), title, "standard input"))
        elif address := _WEB.match(str(path)):  # a Path has one slash where the address had two
            url = f"{address[1]}://{address[2]}"
            raise CommandError(f"{url}: the service fetches web addresses: retain config set serve.fetch true, then retain ingest {url}")
        elif not path.expanduser().exists():
            read_path(path)  # raises, with the name that was meant
        else:
            found.append(path.expanduser())
    return found


def read_questions(path: Path | None) -> list[Any] | None:
    """The questions of a file."""
    from retain.data import load_questions

    return None if path is None else load_questions(path.expanduser())


def show(here: Session, updates: Sequence[Update], dry_run: bool = False) -> None:
    """The updates of one call: a table, and what to look at next."""
    if here.json:
        here.emit(updates)
        return
    from retain.cli.certificates import plans_table, summary_line, title_list, updates_table

    names = {record.id: record.title for record in here.open().documents()} if updates else {}
    tried = [update for update in updates if update.status != "unchanged"]
    for update in updates:
        if update.status == "unchanged":
            reason = update.reason or f"already learned in update {update.id}"
            here.out.print(f"= {', '.join(title_list(update, names))}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if not updates:
        here.out.print("nothing is pending")
    elif dry_run:
        here.out.print(plans_table(tried, names))
        here.note("dry run: nothing was learned")
        return
    elif tried:
        here.out.print(updates_table(tried, names, here.out.width, history=False))
    if len(updates) > 1:
        here.out.print(summary_line(updates), style="bold")
    committed = [update for update in tried if update.status == "committed" and update.id]
    if committed:
        here.note(f"retain show {committed[-1].id} shows the certificate, retain revert {committed[-1].id} undoes it")
