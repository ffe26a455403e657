"""`retain config`: show, set, check and describe the configuration, and files to begin with."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.config import Config, Setting


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """Keys for the shell's completion, with their help."""
    from retain.config import describe

    return [(row.key, row.help) for row in describe() if row.key.startswith(incomplete)]


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of files for the shell's completion."""
    from retain.cli.kinds import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_example(incomplete: str) -> list[str]:
    """Names of examples for the shell's completion."""
    from retain.cli.kinds import examples

    return [name for name in examples() if name.startswith(incomplete)]


Key = Annotated[str, typer.Argument(metavar="KEY", help="Dotted key, such as learn.rank.", autocompletion=complete_key)]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it to a new file.")]


@command(
    ("retain config show", "every key and its value"),
    ("retain config show learn", "one section"),
    ("retain config show --changed", "what differs from the defaults"),
)
def show(
    here: Session,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A key or a section.", autocompletion=complete_key)] = None,
    changed: Annotated[bool, flag("--changed", "Only what was set somewhere.")] = False,
) -> None:
    """The configuration in force.

    Defaults < ~/.config/retain/config.yaml < WORKSPACE/config.yaml < RETAIN_SECTION__KEY=value < command line.
    """
    from retain.config import describe

    settings = describe(here.config)
    rows = [row for row in settings if key is None or row.key == key or row.key.startswith(f"{key}.")]
    if not rows:
        sections = {".".join(row.key.split(".")[:depth]) for row in settings for depth in range(1, row.key.count(".") + 1)}
        near = difflib.get_close_matches(str(key), [*(row.key for row in settings), *sections], n=3, cutoff=0.5)
        raise CommandError(f"no key {key!r}" + (f"; did you mean {' or '.join(near)}?" if near else "; retain config show lists them"))
    rows = [row for row in rows if not changed or row.source != "default"]
    if here.json:
        here.emit({row.key: {name: value for name, value in asdict(row).items() if name != "key"} for row in rows})
    elif not rows:
        here.out.print("every value is its default")
    else:
        here.out.print(_table(rows, alone=len(rows) == 1))


@command(
    ("retain config set learn.rank 16", "for this workspace"),
    ("retain config set model.threads 4 --user", "for all workspaces"),
    ("retain config set retention.methods replay,ewc", "a list"),
    ("retain config set model.threads null", "nothing"),
)
def set_key(
    here: Session,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The new value.")],
    user: Annotated[bool, flag("--user", "In the user's file, for all workspaces.")] = False,
) -> None:
    """Set one key of the configuration.

    It is kept in the workspace's file, or with --user in the user's.
    The value is checked before anything is written. The key "workspace" always goes to the user's file.
    """
    path = write(here, key, value, user)
    if here.json:
        here.emit({"key": key, "value": _value(here, key), "file": str(path)})
        return
    from retain.cli.output import home, words

    here.out.print(Text.assemble(("✓ ", "green"), f"{key} = {words(_value(here, key))}  ", (f"in {home(path)}", "dim")), soft_wrap=True)


@command(
    ("retain config validate", "everything that is in force"),
    ("retain config validate news.yaml", "one file of any kind"),
)
def validate(
    here: Session,
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", help="YAML files; without them, what is in force.")] = None,
) -> None:
    """Check the configuration, or files for train, pretrain, distill and train-hypernetwork.

    Unknown keys and wrong values are errors that say where they are and what was meant. No model and no data are read.
    """
    from retain.cli.kinds import KINDS, check
    from retain.cli.output import home
    from retain.config import user_file, workspace_file

    chosen = [file.expanduser() for file in files or []]
    for file in chosen:
        if not file.is_file():
            raise CommandError(f"{file}: there is no such file")
    if not chosen:
        chosen = [path for path in (user_file(), workspace_file(here.config.workspace)) if path.is_file()]
    kinds = [check(file) for file in chosen]
    if not files:
        known_names(here.config)
    if here.json:
        here.emit({"valid": True, "files": [str(file) for file in chosen], "kinds": kinds})
        return
    for file, kind in zip(chosen, kinds, strict=True):
        here.out.print(Text.assemble(("✓ ", "green"), home(file), (f"  for {KINDS[kind]}", "dim")), soft_wrap=True)
    if not files:
        here.out.print(Text.assemble(("✓ ", "green"), "the configuration in force is valid" + ("" if chosen else " (defaults; no file)")))


@command(
    ("retain config schema train", "of experiments"),
    ("retain config schema train --out train.schema.json", "for an editor"),
)
def schema(
    here: Session,
    kind: Annotated[
        str, typer.Argument(metavar="[KIND]", help="workspace, train, pretrain, distill or hypernetwork.", autocompletion=complete_kind)
    ] = "workspace",
    out: Out = None,
) -> None:
    """The JSON Schema of a kind of file: every key with its type, range, default and meaning.

    For train it holds the sections of every kind of backbone and task that there is.
    """
    from retain.cli.kinds import KINDS, one_of
    from retain.cli.kinds import schema as made
    from retain.cli.output import to_json

    found = made(one_of(kind, KINDS, "kind of file"))
    if out is None:
        here.emit(found)
    else:
        _new_file(here, out, to_json(found) + "\n")


@command(
    ("retain config example", "what there is"),
    ("retain config example text", "a commented file to begin with"),
    ("retain config example text --out news.yaml", "into a file"),
)
def example(
    here: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which example.", autocompletion=complete_example)] = None,
    out: Out = None,
) -> None:
    """A commented YAML file to begin with: for texts, tables, pictures, sounds, answers, a decoder of your own."""
    from retain.cli.kinds import about, examples, one_of
    from retain.cli.output import facts

    known = {one: file.read_text(encoding="utf-8") for one, file in examples().items()}
    if name is None:
        if out is not None:
            raise CommandError(f"--out: name the example; there is {', '.join(known)}")
        if here.json:
            here.emit({one: about(text) for one, text in known.items()})
        else:
            here.out.print(facts([(one, Text(about(text))) for one, text in known.items()]))
        return
    text = known[one_of(name, known, "example")]
    if out is not None:
        _new_file(here, out, text)
    if here.json:
        here.emit({"name": name, "yaml": text, "file": None if out is None else str(out)})
    elif out is None:
        here.out.print(Text(text.rstrip("\n")), soft_wrap=True, highlight=False)


def write(here: Session, key: str, value: str, user: bool = False) -> Path:
    """Set a key in the file that it belongs to; the file."""
    from retain.config import set_value, user_file, workspace_file

    path = user_file() if user or key == "workspace" else workspace_file(here.config.workspace)
    set_value(path, key, value, known_names)
    here.close()  # what was opened with the old configuration
    hidden = _setting(here, key)
    if hidden is not None and hidden.source not in (str(path), "default"):
        here.note(f"{key} is also set by {hidden.source}, which wins", "yellow")
    return path


def known_names(config: Config) -> None:
    """Raise ConfigError for a name that no learner or retention method has. These are imported, which takes a second, where one is set."""
    if "learner" in config.learn.model_fields_set or config.retention.methods:
        from retain.learners.checks import check_names

        check_names(config)


def _new_file(here: Session, out: Path, text: str) -> None:
    from retain.cli.output import home

    place = out.expanduser()
    if place.exists():
        raise CommandError(f"{place}: is there already: choose another name")
    place.write_text(text, encoding="utf-8")
    here.note(f"written to {home(place)}")


def _setting(here: Session, key: str) -> Setting | None:
    from retain.config import describe

    return next((row for row in describe(here.config) if row.key == key), None)


def _value(here: Session, key: str) -> Any:
    found = _setting(here, key)
    return found.value if found else None


def _table(rows: list[Setting], alone: bool) -> Any:
    from retain.cli.output import home, table, words

    made = table("key", "value", "from", "what it is")
    made.columns[0].no_wrap = True
    for section, members in groupby(rows, key=lambda row: row.key.rpartition(".")[0]):
        for row in members:
            style = "" if row.source == "default" else "bold cyan"
            value = Text(home(words(row.value)) if row.type == "path" else words(row.value), style=style)
            name = Text.assemble((f"{section}." if section else "", "dim"), row.key.rpartition(".")[2])
            about = f"{row.help} ({row.type})" if alone else row.help
            made.add_row(name, value, Text(home(row.source), style="dim"), Text(about, style="dim"))
        made.add_section()
    return made
