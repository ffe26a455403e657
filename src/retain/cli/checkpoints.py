"""`retain checkpoint`: names for states to return to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from retain.cli.adapters import finish
from retain.cli.command import command
from retain.cli.output import to_plain

if TYPE_CHECKING:
    from retain.cli.session import Session

Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dot, dash and underscore; at most 64.")]


@command(("retain checkpoint save before-merger", "name the present state"))
def save(here: Session, name: Name) -> None:
    """Give the present state a name. It costs no space: a checkpoint is a list of hashes."""
    finish(here, here.open().checkpoint(name), f"saved as {name}; retain checkpoint load {name} returns to it", {"name": name})


@command(("retain checkpoint load before-merger", "answer as then"))
def load(here: Session, name: Name) -> None:
    """Return to a saved state. The history keeps what was learned since."""
    from retain.cli.progress import watching

    lm = here.open()
    with watching(here):
        made = lm.load_checkpoint(name)
    finish(here, made, f"{name} is the present state", {"name": name})


@command(("retain checkpoint list", "all checkpoints"))
def list_checkpoints(here: Session) -> None:
    """The checkpoints of the workspace."""
    found = list(here.open().checkpoints())
    if here.json:
        here.emit(found)
        return
    if not found:
        here.out.print("no checkpoint yet: retain checkpoint save NAME")
        return
    from retain.cli.output import table, when

    rows = table("checkpoint", "saved", "state")
    for item in found:
        values = to_plain(item)
        rows.add_row(values["name"], when(values.get("created_at", "")), Text(str(values.get("state", ""))[:12], style="dim"))
    here.out.print(rows)
