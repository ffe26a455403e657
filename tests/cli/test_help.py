"""Help: fast, light, complete, with examples."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from retain.cli import main
from retain.cli.main import app

BUDGET = 0.5  # seconds
SPELLED = {
    "learn": "--pending --dry-run --domain --importance --title --learner --task --model --questions",
    "consolidate": "--domain",
    "ask": "--max-tokens --temperature --no-retrieval --sources",
    "chat": "",
    "demo": "",
    "log": "--limit",
    "show": "UPDATE",
    "diff": "UPDATE",
    "revert": "UPDATE",
    "forget": "DOCUMENT --yes",
    "verify": "",
    "documents": "--status",
    "backup": "OUT",
    "restore": "FILE",
    "adapters list": "",
    "adapters show": "NAME",
    "adapters merge": "--into --method",
    "adapters export": "DIR",
    "adapters import": "DIR --name",
    "adapters enable": "NAME",
    "adapters disable": "NAME",
    "checkpoint save": "NAME",
    "checkpoint load": "NAME",
    "checkpoint list": "",
    "ace playbook": "ACTION NAME",
    "compare": "DOC --questions --learners --seeds --out --resume --dry-run",
    "report": "RUN --out",
    "pretrain": "CONFIG --set --out --resume --dry-run",
    "distill": "CONFIG --set --out --resume --dry-run",
    "train": "EXPERIMENT --set --out --resume --track --dry-run",
    "predict": "RUN --input --out --task --measure",
    "train-hypernetwork": "CONFIG --resume --dry-run",
    "bench qa": "--limit --in-context --retrieval --adapter --base --model --seed --out",
    "bench mc": "--data --shots --score --limit",
    "bench perplexity": "--limit",
    "experiment sequence": "STREAM --methods --seeds --set --out --resume --dry-run",
    "experiment forgetting": "--task1 --task2 --preset --study --curvature --rank",
    "experiment curvature": "CHECKPOINT --tasks --top --space --trace --density",
    "model pull": "NAME",
    "model info": "--model",
    "model list": "",
    "config show": "KEY --changed",
    "config set": "KEY VALUE --user",
    "config validate": "FILE",
    "config schema": "KIND --out",
    "config example": "NAME --out",
    "serve": "--host --port --token-file --eight-bits --log --no-learner",
    "work": "--once --release --quiet",
    "ingest": "PATH --domain --importance",
    "watch": "FOLDER --domain --importance",
    "queue": "--status --limit",
    "doctor": "",
}


@pytest.mark.parametrize("command", SPELLED)
def test_every_command_explains_itself(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(app, [*command.split(), "-h"], prog_name="retain")
    assert result.exit_code == 0
    for expected in (*SPELLED[command].split(), "--workspace", "--json", "--debug", "Examples", f"retain {command}"):
        assert expected in result.stdout, expected
    assert result.stdout == CliRunner().invoke(app, [*command.split(), "--help"], prog_name="retain").stdout


def test_the_list_above_is_complete() -> None:
    flat = {name for _, commands in main._COMMANDS for name, _ in commands} | {"doctor"}
    nested = {f"{group} {name}" for group, _, commands in main._GROUPS for name, _ in commands}
    assert flat | nested == set(SPELLED)


def test_every_way_of_merging_is_named() -> None:
    from retain.adapters.merging import MERGE_METHODS

    result = CliRunner().invoke(app, ["adapters", "merge", "-h"], prog_name="retain")
    assert set(MERGE_METHODS) <= set(re.findall(r"\w+", result.stdout))


@pytest.mark.parametrize("words", [[], ["adapters"], ["checkpoint"], ["model"], ["config"]])
def test_groups_explain_themselves(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "-h"], prog_name="retain")
    assert result.exit_code == 0 and "Examples" in result.stdout


def test_examples_fit_a_terminal() -> None:
    functions = [function for _, commands in main._COMMANDS for _, function in commands]
    functions += [function for _, _, commands in main._GROUPS for _, function in commands]
    for function in functions:
        examples: tuple[tuple[str, str], ...] = function.examples  # type: ignore[attr-defined]
        assert examples
        width = max(len(line) for line, _ in examples)
        assert all(width + len(what) + 4 <= 78 for _, what in examples), function


def test_help_is_fast() -> None:
    """The processor's time, and the best of five: other work on the machine must not decide."""

    def seconds() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    times = []
    for _ in range(5):
        before = seconds()
        subprocess.run([sys.executable, "-m", "retain.cli", "--help"], check=True, capture_output=True, timeout=60)
        times.append(seconds() - before)
    assert min(times) < BUDGET


@pytest.mark.parametrize("words", [["--help"], ["learn", "--help"], ["--version"], ["config", "show"], ["nonsense"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = """import sys
from retain.cli.main import app
try:
    app(sys.argv[1:], prog_name="retain")
except SystemExit:
    pass
heavy = {"torch", "transformers", "numpy", "safetensors", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, timeout=60)


def test_version(retain: Any) -> None:
    import retain as package

    result = retain("--version")
    assert (result.returncode, result.stdout) == (0, f"retain {package.__version__}\n")


def test_without_a_command_and_a_terminal_it_is_the_help(retain: Any) -> None:
    result = retain()
    assert result.returncode == 0
    assert "Usage: retain" in result.stdout and "learn" in result.stdout


def test_completion(retain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell by its name, not by the parent process
    assert "complete" in retain("--show-completion", "bash").stdout
    monkeypatch.setenv("_RETAIN_COMPLETE", "complete_bash")
    for words, position, expected in (("retain che", "1", "checkpoint"), ("retain config set learn.ba", "3", "learn.batch_tokens")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", position)
        assert retain().stdout.split() == [expected]
