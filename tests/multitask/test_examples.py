"""The experiments that ship with retain are trained as they are, on a few records and with a tiny encoder."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.multitask.conftest import entity_rows, topic_rows, write

from retain.multitask import Predictor, load_experiment, train
from retain.pretraining import PretrainConfig, pretrain, read_config

SMALL = {"training.epochs": 15, "training.batch": 16, "training.learning_rate": 5e-3, "training.head_learning_rate": 1e-2}
LEAST = {"topic": 0.8, "subjects": 0.8, "quality": 0.7, "names": 0.8, "attack": 0.8, "unusual": 0.65}  # of a task's main metric, on test
Rows = list[dict[str, Any]]


def news() -> Rows:
    return topic_rows(240)


def calls() -> Rows:
    moods = {"sport": "good", "food": "fair", "space": "bad"}
    return [
        {
            "text": row["text"], "subjects": row["tags"], "greeting": moods[row["topic"]],
            "solved": "yes" if row["length"] == "long" else "no", "faults": ["rude", "slow", "wrong"][: len(row["tags"])],
        }
        for row in topic_rows(160)
    ]  # fmt: skip


def people() -> Rows:
    return [{"tokens": row["words"], "tags": row["tags"]} for row in entity_rows(240)]


def connections() -> Rows:
    """Each column is as usual; in attacks the bytes have nothing to do with the duration."""
    draw, rows = random.Random(0), []
    for _ in range(400):
        bad, duration = draw.random() < 0.2, draw.uniform(0.0, 2.0)
        size = draw.uniform(0.0, 2000.0) if bad else draw.gauss(1000.0 * duration, 20.0)
        rows.append({"duration": duration, "protocol": draw.choice(["tcp", "udp"]), "bytes": size, "attack": "yes" if bad else "no"})
    return rows


RUNS: Mapping[str, tuple[str, Callable[[], Rows]]] = {
    "text": ("news.jsonl", news),
    "multilabel": ("calls.jsonl", calls),
    "ner": ("people.jsonl", people),
    "security": ("connections.csv", connections),
}


def placed(name: str, folder: Path, room: str = "multitask") -> Path:
    """The example as a file in ``folder``."""
    text = files("retain").joinpath(room, "examples", f"{name}.yaml").read_text(encoding="utf-8")
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        write(path, rows)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_learns(name: str, tmp_path: Path, bert: Path) -> None:
    if name in ("text", "multilabel"):
        pytest.importorskip("peft")
    file, rows = RUNS[name]
    written(tmp_path / file, rows())
    values = {**SMALL, **({} if name == "security" else {"backbone.model": str(bert), "backbone.max_length": 32})}
    results = train(load_experiment(placed(name, tmp_path), values), tmp_path / "run")
    for task, found in results["tasks"].items():
        assert found["test"][found["main"]] > max(LEAST[task], found["before"][found["main"]]), (task, found)
    answers = Predictor.load(tmp_path / "run").predict(rows()[:3])
    assert len(answers) == 3 and set(answers[0]) == set(results["tasks"])


def test_the_decoder_learns(tmp_path: Path) -> None:
    from tests.pretraining.material import MODEL, write_corpus

    write_corpus(tmp_path / "texts")
    small = {f"model.{name}": value for name, value in MODEL.items()} | {
        "corpus.clean": False, "corpus.validation": 0.2, "tokenizer.vocabulary": 320, "training.steps": 12, "training.precision": "float32",
        "training.device": "cpu", "checks.every": 6, "checks.length": 2, "out": str(tmp_path / "run"),
    }  # fmt: skip
    results = pretrain(read_config(PretrainConfig, placed("pretrain", tmp_path, "pretraining"), small))
    assert results is not None and results["step"] == 12 and results["validation"] < 5.77  # the logarithm of 320
