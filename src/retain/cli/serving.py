"""`retain serve`, `work`, `ingest`, `watch`: documents that arrive are learned while questions are answered."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.workspace.inbox import Arrival

Domain = Annotated[str | None, typer.Option(help="Domain of the documents (default: learn.domain).", metavar="NAME")]
Importance = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="From 0 to 1; the most important are learned first.", metavar="X")]
GROUP = 500  # arrivals in one commit


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
    no_learner: Annotated[bool, flag("--no-learner", "Only answer; learn with `retain work`.")] = False,
) -> None:
    """Answer over HTTP (OpenAI's API, and a page) while what arrives is learned.

    Listens on this machine only, unless there is a token file. What is sent is safe on the disk before it is acknowledged, and
    learned by a process of its own; stop with Ctrl-C, and nothing is lost.
    """
    _need_serve()
    from retain.serving.process import check_address
    from retain.serving.process import serve as run

    asked = {"host": host, "port": port, "token_file": token_file, "eight_bits": eight_bits or None}
    settings = type(here.config.serve).model_validate(
        here.config.serve.model_dump() | {name: value for name, value in asked.items() if value is not None}
    )
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
    with watching(here):
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
        here.out.print(f"{new} documents wait to be learned{known}: retain work, or retain serve")


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
