"""Tasks: losses by their formulas, thresholds on probabilities, tags aligned by offsets, entities as seqeval counts them, anomalies."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.multitask.conftest import entity_rows, table, topic_rows, write

from retain.multitask import assemble, read_rows, train
from retain.multitask.predictor import Predictor
from retain.multitask.tasks.metrics import best_threshold, entity_scores, multi_label, single_label, spans_of
from retain.multitask.tasks.regression import gaussian_logits, place_of

HEADS = {"topic": {"weight": 3.0, "class_weights": "balanced"}, "length": {}, "tags": {"multilabel": True, "class_weights": {"near": 4.0}}}


def heads(tmp_path: Path, experiment: Any, bert: Path, rows: list[dict[str, Any]]) -> Any:
    write(tmp_path / "t.jsonl", rows)
    text = {"kind": "text", "model": str(bert), "max_length": 32}
    return assemble(experiment(text, {"t": {"kind": "multihead", "heads": HEADS, "unlabelled": "skip"}}, data={"train": ["t.jsonl"]}))


def test_the_loss_of_several_heads(tmp_path: Path, experiment: Any, bert: Path) -> None:
    """Weighted mean of the heads' losses; a head has as many outputs as labels; records without a head's label take no part in it."""
    rows = topic_rows(60)
    for row in rows[::3]:
        row["topic"] = None
    made = heads(tmp_path, experiment, bert, rows)
    task, (inputs, targets) = made.task("t"), made.batch("t", "train", list(range(12)))
    outputs = made.network.eval()("t", inputs)
    assert {name: logits.shape[1] for name, logits in outputs.items()} == {"topic": 3, "length": 2, "tags": 3}
    known = [row.values["topic"] is not None for row in made.parts["t"]["train"].rows[:12]]
    counts = task.counts(made.parts["t"]["train"].truths)
    total = sum(counts[f"topic: {name}"] for name in ("food", "space", "sport"))
    balance = torch.tensor([total / (3 * counts[f"topic: {name}"]) for name in ("food", "space", "sport")])
    topic = F.cross_entropy(outputs["topic"][known], targets["topic"][known], weight=balance)
    length = F.cross_entropy(outputs["length"], targets["length"])
    tags = F.binary_cross_entropy_with_logits(outputs["tags"], targets["tags"].float(), pos_weight=torch.tensor([1.0, 4.0, 1.0]))
    assert 0 < sum(known) < 12 and torch.allclose(task.loss(outputs, targets), (3 * topic + length + tags) / 5, atol=1e-6)
    targets["topic"][:] = -100
    assert torch.allclose(task.loss(outputs, targets), (length + tags) / 5, atol=1e-6)


def test_thresholds_are_on_probabilities(tmp_path: Path, experiment: Any, bert: Path) -> None:
    """A logit of -1 is a probability of 0.27: above a threshold of 0.2, although it is below 0.2 itself."""
    made = heads(tmp_path, experiment, bert, topic_rows(30))
    task = made.task("t")
    truths = [{"topic": (0,), "length": (0,), "tags": (0,) if number % 2 else ()} for number in range(10)]
    tags = torch.tensor([[-1.0 if number % 2 else -2.0, -9.0, -9.0] for number in range(10)])
    outputs = {"topic": torch.zeros(10, 3), "length": torch.zeros(10, 2), "tags": tags}
    results = task.results(outputs, None, [None] * 10)
    task.tune(results, truths)
    first = task.state()["tags"]["thresholds"][0]
    low, high = (1 / (1 + math.exp(-x)) for x in (-2.0, -1.0))
    assert first == pytest.approx((low + high) / 2)
    answers = [task.predict(result, None, None)["tags"]["labels"] for result in results]
    assert answers == [["again"] if number % 2 else [] for number in range(10)]
    assert task.metrics(results, truths)["tags.micro_f1"] == 1.0
    again = heads(tmp_path, experiment, bert, topic_rows(30)).task("t")
    again.restore(json.loads(json.dumps(task.state())))
    assert [again.predict(result, None, None)["tags"]["labels"] for result in results] == answers


def test_one_of_two_labels_by_a_tuned_threshold(tmp_path: Path, experiment: Any) -> None:
    rows = [{"x": float(number % 10), "label": "bad" if number % 10 == 0 else "good"} for number in range(60)]
    write(tmp_path / "t.jsonl", rows)
    task = assemble(
        experiment({"kind": "sequential"}, {"t": {"kind": "classification", "positive": "bad"}}, data={"train": ["t.jsonl"]})
    ).task("t")
    results = [{"label": np.array([share, 1 - share])} for share in (0.3, 0.28, 0.1, 0.05)]
    truths = [{"label": (0,)}, {"label": (0,)}, {"label": (1,)}, {"label": (1,)}]
    assert task.metrics(results, truths)["accuracy"] == 0.5
    task.tune(results, truths)
    assert task.state()["label"]["thresholds"] == [pytest.approx(0.19)]
    assert task.metrics(results, truths)["accuracy"] == 1.0 and task.predict(results[1], None, None)["label"] == "bad"


def test_best_threshold_by_trying_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores = draw.integers(0, 8, 12) / 8
        positive = draw.random(12) < 0.4
        if not 0 < positive.sum() < 12:
            continue

        def f1(threshold: float, scores: Any = scores, positive: Any = positive) -> float:
            given = scores >= threshold
            return 2 * (given & positive).sum() / (given.sum() + positive.sum())

        found = best_threshold(scores, positive)
        assert 0.0 <= found <= 1.0 and f1(found) == max(f1(value) for value in scores)
    assert best_threshold(np.array([0.2, 0.4]), np.array([False, False])) == 0.5


def test_metrics_by_hand() -> None:
    shares = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1, 1, 2])
    found = single_label(shares, labels, shares.argmax(1))
    assert found["accuracy"] == found["micro_f1"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["auroc"] == pytest.approx((1.0 + 1.0 + 1.0) / 3) and found["average_precision"] == pytest.approx(1.0)
    two, flipped = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]), np.array([0, 1, 1, 0])
    first, second = (single_label(two, flipped, two.argmax(1), place) for place in (0, 1))
    assert first["auroc"] == second["auroc"] == 1.0
    worse = single_label(two, np.array([0, 1, 0, 0]), two.argmax(1), 0)["average_precision"]
    assert (
        worse == pytest.approx((1 + 1 + 3 / 4) / 3) and single_label(two, np.array([0, 1, 0, 0]), two.argmax(1))["average_precision"] == 0.5
    )
    assert single_label(shares, np.zeros(4, dtype=np.int64), shares.argmax(1))["auroc"] is None
    wanted = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    given = np.array([[1, 0], [0, 1], [0, 1]], dtype=bool)
    many = multi_label(given * 0.9, wanted, given)
    assert many["micro_f1"] == pytest.approx(4 / 6) and many["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert many["exact"] == pytest.approx(1 / 3)


# what seqeval 1.2.2 gives: get_entities, then its F1 over all entities and the mean over kinds
@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-a I-a O", [("a", 1, 2)]),
        ("I-a I-a O I-a", [("a", 0, 1), ("a", 3, 3)]),
        ("B-a B-a I-b I-b", [("a", 0, 0), ("a", 1, 1), ("b", 2, 3)]),
        ("B-x-y I-x-y", [("x-y", 0, 1)]),
        ("B-a I-a E-a S-b O", [("a", 0, 2), ("b", 3, 3)]),
        ("E-a E-a", [("a", 0, 0), ("a", 1, 1)]),
        ("", []),
    ],
)
def test_entities_in_tags(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def test_entity_scores_as_seqeval_has_them() -> None:
    truth = [["B-a", "I-a", "O", "B-b"], ["B-b", "O", "B-a"], ["O", "O"]]
    found = [["B-a", "O", "O", "B-b"], ["B-b", "O", "B-a"], ["B-c", "O"]]
    scores = entity_scores([spans_of(tags) for tags in truth], [spans_of(tags) for tags in found])
    assert scores == {
        "f1": pytest.approx(2 * 3 / (4 + 5)),
        "macro_f1": pytest.approx((0.5 + 1.0 + 0.0) / 3),
        "precision": 0.6,
        "recall": 0.75,
    }
    assert entity_scores([[], []], [[], []])["f1"] is None


def ner(tmp_path: Path, experiment: Any, bert: Path, task: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    write(tmp_path / "t.jsonl", rows)
    text = {"kind": "text", "model": str(bert), "max_length": 16}
    return assemble(experiment(text, {"t": {"kind": "ner", **task}}, data={"train": ["t.jsonl"]}))


def test_tags_of_words_are_those_of_their_first_tokens(tmp_path: Path, experiment: Any, bert: Path) -> None:
    made = ner(tmp_path, experiment, bert, {"words": "words", "tags": "tags"}, entity_rows(40))
    task, backbone = made.task("t"), made.network.backbone
    (tmp_path / "one.jsonl").write_text(
        json.dumps({"words": ["with", "zed", "in", "new", "yorks", "."], "tags": ["O", "B-person", "O", "B-place", "I-place", "O"]})
    )
    row = read_rows(tmp_path / "one.jsonl")[0]
    encoded = backbone.encode([task.raw(row, backbone)])[0]
    pieces = backbone.tokenizer.convert_ids_to_tokens(encoded.inputs["input_ids"])  # type: ignore[union-attr]
    assert pieces == ["[CLS]", "with", "z", "##e", "##d", "in", "new", "york", "##s", ".", "[SEP]"]
    tags = task.target(task.truth(row), encoded)["tags"].tolist()
    names = [None if tag == -100 else task.tags[tag] for tag in tags]
    assert names == [None, "O", "B-person", None, None, "O", "B-place", "I-place", None, "O", None]


def test_tags_of_a_text_are_those_of_all_tokens(tmp_path: Path, experiment: Any, bert: Path) -> None:
    made = ner(tmp_path, experiment, bert, {"entities": "entities"}, entity_rows(40))
    task, backbone = made.task("t"), made.network.backbone
    spans = [{"start": 5, "end": 8, "label": "person"}, {"start": 13, "end": 22, "label": "place"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "with zed,  in new  york .".replace(",  in", ", in"), "entities": spans}))
    row = read_rows(tmp_path / "one.jsonl")[0]
    encoded = backbone.encode([task.raw(row, backbone)])[0]
    tags = task.target(task.truth(row), encoded)["tags"].tolist()
    names = [None if tag == -100 else task.tags[tag] for tag in tags]
    assert names == [None, "O", "B-person", "I-person", "I-person", "O", "O", "B-place", "I-place", "O", None]


@pytest.mark.parametrize("task", [{"words": "words", "tags": "tags"}, {"entities": "entities"}])
def test_perfect_tags_give_perfect_entities(task: dict[str, Any], tmp_path: Path, experiment: Any, bert: Path) -> None:
    """Targets turned into results give F1 1; what was cut off is missed, and counted."""
    made = ner(tmp_path, experiment, bert, task, entity_rows(60))
    made_task, part = made.task("t"), made.parts["t"]["train"]

    def as_results(inputs: list[Any], targets: list[Any]) -> list[Any]:
        tags = [target["tags"].clamp(min=0).numpy() for target in targets]
        return [(found, np.ones(len(found)), item.offsets) for found, item in zip(tags, inputs, strict=True)]

    assert made_task.metrics(as_results(part.inputs, part.targets), part.truths)["f1"] == 1.0
    long = {**entity_rows(1, seed=5)[0]}
    long = {
        "words": ["the"] * 20 + ["anna"],
        "tags": ["O"] * 20 + ["B-person"],
        "text": "the " * 20 + "anna",
        "entities": [{"start": 80, "end": 84, "label": "person"}],
    }
    (tmp_path / "long.jsonl").write_text(json.dumps(long))
    row = read_rows(tmp_path / "long.jsonl")[0]
    encoded = made.network.backbone.encode([made_task.raw(row, made.network.backbone)])
    truth = made_task.truth(row)
    assert encoded[0].truncated
    assert made_task.metrics(as_results(encoded, [made_task.target(truth, encoded[0])]), [truth])["recall"] == 0.0


def test_regression_is_in_its_own_units(tmp_path: Path, experiment: Any) -> None:
    rows = [{"x": float(number), "value": 1000.0 + 50.0 * number} for number in range(40)]
    write(tmp_path / "t.csv", rows)
    made = assemble(experiment({"kind": "sequential"}, {"t": {"kind": "regression"}}, data={"train": ["t.csv"]}))
    task, part = made.task("t"), made.parts["t"]["train"]
    inputs, targets = made.batch("t", "train", list(range(len(part))))
    assert abs(float(targets["value"].mean())) < 1e-5 and float(targets["value"].std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    results = task.results({"value": targets["value"]}, targets, part.inputs)
    assert np.allclose(results, part.truths) and task.metrics(results, part.truths)["r2"] == pytest.approx(1.0)
    shifted = [value + 10.0 for value in results]
    assert task.metrics(shifted, part.truths)["mae"] == pytest.approx(10.0, rel=1e-3)
    outputs = {"value": made.network.eval()("t", inputs)["value"].detach()}
    assert float(task.loss(outputs, targets)) == pytest.approx(float(0.5 * (outputs["value"] - targets["value"]).square().mean()))


def test_a_number_as_outcomes() -> None:
    """Cross-entropy over the grid is half the squared error plus a constant, and its gradient is the error."""
    mean = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    values = torch.tensor([0.0, 0.5, 1.0])
    logits = gaussian_logits(mean)
    loss = F.cross_entropy(logits, place_of(values), reduction="none")
    constant = 0.5 * math.log(2 * math.pi) - math.log(0.1)
    assert torch.allclose(loss, 0.5 * (mean - values).square() + constant, atol=2e-2)
    (gradient,) = torch.autograd.grad(loss.sum(), mean)
    assert torch.allclose(gradient, (mean - values).detach(), atol=5e-2)
    assert place_of(torch.tensor([-99.0, 99.0])).tolist() == [0, 120]


def traffic(count: int, seed: int, odd: bool) -> list[dict[str, Any]]:
    """Connections: bytes follow from packets and from the protocol; with ``odd`` one in five breaks that, within the usual ranges."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        protocol, packets = draw.choice(["tcp", "udp"]), draw.uniform(1, 10)
        size = packets * (10.0 if protocol == "tcp" else 3.0) + draw.gauss(0, 1)
        strange = odd and number % 5 == 0
        if strange:
            size = 95.0 - size
        rows.append(
            {"protocol": protocol, "packets": packets, "bytes": size, "noise": draw.gauss(0, 1), "what": "attack" if strange else "normal"}
        )
    return rows


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from retain.multitask import parse_experiment

    place = tmp_path_factory.mktemp("anomaly")
    write(place / "train.jsonl", traffic(400, 1, odd=False))
    write(place / "dev.jsonl", traffic(200, 2, odd=True))
    write(place / "test.jsonl", traffic(200, 3, odd=True))
    config = {
        "backbone": {"kind": "sequential", "hidden": [32, 32], "dropout": 0.0},
        "data": {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        "tasks": {"odd": {"kind": "anomaly", "label": "what"}},
        "training": {"epochs": 40, "batch": 40, "learning_rate": 1e-2, "head_learning_rate": 1e-2},
    }  # fmt: skip
    train(parse_experiment(config, place), place / "run")
    return place


def test_anomalies_are_found_with_their_reasons(detector: Path) -> None:
    model = Predictor.load(detector / "run")
    measured = model.results["tasks"]["odd"]
    assert measured["before"]["auroc"] < 0.75 and measured["test"]["auroc"] > 0.9 and measured["test"]["f1"] > 0.7
    rows = traffic(200, 4, odd=True)
    answers = [answer["odd"] for answer in model.predict(rows)]
    found = [answer for answer, row in zip(answers, rows, strict=True) if row["what"] == "attack" and answer["anomaly"]]
    assert len(found) > 25 and all(answer["score"] >= answer["threshold"] for answer in found)
    named = [{reason["column"] for reason in answer["reasons"]} for answer in found]
    assert sum(bool(names & {"bytes", "packets", "protocol"}) for names in named) == len(named)
    assert sum(answer["reasons"][0]["column"] == "noise" for answer in found) <= len(found) // 10
    (usual, unseen, huge) = model.predict([{**rows[1]}, {**rows[1], "protocol": "icmp"}, {**rows[1], "noise": 1e6}])
    assert unseen["odd"]["score"] > usual["odd"]["score"] + 2 and unseen["odd"]["reasons"][0]["column"] == "protocol"
    assert huge["odd"]["anomaly"] and huge["odd"]["reasons"][0] == {"column": "noise", "value": 1e6, "surprise": pytest.approx(50, abs=15)}


def test_without_labels_the_threshold_is_a_quantile(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", [{key: value for key, value in row.items() if key != "what"} for row in traffic(300, 1, odd=False)])
    sections = {"data": {"train": ["t.jsonl"], "validation_share": 0.4}, "training": {"epochs": 3}}
    config = experiment({"kind": "sequential", "hidden": [8]}, {"odd": {"kind": "anomaly", "quantile": 0.9}}, **sections)
    results = train(config, tmp_path / "run")
    assert set(results["tasks"]["odd"]["validation"]) == {"loss", "likelihood"}
    rows = assemble(config).parts["odd"]["validation"].rows
    answers = Predictor.load(tmp_path / "run").answers(rows)
    assert sum(answer["odd"]["anomaly"] for answer in answers) == pytest.approx(12, abs=1)  # a tenth of 120


def test_anomalies_are_not_learned_from(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", table("breast_cancer")[:200])
    task = {"kind": "anomaly", "label": "label", "normal": ["benign"]}
    made = assemble(experiment({"kind": "sequential"}, {"odd": task}, data={"train": ["t.jsonl"]}))
    assert not any(made.parts["odd"]["train"].truths) and any(made.parts["odd"]["validation"].truths)
    assert any("are not learned from: they are anomalies" in note for note in made.notes)
