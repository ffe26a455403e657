"""docs/train.md says what the code does: its YAML is read, its tables hold every kind and every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retain.config import parse_yaml
from retain.multitask import BACKBONES, CALLBACKS, TASKS, parse_experiment
from retain.multitask.config import PeftConfig, SamplingConfig, TrainingConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_an_experiment(block: str) -> None:
    config = parse_experiment(parse_yaml(block))
    assert parse_experiment(config.recorded()) == config


def test_every_kind_is_described_and_shown() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert set(listed) == {*BACKBONES, *TASKS} and len(BLOCKS) >= 5
    shown = [parse_experiment(parse_yaml(block)) for block in BLOCKS]
    assert {task.kind for config in shown for task in config.tasks.values()} == set(TASKS)
    assert {config.backbone.kind for config in shown} == set(BACKBONES)
    for name in CALLBACKS:
        assert f"`{name}`" in PAGE


@pytest.mark.parametrize("kind", ["classification", "multilabel", "ner", "regression"])
def test_the_metrics_of_a_task(kind: str) -> None:
    task = TASKS.find(kind, "")
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
    named = [name.strip() for name in row.split("|")[4].split(",")]
    settings = {"kind": kind, **({"entities": "e"} if kind == "ner" else {"label": "l"})}
    config = task.Config.model_validate(settings)
    assert named == list(task.metrics_of(config)) and named[0] == task(kind, config).main()


def test_choices_are_named() -> None:
    for section, name in ((PeftConfig, "method"), (SamplingConfig, "kind"), (TrainingConfig, "schedule")):
        for choice in section.model_fields[name].annotation.__args__:  # type: ignore[union-attr]
            assert f"`{choice}`" in PAGE, choice
