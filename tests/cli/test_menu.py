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

from retain.cli import compare, serving
from retain.cli.command import add
from retain.cli.menu import ENTRIES, menu
from retain.lm.model import LanguageModelError
from retain.workspace import Ledger, Store


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


def test_everything_that_is_wanted_of_a_menu_is_there() -> None:
    labels = " ".join(label for label, _ in ENTRIES).lower()
    for wanted in (
        *("chat", "ask", "learn a document", "learn a folder", "benchmark", "forgetting", "model information", "history", "save", "load"),
        *("list checkpoints", "compare", "configure", "serve", "hand in", "watch", "queue", "work", "back up", "restore"),
    ):
        assert wanted in labels, wanted
    beginnings = [label.lower()[:6] for label, _ in ENTRIES]
    assert len(ENTRIES) <= 26 and len(set(beginnings)) >= len(beginnings) - 6, "they fit on a screen of 24 lines"


def test_what_is_handed_in_waits_and_what_is_held_is_released(choose: Any, workspace: Path, document: Path) -> None:
    result = choose(
        *(number("Queue of what was handed in"),),
        *(number("Hand in documents"), f"'{document}'", "law", "0.9"),
        *(number("Hand in documents"), str(document), "law", "much"),
        *(number("Hand in documents"), "https://example.org/a", "", ""),
        *("queue", "0"),
    )
    assert result.exit_code == 0, result.output
    assert "nothing was handed in yet" in result.stdout and "1 document waits" in result.stdout and "travel.md" in result.stdout
    assert "'much' is not a number" in result.stderr and "serve.fetch true" in result.stderr and "1 document waiting" in result.stderr
    with Ledger.open(workspace / "ledger.db", Store(workspace)) as ledger:
        (waiting,) = ledger.arrivals()
        assert (waiting.domain, waiting.importance, waiting.source) == ("law", 0.9, str(document))
        ledger.lease("w", 60)
        ledger.hold(waiting.id, "w", "held: looks odd")
    result = choose(number("Queue of what was handed in"), "", "0")
    assert "held: looks odd" in result.stdout and "it waits" not in result.stderr
    result = choose(number("Queue of what was handed in"), waiting.id, number("Queue of what was handed in"), "0")
    assert f"{waiting.id} waits to be learned" in result.stderr and "after all" not in result.stdout.rpartition("waits")[2]


def test_services_are_started_with_what_was_asked(choose: Any, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[str, Any]] = []
    monkeypatch.setattr(serving, "serve", lambda here, port: started.append(("serve", port)))
    monkeypatch.setattr(serving, "watch", lambda here, folder: started.append(("watch", folder)))
    monkeypatch.setattr(serving, "work", lambda here, once: started.append(("work", once)))
    monkeypatch.setattr(
        compare, "compare", lambda here, paths, questions, learners: started.append(("compare", (paths, questions, learners)))
    )
    result = choose(
        *(number("Serve, API and page"), "", number("Serve, API and page"), "9000", number("Serve, API and page"), "here"),
        *(number("Watch a folder"), str(tmp_path), number("Work, learn what was handed in")),
        *(number("Compare ways of learning"), "a.md", "b.md", "", "q.jsonl", "lora,jitrl", "0"),
    )
    assert started == [
        ("serve", 8080), ("serve", 9000), ("watch", tmp_path), ("work", True),
        ("compare", ([Path("a.md"), Path("b.md")], Path("q.jsonl"), "lora,jitrl")),
    ]  # fmt: skip
    assert "'here' is not a number" in result.stderr


def test_a_backup_and_a_workspace_from_it(choose: Any, world: Any, document: Path, tmp_path: Path) -> None:
    result = choose(
        *(number("Hand in documents"), str(document), "", "", number("Back up"), str(tmp_path / "work.tar")),
        *(number("Restore a backup"), str(tmp_path / "work.tar"), str(tmp_path / "again"), "0"),
    )
    assert result.exit_code == 0 and "work.tar holds" in result.stdout, result.output
    assert f"retain --workspace {tmp_path / 'again'}" in result.stderr
    with Ledger.open(tmp_path / "again" / "ledger.db", Store(tmp_path / "again")) as ledger:
        assert [item.name for item in ledger.arrivals()] == ["travel.md"]


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
