"""`retain ace playbook`: what the learner ace wrote down, shown, kept by name and taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session

ACTIONS = ("show", "save", "load")


@command(
    ("retain ace playbook show", "the playbook in use"),
    ("retain ace playbook save before-audit", "keep it by name"),
    ("retain ace playbook load before-audit", "take it up again"),
    ("retain ace playbook show before-audit --json", "a saved one, as JSON"),
)
def playbook(
    here: Session,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="show, save or load.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of a saved playbook.")] = None,
) -> None:
    """Show, save or load the playbook of the learner ace.

    Each bullet has an id, how often it helped and harmed, and the documents that it came from.
    """
    from retain.data.errors import did_you_mean

    if action not in ACTIONS:
        raise CommandError(f"playbook {action}: {did_you_mean(action, ACTIONS) or 'it is show, save or load'}")
    if action != "show" and name is None:
        raise CommandError(f"playbook {action} needs a NAME")
    lm = here.open()
    if action == "show":
        _show(here, name)
    elif action == "save":
        lm.save_playbook(name or "")
        _done(here, f"saved as {name}; retain ace playbook load {name} takes it up again", {"name": name})
    else:
        update = lm.load_playbook(name or "")
        _done(here, f"{name} is the playbook in use ({update.id})", update)


def _show(here: Session, name: str | None) -> None:
    from retain.cli.output import table

    found = here.open().playbook(name)
    if here.json:
        here.emit(found.value())
        return
    rows = table("id", "helpful", "harmful", "text", "from", right=("helpful", "harmful"))
    for bullet in found.ranked():
        titles = ", ".join(found.titles[document] for document in bullet.documents)
        rows.add_row(bullet.id, str(bullet.helpful), str(bullet.harmful), Text(bullet.text), Text(titles, style="dim"))
    here.out.print(rows)


def _done(here: Session, message: str, value: object) -> None:
    if here.json:
        here.emit(value)
    else:
        here.out.print(Text.assemble(("✓ ", "green"), message), soft_wrap=True)
