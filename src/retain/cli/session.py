"""What a command works with: the options that every command has, the two consoles, the configuration, and the opened workspace."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.config import Config
    from retain.workspace.continual import ContinualLM

Watcher = Callable[[Any], None]
PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe


def open_workspace(
    workspace: Path, *, model: str | None = None, learner: str | None = None, config: Config, create: bool = True, progress: Watcher
) -> ContinualLM:
    """Open a workspace. The one place where the command line meets the Python API; tests put a fake here."""
    from retain.workspace.continual import ContinualLM

    return ContinualLM.open(workspace, model, learner, config=config, create=create, progress=progress)


class Session:
    """One command's (or one menu's) view of the world.

    Attributes: `out` for results, `err` for everything else; `json` True when standard output is for machines; `debug`;
    `workspace` as given on the command line; `watcher` receives the progress events of the opened workspace.
    """

    def __init__(self, workspace: Path | None = None, json: bool = False, debug: bool = False) -> None:
        self.workspace, self.json, self.debug = workspace, json, debug
        self.out, self.err = console(), console(stderr=True)
        self.watcher: Watcher | None = None
        self._config: Config | None = None
        self._lm: ContinualLM | None = None
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Session:
        """Quiet libraries, notes of our own, and a terminal that never fails on a character that it cannot show."""
        for name in ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "HF_HUB_DISABLE_TELEMETRY"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        self._quiet.enter_context(_logged(self))
        if not self.debug:
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self._quiet.close()

    @property
    def interactive(self) -> bool:
        """True when a person sits in front of it."""
        return not self.json and sys.stdin.isatty() and sys.stdout.isatty()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        if self._config is None:
            self._config = self.load_config()
        return self._config

    def load_config(self, overrides: Mapping[str, Any] | None = None) -> Config:
        """The configuration with values from the command line laid over it."""
        from retain.config import load_config

        return load_config(self.workspace, overrides)

    def open(
        self,
        *,
        model: str | None = None,
        learner: str | None = None,
        create: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> ContinualLM:
        """The workspace, opened once for each session. Without `create` there must be one already."""
        if self._lm is None:
            config = self.load_config(overrides) if overrides else self.config
            place = config.workspace
            if not create and not is_workspace(place):
                raise CommandError(f"there is no workspace at {place} yet: `retain learn FILE` makes one, --workspace names another")
            self._lm = open_workspace(place, model=model, learner=learner, config=config, create=create, progress=self._on_event)
        return self._lm

    def close(self) -> None:
        """Close the workspace and forget the configuration; both are read anew when they are needed."""
        opened, self._lm, self._config = self._lm, None, None
        if opened is not None:
            opened.close()

    def emit(self, value: Any) -> None:
        """Write a value as JSON to standard output."""
        from retain.cli.output import to_json

        print(to_json(value), flush=True)

    def note(self, message: str, style: str = "dim") -> None:
        """A line for people, on standard error."""
        self.err.print(Text(" ".join(message.split()), style=style), soft_wrap=True, highlight=False)

    @contextlib.contextmanager
    def waiting(self, message: str) -> Iterator[Callable[[], None]]:
        """A spinner on a terminal until the block ends or the function that it gives is called."""
        if self.json or not self.err.is_terminal:
            yield lambda: None
            return
        status = self.err.status(Text(message, style="dim"), spinner="dots")
        with status:
            yield status.stop

    def _on_event(self, event: Any) -> None:
        if self.watcher is not None:
            self.watcher(event)
        elif event.kind == "note" and event.message:
            self.note(event.message)


class _Notes(logging.Handler):
    """Log records of retain as notes."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def emit(self, record: logging.LogRecord) -> None:
        self.session.note(record.getMessage(), "yellow" if record.levelno >= logging.WARNING else "dim")


def is_workspace(place: Path) -> bool:
    """Whether a directory is a workspace."""
    return (place / "ledger.db").is_file()


@contextlib.contextmanager
def _logged(session: Session) -> Iterator[None]:
    """Show what retain logs as notes."""
    log = logging.getLogger("retain")
    before, handler = (log.level, log.propagate), _Notes(session)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if session.debug else logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def typed(prompt: str = "") -> str:
    """A line of standard input; in a terminal it can be edited and earlier lines come back."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() uses it once it is there
    return input(prompt)


def console(stderr: bool = False) -> Console:
    """A console. Where it is not a terminal it is wide, so that no cell of a table is cut."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made
