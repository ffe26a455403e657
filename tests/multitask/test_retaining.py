"""Retention methods on tasks of any kind: earlier phases are protected, and records mean to them what tokens do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.multitask.conftest import FILLER, TOPICS, entity_rows, table, topic_rows, write
from tests.multitask.test_training import Interrupt

from retain.config import ConfigError
from retain.multitask import assemble, train
from retain.multitask.retaining import RecordObjective, by_layer
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


TEXTS = {"a": {"kind": "classification", "label": "topic"}, "b": {"kind": "classification", "label": "tone"}}
LORA = {"method": "lora", "rank": 4, "alpha": 8}
KEPT: dict[str, dict[str, Any]] = {
    "ewc": {"retention": {"methods": ["ewc"], "ewc": {"lambda": 1e7}}},
    "replay": {"retention": {"methods": ["replay"], "replay": {"strategy": "balanced"}}},
    "distill": {"distill": {"weight": 3.0, "temperature": 2.0}},
    "olora": {"retention": {"methods": ["olora"], "olora": {"weight": 2.0}}},
}


def toned(count: int) -> list[dict[str, Any]]:
    """Sentences with two words of a topic, both from the first or both from the second half of its words: dark or bright."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        topic, tone = draw.choice(list(TOPICS)), draw.choice(["dark", "bright"])
        half = TOPICS[topic][:3] if tone == "dark" else TOPICS[topic][3:]
        words = [*draw.sample(half, 2), *draw.choices(FILLER, k=3)]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "topic": topic, "tone": tone})
    return rows


def kept(
    backbone: dict[str, Any], tasks: dict[str, Any], way: dict[str, Any], place: Path, experiment: Any, rate: float, epochs: int
) -> Any:
    """Accuracy and loss of the first task before and after the second is learned, and the second's accuracy."""
    training = {"epochs": epochs, "batch": 16, "metric": "loss", "evaluate_every": 10_000, "learning_rate": rate}
    config = experiment(
        backbone, tasks, data={"train": ["t.jsonl"]}, sampling={"phases": [[name] for name in tasks]}, training=training, **way
    )
    _, first, last = train(config, place)["matrix"]
    a, b = tasks
    return {"before": first[a], "after": last[a], "second": last[b]["accuracy"]}


@pytest.mark.parametrize(
    ("model", "ways"),
    [("bert", ["replay", "distill"]), ("gpt2", ["replay", "distill", "ewc"]), ("table", ["ewc", "replay", "distill", "olora"])],
)
def test_the_first_task_is_kept_on_every_backbone(
    model: str, ways: list[str], tmp_path: Path, experiment: Any, request: pytest.FixtureRequest
) -> None:
    """An encoder, a causal model, a perceptron: without protection the first task is forgotten; with each of these ways less of it is.

    Tiny random transformers learn the first task by heart, where ewc has little information, and learn little with adapters."""
    write(tmp_path / "t.jsonl", digits() if model == "table" else toned(240))
    if model == "table":
        body: dict[str, Any] = {"kind": "sequential", "hidden": [24], "dropout": 0.0}
        tasks = {"a": {"kind": "classification", "label": "low"}, "b": {"kind": "classification", "label": "even"}}
        rate, epochs = 0.02, 12
    else:
        body = {"kind": "text", "model": str(request.getfixturevalue(model)), "max_length": 32}
        tasks, rate, epochs = TEXTS, 4e-3, 6
    adapted = {**body, "peft": LORA}
    controls = {"whole": body, **({"lora": adapted} if "olora" in ways else {})}
    naive = {name: kept(own, tasks, {}, tmp_path / name, experiment, rate, epochs) for name, own in controls.items()}
    found: dict[str, Any] = {"naive": naive}
    for name in ways:
        own = adapted if name == "olora" else body
        found[name] = kept(own, tasks, KEPT[name], tmp_path / f"with-{name}", experiment, rate, epochs)
        plain = naive["lora" if name == "olora" else "whole"]
        rise, without = (one["after"]["loss"] - one["before"]["loss"] for one in (found[name], plain))
        assert without > 0.05 and rise < 0.7 * without and found[name]["second"] > 0.6, (name, found)


def test_every_phase_has_an_adapter_of_its_own(tmp_path: Path, experiment: Any, bert: Path) -> None:
    """The second is nearly orthogonal to the first, which is frozen and takes part; saved and resumed are both."""
    write(tmp_path / "t.jsonl", toned(120))
    text = {"kind": "text", "model": str(bert), "max_length": 32, "peft": LORA}
    overlap = {}
    for weight in (0.0, 5.0):
        config = experiment(
            text, TEXTS, data={"train": ["t.jsonl"]}, sampling={"phases": [["a"], ["b"]]},
            training={"epochs": 4, "batch": 16, "checkpoint_every": 5, "learning_rate": 4e-3, "metric": "loss"},
            retention={"methods": ["olora"], "olora": {"weight": weight}},
        )  # fmt: skip
        train(config, tmp_path / f"straight{weight}")
        tensors = load_file(tmp_path / f"straight{weight}" / "model" / "weights.safetensors")
        firsts = [name for name in tensors if "lora_A.default" in name]
        pairs = [(F.normalize(tensors[n]), F.normalize(tensors[n.replace("default", "phase2")])) for n in firsts]
        overlap[weight] = sum(float((a @ b.T).abs().mean()) for a, b in pairs) / len(pairs)
        assert all(bool(tensors[n.replace("lora_A.default", "lora_B.phase2")].any()) for n in firsts)
    assert overlap[5.0] < 0.5 * overlap[0.0], overlap
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken", callbacks=[Interrupt(13, 1)])
    train(config, tmp_path / "broken", resume=True)
    again = load_file(tmp_path / "broken" / "model" / "weights.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert by_layer({"x.lora_A.phase2.weight": tensors[firsts[0]], "heads.w": tensors[firsts[0]]}).keys() == {"x.lora_A.weight"}
    with pytest.raises(ConfigError, match=r"retention\.methods: olora needs an adapter for every phase: add backbone\.peft"):
        experiment({**text, "peft": None}, TEXTS, sampling={"phases": [["a"], ["b"]]}, retention={"methods": ["olora"]})


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
