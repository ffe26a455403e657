"""Retention methods on tasks of any kind: earlier phases are protected, and records mean to them what tokens do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.multitask.conftest import entity_rows, table, topic_rows, write

from retain.multitask import assemble, train
from retain.multitask.retaining import RecordObjective
from retain.retention.fisher import fisher_information
from retain.retention.positions import labels_of


def digits() -> list[dict[str, Any]]:
    """Two tasks on the same images: is the digit below 5, and is it even."""
    rows = table("digits")[:320]
    for row in rows:
        number = int(row.pop("label"))
        row |= {"low": "yes" if number < 5 else "no", "even": "even" if number % 2 == 0 else "odd"}
    return rows


def forgotten(methods: list[str], place: Path, experiment: Any) -> float:
    """Rise of the first task's loss while the second is learned; the last weights are taken, not the best of both."""
    tasks = {"low": {"kind": "classification", "label": "low"}, "even": {"kind": "classification", "label": "even"}}
    config = experiment(
        {"kind": "sequential", "hidden": [12], "dropout": 0.0}, tasks, data={"train": ["t.jsonl"]},
        sampling={"phases": [["low"], ["even"]]},
        retention={"methods": methods, "ewc": {"lambda": 3000.0}, "replay": {"strategy": "balanced"}},
        training={"epochs": 12, "batch": 16, "metric": "loss", "evaluate_every": 10_000, "learning_rate": 0.02},
    )  # fmt: skip
    results = train(config, place)
    before, first, last = (row["low"]["loss"] for row in results["matrix"])
    assert first < before - 0.2 and results["matrix"][2]["even"]["accuracy"] > 0.75
    return last - first


@pytest.mark.parametrize("methods", [["ewc"], ["replay"], ["derpp"], ["replay", "kl"], ["agem"], ["l2"]])
def test_earlier_phases_are_protected(methods: list[str], tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", digits())
    naive, protected = forgotten([], tmp_path / "naive", experiment), forgotten(methods, tmp_path / "protected", experiment)
    assert naive > 0.1 and protected < 0.7 * naive, (naive, protected)


@pytest.fixture
def mixed(tmp_path: Path, experiment: Any, bert: Path) -> Any:
    """A classification, a multi-label task, a regression, and names."""
    rows = [{**a, **{key: b[key] for key in ("entities",)}} for a, b in zip(topic_rows(40), entity_rows(40), strict=True)]
    write(tmp_path / "t.jsonl", rows)
    write(tmp_path / "names.jsonl", entity_rows(40))
    tasks = {
        "topic": {"kind": "classification", "label": "topic", "weight": 2.0},
        "tags": {"kind": "multilabel", "label": "tags"},
        "size": {"kind": "regression", "label": "words"},
        "names": {"kind": "ner", "words": "words", "tags": "tags", "data": {"train": ["names.jsonl"]}},
    }
    return assemble(experiment({"kind": "text", "model": str(bert), "max_length": 32}, tasks, data={"train": ["t.jsonl"]}))


def test_logits_and_labels_are_those_of_the_tasks(mixed: Any) -> None:
    objective = RecordObjective(mixed)
    params = mixed.network.learning()
    for name in ("topic", "tags", "names"):
        examples = objective.chosen(name, [3, 0, 5])
        logits, rows = objective.logits(examples, params)
        labels = labels_of(examples)
        assert len(logits) == len(labels) == len(rows) == sum(example.n_supervised() for example in examples)
        assert rows.tolist() == sorted(rows.tolist()) and set(rows.tolist()) == {0, 1, 2}
        inputs, targets = mixed.batch(name, "train", [3, 0, 5])
        expected = mixed.task(name).loss(mixed.network.eval()(name, inputs), targets)
        assert torch.allclose(F.cross_entropy(logits, labels), expected, atol=1e-5), name


def test_examples_of_several_tasks_at_once(mixed: Any) -> None:
    """In any order: each example's logits are those that it has alone, and no two records are taken for the same."""
    objective, params = RecordObjective(mixed), mixed.network.learning()
    examples = [
        objective.chosen(name, [number])[0] for name, number in (("names", 1), ("size", 2), ("topic", 2), ("tags", 2), ("topic", 1))
    ]
    logits, rows = objective.logits(examples, params)
    assert len({example.tokens[0] for example in objective.examples(mixed.config.tasks)}) == 4 * 32
    for number, example in enumerate(examples):
        alone, _ = objective.logits([example], params)
        assert torch.allclose(logits[rows == number], alone, atol=1e-5)
    mixed.network.eval()
    together = objective.loss(examples, params)
    single = torch.stack([objective.loss([example], params) for example in examples])
    assert torch.allclose(together, single.mean(), atol=1e-5)


def test_other_parameters_and_those_of_the_start(mixed: Any) -> None:
    objective, params = RecordObjective(mixed), mixed.network.learning()
    examples = objective.chosen("topic", [0, 1])
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    assert not torch.allclose(objective.logits(examples, params)[0], objective.logits(examples, zeros)[0])
    with torch.no_grad():
        start = objective.logits(examples, params)[0].clone()
        for value in params.values():
            value.add_(0.1)
        assert torch.equal(objective.base_logits(examples), start) and not torch.allclose(objective.logits(examples, params)[0], start)


def test_fisher_information_of_a_number(mixed: Any) -> None:
    """Of a normal distribution with variance 1 it is the squared gradient of the mean."""
    objective, params = RecordObjective(mixed), mixed.network.learning()
    examples = objective.chosen("size", [0]) * 150
    found = fisher_information(objective, examples, params, labels="sampled", generator=torch.Generator().manual_seed(0)).diagonal
    inputs, _ = mixed.batch("size", "train", [0])
    name = "heads.task_size.linear.weight"
    (gradient,) = torch.autograd.grad(mixed.network.eval()("size", inputs)["value"].sum(), [params[name]])
    assert torch.allclose(found[name].sum(), gradient.square().sum(), rtol=0.4)


def test_anomalies_have_outcomes_too(tmp_path: Path, experiment: Any) -> None:
    rows = [{"x": float(number % 5), "c": "ab"[number % 2], "y": None if number % 7 == 0 else float(number)} for number in range(40)]
    write(tmp_path / "t.jsonl", rows)
    config = experiment(
        {"kind": "sequential", "hidden": [8], "numeric": ["x", "y"], "categorical": ["c"]},
        {"odd": {"kind": "anomaly"}},
        data={"train": ["t.jsonl"]},
    )
    made = assemble(config)
    objective = RecordObjective(made)
    examples = objective.examples(["odd"])
    logits, _ = objective.logits(examples, made.network.learning())
    labels = labels_of(examples)
    missing = sum(row.values["y"] is None for row in made.parts["odd"]["train"].rows)
    assert len(labels) == 3 * len(examples) - missing and logits.shape == (len(labels), 121)
    assert bool(torch.isfinite(F.cross_entropy(logits, labels)))
