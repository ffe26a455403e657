"""train and predict as a user calls them, registered on an app of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from retain.cli.command import add
from retain.cli.predict import predict
from retain.cli.train import train

EXPERIMENT = """
name: Wine!
backbone: {kind: sequential, hidden: [16]}
data: {train: wine.csv, test_share: 0.2}
tasks:
  kind: {kind: classification, label: label, class_weights: balanced}
  alcohol: {kind: regression, label: c0, weight: 0.5}
training: {epochs: 6, batch: 16, head_learning_rate: 5e-3}
"""


def run(*words: object) -> Any:
    app = typer.Typer()
    add(app, train, "train")
    add(app, predict, "predict")
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="retain")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with an experiment and its records."""
    from tests.multitask.conftest import table, write

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "nowhere"))
    write(tmp_path / "wine.csv", table("wine"))
    (tmp_path / "wine.yaml").write_text(EXPERIMENT)
    return tmp_path


def test_train_and_predict(place: Path) -> None:
    result = run("train", "wine.yaml")
    assert result.exit_code == 0, result.stderr
    assert "accuracy" in result.stdout and "r2" in result.stdout and "test" in result.stdout
    assert "step 84: mean" in result.stderr and "the model is in runs/wine" in result.stderr
    files = {path.name for path in (place / "runs" / "wine").iterdir()}
    assert {"config.yaml", "environment.json", "events.jsonl", "results.json", "model"} <= files and not any(
        "checkpoint" in name for name in files
    )
    events = [json.loads(line)["event"] for line in (place / "runs/wine/events.jsonl").read_text().splitlines()]
    assert events[0] == "started" and events[-1] == "finished" and events.count("evaluation") == 6 and events.count("step") == 84

    answered = run("predict", "runs/wine", "--input", "wine.csv", "--out", "answers.jsonl")
    assert answered.exit_code == 0 and "178 records answered in answers.jsonl" in answered.stderr
    lines = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    right = sum(line["predictions"]["kind"]["label"] == line["label"] for line in lines)
    assert right / len(lines) > 0.8 and abs(lines[0]["predictions"]["alcohol"]["value"] - float(lines[0]["c0"])) < 3
    shown = run("predict", "runs/wine", "-i", "wine.csv", "--task", "kind")
    assert [json.loads(line)["predictions"]["kind"] for line in shown.stdout.splitlines()] == [
        line["predictions"]["kind"] for line in lines
    ]
    measured = run("predict", "runs/wine", "-i", "wine.csv", "--measure", "--json")
    assert json.loads(measured.stdout)["kind"]["accuracy"] == right / len(lines)


def test_for_programs(place: Path) -> None:
    planned = json.loads(run("train", "wine.yaml", "--dry-run", "--json").stdout)
    assert planned["steps"] == 84 and planned["tasks"][0]["rows"] == {"train": 106, "validation": 36, "test": 36}
    result = run("train", "wine.yaml", "--json", "--set", "training.epochs=1", "--out", "mine")
    results = json.loads(result.stdout)
    assert results["run"] == "mine" and results["tasks"]["kind"]["rows"]["test"] == 36
    answers = json.loads(run("predict", "mine", "-i", "wine.csv", "--json").stdout)
    assert len(answers) == 178 and set(answers[0]["predictions"]) == {"kind", "alcohol"}


def test_a_dry_run_shows_what_would_be_learned(place: Path) -> None:
    result = run("train", "wine.yaml", "--dry-run")
    assert result.exit_code == 0 and not (place / "runs").exists()
    for words in ("class_0", "class_1", "84", "about", "kind 3", "→", "dry run: nothing was learned"):
        assert words in result.stdout + result.stderr, words


def test_an_interrupted_training_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.multitask import trainer

    steps = trainer.Trainer._stepped

    def stops(self: Any, step: int, *rest: Any) -> None:
        if step == 40:
            raise KeyboardInterrupt
        steps(self, step, *rest)

    monkeypatch.setattr(trainer.Trainer, "_stepped", stops)
    broken = run("train", "wine.yaml")
    assert broken.exit_code == 130 and "--resume --out runs/wine" in broken.stderr and not (place / "runs/wine/results.json").exists()
    early = run("predict", "runs/wine", "-i", "wine.csv")
    assert early.exit_code == 2 and "the training was interrupted" in early.stderr
    monkeypatch.setattr(trainer.Trainer, "_stepped", steps)
    (place / "runs/wine/.part-1-left").mkdir()  # what a power cut leaves
    resumed = run("train", "wine.yaml", "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    straight = json.loads(run("train", "wine.yaml", "--out", "straight", "--json").stdout)
    found = json.loads(resumed.stdout)
    assert found["run"] == "runs/wine" and found["tasks"] == straight["tasks"] and found["best_step"] == straight["best_step"]
    again = run("train", "wine.yaml", "--resume", "--out", "runs/wine")
    assert again.exit_code == 2 and "this run is finished" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "wime.yaml"), "wime.yaml: cannot be read: No such file or directory"),
        (("train", "wine.yaml", "--set", "training.epohs=3"), "training.epohs: unknown key; did you mean training.epochs?"),
        (("train", "wine.yaml", "--set", "tasks.kind.label=lable"), "field 'lable': there is no such column (did you mean 'label'?)"),
        (("train", "wine.yaml", "--set", "training.metric=kind.acc"), "there is no metric 'kind.acc'"),
        (("predict", "nowhere", "-i", "wine.csv"), "holds no finished model"),
        (("predict", "nowhere", "-i", "wine.csv", "--measure", "--out", "a.jsonl"), "choose one"),
        (("predict", "nowhere", "-i", "wine.csv", "--out", "no/a.jsonl"), "there is no directory no"),
    ],
)
def test_mistakes_leave_nothing_behind(words: tuple[str, ...], message: str, place: Path) -> None:
    result = run(*words)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (place / "runs").exists()


def test_a_file_for_another_command_is_told(place: Path) -> None:
    from retain.cli.distill import distill
    from retain.cli.hypernetwork import train_hypernetwork
    from retain.cli.kinds import examples
    from retain.cli.pretrain import pretrain

    app = typer.Typer()
    for name, program in (("train", train), ("pretrain", pretrain), ("distill", distill), ("train-hypernetwork", train_hypernetwork)):
        add(app, program, name)
    (place / "little.yaml").write_text(examples()["pretrain"].read_text(encoding="utf-8"))
    (place / "student.yaml").write_text(examples()["distill"].read_text(encoding="utf-8"))
    asked = [("pretrain", "wine.yaml", "train"), ("distill", "wine.yaml", "train"), ("train-hypernetwork", "wine.yaml", "train")]
    asked += [("train", "little.yaml", "pretrain"), ("train", "student.yaml", "distill"), ("pretrain", "student.yaml", "distill")]
    for command, file, right in asked:
        result = CliRunner().invoke(app, [command, file], prog_name="retain")
        said = f"{file}: this is a file for retain {right}, and retain {command} wants another"
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    (place / "wine.yaml").write_text(EXPERIMENT.replace("tasks:", "task:"))  # its own file with a mistake is not another's
    assert "task: unknown key; did you mean tasks?" in run("train", "wine.yaml").stderr
