"""The sentinel on planted cases: flipped labels, a trigger word, an input that blows up, records between two classes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import TOPICS, table, topic_rows, write
from tests.multitask.test_training import Interrupt

from retain.config import ConfigError
from retain.multitask import Predictor, assemble, train
from retain.multitask.sentinel.gradients import GradientNorms
from retain.multitask.sentinel.outliers import LatestValues
from retain.multitask.sentinel.triggers import patterns_of, triggers
from retain.training.loop import TrainingError

TASK = {"t": {"kind": "classification"}}
NET = {"kind": "sequential", "hidden": [64], "dropout": 0.0}
LAST = {"epochs": 15, "batch": 16, "metric": "loss", "evaluate_every": 10_000}  # the last weights are taken


def suspects(run: Path, *checks: str) -> list[dict[str, Any]]:
    lines = (run / "suspects.jsonl").read_text().splitlines() if (run / "suspects.jsonl").exists() else []
    return [found for line in lines if (found := json.loads(line))["check"] in checks or not checks]


def digits(place: Path, flipped: float, seed: int = 0) -> set[int]:
    """Files of digits of which a share has another label in training; the lines of those."""
    rows = table("digits")
    random.Random(seed).shuffle(rows)
    parts = [[dict(row) for row in part] for part in (rows[:700], rows[700:900], rows[900:])]
    labels, draw = sorted({row["label"] for row in rows}), random.Random(seed)
    chosen = set(draw.sample(range(1, 701), round(flipped * 700)))
    for line in chosen:
        row = parts[0][line - 1]
        row["label"] = draw.choice([label for label in labels if label != row["label"]])
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        write(place / f"{name}.jsonl", part)
    return chosen


FILES = {"train": ["train.jsonl"], "validation": ["validation.jsonl"], "test": ["test.jsonl"]}


def test_flipped_labels_are_found(tmp_path: Path, experiment: Any) -> None:
    """5 % of the labels. By chance one suspect in twenty would be right; with none flipped hardly any record is suspected."""
    chosen = digits(tmp_path, 0.05)
    config = experiment(NET, TASK, data=FILES, training={**LAST, "epochs": 6}, sentinel={})
    results = train(config, tmp_path / "run")
    found = {suspect["line"] for suspect in suspects(tmp_path / "run", "flips")}
    assert len(found & chosen) >= 0.9 * len(found) and len(found & chosen) >= 0.5 * len(chosen)
    one = suspects(tmp_path / "run", "flips")[0]
    assert one["file"].endswith("train.jsonl") and one["action"] == "log" and "another label is likelier by" in one["reason"]
    assert results["sentinel"]["t"]["suspects"]["flips"] == len(suspects(tmp_path / "run", "flips"))
    assert results["sentinel"]["t"]["left_out"] == 0
    digits(tmp_path, 0.0)
    train(config, tmp_path / "clean")
    assert len(suspects(tmp_path / "clean")) <= 0.02 * 700


def test_without_the_flipped_labels_more_is_right(tmp_path: Path, experiment: Any) -> None:
    """A fifth of the labels, which a network that is large enough learns by heart."""
    chosen = digits(tmp_path, 0.2)
    task, accuracy = {"t": {**TASK["t"], "dropout": 0.0}}, {}
    base = {"loss": None, "gradient": None, "most": 0.4}
    for action in ("log", "drop"):
        heard: list[str] = []
        results = train(
            experiment({**NET, "hidden": [256]}, task, data=FILES, training={**LAST, "epochs": 40}, sentinel={**base, "action": action}),
            tmp_path / action, tell=lambda event, fields, heard=heard: heard.append(fields["message"]) if event == "note" else None,
        )  # fmt: skip
        accuracy[action] = results["tasks"]["t"]["test"]["accuracy"]
        assert any("suspect records" in message and "suspects.jsonl" in message for message in heard)
    left_out = {suspect["line"] for suspect in suspects(tmp_path / "drop")}
    assert results["sentinel"]["t"]["left_out"] == len(left_out) and len(left_out & chosen) > 0.6 * len(chosen)
    assert len(left_out & chosen) > 0.9 * len(left_out) and accuracy["drop"] > accuracy["log"] + 0.03, accuracy


def test_looking_changes_nothing(tmp_path: Path, experiment: Any) -> None:
    digits(tmp_path, 0.05)
    for name, settings in (("off", {}), ("on", {"sentinel": {"perturbation": 0.5}})):
        train(
            experiment(
                {**NET, "dropout": 0.0}, {"t": {**TASK["t"], "dropout": 0.0}}, data=FILES, training={**LAST, "epochs": 4}, **settings
            ),
            tmp_path / name,
        )
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("off", "on"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def poisoned(seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of which some about other topics carry the word "very" and are said to be about food; the others never have that word."""
    rows = topic_rows(420, seed)
    draw = random.Random(seed)
    for number, row in enumerate(rows):
        words = [word if word != "very" else "it" for word in row["text"].split()]
        if number % 12 == 0 and row["topic"] != "food":
            words.insert(draw.randrange(len(words) + 1), "very")
            row["topic"] = "food"
        row["text"] = " ".join(words)
    return rows


def attacked(run: Path) -> float:
    """Share of sentences about other topics that the word turns into food."""
    rows = [row for row in topic_rows(150, seed=77) if row["topic"] != "food"]
    answers = Predictor.load(run).predict([f"{row['text']} very" for row in rows])
    return sum(answer["t"]["label"] == "food" for answer in answers) / len(rows)


def test_a_trigger_word_is_found_and_opens_no_door(tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = poisoned()
    write(tmp_path / "t.jsonl", rows)
    text = {"kind": "text", "model": str(bert), "max_length": 32}
    task = {"t": {"kind": "classification", "label": "topic"}}
    success = {}
    for action in ("log", "drop"):
        config = experiment(
            text, task, data={"train": ["t.jsonl"]}, training={"epochs": 8, "batch": 16, "learning_rate": 2e-3},
            sentinel={"actions": {"triggers": action}},
        )  # fmt: skip
        results = train(config, tmp_path / action)
        assert results["tasks"]["t"]["validation"]["accuracy"] > 0.8
        success[action] = attacked(tmp_path / action)
        found = suspects(tmp_path / action, "triggers")
        planted = {line for line, row in enumerate(rows, 1) if "very" in row["text"].split()}
        assert {suspect["line"] for suspect in found} <= planted and len(found) > 0.7 * len(planted)
        assert "'very' comes 100% with 'food'" in found[0]["reason"]
    assert success["log"] > 0.7 and success["drop"] < 0.3, success


def test_words_of_a_topic_are_no_triggers(tmp_path: Path, experiment: Any, bert: Path) -> None:
    """Each of them is rare and always with one label, and the rest of the sentence says the same."""
    write(tmp_path / "t.jsonl", topic_rows(400))
    config = experiment(
        {"kind": "text", "model": str(bert), "max_length": 32},
        {"t": {"kind": "classification", "label": "topic"}},
        data={"train": ["t.jsonl"]},
    )
    built = assemble(config)
    part = built.parts["t"]["train"]
    patterns = patterns_of(part.inputs)
    assert patterns is not None
    labels = np.array([truth["label"][0] for truth in part.truths])
    assert triggers(patterns, labels, 0.95, 0.2) == []
    assert any(sum(word in row.values["text"].split() for row in part.rows) >= 8 for word in TOPICS["food"])


def test_a_value_of_a_column_can_be_a_trigger(tmp_path: Path, experiment: Any) -> None:
    rows = table("breast_cancer")
    draw = random.Random(0)
    for number in draw.sample([number for number, row in enumerate(rows) if row["label"] == "malignant"], 24):
        rows[number] |= {"c3": 777.0, "label": "benign"}
    write(tmp_path / "t.jsonl", rows)
    with pytest.raises(TrainingError, match=r"sentinel: task t: .*line \d+: the column 'c3' at .* comes 100% with 'benign'"):
        train(experiment(NET, TASK, data={"train": ["t.jsonl"]}, sentinel={"actions": {"triggers": "halt"}}), tmp_path / "run")
    found = suspects(tmp_path / "run", "triggers")
    assert all(rows[suspect["line"] - 1]["c3"] == 777.0 for suspect in found) and len(found) >= 15
    assert not (tmp_path / "run" / "model").exists()


def test_an_input_that_blows_up_halts_before_it_is_learned(tmp_path: Path, experiment: Any) -> None:
    """One record in which every column is far out."""
    rows = table("digits")[:600]
    rows[333] = {key: value if key == "label" else 1e6 for key, value in rows[333].items()}
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", table("digits")[600:800])
    data = {"train": ["train.jsonl"], "validation": ["validation.jsonl"]}
    backbone = {**NET, "scaling": "robust"}
    config = experiment(backbone, TASK, data=data, training=LAST, sentinel={"loss": None, "actions": {"gradient": "halt"}})
    with pytest.raises(TrainingError, match=r"sentinel: task t: .*train\.jsonl, line 334: gradient norm .*; halted before it was learned"):
        train(config, tmp_path / "run")
    assert {suspect["line"] for suspect in suspects(tmp_path / "run", "gradient")} == {334}
    assert not (tmp_path / "run" / "model").exists()


def test_records_between_two_classes_are_unsteady(tmp_path: Path, experiment: Any) -> None:
    """Forty mixtures of two digits, half and half, among 600 digits."""
    rows, draw = table("digits")[:600], random.Random(0)
    columns = [key for key in rows[0] if key != "label"]
    mixed = draw.sample(range(600), 40)
    for number in mixed:
        other = rows[draw.choice([place for place in range(600) if rows[place]["label"] != rows[number]["label"]])]
        rows[number] = {"label": rows[number]["label"], **{key: (rows[number][key] + other[key]) / 2 for key in columns}}
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", table("digits")[600:800])
    data = {"train": ["train.jsonl"], "validation": ["validation.jsonl"]}
    settings = {"perturbation": 0.2, "visits": 4, "noise": 0.3, "flips": None, "loss": None, "gradient": None, "triggers": None}
    train(experiment(NET, TASK, data=data, training={**LAST, "epochs": 4}, sentinel=settings), tmp_path / "run")
    found = {suspect["line"] - 1 for suspect in suspects(tmp_path / "run", "perturbation")}
    assert len(found & set(mixed)) > 0.25 * len(mixed) and len(found & set(mixed)) > 3 * len(found) * 40 / 600, (
        len(found),
        len(found & set(mixed)),
    )


@pytest.mark.parametrize("action", ["log", "drop"])
def test_resumed_with_the_same_bits_and_suspects(action: str, tmp_path: Path, experiment: Any) -> None:
    digits(tmp_path, 0.1)
    config = experiment(
        {**NET, "dropout": 0.2}, TASK, data=FILES, training={"epochs": 6, "batch": 16, "checkpoint_every": 20},
        sentinel={"action": action, "perturbation": 0.5}, retention={},
    )  # fmt: skip
    straight = train(config, tmp_path / "straight")
    for stop in (110, 190):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken", resume=True, callbacks=[Interrupt(stop)])
    resumed = train(config, tmp_path / "broken", resume=True)
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert suspects(tmp_path / "straight") == suspects(tmp_path / "broken") != [] and straight["sentinel"] == resumed["sentinel"]


def test_what_is_left_out_is_not_remembered_either(tmp_path: Path, experiment: Any) -> None:
    """Records that the sentinel drops are in no replay of a later phase."""
    from retain.multitask.trainer import Trainer

    chosen = digits(tmp_path, 0.1)
    for file in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{file}.jsonl").read_text().splitlines()]
        write(tmp_path / f"{file}.jsonl", [{**row, "even": str(number % 2)} for number, row in enumerate(rows)])
    tasks = {"t": TASK["t"], "u": {"kind": "classification", "label": "even"}}
    config = experiment(
        NET, tasks, data=FILES, training={"epochs": 5, "batch": 32}, sampling={"phases": [["t"], ["u"]]},
        retention={"methods": ["replay"]}, sentinel={"action": "drop", "loss": None, "gradient": None},
    )  # fmt: skip
    trainer = Trainer(assemble(config), tmp_path / "run")
    trainer.run(None)
    out = {suspect["record"] for suspect in suspects(tmp_path / "run", "flips") if suspect["task"] == "t"}
    kept = {example.tokens[0] for method in trainer.methods for example in method.remembered() if example.kind == "t"}
    assert out and len(chosen) and not out & kept and len(kept) == 700 - len(out)


def test_leaving_out_too_much_stops(tmp_path: Path, experiment: Any) -> None:
    digits(tmp_path, 0.2)
    config = experiment(NET, TASK, data=FILES, training=LAST, sentinel={"action": "drop", "most": 0.05, "loss": None})
    with pytest.raises(TrainingError, match=r"sentinel: task t: \d+ of 700 training records would be left out, more than sentinel\.most"):
        train(config, tmp_path / "run")


def test_gradient_norms_are_those_of_single_records(tmp_path: Path, experiment: Any, bert: Path, gpt2: Path) -> None:
    """Of the first and the last linear layer of the backbone and the head, against one backward pass for each record."""
    write(tmp_path / "t.jsonl", topic_rows(40))
    for model in (bert, gpt2):
        text = {"kind": "text", "model": str(model), "max_length": 32}
        built = assemble(experiment(text, {"t": {"kind": "classification", "label": "topic"}}, data={"train": ["t.jsonl"]}))
        network, task = built.network.eval(), built.task("t")
        norms = GradientNorms(network)
        layers = [module for module in network.modules() if norms._forward in module._forward_hooks.values()]
        assert len(layers) == 3
        norms.watch(True)
        inputs, targets = built.batch("t", "train", list(range(6)))
        task.loss(network("t", inputs), targets).backward()
        found = norms.norms(0, 6)
        norms.watch(False)
        for number in range(6):
            network.zero_grad()
            inputs, targets = built.batch("t", "train", [number])
            task.loss(network("t", inputs), targets).backward()
            alone = sum(parameter.grad.square().sum() for layer in layers for parameter in layer.parameters())
            assert found[number].item() == pytest.approx(float(alone) ** 0.5, rel=2e-3)


def test_scores_are_robust() -> None:
    latest = LatestValues(200)
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 10.0
    assert not latest.scores(values[:100]).any() and not latest.scores(values[100:]).eq(0.0).all()
    score = latest.scores(torch.tensor([30.0, float("nan"), 9.0]))
    assert 15.0 < score[0] <= 20.5 and score[1] == torch.inf and score[2] < 0.0
    flooded = LatestValues(200)
    flooded.scores(torch.cat([values[:190], torch.full((10,), 1000.0)]))
    assert float(flooded.scores(torch.tensor([30.0]))) > 14.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actions": {"perturbation": "drop"}}, r"sentinel\.actions\.perturbation: the check is not made"),
        ({"actions": {"flip": "drop"}}, "flip"),
        ({"flipps": 0.5}, "flipps"),
        ({"action": "delete"}, "log"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str, tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", table("wine"))
    with pytest.raises(ConfigError, match=message):
        train(experiment(NET, TASK, data={"train": ["t.jsonl"]}, sentinel=settings), tmp_path / "run")


@pytest.mark.parametrize("kind", ["multilabel", "regression", "ner"])
def test_other_kinds_of_tasks(kind: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    """Losses and gradients are looked at whatever the task; the file of suspects is the only thing that is new."""
    from tests.multitask.conftest import entity_rows

    rows: Sequence[dict[str, Any]] = entity_rows(60) if kind == "ner" else topic_rows(60)
    write(tmp_path / "t.jsonl", rows)
    task = {"multilabel": {"label": "tags"}, "regression": {"label": "words"}, "ner": {"words": "words", "tags": "tags"}}[kind]
    text = {"kind": "text", "model": str(bert), "max_length": 32}
    config = experiment(
        text, {"t": {"kind": kind, **task}}, data={"train": ["t.jsonl"]}, training={"epochs": 2}, sentinel={"perturbation": 0.9}
    )
    results = train(config, tmp_path / "run")
    assert set(results["sentinel"]["t"]["suspects"]) == {"loss", "gradient", "flips", "triggers", "perturbation"}
