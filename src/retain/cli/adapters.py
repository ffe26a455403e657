"""`retain adapters`: the adapters that hold what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of an adapter (see retain adapters list).")]


@command(("retain adapters list", "all adapters"), ("retain adapters list --json", "for programs"))
def list_adapters(here: Session) -> None:
    """The adapters, with domain, documents, size, and size for each document.

    Serves: the documents that questions are routed to it for.
    """
    adapters = list(here.open().adapters)
    if here.json:
        here.emit(adapters)
        return
    if not adapters:
        here.out.print("no adapter yet: retain learn FILE")
        return
    from retain.cli.certificates import few
    from retain.cli.history import names
    from retain.cli.output import amount, count, data_size, table

    titles = names(here.open())
    figures = ("serves", "rank", "parameters", "size", "a document")
    rows = table("adapter", "learned from", "domain", "learner", *figures, "in use", right=figures)
    for adapter in adapters:
        learned = Text(few([titles.get(document) or document for document in adapter.documents]) or "imported")
        sizes = (
            str(adapter.serves),
            str(adapter.rank),
            amount(adapter.parameters),
            data_size(adapter.bytes),
            data_size(adapter.bytes_per_document),
        )
        in_use = Text("yes", style="green") if adapter.enabled else Text("no", style="yellow")
        rows.add_row(adapter.name, learned, adapter.domain, adapter.learner, *sizes, in_use)
    here.out.print(rows)
    used = [adapter for adapter in adapters if adapter.enabled and adapter.documents]
    documents, size = len({key for adapter in used for key in adapter.documents}), sum(adapter.bytes for adapter in used)
    if documents:
        here.note(f"{count(documents, 'document')} in {count(len(used), 'adapter')}: {data_size(size / documents)} a document")


@command(
    ("retain adapters show travel-policy", "one adapter"),
    ("retain adapters show travel-policy --change", "and how much it changes"),
)
def show_adapter(
    here: Session,
    name: Name,
    change: Annotated[bool, flag("--change", "Also how much it changes the weights; this loads the model.")] = False,
) -> None:
    """One adapter: its documents, sites, size and identity.

    Change: the Frobenius norm of what it adds to the weights of its sites, as a share of theirs.
    """
    adapter = find(here, name)
    share = here.open().adapter_change(adapter.name) if change else None
    if here.json:
        here.emit({**adapter.to_dict(), "change": share} if change else adapter)
        return
    from retain.cli.history import names
    from retain.cli.output import amount, count, data_size, facts, percent, words

    titles = names(here.open())
    about = [f"{titles.get(document) or document}  ({document})" for document in adapter.documents]
    rows = [
        ("adapter", Text(adapter.name, style="bold")),
        ("digest", Text(adapter.digest)),
        ("domain", Text(adapter.domain)),
        ("learner", Text(adapter.learner)),
        ("documents", Text("\n".join(about) or "none")),
        ("serves", Text(count(adapter.serves, "document"))),
        ("rank", Text(str(adapter.rank))),
        ("sites", Text(sites(adapter.sites))),
        ("size", Text(f"{amount(adapter.parameters)} parameters, {data_size(adapter.bytes)}")),
        ("a document", Text(data_size(adapter.bytes_per_document))),
        *([("change", Text(f"{percent(share, 2)} of the weights' norm"))] if change else []),
        ("in use", Text(words(adapter.enabled), style="green" if adapter.enabled else "yellow")),
    ]
    here.out.print(facts(rows))


@command(
    ("retain adapters merge travel expenses --into rules", "two become one"),
    ("retain adapters merge a b c --into abc --method linear", "another method"),
    ("retain adapters merge a=2 b --into ab --density 0.3", "with options"),
)
def merge(
    here: Session,
    names: Annotated[list[str], typer.Argument(metavar="NAME[=WEIGHT]", help="Adapters to merge, each with weight 1 or its own.")],
    into: Annotated[str, typer.Option(help="Name of the merged adapter.", metavar="NAME")],
    method: Annotated[str, typer.Option(help="Way of merging: concatenate, linear, ties, dare.", metavar="METHOD")] = "ties",
    density: Annotated[
        float | None, typer.Option(help="Share of each change that ties and dare keep (default: 0.2, 0.5).", metavar="SHARE")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the result (default: the largest; concatenate adds up).", metavar="N")
    ] = None,
) -> None:
    """Merge adapters into a new one."""
    if len(names) < 2:
        raise CommandError("merging needs at least two adapters")
    options: dict[str, Any] = {name: value for name, value in (("density", density), ("rank", rank)) if value is not None}
    made = here.open().merge([weighed(name) for name in names], method=method, into=into, **options)
    finish(here, made, f"merged {', '.join(names)} into {into}")


@command(("retain adapters export travel-policy out/", "a folder for peft"))
def export(
    here: Session, name: Name, directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write.", file_okay=False)]
) -> None:
    """Write an adapter in the format of the library peft."""
    place = directory.expanduser()
    finish(here, here.open().export_adapter(name, place), f"{name} is in {place}", {"adapter": name, "directory": str(place)})


@command(("retain adapters import out/ --name travel-policy", "read what peft wrote"))
def import_adapter(
    here: Session,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory with adapter_config.json.")],
    name: Annotated[str | None, typer.Option(help="Name in this workspace (default: the directory's).", metavar="NAME")] = None,
) -> None:
    """Read an adapter in the format of the library peft."""
    place = directory.expanduser()
    if not place.is_dir():
        raise CommandError(f"{place}: there is no such directory")
    chosen = name or place.resolve().name
    finish(here, here.open(create=True).import_adapter(place, chosen), f"imported as {chosen}", {"adapter": chosen})


@command(("retain adapters enable travel-policy", "answer with it again"))
def enable(here: Session, name: Name) -> None:
    """Use an adapter that was disabled."""
    finish(here, here.open().enable(name), f"{name} is in use", {"adapter": name, "enabled": True})


@command(("retain adapters disable travel-policy", "answer without it"))
def disable(here: Session, name: Name) -> None:
    """Stop using an adapter without losing it."""
    back = f"{name} is not in use; retain adapters enable {name} takes it back"
    finish(here, here.open().disable(name), back, {"adapter": name, "enabled": False})


def weighed(text: str) -> str | tuple[str, float]:
    """NAME as it is, NAME=WEIGHT as a pair."""
    name, equals, weight = text.partition("=")
    if not equals:
        return name
    try:
        return name, float(weight)
    except ValueError:
        raise CommandError(f"{text}: behind = stands the weight of {name or 'an adapter'}, a number, as in {name or 'rules'}=0.5") from None


def find(here: Session, name: str) -> Any:
    """The adapter with a name, or with the only name that begins so."""
    import difflib

    known = {adapter.name: adapter for adapter in here.open().adapters}
    begun = [key for key in known if key.startswith(name)]
    if name not in known and len(begun) == 1:
        return known[begun[0]]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise CommandError(f"no adapter {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "; retain adapters list shows them"))
    return known[name]


def sites(found: Any) -> str:
    """The places of an adapter in few words: module names and the layers that they are in."""
    names = list(found) if not isinstance(found, int | str) else [str(found)]
    layers = sorted({int(part) for name in names for part in name.split(".") if part.isdigit()})
    modules = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    if not layers or len(names) == 1:
        return ", ".join(names)
    return f"{len(names)}: {', '.join(modules)} in layers {layers[0]} to {layers[-1]}"


def finish(here: Session, value: Any, message: str, fallback: Any = None) -> None:
    """Say that something was done; as JSON what the API returned, or what was done. A rejected update is told as such."""
    if getattr(value, "status", "") == "rejected":
        from retain.cli.history import told

        told(here, value, message)
    elif here.json:
        here.emit(value if value is not None else fallback or {"done": message})
    else:
        here.out.print(Text.assemble(("✓ ", "green"), message), soft_wrap=True)
