"""How a function becomes a command: the options that every command has, examples in the help, errors as exit codes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from retain.cli.errors import INTERRUPTED, report

Function = TypeVar("Function", bound=Callable[..., None])
Examples = tuple[tuple[str, str], ...]
PANEL = "Options of every command"


def flag(names: str, help: str, panel: str | None = None) -> Any:
    """An option without a value, shown without a type. `names` are separated by commas."""
    return typer.Option(*names.split(","), metavar="", help=help, rich_help_panel=panel)


Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", metavar="DIR", help="Directory that holds what was learned.", rich_help_panel=PANEL),
]
Json = Annotated[bool, flag("--json", "Write JSON for programs; notes go to standard error.", PANEL)]
Debug = Annotated[bool, flag("--debug", "Show the traceback of an error.", PANEL)]
_COMMON = {"workspace": (Workspace, None), "as_json": (Json, False), "debug": (Debug, False)}


def command(*examples: tuple[str, str]) -> Callable[[Function], Function]:
    """Give a function `(here: Session, ...)` the examples of its help: pairs of a command line and what it does."""

    def mark(function: Function) -> Function:
        function.examples = examples  # type: ignore[attr-defined]
        return function

    return mark


def add(app: typer.Typer, function: Callable[..., None], name: str, panel: str | None = None) -> None:
    """Register a function marked with `command` under a name, with the options that every command has."""
    signature = inspect.signature(function)
    kinds = get_type_hints(function, localns={"Session": object}, include_extras=True)  # Session is not imported before a command runs
    _, *own = (parameter.replace(annotation=kinds[parameter.name]) for parameter in signature.parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [inspect.Parameter(key, keyword, annotation=kind, default=default) for key, (kind, default) in _COMMON.items()]
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)

    def run(ctx: typer.Context, workspace: Path | None, as_json: bool, debug: bool, **options: Any) -> None:
        root = ctx.find_root().obj or {}
        machine, trace = as_json or root.get("as_json", False), debug or root.get("debug", False)
        execute(function, workspace or root.get("workspace"), machine, trace, options)

    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *common]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = flowing(function.__doc__ or "")
    app.command(name, epilog=examples_text(getattr(function, "examples", ())), rich_help_panel=panel)(run)


def execute(function: Callable[..., None], workspace: Path | None, as_json: bool, debug: bool, options: dict[str, Any]) -> None:
    """Run a command's function in a session of its own, and turn what goes wrong into one line and an exit code."""
    from retain.cli.session import Session

    here = Session(workspace, as_json, debug)
    try:
        with here:
            function(here, **options)
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError, SystemExit):
        raise
    except KeyboardInterrupt:
        here.note("interrupted", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:
        raise typer.Exit(report(error, here.err, debug)) from error


def examples_text(examples: Examples) -> str:
    """The examples as the end of a help page."""
    if not examples:
        return ""
    width = max(len(line) for line, _ in examples)
    lines = [f"[cyan]  {_escape(line)}[/cyan]{' ' * (width - len(line))}  [dim]{_escape(what)}[/dim]" for line, what in examples]
    return "\n".join(["[bold]Examples[/bold]", *lines])


def flowing(text: str) -> str:
    """A docstring whose paragraphs are one line each, so that they wrap at the width of the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def _escape(text: str) -> str:
    """Text that rich shows as it is. rich's own function would be imported at every start."""
    return text.replace("[", "\\[")
