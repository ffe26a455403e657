"""What was learned and how to undo it: log, show, diff, revert, forget, verify, documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag
from retain.cli.errors import REFUSED

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.workspace.reports import Update

UpdateId = Annotated[str, typer.Argument(metavar="UPDATE", help="Id of an update, or the beginning of one (see retain log).")]
DocumentId = Annotated[str, typer.Argument(metavar="DOCUMENT", help="File, title or id (or its beginning) of a document.")]
_STATUS = {"committed": "green", "pending": "yellow", "learning": "cyan", "rejected": "red", "failed": "red", "forgotten": "dim"}


@command(
    ("retain log", "everything, newest first"),
    ("retain log --limit 5", "the last five"),
    ("retain log --json | jq '.[0].certificate'", "for programs"),
)
def log(
    here: Session, limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many.", metavar="N")] = None
) -> None:
    """The learning history, newest first.

    What each update taught, what it did to what was known before, and what it cost.
    """
    lm = here.open()
    updates = sorted(lm.log(), key=lambda update: update.sequence, reverse=True)[:limit]
    if here.json:
        here.emit(updates)
        return
    if not updates:
        here.out.print("nothing learned yet: retain learn FILE")
        return
    from retain.cli.certificates import updates_table

    here.out.print(updates_table(updates, names(lm), here.out.width))


@command(("retain show u3f2a91c", "the certificate of an update"), ("retain show u3f", "the beginning of the id is enough"))
def show(here: Session, update: UpdateId) -> None:
    """The certificate of an update.

    What was learned, what it cost, and what old knowledge scored before and after.
    """
    lm = here.open()
    found = lm.show(update)
    if here.json:
        here.emit(found)
        return
    from retain.cli.certificates import certificate_panel

    here.out.print(certificate_panel(found, names(lm)))


@command(("retain diff u3f2a91c", "what it added, removed and moved"))
def diff(here: Session, update: UpdateId) -> None:
    """What an update changed.

    Adapters and documents that came and went, and how far parameters moved.
    """
    lm = here.open()
    found = lm.diff(update)
    if here.json:
        here.emit(found)
        return
    from retain.cli.output import facts, words

    known = names(lm)
    lines = [("+", "green", "adapter", found.adapters_added), ("-", "red", "adapter", found.adapters_removed)]
    lines += [("+", "green", "document", found.documents_added), ("-", "red", "document", found.documents_removed)]
    for sign, style, what, items in lines:
        for item in items:
            label = f"  {known[item]}" if what == "document" and known.get(item) else ""
            here.out.print(Text.assemble((f"{sign} {what:<9}", style), _name_of(item), (label, "dim")))
    if found.parameters:
        here.out.print(facts((str(key).replace("_", " "), words(value)) for key, value in found.parameters.items()))
    if not any(items for *_, items in lines) and not found.parameters:
        here.out.print("nothing changed")


@command(("retain revert u3f2a91c", "answer again as before this update"))
def revert(here: Session, update: UpdateId) -> None:
    """Undo an update.

    Its document is kept and can be learned again; the history keeps both.
    """
    from retain.cli.progress import watching

    lm = here.open()
    with watching(here):
        made = lm.revert(update)
    told(here, made, f"reverted {update}")


@command(
    ("retain forget notes.md", "remove a document for good"),
    ("retain forget d0123 --yes", "without being asked"),
)
def forget(
    here: Session,
    document: DocumentId,
    yes: Annotated[bool, flag("--yes,-y", "Do not ask.")] = False,
    drop_checkpoints: Annotated[bool, flag("--drop-checkpoints", "Also delete the checkpoints that hold the document.")] = False,
) -> None:
    """Remove a document for good.

    With it go its text, its questions, and every adapter that was learned from it.
    Unlike revert this cannot be undone: states of the history that hold the document are removed as well.
    """
    from retain.cli.progress import watching

    lm = here.open()
    if here.interactive and not yes and not typer.confirm(f"Forget {names(lm).get(document) or document} for good?", err=True):
        here.note("nothing was changed")
        return
    with watching(here):
        made = lm.forget(document, drop_checkpoints=True) if drop_checkpoints else lm.forget(document)
    told(here, made, f"forgotten {document}")


@command(("retain verify", "check every object and ask the probes again"))
def verify(here: Session) -> None:
    """Check what is stored, and ask the probes again.

    Everything must be what was written, and what was learned must still be known.
    Exit code 3: problems were found.
    """
    from retain.cli.output import count, percent, words
    from retain.cli.progress import watching

    lm = here.open()
    with watching(here):
        found = lm.verify()
    if here.json:
        here.emit(found)
    else:
        mark = ("✓ ", "green") if found.ok else ("✗ ", "red")
        checked = count(found.checked, "object") if isinstance(found.checked, int) else words(found.checked)
        verdict = "all sound" if found.ok else f"{count(len(found.problems), 'problem')} found"
        here.out.print(Text.assemble(mark, f"{checked} checked, {verdict}"))
        for problem in found.problems:
            here.out.print(Text(f"  {problem}", style="red"), soft_wrap=True)
        for name, value in found.probes.items():
            shown = percent(value) if isinstance(value, float) and 0 <= value <= 1 else words(value)
            here.out.print(Text.assemble((f"  {str(name).replace('_', ' ')}: ", "dim"), shown))
    if not found.ok:
        raise typer.Exit(REFUSED)


@command(
    ("retain documents", "all documents"),
    ("retain documents --status pending", "those that wait to be learned"),
)
def documents(
    here: Session,
    status: Annotated[str | None, typer.Option(help="Only those with this status.", metavar="STATUS")] = None,
    domain: Annotated[str | None, typer.Option(help="Only those of this domain.", metavar="NAME")] = None,
) -> None:
    """The documents: known, pending, or rejected and why."""
    from retain.workspace.records import DOCUMENT_STATUSES

    if status is not None and status not in DOCUMENT_STATUSES:
        raise typer.BadParameter(f"{status!r} is none of {', '.join(DOCUMENT_STATUSES)}", param_hint="--status")
    records = [item for item in here.open().documents() if status in (None, item.status) and domain in (None, item.domain)]
    if here.json:
        here.emit(records)
        return
    if not records:
        here.out.print("no document" + (f" is {status}" if status else "") + ("" if status else " yet: retain learn FILE"))
        return
    here.out.print(documents_table(records, here.out.width))


def documents_table(records: list[Any], width: int) -> Any:
    """Documents as a table."""
    from retain.cli.certificates import ROOMY
    from retain.cli.output import amount, table, when

    columns = ["document", "title", "source", "domain", "importance", "size", "status", "update", "added"]
    if width < ROOMY:
        columns = ["document", "title", "domain", "status", "update"]
    rows = table(*columns, right=("importance", "size"))
    for column in rows.columns:
        column.no_wrap = column.header not in ("title", "source")
    for record in records:
        title = Text(record.title or "(forgotten)", style="" if record.title else "dim")
        if record.reason:
            title.append(f"\n{record.reason}", style="dim")
        cells = {
            "document": record.id,
            "title": title,
            "source": Text("" if record.source == record.title else record.source, style="dim"),
            "domain": record.domain,
            "importance": f"{record.importance:.2g}",
            "size": f"{amount(record.tokens)} tokens" if record.tokens else f"{amount(record.chars or None)} chars",
            "status": Text(record.status, style=_STATUS.get(record.status, "")),
            "update": record.update,
            "added": Text(when(record.added_at), style="dim"),
        }
        rows.add_row(*(cells[column] for column in columns))
    return rows


def names(lm: Any) -> dict[str, str]:
    """Titles of documents by id."""
    return {record.id: record.title for record in lm.documents()}


def told(here: Session, update: Update, message: str) -> None:
    """Say that an update was made (or not)."""
    if here.json:
        here.emit(update)
    elif update.status == "committed":
        here.out.print(Text.assemble(("✓ ", "green"), f"{message}: update {update.id}"), soft_wrap=True)
    else:
        here.out.print(Text(f"{update.status}: {update.reason}", style="yellow"), soft_wrap=True)
    if update.status == "rejected":
        raise typer.Exit(REFUSED)


def _name_of(item: Any) -> str:
    return str(item.get("name") or item.get("id") or item) if isinstance(item, dict) else str(getattr(item, "name", item))
