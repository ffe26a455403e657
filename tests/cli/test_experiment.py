"""experiment: sequence, forgetting and curvature as a user calls them, registered on an app of their own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.tiny import tiny_questions
from typer.testing import CliRunner

from retain.cli import experiment
from retain.cli.command import add

SMALL = ["--methods", "naive,er", "--epochs", 1, "--set", "hidden=[8]"]


def run(*words: object) -> Any:
    app = typer.Typer()
    for name in ("sequence", "forgetting", "curvature"):
        add(app, getattr(experiment, name), name)
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="retain experiment")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "nowhere"))
    return tmp_path


@pytest.fixture
def pair(place: Path, tiny_model_dir: Path) -> list[object]:
    """The words that name two tasks and the small model."""
    for name, document in (("a", 0), ("b", 3)):
        rows = [{"question": text, "answer": fact.answer} for fact in tiny_questions(document) for text in fact.wordings[:3]]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fast = ["--set", "training.batch=4", "--set", "max_tokens=2", "--set", "targets=q_proj", "--set", "curvature.top=2"]
    quick = ["--rank", 2, "--epochs", 1, "--set", "curvature.tokens=40", "--set", "curvature.points=3"]
    return ["--task1", "a.jsonl", "--task2", "b.jsonl", "--model", tiny_model_dir, *fast, *quick]


def test_sequence(place: Path) -> None:
    result = run("sequence", "split-digits", *SMALL, "--seeds", 2)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["naive"], ["replay"])]
    assert [row[:2] for row in rows] == [["naive", "2"], ["replay", "2"]] and all("±" in row for row in rows)
    assert "naive, seed 1, digits" in result.stderr and "mean" in result.stderr
    assert "optimizer steps for digits 1 4 can teach little" in result.stderr  # a warning
    assert "retain report runs/split-digits" in result.stderr and (place / "runs/split-digits/results.json").is_file()


@pytest.mark.parametrize("tool", ["mlflow", "tensorboard"])
def test_tracking(tool: str, place: Path) -> None:
    result = run("sequence", "split-digits", *SMALL, "--track", tool)
    if importlib.util.find_spec(tool) is None:
        assert result.exit_code == 2 and "pip install" in result.stderr and result.stderr.count("\n") == 1, result.stderr
        assert not (place / "runs").exists()
    else:
        assert result.exit_code == 0, result.stderr
        assert (place / "runs" / "mlflow.db").is_file() if tool == "mlflow" else list((place / "runs/tensorboard/split-digits").iterdir())


def test_a_directory_is_never_overwritten(place: Path) -> None:
    for number in range(2):
        assert run("sequence", "split-digits", *SMALL).exit_code == 0
        assert len(list((place / "runs").iterdir())) == number + 1  # another one each time
    again = run("sequence", "split-digits", *SMALL, "--out", "runs/split-digits")
    other = run("sequence", "split-digits", *SMALL, "--seeds", 3, "--out", "runs/split-digits")
    for result, words in ((again, "resume it, or choose another"), (other, "another configuration (seeds: 1 there, 3 here)")):
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1


def test_an_interrupted_run_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.evaluation import sequences

    straight = json.loads(run("sequence", "split-digits", *SMALL, "--json", "--out", "straight").stdout)
    once = sequences.run_sequence

    def interrupted(config: Any, opened: Any, model: Any, tell: Any, tell_step: Any) -> Any:
        def stop(learned: Any) -> None:
            tell(learned)
            if learned.done == 7:
                raise KeyboardInterrupt

        return once(config, opened, model, stop, tell_step)

    monkeypatch.setattr(sequences, "run_sequence", interrupted)
    result = run("sequence", "split-digits", *SMALL)
    assert result.exit_code == 130 and "--resume --out runs/split-digits goes on" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(place)
    resumed = json.loads(run("sequence", "split-digits", *SMALL, "--resume", "--json").stdout)
    assert resumed["run"] == "runs/split-digits"
    for name in ("naive", "replay"):
        first, second = (results["methods"][name]["seeds"]["0"] for results in (straight, resumed))
        assert first["matrix"] == second["matrix"] and first["losses"] == second["losses"]
    nothing = run("sequence", "permuted-digits", *SMALL, "--resume")
    assert nothing.exit_code == 2 and "no run of this configuration in runs/" in nothing.stderr


def test_dry_run(place: Path) -> None:
    result = run("sequence", "split-digits", *SMALL, "--dry-run")
    assert result.exit_code == 0 and not (place / "runs").exists()
    for words in ("digits 1 4: 291 examples to learn, 72 to ask", "naive 47, replay 47", "94 for 1 seed", "610 in one", "→ class"):
        assert words in result.stdout, words
    plan = json.loads(run("sequence", "split-digits", *SMALL, "--dry-run", "--json").stdout)
    assert plan["total_steps"] == 94 and len(plan["examples"]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split-digit"], "did you mean 'split-digits'?"),
        (["none.yaml"], "none.yaml: cannot be read"),
        (["split-digits", "--methods", "naiv"], "did you mean 'naive'?"),
        (["split-digits", "--track", "mlfow"], "did you mean 'mlflow'?"),
        (["split-digits", "--methods", "o-lora"], "o-lora needs adapters"),
        (["split-digits", "--set", "training.epoch=1"], "did you mean training.epochs?"),
        (["split-digits", "--set", "epochs"], "it is KEY=VALUE"),
        (["split-digits", "--set", "training.epochs=none"], "training.epochs: must be a valid integer"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, place: Path) -> None:
    result = run("sequence", *words)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (place / "runs").exists()


def test_forgetting_and_the_curvature_of_its_checkpoints(pair: list[object], place: Path) -> None:
    result = run("forgetting", *pair, "--methods", "naive,joint")
    assert result.exit_code == 0, result.stderr
    for words in ("recall after task 1", "loss after task 2", "F1 in loss", "‖dw‖ of B A", "largest λ", "second order"):
        assert words in result.stdout, words
    assert "2 of 2 converged" in result.stderr and "warning: naive, joint: 2 optimizer steps for a can teach little" in result.stderr
    found = run("curvature", "runs/forgetting-a-b", "--top", 2, "--tokens", 40, "--json")
    facts = json.loads(found.stdout)["curvature"]
    assert list(facts) == ["after a", "after b"]
    results = json.loads((place / "runs/forgetting-a-b/results.json").read_text())
    assert facts["after a"]["eigenvalues"] == pytest.approx(results["curvature"]["after a (factors)"]["eigenvalues"], rel=1e-3)
    table = run("curvature", "runs/forgetting-a-b", "--top", 1, "--tokens", 40, "--tasks", "b")
    assert table.exit_code == 0 and "residual" in table.stdout and "yes" in table.stdout and "nats on" in table.stderr
    for words, said in ((["--method", "ewc"], "there is joint, naive"), (["--space", "dense"], "--space dense: it is one of")):
        wrong = run("curvature", "runs/forgetting-a-b", *words)
        assert wrong.exit_code == 2 and said in wrong.stderr


def test_forgetting_dry_run_and_study(pair: list[object], place: Path) -> None:
    planned = run("forgetting", *pair, "--dry-run", "--study", "rank=1,2")
    assert planned.exit_code == 0 and "2 such runs with rank: 8 optimizer steps in all" in planned.stderr
    assert planned.stdout.count("assistant →") == 3 and not (place / "runs").exists()
    result = run("forgetting", *pair, "--study", "rank=1,2,3", "--no-curvature")
    assert result.exit_code == 0, result.stderr
    assert "‖dw‖" in result.stdout and "product" in result.stdout and "2/3 rank=2: naive" in result.stderr
    assert (place / "runs/forgetting-a-b-study/cells/rank-3/results.json").is_file()


def test_the_pair_that_ships(pair: list[object], place: Path) -> None:
    planned = run("forgetting", "--task1", "founders", "--task2", "bridges", *pair[4:], "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert [task["name"] for task in json.loads(planned.stdout)["tasks"]] == ["founders", "bridges"]
    (place / "two.yaml").write_text(f"tasks: [founders, b.jsonl]\nmodel: {pair[5]}\ntargets: [q_proj]\ntraining: {{batch: 4}}\n")
    sequence = run("sequence", "two.yaml", "--dry-run", "--json")
    assert sequence.exit_code == 0, sequence.stderr
    assert [task["name"] for task in json.loads(sequence.stdout)["tasks"]] == ["founders", "b"]


def test_forgetting_mistakes(pair: list[object], place: Path) -> None:
    cases = {
        "did you mean 'lora-seft'": ["--preset", "lora-sef"],
        "is not KEY=VALUE,VALUE": ["--study", "rank"],
        "rank: must be greater than or equal to 1": ["--set", "rank=0"],
        "fewer than the 512 of one step": ["--set", "training.batch=512"],
        "packnet needs a network": ["--methods", "packnet"],
    }
    for said, words in cases.items():
        result = run("forgetting", *pair, *words)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    unknown = run("forgetting", "--task1", "foundrs", *pair[2:])
    assert unknown.exit_code == 2 and "there is no task 'foundrs': did you mean 'founders'?" in unknown.stderr
    missing = run("forgetting", "--task1", "c.jsonl", *pair[2:])
    assert missing.exit_code == 2 and "c.jsonl" in missing.stderr
    assert run("curvature", "nowhere").exit_code == 2 and run("curvature", place).exit_code == 2


@pytest.mark.parametrize("name", ["sequence", "forgetting", "curvature"])
def test_help(name: str) -> None:
    text = run(name, "--help").stdout
    assert all(word in text for word in ("--out", "--resume", "--json", "Examples", f"retain experiment {name}"))
    examples: tuple[tuple[str, str], ...] = getattr(experiment, name).examples
    width = max(len(line) for line, _ in examples)
    assert all(width + len(what) + 4 <= 78 for _, what in examples)
