"""pretrain and distill as a user calls them, over a small corpus, registered on an app of their own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.pretraining.material import MODEL, TRAINING, write_config
from typer.testing import CliRunner

from retain import pretraining
from retain.cli.command import add
from retain.cli.distill import distill
from retain.cli.pretrain import pretrain, spark


def run(*words: object) -> Any:
    app = typer.Typer()
    add(app, pretrain, "pretrain")
    add(app, distill, "distill")
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="retain")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with little.yaml and its texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "nowhere"))
    write_config(tmp_path)
    return tmp_path


def test_from_texts_to_a_model_and_its_student(place: Path) -> None:
    planned = run("pretrain", "little.yaml", "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    for words in ("parameters", "28,832", "steps", "time, at the speed of two steps", "memory, measured", "held out"):
        assert words in planned.stdout
    done = run("pretrain", "little.yaml")
    assert done.exit_code == 0, done.stderr
    assert "validation loss" in done.stderr and "perplexity" in done.stderr and "The town of Arn sells▸" in done.stderr
    assert "tokens/s" in done.stdout and "runs/little/model (step 12)" in done.stdout and "→" in done.stdout
    assert (place / "runs/little/loss.png").exists() == (importlib.util.find_spec("matplotlib") is not None)
    values = {
        "teacher": {"model": "runs/little/model"},
        "student": {**MODEL, "width": 16},
        "corpus": {"paths": ["texts"], "clean": False, "validation": 0.2},
        "training": TRAINING,
        "checks": {"every": 6},
    }
    (place / "student.yaml").write_text(yaml.safe_dump(values))
    planned = run("distill", "student.yaml", "--dry-run", "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["teacher"] == 28_832, planned.stderr
    done = run("distill", "student.yaml", "--json", "--set", "loss.alpha=0.9")
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["kl"] > 0 and results["perplexity"] > 1 and not done.stderr and (place / results["model"]).is_dir()


def test_interrupted_and_resumed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.pretraining import loop

    straight = json.loads(run("pretrain", "little.yaml", "--json", "--out", "straight").stdout)
    whole = loop.check

    def interrupted(*arguments: Any) -> Any:
        if len(list((place / "runs/little/checkpoints").glob("step-*"))) == 1:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(loop, "check", interrupted)
    result = run("pretrain", "little.yaml")
    assert result.exit_code == 130 and "--resume goes on from the last checkpoint in runs/little" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(place)
    again = run("pretrain", "little.yaml")
    assert again.exit_code == 2 and "holds this run already: --resume goes on with it" in again.stderr and again.stderr.count("\n") == 1
    resumed = json.loads(run("pretrain", "little.yaml", "--resume", "--json").stdout)
    assert resumed["validation"] == straight["validation"] and resumed["loss"] == straight["loss"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["pretrain", "little.yaml", "--set", "training.epohcs=2"], "training.epohcs: unknown key; did you mean training.epochs?"),
        (["pretrain", "little.yaml", "--set", "corpus.paths=nowhere"], "nowhere: does not exist"),
        (["pretrain", "little.yaml", "--set", "model.context=1024"], "model.context: 1024 tokens are more than the 512 of the preset 5m"),
        (["pretrain", "little.yaml", "--set", "training.batch=4000"], "fewer than the 4000 of a batch"),
        (["distill", "little.yaml"], "little.yaml: this is a file for retain pretrain, and retain distill wants another"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: list[str], told: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_further_processes_are_silent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun's second process would write: nothing."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(pretraining, "pretrain", lambda config, resume, watch: watch.stage("reading", 3))
    result = run("pretrain", "little.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_curve_of_one_line() -> None:
    assert spark([8.0, 4.0, 1.0]) == "█▄▁" and spark([2.0, 2.0]) == "▁▁" and len(spark(list(range(1000)))) <= 48
