"""retain train-hypernetwork: what it would do, doing it, going on, and what it says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SETTINGS = """
model: {model}
precision: float32
out: {out}
network: {{preset: small, width: 16, latents: 4, blocks: 1}}
data: {{invented: 12, held_out_share: 0.2}}
training: {{steps: {steps}, batch: 2, questions: 1, learning_rate: 1e-3, labels: given, save_every: 2}}
evaluation: {{texts: 2, questions: 1, answer_tokens: 4, depths: [0.5], haystack_tokens: 40, control: 1}}
"""


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(SETTINGS.format(model=tiny_model_dir, out=tmp_path / "out", steps=3))
    return path


def test_a_plan(run: Any, settings: Path, tmp_path: Path) -> None:
    result = run("train-hypernetwork", settings, "--dry-run")
    assert result.exit_code == 0, result.output
    for shown in ("parameters", "10 texts with 80 questions to train on, 2 held out", "optimizer steps", "MB for base"):
        assert shown in result.output, result.output
    plan = json.loads(run("train-hypernetwork", settings, "--dry-run", "--json").stdout)
    assert plan["steps"] == 3 and plan["texts"] == 10 and plan["memory_bytes"] > 16 * plan["parameters"] > 0
    assert not (tmp_path / "out").exists()


def test_training_and_going_on(run: Any, settings: Path, tmp_path: Path) -> None:
    result = run("train-hypernetwork", settings)
    assert result.exit_code == 0, result.output
    for shown in ("3 steps", "own", "wrong", "bias", "context", "needle at 0.5", "perplexity of control texts", "doc2lora.weights"):
        assert shown in result.output, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint.safetensors", "hypernetwork.safetensors", "metrics.jsonl"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["step"] == 3 and lines[-2]["loss"] > 0 and set(lines[-1]["measured"]["arms"]) >= {"base", "own", "bias", "context"}
    again = run("train-hypernetwork", settings)
    assert again.exit_code == 2 and "holds a training already" in again.output
    finished = run("train-hypernetwork", settings, "--resume", "--json")
    assert finished.exit_code == 0 and json.loads(finished.stdout)["steps"] == 3, finished.output
    settings.write_text(settings.read_text().replace("batch: 2", "batch: 4"))
    other = run("train-hypernetwork", settings, "--resume")
    assert other.exit_code == 2 and "was made with training.batch 2, not 4" in other.output


def test_mistakes_are_one_line(run: Any, settings: Path, tmp_path: Path) -> None:
    nothing = run("train-hypernetwork", settings, "--resume")
    assert nothing.exit_code == 2 and "holds no checkpoint to resume from" in nothing.output
    settings.write_text("trainig: {}")
    result = run("train-hypernetwork", settings)
    assert result.exit_code == 2 and "did you mean training" in result.output and len(result.output.strip().splitlines()) == 1
    missing = run("train-hypernetwork", tmp_path / "none.yaml")
    assert missing.exit_code == 2 and "cannot be read" in missing.output
