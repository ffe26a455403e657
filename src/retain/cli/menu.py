"""The interactive menu: `retain` alone in a terminal. Numbered, plain input, the same functions as the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from retain.cli import (
    adapters,
    asking,
    backups,
    bench,
    checkpoints,
    compare,
    configuration,
    experiment,
    history,
    learning,
    model,
    report,
    serving,
)
from retain.cli.command import command
from retain.cli.errors import CommandError
from retain.cli.errors import report as tell
from retain.cli.output import count, home
from retain.cli.session import Session, typed


class Leave(Exception):
    """The person wants to leave the menu, or the question that is being asked."""


@command(("retain", "the interactive menu"))
def menu(here: Session) -> None:
    """The interactive menu: everything, by number."""
    if here.json:
        raise CommandError("the menu is for people: leave out --json")
    while True:
        _show(here)
        try:
            choice = _ask(here, "choose")
        except Leave:
            break
        if choice.lower() in ("0", "q", "quit", "exit"):
            break
        action = _chosen(choice)
        if action is None:
            here.note(f"{choice!r} is none of them: a number from 0 to {len(ENTRIES)}, or the beginning of a name", "yellow")
            continue
        _run(here, action)
    here.out.print("goodbye", style="dim")


def _run(here: Session, action: Callable[[Session], None]) -> None:
    """One entry; whatever goes wrong in it leads back to the menu."""
    try:
        action(here)
    except (Leave, typer.Exit, typer.Abort):
        pass
    except KeyboardInterrupt:
        here.note("\ninterrupted", "yellow")
    except Exception as error:
        tell(error, here.err, here.debug)


def _show(here: Session) -> None:
    place = here.config.workspace
    here.out.print()
    here.out.print(Text.assemble(("retain", "bold cyan"), ("  ·  ", "dim"), (home(place), "dim"), ("  ·  ", "dim"), here.config.model.name))
    width = max(len(label) for label, _ in ENTRIES) + 6
    cells = [Text.assemble((f"{number:>3}", "bold cyan"), f"  {label}") for number, (label, _) in enumerate(ENTRIES, 1)]
    cells.append(Text.assemble((f"{0:>3}", "bold cyan"), "  Leave"))
    half = (len(cells) + 1) // 2
    for row in range(half):
        left = cells[row]
        right = cells[half + row] if half + row < len(cells) else Text()
        here.out.print(left + Text(" " * (width + 4 - len(left))) + right, soft_wrap=True)


def _chosen(choice: str) -> Callable[[Session], None] | None:
    """The entry with this number, or the only one that begins so."""
    if choice.isdigit():
        return ENTRIES[int(choice) - 1][1] if 1 <= int(choice) <= len(ENTRIES) else None
    found = [action for label, action in ENTRIES if label.lower().startswith(choice.lower())]
    return found[0] if len(found) == 1 and choice else None


def _ask(here: Session, question: str, default: str | None = None) -> str:
    """A line; `Leave` at its end or at Ctrl-C, and for an empty line that means nothing."""
    shown = f"{question} [{default}]" if default else question
    try:
        line = typed(f"{shown} › ").strip()
    except (EOFError, KeyboardInterrupt):
        here.out.print()
        raise Leave from None
    if not line and default is None and question != "choose":
        raise Leave
    return line or default or ""


def _pick(here: Session, what: str, items: Sequence[tuple[str, str]]) -> str:
    """One of several things, by number, name or the beginning of its name."""
    if not items:
        here.out.print(f"there is no {what} yet")
        raise Leave
    for number, (key, label) in enumerate(items, 1):
        here.out.print(Text.assemble((f"{number:>3}", "bold cyan"), f"  {key}", (f"  {label}", "dim")), soft_wrap=True)
    line = _ask(here, f"which {what} (number or name)")
    return items[int(line) - 1][0] if line.isdigit() and 1 <= int(line) <= len(items) else line


def _question(here: Session) -> None:
    asking.ask(here, _ask(here, "question"), sources=True)


def _document(here: Session) -> None:
    path = _path(_ask(here, "file"))
    domain, importance = _about(here)
    learning.learn(here, [path], domain=domain, importance=importance)


def _about(here: Session) -> tuple[str, float]:
    """Domain and importance of documents."""
    domain = _ask(here, "domain", here.config.learn.domain)
    importance = _ask(here, "importance, 0 to 1", str(here.config.learn.importance))
    try:
        return domain, float(importance)
    except ValueError:
        raise CommandError(f"{importance!r} is not a number from 0 to 1") from None


def _folder(here: Session) -> None:
    path = _path(_ask(here, "folder"))
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path} is a file, not a folder")
    learning.learn(here, [path])


def _certificate(here: Session) -> None:
    history.show(here, _pick(here, "update", _updates(here)))


def _undo(here: Session) -> None:
    if _ask(here, "1 revert an update (can be learned again), 2 forget a document for good") == "1":
        history.revert(here, _pick(here, "update", _updates(here)))
    else:
        known = [(item.id, item.title) for item in here.open().documents() if item.status != "forgotten"]
        document = _pick(here, "document", known)
        if _ask(here, f"forget {dict(known).get(document) or document} for good? type yes", "no") == "yes":
            history.forget(here, document, yes=True)
        else:
            here.note("nothing was changed")


def _benchmark(here: Session) -> None:
    bench.qa(here, _path(_ask(here, "file of questions")))


def _compare(here: Session) -> None:
    documents = [_path(_ask(here, "file of a document"))]
    while line := _ask(here, "another one, or nothing", ""):
        documents.append(_path(line))
    questions = _path(_ask(here, "file of questions"))
    compare.compare(here, documents, questions, learners=_ask(here, "learners", "all"))


def _sequence(here: Session) -> None:
    stream = _ask(here, "permuted-digits, split-digits, or a YAML file", "split-digits")
    experiment.sequence(here, stream, methods=_ask(here, "methods", "naive,ewc,er,der++,joint"))


def _report(here: Session) -> None:
    report.report(here, _path(_ask(here, "directory of a run")))


def _serve(here: Session) -> None:
    port = _ask(here, "port", str(here.config.serve.port))
    if not port.isdigit():
        raise CommandError(f"{port!r} is not a number from 1 to 65535")
    serving.serve(here, port=int(port))


def _hand_in(here: Session) -> None:
    line = _ask(here, "file, folder or web address")
    domain, importance = _about(here)
    path = line if line.startswith(("http://", "https://")) else str(_path(line))
    serving.ingest(here, [path], domain=domain, importance=importance)


def _watch(here: Session) -> None:
    serving.watch(here, _path(_ask(here, "folder")))


def _learn_waiting(here: Session) -> None:
    serving.work(here, once=True)


def _queue(here: Session) -> None:
    serving.queue(here, limit=20)
    stopped = [item for status in ("held", "failed") for item in here.open().ledger.arrivals(status, 20)]
    if stopped and (key := _ask(here, "id of one that is held or failed, to learn it after all; or nothing", "")):
        here.open().ledger.release(key)
        here.note(f"{key} waits to be learned")


def _back_up(here: Session) -> None:
    backups.backup(here, _path(_ask(here, "file to write")))


def _restore(here: Session) -> None:
    file = _path(_ask(here, "file of a backup"))
    place = _path(_ask(here, "new folder of the workspace"))
    backups.restore(Session(place, debug=here.debug), file)
    here.note(f"retain --workspace {place} works with it")


def _save(here: Session) -> None:
    checkpoints.save(here, _ask(here, "name"))


def _load(here: Session) -> None:
    from retain.cli.output import to_plain, when

    found = [to_plain(item) for item in here.open().checkpoints()]
    checkpoints.load(here, _pick(here, "checkpoint", [(item["name"], when(item.get("created_at", ""))) for item in found]))


def _configure(here: Session) -> None:
    configuration.show(here, changed=True)
    here.note("retain config show lists every key; changes here are kept in the workspace's file")
    key = _ask(here, "key")
    configuration.show(here, key)
    configuration.set_key(here, key, _ask(here, "new value"))


def _updates(here: Session) -> list[tuple[str, str]]:
    """The latest updates, to pick from."""
    from retain.cli.certificates import result, titles

    lm = here.open()
    known = history.names(lm)
    latest: list[Any] = sorted(lm.log(), key=lambda update: update.sequence, reverse=True)
    if len(latest) > 15:
        here.note(f"the latest 15 of {count(len(latest), 'update')}")
    return [(update.id, f"{result(update).plain}  {titles(update, known)}") for update in latest[:15]]


def _path(line: str) -> Path:
    """A path as people paste it: with quotes, with ~."""
    return Path(line.strip("'\"")).expanduser()


ENTRIES: list[tuple[str, Callable[[Session], None]]] = [
    ("Chat", asking.chat),
    ("Ask a question", _question),
    ("Learn a document", _document),
    ("Learn a folder", _folder),
    ("Documents", history.documents),
    ("Learning history", history.log),
    ("Show a certificate", _certificate),
    ("Revert or forget", _undo),
    ("Verify, ask the old questions again", history.verify),
    ("Benchmark", _benchmark),
    ("Compare ways of learning", _compare),
    ("Forgetting experiment", _sequence),
    ("Report of an experiment", _report),
    ("Save a checkpoint", _save),
    ("Load a checkpoint", _load),
    ("List checkpoints", checkpoints.list_checkpoints),
    ("Adapters", adapters.list_adapters),
    ("Model information", model.info),
    ("Serve, API and page", _serve),
    ("Hand in documents", _hand_in),
    ("Watch a folder", _watch),
    ("Queue of what was handed in", _queue),
    ("Work, learn what was handed in", _learn_waiting),
    ("Back up", _back_up),
    ("Restore a backup", _restore),
    ("Configure", _configure),
]
