"""Commands run in this process over a stand-in for ContinualLM, and in processes of their own where that is what counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # typer colours its help wherever GITHUB_ACTIONS is set, and reads this when imported

import pytest
from tests.cli.fake import World
from typer.testing import CliRunner

from retain.cli import session
from retain.cli.main import app

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the terminal's width nor wishes about colours reach a test (xdist sets COLUMNS)."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace directory that is configured and not empty."""
    place = tmp_path / "workspace"
    place.mkdir()
    (place / "ledger.db").touch()
    monkeypatch.setenv("RETAIN_WORKSPACE", str(place))
    monkeypatch.setenv("RETAIN_CONFIG", str(tmp_path / "user.yaml"))
    return place


@pytest.fixture
def world(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The stand-in's content."""
    made = World()
    monkeypatch.setattr(session, "open_workspace", made.open)
    return made


@pytest.fixture
def run(world: World) -> Run:
    """`run("learn", "a.md")`: a command over the stand-in."""

    def invoke(*words: object, input: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words], input=input, prog_name="retain")

    return invoke


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A document."""
    path = tmp_path / "travel.md"
    path.write_text("# Travel policy\nThe head of travel approves journeys above 500 euros.\n")
    return path


@pytest.fixture
def retain(workspace: Path) -> Run:
    """`retain("learn", "a.md")`: a command in a process of its own, without the stand-in."""

    def start(*words: object, **options: Any) -> Any:
        command = [sys.executable, "-m", "retain.cli", *(str(word) for word in words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env={**os.environ}, **options)

    return start
