"""`retain serve`, `work`, `ingest`, `watch`, `queue`: documents that arrive are learned while questions are answered."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag
from retain.cli.errors import CommandError, is_user_error

if TYPE_CHECKING:
    from rich.table import Table

    from retain.cli.session import Session
    from retain.workspace.inbox import Arrival, ArrivalRecord

Domain = Annotated[str | None, typer.Option(help="Domain of the documents (default: learn.domain).", metavar="NAME")]
Importance = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="From 0 to 1; the most important are learned first.", metavar="X")]
GROUP = 500  # arrivals in one commit
_STYLES = {"pending": "yellow", "learning": "cyan", "done": "green", "failed": "red", "held": "magenta"}


@command(
    ("retain serve", "API and page on port 8080"),
    ("retain serve -w work --port 9000", "another workspace and port"),
    ("retain serve --host 0.0.0.0 --token-file tokens", "for others, with tokens"),
)
def serve(
    here: Session,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: serve.host).", metavar="H")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on (default: serve.port).", metavar="P")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Lines of a scope (read, learn, admin) and a token.", metavar="FILE")] = None,
    eight_bits: Annotated[bool, flag("--eight-bits", "Answer with weights in eight bits: faster on a CPU.")] = False,
    log: Annotated[str | None, typer.Option(help="JSON on standard output: auto, all, problems, none.", metavar="WHAT")] = None,
    no_learner: Annotated[bool, flag("--no-learner", "Only answer; learn with `retain work`.")] = False,
) -> None:
    """Answer over HTTP (OpenAI's API, and a page) while what arrives is learned.

    Listens on this machine only, unless there is a token file. What is sent is safe on the disk before it is acknowledged, and
    learned by a process of its own; stop with Ctrl-C, and nothing is lost.
    """
    _need_serve()
    from retain.serving.process import check_address
    from retain.serving.process import serve as run

    asked = {"host": host, "port": port, "token_file": token_file, "eight_bits": eight_bits or None, "log": log}
    settings = here.load_config({f"serve.{name}": value for name, value in asked.items()}).serve
    check_address(settings)
    lm = here.open(create=True)
    with here.waiting("loading the model"):
        name = lm.model.name
    where = f"[{settings.host}]" if ":" in settings.host else settings.host
    here.note(f"{name} answers at http://{where}:{settings.port} (workspace {lm.root}); stop with Ctrl-C", "green")
    run(lm, settings, not no_learner, here.note)
    here.note("stopped; nothing was lost")


@command(("retain work", "learn what arrives until Ctrl-C"), ("retain work --once", "learn what waits, then stop"))
def work(
    here: Session,
    once: Annotated[bool, flag("--once", "Stop when nothing waits any more.")] = False,
    release: Annotated[
        list[str] | None, typer.Option(help="Learn something that is held for review or was given up.", metavar="ID")
    ] = None,
    quiet: Annotated[bool, flag("--quiet", "Name no document on the terminal, as the service runs it.")] = False,
) -> None:
    """Learn what arrives (`retain ingest`, the service), one after another.

    `retain serve` runs this by itself; run it by hand where nothing is served. Stopped or killed, it loses nothing.
    """
    import signal
    import threading

    from retain.cli.progress import watching
    from retain.serving.events import EventFile
    from retain.workspace.worker import Worker

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lm = here.open(create=True)
    for key in release or ():
        lm.ledger.release(key)
    record = EventFile(lm.root)
    with _quietly(here) if quiet else watching(here):
        seen = here.watcher

        def both(event: Any) -> None:
            record(event)
            if seen is not None:
                seen(event)

        here.watcher = both
        worker = Worker(lm, both)
        if not once:
            return worker.run(threading.Event())
        while lm.ledger.waiting() and worker.once():
            pass
    counts = lm.ledger.arrival_counts()
    if here.json:
        here.emit(counts)
    else:
        here.out.print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing has arrived")


@contextlib.contextmanager
def _quietly(here: Session) -> Iterator[None]:
    """Neither notes nor progress, and of errors that nobody foresaw their names and where they were: what they say may quote a document."""
    import logging

    from retain.serving.journal import named

    here.watcher = None
    logging.getLogger("retain").setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        if is_user_error(error) or isinstance(error, OSError | MemoryError):
            raise
        found = named(error)
        raise CommandError(f"the learner failed: {found['error']} at {', '.join(found['at'])}") from None


@command(
    ("retain queue", "what was handed in last"),
    ("retain queue --status held", "what waits for somebody to look at it"),
    ("retain queue --json", "for programs"),
)
def queue(
    here: Session,
    status: Annotated[str | None, typer.Option(help="pending, learning, done, failed or held.", metavar="STATUS")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.", metavar="N")] = 50,
) -> None:
    """What was handed in to be learned later, the latest first, and what became of it.

    `retain work --release ID` learns something that is held for review or was given up.
    """
    from retain.cli.output import count
    from retain.workspace.inbox import STATUSES

    if status is not None and status not in STATUSES:
        raise typer.BadParameter(f"{status!r} is none of {', '.join(STATUSES)}", param_hint="--status")
    ledger = here.open().ledger
    found = ledger.arrivals(status, limit)
    if here.json:
        return here.emit(found)
    if not found:
        return here.out.print(f"nothing is {status}" if status else "nothing was handed in yet: retain ingest FILE")
    here.out.print(_queue_table(found, here.out.width))
    here.note(f"{count(ledger.waiting(), 'document')} waiting to be learned")


def _queue_table(records: Sequence[ArrivalRecord], width: int) -> Table:
    """Arrivals as a table; in a narrow terminal the columns that matter most."""
    from retain.cli.certificates import ROOMY
    from retain.cli.output import DASH, table, when

    roomy = width >= ROOMY
    rows = table("id", "name", "status", *(("source", "importance", "received") if roomy else ()), right=("importance",))
    for column in rows.columns:
        column.no_wrap = column.header not in ("name", "source")
    for record in records:
        name = Text(record.name or DASH)
        if record.reason:
            name.append(f"\n{record.reason}", style="dim")
        source = Text("" if record.source == record.name else record.source, style="dim")
        more = (source, f"{record.importance:.2g}", Text(when(record.received_at), style="dim")) if roomy else ()
        rows.add_row(record.id, name, Text(record.status, style=_STYLES[record.status]), *more)
    return rows


@command(
    ("retain ingest notes.md report.pdf", "files, learned later"),
    ("retain ingest handbook/ --importance 0.9", "a folder, before others"),
    ("fortune | retain ingest -", "standard input"),
    ("retain ingest https://example.org/a", "a page, with serve.fetch"),
)
def ingest(
    here: Session,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders, web addresses; - reads standard input.")],
    domain: Domain = None,
    importance: Importance = None,
) -> None:
    """Hand in documents to be learned later, by the service or by `retain work`.

    Returns when they are safe on the disk. What was handed in before is known by its content and not learned twice.
    """
    from retain.cli.output import count

    lm = here.open(create=True)
    found, new = [], 0
    group: list[Arrival] = []
    for arrival in _arrivals(here, paths, domain, importance):
        group.append(arrival)
        if len(group) == GROUP:
            found += lm.ledger.receive(group)
            group = []
    found += lm.ledger.receive(group)
    new = sum(fresh for _, fresh in found)
    if here.json:
        here.emit([{"id": key, "new": fresh} for key, fresh in found])
    else:
        known = f", {len(found) - new} known already" if new < len(found) else ""
        waits = "waits" if new == 1 else "wait"
        here.out.print(f"{count(new, 'document')} {waits} to be learned{known}: retain work, or retain serve")


@command(("retain watch inbox/", "learn what is put into a folder"))
def watch(
    here: Session,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder whose files are handed in, also below it.")],
    domain: Domain = None,
    importance: Importance = None,
) -> None:
    """Hand in every file of a folder, now and whenever one is added or changed, until Ctrl-C.

    They are learned by the service or by `retain work`, which runs beside.
    """
    try:
        from watchfiles import watch as changes
    except ImportError:
        raise CommandError("retain watch needs watchfiles: pip install 'retain[serve]'") from None
    from watchfiles import Change

    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder")
    lm = here.open(create=True)
    first = lm.ledger.receive(list(_arrivals(here, [str(folder)], domain, importance)))
    here.note(f"{sum(new for _, new in first)} of {len(first)} files are new; watching {folder}, stop with Ctrl-C", "green")
    for changed in changes(folder, raise_interrupt=True):
        files = sorted({Path(name) for kind, name in changed if kind != Change.deleted and Path(name).is_file()})
        time.sleep(0.2)  # what is being written is written
        for file in files:
            for key, new in lm.ledger.receive(list(_arrivals(here, [str(file)], domain, importance))):
                if new:
                    here.note(f"{file.name} waits to be learned ({key})")


def _arrivals(here: Session, paths: list[str], domain: str | None, importance: float | None) -> Iterator[Arrival]:
    """Everything named, as the inbox takes it; of folders the files of known kinds. Raises CommandError for what does not exist."""
    from retain.data.document import check_metadata
    from retain.data.fetch import check_url
    from retain.data.readers import CODE, RECORDS, RICH, TEXT
    from retain.workspace.inbox import Arrival

    settings = here.config.learn
    about: dict[str, Any] = {
        "domain": settings.domain if domain is None else domain, "importance": settings.importance if importance is None else importance,
    }  # fmt: skip
    check_metadata(about["domain"], about["importance"])
    readable = {*RICH, *RECORDS, *TEXT, *CODE}
    for name in paths:
        path = Path(name)
        if name.startswith(("http://", "https://")):
            if not here.config.serve.fetch:
                raise CommandError("web addresses are not fetched: retain config set serve.fetch true allows it")
            check_url(name)
            yield Arrival(name.encode(), "url", name[:200], name[:500], **about)
        elif name == "-":
            body = sys.stdin.buffer.read()
            if not body.strip():
                raise CommandError("standard input is empty")
            yield Arrival(body, "text", "", "standard input", **about)
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.is_file() and not hidden and file.suffix.lower() in readable:
                    yield Arrival(file.read_bytes(), "file", file.name, str(file), **about)
        elif path.is_file():
            yield Arrival(path.read_bytes(), "file", path.name, str(path), **about)
        else:
            raise CommandError(f"{path} does not exist")


def _need_serve() -> None:
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise CommandError(f"retain serve needs {error.name}: pip install 'retain[serve]'") from None
