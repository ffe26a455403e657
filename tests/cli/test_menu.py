"""The interactive menu, by its functions and in a real terminal."""

from __future__ import annotations

import codecs
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from retain.cli.command import add
from retain.cli.menu import ENTRIES, menu
from retain.lm.model import LanguageModelError


@pytest.fixture
def choose(world: Any) -> Any:
    """`choose("5", "0")`: the menu with these lines typed."""
    app = typer.Typer()
    add(app, menu, "menu")

    def typed(*lines: str) -> Any:
        return CliRunner().invoke(app, [], input="".join(f"{line}\n" for line in lines))

    return typed


def number(label: str) -> str:
    """The number of an entry."""
    return str(1 + [name for name, _ in ENTRIES].index(label))


def test_it_lists_everything_and_leaves(choose: Any) -> None:
    for ending in (["0"], ["q"], []):
        result = choose(*ending)
        assert result.exit_code == 0 and result.stdout.rstrip().endswith("goodbye")
        assert all(label in result.stdout for label, _ in ENTRIES) and "0  Leave" in result.stdout


def test_a_whole_visit_opens_the_workspace_once(choose: Any, world: Any, document: Path) -> None:
    result = choose(
        *(number("Learn a document"), f'"{document}"', "", "0.9"),
        *(number("Learn a folder"), str(document.parent / "nowhere")),
        *(number("Ask a question"), "Who approves?"),
        *(number("Chat"), "Who?", "/quit"),
        *("docu",),
        *(number("Learning history"),),
        *(number("Show a certificate"), "1"),
        *(number("Save a checkpoint"), "before"),
        *(number("List checkpoints"),),
        *(number("Load a checkpoint"), "1"),
        *(number("Adapters"),),
        *(number("Model information"),),
        *(number("Revert or forget"), "1", "2"),
        *("99", "nonsense", "0"),
    )
    assert result.exit_code == 0, result.output
    for expected in (
        "4 % → 92 %",
        "The [head] of travel.",
        "passed",
        "134.5 M",
        "before is the present state",
        "goodbye",
        "reverted u00000001",
    ):
        assert expected in result.stdout, expected
    assert result.stderr.count("error: ") == 1 and "nowhere: does not exist" in result.stderr
    assert len(world.opened) == world.closed == 1
    assert [call[1].get("importance") for call in world.calls if call[0] == "learn_all"] == [0.9]


def test_an_experiment_and_its_report(choose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = choose(
        *(number("Forgetting experiment"), "permuted-digit", "naive"),
        *(number("Forgetting experiment"), "split-digits", "naive"),
        *(number("Report of an experiment"), "runs/split-digits"),
        *(number("Benchmark"), "nowhere.jsonl", "0"),
    )
    assert result.exit_code == 0 and "did you mean" in result.stderr and "nowhere.jsonl" in result.stderr
    assert (tmp_path / "runs" / "split-digits" / "report.html").is_file() and "retention area" in result.stdout


def test_forgetting_asks(choose: Any, world: Any, run: Any, document: Path) -> None:
    run("learn", document)
    choose(number("Revert or forget"), "2", "1", "no", "0")
    assert world.records
    choose(number("Revert or forget"), "2", "1", "yes", "0")
    assert not world.records


def test_configuration_persists_and_counts_at_once(choose: Any, world: Any, workspace: Path) -> None:
    choose(
        number("Documents"), number("Configure"), "learn.rank", "24", number("Configure"), "learn.rank", "many", number("Documents"), "0"
    )
    assert "rank: 24" in (workspace / "config.yaml").read_text()
    assert [opened["config"].learn.rank for opened in world.opened][-1] == 24 and len(world.opened) == world.closed == 2


def test_an_error_leads_back_to_the_menu(choose: Any, world: Any) -> None:
    for error in (LanguageModelError("no model"), ZeroDivisionError("oops"), KeyboardInterrupt()):
        world.fail = error
        result = choose(number("Ask a question"), "Who?", number("Documents"), "0")
        assert result.exit_code == 0 and "goodbye" in result.stdout and "Traceback" not in result.stderr


class Terminal:
    """A process in a pseudo terminal."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.screen = ""
        self.decode = codecs.getincrementaldecoder("utf-8")().decode  # a read may end in the middle of a character
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "tests.cli.driver", *words]
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)

    def wait_for(self, text: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < end, self.screen
            self.read(0.1)

    def read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.screen += self.decode(data)
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ended(self) -> int:
        end = time.monotonic() + 30
        while self.read(0.1) and self.process.poll() is None and time.monotonic() < end:
            pass
        return self.process.wait(timeout=30)


@pytest.fixture
def terminal(workspace: Path) -> Iterator[Any]:
    """`terminal("learn", "a.md")` starts the command line over the stand-in in a terminal."""
    started: list[Terminal] = []

    def start(*words: str, **environment: str) -> Terminal:
        started.append(Terminal(*words, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        os.close(one.master)


@pytest.mark.parametrize("leave", ["\x04", "interrupt", "0\n"])
def test_in_a_terminal_retain_alone_is_the_menu(terminal: Any, leave: str) -> None:
    shell = terminal()
    shell.wait_for("choose")
    if leave == "interrupt":
        time.sleep(0.3)  # a person's pace: between the prompt and the wait for a line Python loses a signal until the next key
        os.killpg(shell.process.pid, signal.SIGINT)
    else:
        shell.type(leave)
    assert shell.ended() == 0
    assert "goodbye" in shell.screen and "Traceback" not in shell.screen


def test_bars_in_a_terminal(terminal: Any, document: Path) -> None:
    shell = terminal("learn", str(document), RETAIN_TEST_SLOW="0.15")
    assert shell.ended() == 0
    for expected in ("training", "160/160", "loss 0.013", "87 tokens/s", "✓", "Travel policy [learned]", "92 %"):
        assert expected in shell.screen, expected


def test_an_answer_is_written_as_it_comes(terminal: Any) -> None:
    shell = terminal("ask", "Who?")
    assert shell.ended() == 0
    assert "The [head] of travel.\r\n" in shell.screen and "sources: Travel policy" in shell.screen
