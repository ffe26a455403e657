"""The dry run: counts, steps, parameters, memory, samples; it changes nothing and fails where training would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.multitask.conftest import entity_rows, topic_rows, write

from retain.data.errors import DataError
from retain.multitask import assemble, plan_experiment


def test_a_plan(tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = topic_rows(100)
    write(tmp_path / "t.jsonl", rows)
    write(tmp_path / "names.jsonl", entity_rows(50))
    tasks = {
        "topic": {"kind": "classification", "label": "topic"},
        "names": {
            "kind": "ner",
            "words": "words",
            "tags": "tags",
            "data": {"train": ["names.jsonl"], "validation_share": 0.1, "test_share": 0.1},
        },
    }
    text = {"kind": "text", "model": str(bert), "max_length": 32, "freeze": {"embeddings": True}}
    made = assemble(experiment(text, tasks, data={"train": ["t.jsonl"]}, training={"epochs": 3, "batch": 16}))
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    random = torch.get_rng_state()
    plan = plan_experiment(made)
    assert all(torch.equal(value, made.network.state_dict()[name]) for name, value in before.items()) and torch.equal(
        random, torch.get_rng_state()
    )
    assert all(value.grad is None for value in made.network.parameters())
    topic, names = plan.tasks
    assert topic.rows == {"train": 80, "validation": 20, "test": 0} and names.rows == {"train": 40, "validation": 5, "test": 5}
    truths = [row.values["topic"] for row in made.parts["topic"]["train"].rows]
    assert topic.counts == {name: truths.count(name) for name in ("food", "space", "sport")}
    assert plan.steps == 3 * (5 + 3) and topic.batches + names.batches == plan.steps
    assert len(topic.samples) == 3 and {(row["text"], row["topic"]) for row in rows} >= set(topic.samples)
    assert all("person" in label or "place" in label or label == "(none)" for _, label in names.samples)
    trained = sum(value.numel() for name, value in made.network.named_parameters() if "embeddings" not in name or "LayerNorm" in name)
    assert plan.trained == trained < plan.parameters == sum(value.numel() for value in made.network.parameters())
    assert plan.memory > 4 * plan.parameters + 12 * plan.trained and plan.seconds > 0
    assert plan.to_dict()["tasks"][0]["name"] == "topic"


def test_memory_grows_with_the_batch(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.csv", [{"x": float(number), "label": "ab"[number % 2]} for number in range(400)])
    found = []
    for batch in (16, 256):
        config = experiment({"kind": "sequential"}, {"t": {"kind": "classification"}}, data={"train": ["t.csv"]}, training={"batch": batch})
        found.append(plan_experiment(config).memory)
    assert found[1] - found[0] > 240 * 128 * 4


def test_a_plan_fails_where_training_would(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.csv", [{"x": float(number), "label": "ab"[number % 2] if number != 7 else ""} for number in range(20)])
    with pytest.raises(DataError, match=r"t\.csv, line 9, field 'label': has no label"):
        plan_experiment(experiment({"kind": "sequential"}, {"t": {"kind": "classification"}}, data={"train": ["t.csv"]}))
