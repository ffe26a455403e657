"""`retain`: the commands, in the order in which the help lists them. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain import __version__
from retain.cli import (
    ace,
    adapters,
    asking,
    backups,
    bench,
    checkpoints,
    compare,
    configuration,
    distill,
    doctor,
    experiment,
    history,
    hypernetwork,
    learning,
    model,
    predict,
    pretrain,
    report,
    serving,
    train,
)
from retain.cli.command import Debug, Json, Workspace, add, command, examples_text, execute, flag

if TYPE_CHECKING:
    from retain.cli.session import Session

Commands = tuple[tuple[str, Callable[..., None]], ...]

_HELP: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": "rich"}
_EXAMPLES = (
    ("retain learn notes.md", "learn a document"),
    ('retain ask "What do the notes say?"', "ask what was learned"),
    ("retain log", "see what learning did to the rest"),
    ("retain", "the interactive menu"),
)


@command(("retain demo", "learn, ask, undo: the whole way in one go"))
def demo(here: Session) -> None:
    """See it work: learn, ask, prove that nothing was forgotten."""
    from retain.cli.demo import run

    run()


app = typer.Typer(name="retain", invoke_without_command=True, epilog=examples_text(_EXAMPLES), pretty_exceptions_enable=False, **_HELP)

_COMMANDS: tuple[tuple[str, Commands], ...] = (
    (
        "Learn and ask",
        (("learn", learning.learn), ("consolidate", learning.consolidate), ("ask", asking.ask), ("chat", asking.chat), ("demo", demo)),
    ),
    (
        "Inspect and undo",
        (
            ("log", history.log),
            ("show", history.show),
            ("diff", history.diff),
            ("revert", history.revert),
            ("forget", history.forget),
            ("verify", history.verify),
            ("documents", history.documents),
            ("backup", backups.backup),
            ("restore", backups.restore),
        ),
    ),
    (
        "Serve",
        (("serve", serving.serve), ("work", serving.work), ("ingest", serving.ingest), ("watch", serving.watch), ("queue", serving.queue)),
    ),
    ("Measure", (("compare", compare.compare), ("report", report.report))),
    (
        "Train",
        (
            ("pretrain", pretrain.pretrain),
            ("distill", distill.distill),
            ("train", train.train),
            ("predict", predict.predict),
            ("train-hypernetwork", hypernetwork.train_hypernetwork),
        ),
    ),
)
_GROUPS: tuple[tuple[str, str, Commands], ...] = (
    (
        "adapters",
        "The adapters that hold what was learned.",
        (
            ("list", adapters.list_adapters),
            ("show", adapters.show_adapter),
            ("merge", adapters.merge),
            ("export", adapters.export),
            ("import", adapters.import_adapter),
            ("enable", adapters.enable),
            ("disable", adapters.disable),
        ),
    ),
    (
        "checkpoint",
        "Names for states to return to.",
        (("save", checkpoints.save), ("load", checkpoints.load), ("list", checkpoints.list_checkpoints)),
    ),
    ("ace", "The learner ace: its playbook.", (("playbook", ace.playbook),)),
    (
        "bench",
        "What a model knows: questions, multiple choice, perplexity.",
        (("qa", bench.qa), ("mc", bench.mc), ("perplexity", bench.perplexity)),
    ),
    (
        "experiment",
        "What a way of learning forgets: sequences of tasks, curvature.",
        (("sequence", experiment.sequence), ("forgetting", experiment.forgetting), ("curvature", experiment.curvature)),
    ),
    ("model", "The base model, which is never written to.", (("pull", model.pull), ("info", model.info), ("list", model.list_models))),
    (
        "config",
        "The configuration: show, set, check; files to begin with.",
        (
            ("show", configuration.show),
            ("set", configuration.set_key),
            ("validate", configuration.validate),
            ("schema", configuration.schema),
            ("example", configuration.example),
        ),
    ),
)


@app.callback()
def root(
    ctx: typer.Context,
    workspace: Workspace = None,
    as_json: Json = False,
    debug: Debug = False,
    version: Annotated[bool, flag("--version", "Show the version and leave.")] = False,
) -> None:
    """Teach a language model new documents without forgetting, and prove it.

    Without a command in a terminal: the interactive menu.
    """
    ctx.obj = {"workspace": workspace, "as_json": as_json, "debug": debug}
    if version:
        print(f"retain {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is not None:
        return
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        from retain.cli.menu import menu

        execute(menu, workspace, as_json, debug, {})
    else:
        print(ctx.get_help())


def _build() -> None:
    """Register every command."""
    for panel, commands in _COMMANDS:
        for name, function in commands:
            add(app, function, name, panel)
    for group, text, commands in _GROUPS:
        examples = tuple(example for _, function in commands for example in getattr(function, "examples", ())[:1])
        nested = typer.Typer(help=text, no_args_is_help=True, epilog=examples_text(examples), **_HELP)
        for name, function in commands:
            add(nested, function, name)
        app.add_typer(nested, name=group, rich_help_panel="Manage")
    add(app, doctor.doctor, "doctor", "Manage")


_build()


def main() -> None:
    """The entry point of the console script."""
    app(prog_name="retain")


if __name__ == "__main__":
    main()
