"""What is wrong is said in one line, with an exit code; a traceback only with --debug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retain.adapters import AdapterError
from retain.cli.errors import describe
from retain.config import ConfigError
from retain.data import DataError
from retain.lm.embedded import EmbeddedModelError
from retain.lm.model import LanguageModelError
from retain.workspace import DiskFull, DurabilityLost, Locked


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("learn.rank: wrong"), 2, "learn.rank: wrong"),
        (DataError("the file is empty", path="a.md"), 2, "a.md: the file is empty"),
        (Locked("busy"), 2, "busy"),
        (DiskFull(Path("x")), 2, "no space left"),
        (LanguageModelError("no such\n  model"), 2, "no such model"),
        (EmbeddedModelError("no network"), 2, "no network"),
        (AdapterError("damaged"), 2, "damaged"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: permission denied"),
        (OutOfMemoryError("CUDA"), 2, "not enough memory"),
        (DurabilityLost("fsync failed"), 1, "fsync failed"),
        (KeyError("x"), 1, "run with --debug"),
        (RuntimeError(""), 1, "RuntimeError"),
    ],
)
def test_codes_and_words(error: BaseException, code: int, words: str) -> None:
    found, message = describe(error)
    assert found == code and words in message and "\n" not in message


@pytest.mark.parametrize("command", [["ask", "why?"], ["learn", "DOCUMENT"], ["chat"]])
@pytest.mark.parametrize(("error", "code"), [(LanguageModelError("the model is [gone]"), 2), (ZeroDivisionError("division by zero"), 1)])
def test_one_line_without_traceback(
    run: Any, world: Any, document: Path, command: list[str], error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fail = error
    words = [str(document) if word == "DOCUMENT" else word for word in command]
    result = run(*words, input="why?\n")
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert str(error) in result.stderr and "Traceback" not in result.stderr
    assert world.closed == 1
    assert "Traceback" in run(*words, "--debug", input="why?\n").stderr


def test_standard_output_stays_empty_on_an_error(run: Any, world: Any) -> None:
    world.fail = LanguageModelError("no model")
    for options in ([], ["--json"]):
        assert run("ask", "why?", *options).stdout == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["lern", "x.md"], "learn"),
        (["adapters", "exprot", "a", "b"], "export"),
        (["learn", "--domian", "x", "y.md"], "--domain"),
        (["config", "set", "learn.rnk", "3"], "did you mean learn.rank?"),
        (["config", "show", "lear"], "did you mean learn"),
        (["learn", "--importance", "2", "x.md"], "less than or equal to 1"),
    ],
)
def test_what_was_meant(retain: Any, words: list[str], hint: str) -> None:
    result = retain(*words)
    assert result.returncode == 2
    assert hint in result.stderr and "Traceback" not in result.stderr and not result.stdout


def test_a_missing_file_is_named_before_anything_is_loaded(retain: Any, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("text")
    result = retain("learn", tmp_path / "reprot.md")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'reprot.md'}: does not exist (did you mean 'report.md'?)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learn"], "nothing to learn"),
        (["learn", "a.md", "b.md", "--title", "T"], "--title names one document"),
        (["learn", "-", "-"], "once only"),
        (["learn", "-"], "the text is empty"),
        (["learn", "--pending", "a.md"], "--pending"),
        (["ask", " "], "the question is empty"),
        (["adapters", "merge", "one", "--into", "x"], "at least two"),
        (["adapters", "import", "nowhere"], "no such directory"),
        (["config", "validate", "nowhere.yaml"], "no such file"),
        (["documents", "--status", "lost"], "pending"),
    ],
)
def test_calls_that_make_no_sense(retain: Any, words: list[str], message: str) -> None:
    result = retain(*words)
    assert result.returncode == 2 and message in result.stderr and not result.stdout


def test_a_questions_file_is_checked_first(retain: Any, tmp_path: Path, document: Path) -> None:
    questions = tmp_path / "exam.jsonl"
    questions.write_text("not json\n")
    result = retain("learn", document, "--questions", questions)
    assert result.returncode == 2 and "exam.jsonl" in result.stderr and result.stderr.count("\n") == 1


def test_a_broken_configuration_is_named(retain: Any, workspace: Path) -> None:
    (workspace / "config.yaml").write_text("lern: {}\n")
    for command in (["log"], ["ask", "why?"], ["config", "show"], ["config", "validate"]):
        result = retain(*command)
        assert result.returncode == 2
        assert result.stderr == f"error: {workspace / 'config.yaml'}: lern: unknown key; did you mean learn?\n"


@pytest.mark.parametrize(
    "command", [["log"], ["documents"], ["verify"], ["checkpoint", "list"], ["adapters", "list"], ["learn", "--pending"]]
)
def test_reading_makes_no_workspace(retain: Any, tmp_path: Path, command: list[str]) -> None:
    place = tmp_path / "elsewhere"
    result = retain(*command, "--workspace", place)
    assert result.returncode == 2 and "retain learn FILE" in result.stderr and result.stderr.count("\n") == 1
    assert not place.exists()
