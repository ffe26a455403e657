"""Answers from a saved model are those of the training, bit by bit; damage is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.multitask.conftest import entity_rows, table, topic_rows, write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import Predictor, assemble, parse_experiment, train
from retain.multitask.scoring import evaluate, scores


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four tasks on one small encoder, with fusion."""
    from tests.multitask.conftest import save_model

    place = tmp_path_factory.mktemp("run")
    save_model(place / "bert", "bert")
    write(place / "topic.jsonl", topic_rows(160))
    write(place / "names.jsonl", entity_rows(100))
    train(parse_experiment(CONFIG, place), place / "run")
    return place


CONFIG: dict[str, Any] = {
    "backbone": {"kind": "text", "model": "./bert", "max_length": 32},
    "data": {"train": "topic.jsonl", "test_share": 0.2},
    "tasks": {
        "topic": {"kind": "classification", "label": "topic"},
        "tags": {"kind": "multilabel", "label": "tags"},
        "size": {"kind": "regression", "label": "words"},
        "names": {"kind": "ner", "words": "words", "tags": "tags", "data": {"train": "names.jsonl"}},
        "spans": {"kind": "ner", "entities": "entities", "data": {"train": "names.jsonl"}},
    },
    "fusion": {"kind": "attention"},
    "training": {"epochs": 2, "batch": 16, "learning_rate": 2e-3},
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(np.array_equal(one[key], other[key]) for key in one)
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)) if isinstance(one, tuple) else one == other


def test_metrics_and_probabilities_equal_those_of_the_training(place: Path) -> None:
    """The trained network, its heads and thresholds, put together by hand from the run; and the loaded one."""
    model = Predictor.load(place / "run")
    experiment = assemble(parse_experiment(CONFIG, place))
    experiment.network.load(load_file(place / "run" / "model" / "weights.safetensors"), "weights")
    saved = json.loads((place / "run" / "model" / "model.json").read_text())
    for name, task in experiment.network.tasks.items():
        task.restore(saved["tasks"][name])
        for split in ("validation", "test"):
            part = experiment.parts[name][split]
            if not len(part):
                continue
            reported = model.results["tasks"][name][split]
            assert model.evaluate(part.rows, name) == reported == evaluate(experiment, name, split, tune=False)
            trained, _ = scores(experiment.network, task, part.inputs, 16, experiment.device, experiment.precision)
            raws = [model.network.tasks[name].raw(row, model.network.backbone) for row in part.rows]
            loaded, _ = scores(
                model.network, model.network.tasks[name], model.network.backbone.encode(raws), 16, model.device, model.precision
            )
            assert all(same(one, other) for one, other in zip(trained, loaded, strict=True))
    assert model.results["tasks"]["topic"]["test"]["accuracy"] > 0.6


def test_answers(place: Path) -> None:
    model = Predictor.load(place / "run")
    assert model.tasks == ["topic", "tags", "size", "names", "spans"]
    told: list[tuple[int, int]] = []
    answers = model.predict(
        ["the goal was near", "bread and butter in new york"], ["topic", "size", "spans"], tell=lambda done, of: told.append((done, of))
    )
    assert [set(answer) for answer in answers] == [{"topic", "size", "spans"}] * 2 and told[-1] == (2, 2)
    shares = answers[0]["topic"]["probabilities"]
    assert sum(shares.values()) == pytest.approx(1.0) and answers[0]["topic"]["probability"] == max(shares.values())
    for entity in answers[1]["spans"]["entities"]:
        assert "bread and butter in new york"[entity["start"] : entity["end"]] == entity["text"]
    alone = model.predict(["the goal was near"], ["topic"])[0]["topic"]["probabilities"]
    assert alone == pytest.approx(shares, abs=1e-5)  # in a batch of its own
    assert model.predict([], ["topic"]) == []


def test_files(place: Path, tmp_path: Path) -> None:
    model = Predictor.load(place / "run" / "model")
    rows = entity_rows(70, seed=9)
    told: list[int] = []
    assert (
        model.predict_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", ["names"], lambda done, _: told.append(done)) == 70
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in rows] and told[-1] == 70
    assert [line["predictions"] for line in lines] == model.predict(rows, ["names"])
    with pytest.raises(DataError, match=r"in\.jsonl, line 3, field 'words': is missing"):
        model.predict_file(write(tmp_path / "in.jsonl", [*rows[:2], {"text": "a"}]), tmp_path / "other.jsonl", ["names"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]  # no part of a file


def test_mistakes(place: Path, tmp_path: Path) -> None:
    model = Predictor.load(place / "run")
    for call, kind, message in (
        (lambda: model.predict(["a"], ["topik"]), ConfigError, "there is no task 'topik': did you mean 'topic'?"),
        (lambda: model.predict([{"txt": "a"}], ["topic"]), DataError, "field 'text': there is no such column (did you mean 'txt'?)"),
        (lambda: model.predict([{"text": 3}], ["topic"]), DataError, "records, line 1, field 'text': must be a text, not a number"),
        (lambda: model.predict([3], ["topic"]), DataError, "a record is a dictionary or a text"),  # type: ignore[list-item]
        (lambda: model.evaluate([], None), ConfigError, "there are several tasks: name one of"),
        (lambda: Predictor.load(tmp_path), DataError, "holds no finished model (it is what retain train leaves)"),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("heads.task_topic.linears.0.weight"), "heads.task_topic.linears.0.weight is missing"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "the tensor other belongs to no part of this network"),
        (lambda tensors: tensors.update({"heads.task_size.linear.bias": torch.zeros(7)}), r"has the shape \[7\], not \[1\]"),
    ],
)
def test_heads_that_are_not_there_are_never_replaced_by_random_ones(damage: Any, message: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run" / "model" / "weights.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(DataError, match=message):
        Predictor.load(tmp_path / "run")


def test_a_model_of_another_format(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(DataError, match="is of format 99, and this retain reads 1"):
        Predictor.load(tmp_path / "run")
    (tmp_path / "run" / "model" / "weights.safetensors").write_bytes(b"no")
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 1}))
    with pytest.raises(DataError, match=r"weights\.safetensors: cannot be read"):
        Predictor.load(tmp_path / "run")


def test_scales_come_from_the_training(tmp_path: Path, experiment: Any) -> None:
    """Three new records are scaled as in training, not by themselves."""
    rows = table("wine")
    write(tmp_path / "t.jsonl", rows)
    config = experiment(
        {"kind": "sequential", "hidden": [16]}, {"t": {"kind": "classification"}}, data={"train": ["t.jsonl"]}, training={"epochs": 5}
    )
    train(config, tmp_path / "run")
    model = Predictor.load(tmp_path / "run")
    all_of_them = model.predict(rows)
    some = model.predict([rows[3], rows[90], rows[150]])
    for one, other in zip(some, (all_of_them[3], all_of_them[90], all_of_them[150]), strict=True):
        assert one["t"]["probabilities"] == pytest.approx(other["t"]["probabilities"], abs=1e-6)
    with pytest.raises(DataError, match="field 'c0': there is no such column"):
        model.predict([{key: value for key, value in rows[0].items() if key != "c0"}])
