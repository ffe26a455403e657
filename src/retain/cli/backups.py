"""`retain backup`, `restore`: a workspace as one file, also while it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retain.cli.command import command
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.workspace.backup import Backup


@command(
    ("retain backup work.tar", "everything that was learned, in one file"),
    ("retain backup b.tar -w handbook", "another workspace"),
)
def backup(here: Session, out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; it must not exist.")]) -> None:
    """Write the workspace to one file, also while the service learns and answers.

    It is the workspace at one moment: what was learned, the history, the queue. The base model is not in it.
    """
    from retain.workspace.backup import back_up

    place = here.config.workspace
    if not (place / "ledger.db").is_file():
        raise CommandError(f"there is no workspace at {place}: --workspace names another")
    with here.waiting("writing the backup"):
        made = back_up(place, out.expanduser())
    _told(here, made, f"{out} holds the workspace {place}")


@command(("retain restore work.tar --workspace again", "as it was when it was saved"))
def restore(here: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that retain backup wrote.")]) -> None:
    """Make a workspace from a backup, at a place (--workspace) where nothing is yet.

    Every byte is checked first; a backup that is incomplete or was changed leaves nothing behind.
    """
    from retain.workspace.backup import restore as make

    place = here.config.workspace
    with here.waiting("checking the backup"):
        made = make(file.expanduser(), place)
    _told(here, made, f"{place} is the workspace of {made.created_at[:16].replace('T', ' ')} UTC")


def _told(here: Session, made: Backup, message: str) -> None:
    if here.json:
        here.emit(made)
    else:
        here.out.print(f"{message} ({made.objects} objects, {made.bytes / 2**20:.1f} MB)", soft_wrap=True)
