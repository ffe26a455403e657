"""Answers cut from a text: spans by characters, windows over long texts, questions without answer, SQuAD's figures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.multitask.conftest import FILLER, PEOPLE, PLACES, write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import Predictor, Row, assemble, load_experiment, plan_experiment, read_rows, train
from retain.multitask.retaining import RecordObjective
from retain.multitask.tasks.qa import CONTEXT, Found, QuestionAnswering, Truth
from retain.retention.positions import labels_of

ASKED = {"who was seen": PEOPLE, "near what": PLACES}


def qa_rows(count: int, longest: int = 9, unanswerable: float = 0.0, kinds: int = 1) -> list[dict[str, Any]]:
    """Filler with a person and a place somewhere; a question asks for the person, or with two kinds for either."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        question = draw.choice(list(ASKED)[:kinds])
        missing = draw.random() < unanswerable
        kept = [draw.choice(names) for asked, names in ASKED.items() if not (missing and asked == question)]
        words = draw.choices(FILLER, k=draw.randint(3, longest))
        for name in kept:
            words.insert(draw.randint(0, len(words)), f"{name.capitalize()}")
        context = "  ".join(words) + "."  # two spaces: characters are not words
        answer = next((name.capitalize() for name in kept if name in ASKED[question]), None)
        answers = [] if answer is None else [{"text": answer, "start": context.index(answer)}]
        rows.append({"question": question, "context": context, "answers": answers})
    return rows


@pytest.fixture
def setup(tmp_path: Path, experiment: Any, bert: Path) -> Callable[..., Any]:
    def make(task: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Any:
        write(tmp_path / "t.jsonl", rows if rows is not None else qa_rows(300))
        backbone = {"kind": "text", "model": str(bert), "max_length": 32, **sections.pop("backbone", {})}
        training = {"epochs": 6, "batch": 16, "learning_rate": 4e-3, "head_learning_rate": 4e-3, **sections.pop("training", {})}
        data = {"train": ["t.jsonl"], "test_share": 0.2}
        return experiment(backbone, {"t": {"kind": "qa", **(task or {})}}, data=data, training=training, **sections)

    return make


@pytest.mark.parametrize(("model", "kinds", "epochs"), [("bert", 1, 6), ("gpt2", 2, 12)])
def test_it_learns_to_answer(model: str, kinds: int, epochs: int, setup: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Better than chance on new texts, and what is saved says the same, cut from the text by characters."""
    backbone = {"model": str(request.getfixturevalue(model))}
    config = setup(rows=qa_rows(150 + 150 * kinds, kinds=kinds), backbone=backbone, training={"epochs": epochs, "batch": 16 * kinds})
    results = train(config, tmp_path / "run")["tasks"]["t"]
    assert results["main"] == "f1" and results["before"]["f1"] < 0.35 and results["test"]["exact"] > 0.8
    rows = assemble(config).parts["t"]["test"].rows
    saved = Predictor.load(tmp_path / "run")
    assert saved.evaluate(rows) == results["test"]
    answers = [answer["t"] for answer in saved.predict([row.values for row in rows])]
    for answer, row in zip(answers, rows, strict=True):
        assert row.values["context"][answer["start"] : answer["end"]] == answer["answer"] and 0.0 < answer["probability"] <= 1.0
    exact = [answer["answer"].strip(".") == row.values["answers"][0]["text"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(exact) / len(exact) == pytest.approx(results["test"]["exact"])
    asked = [{"question": row.values["question"], "context": row.values["context"]} for row in rows]
    write(tmp_path / "in.jsonl", asked)
    saved.predict_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["predictions"]["t"]["answer"] for line in lines] == [answer["answer"] for answer in answers]


def test_long_texts_are_read_in_windows(setup: Any, tmp_path: Path) -> None:
    """Answers far behind the first window are found, and without windows they could not be."""
    rows = qa_rows(260, longest=60)
    config = setup(rows=rows, backbone={"max_length": 28}, training={"epochs": 6, "batch": 8})
    made = assemble(config)
    part = made.parts["t"]["test"]
    assert max(len(item.parts) for item in part.inputs) > 3 and {len(item.parts) for item in part.inputs} != {1}
    results = train(made, tmp_path / "run")["tasks"]["t"]
    assert results["test"]["exact"] > 0.7
    answers = Predictor.load(tmp_path / "run").predict([row.values for row in part.rows])
    behind = [
        answer["t"]["answer"].strip(".") == truth.texts[0]
        for answer, truth, item in zip(answers, part.truths, part.inputs, strict=True)
        if truth.starts[0] >= item.parts[0].offsets[-2][1]
    ]
    assert len(behind) > 8 and sum(behind) / len(behind) > 0.6
    assert made.notes == []


def test_windows_overlap_and_cover_the_text(setup: Any) -> None:
    rows = qa_rows(20, longest=80)
    part = assemble(setup({"overlap": 5}, rows=rows, backbone={"max_length": 24})).parts["t"]["train"]
    for item, raw, truth, target in zip(part.inputs, part.raws, part.truths, part.targets, strict=True):
        spans = [[span for span in own.offsets if span[1] > span[0]] for own in item.parts]
        assert all(own.length <= 24 for own in item.parts)
        covered = {place for own in spans for first, last in own for place in range(first, last)}
        assert covered == {place for place, letter in enumerate(raw[1]) if not letter.isspace()}
        for one, other in pairwise(spans):
            assert one[-5:] == other[:5]
        (text,), (start,) = truth.texts, truth.starts
        for own, first, last in zip(item.parts, target["start"].tolist(), target["end"].tolist(), strict=True):
            inside = any(span == (start, start + len(text)) for span in own.offsets) or last > 0
            if last:
                assert raw[1][own.offsets[first][0] : own.offsets[last][1]] == text
            assert inside == (last > 0)
        assert int((target["end"] > 0).sum()) >= 1


def test_questions_without_answer(setup: Any, tmp_path: Path) -> None:
    """Some are left unanswered, by a threshold that was tuned; the other way they are all answered, and that is worse."""
    rows = qa_rows(300, unanswerable=0.4)
    config = setup({"unanswerable": True}, rows=rows, training={"epochs": 6})
    results = train(config, tmp_path / "run")["tasks"]["t"]
    test = results["test"]
    assert test["f1"] > 0.75 and test["silent"] > 0.6 and test["answered_f1"] > 0.6
    saved = Predictor.load(tmp_path / "run")
    part = assemble(config).parts["t"]["test"]
    assert saved.evaluate(part.rows) == test
    answers = [answer["t"] for answer in saved.predict([row.values for row in part.rows])]
    assert any(answer["answer"] == "" and answer["start"] is None and answer["margin"] < 0 for answer in answers)
    assert all((answer["margin"] >= 0) == bool(answer["answer"]) for answer in answers)
    task = saved.network.tasks["t"]
    task.threshold = -1e9
    assert saved.evaluate(part.rows)["f1"] < test["f1"] - 0.1 and saved.evaluate(part.rows)["silent"] == 0.0


def task_of(**keys: Any) -> QuestionAnswering:
    return QuestionAnswering("t", QuestionAnswering.Config.model_validate({"kind": "qa", **keys}))


def test_the_threshold_has_the_best_f1() -> None:
    task = task_of(unanswerable=True)
    draw = random.Random(0)
    truths = [Truth(("x",), (0,), "x y") if draw.random() < 0.6 else Truth((), (), "x y") for _ in range(60)]
    results = [Found(0, draw.choice([1, 3]), -1.0, round(draw.gauss(1.0 if truth.texts else 0.0, 1.0), 1)) for truth in truths]
    task.tune(results, truths)
    chosen = task.metrics(results, truths)["f1"]
    for threshold in [result.margin + shift for result in results for shift in (-1e-6, 1e-6)]:
        task.threshold = threshold
        assert (task.metrics(results, truths)["f1"] or 0.0) <= (chosen or 0.0) + 1e-12
    nothing = [Truth((), (), "x y")] * 5
    task.tune(results[:5], nothing)
    assert task.metrics(results[:5], nothing)["f1"] == 1.0


def test_figures_are_squads() -> None:
    """Articles, case and punctuation do not count; the best of several answers does (1606.05250, section 6.1)."""
    task = task_of()
    truth = Truth(("The Eiffel tower", "Paris"), (0, 20), "the eiffel TOWER, in paris it is")
    found = task.metrics([Found(0, 17, -0.1, 0.0), Found(18, 26, -0.1, 0.0)], [truth, truth])
    assert found["exact"] == 0.5 and found["f1"] == pytest.approx((1.0 + 2 / 3) / 2)


def test_the_best_span() -> None:
    """Of tokens of the text, in order, not longer than allowed: against trying all pairs."""
    task = task_of(max_answer=3)
    generator = torch.Generator().manual_seed(0)
    offsets = [(0, 0), (0, 0), (0, 0), *((place * 2, place * 2 + 1) for place in range(8)), (0, 0)]
    for _ in range(30):
        start, end = torch.log_softmax(torch.randn(2, len(offsets), generator=generator).double() * 3, -1).numpy()
        best = max(
            (start[first] + end[last], offsets[first][0], offsets[last][1])
            for first in range(3, 11)
            for last in range(first, min(first + 3, 11))
        )
        found = task._best(start, end, offsets)
        assert (found.score, found.start, found.end) == best and found.margin == pytest.approx(best[0] - start[0] - end[0])


def test_what_retention_methods_see(setup: Any) -> None:
    """The first and last token of the answer in every window; their cross-entropy is the loss."""
    made = assemble(setup(rows=qa_rows(60, longest=50), backbone={"max_length": 24}))
    objective = RecordObjective(made)
    numbers = [3, 0, 5]
    examples = objective.chosen("t", numbers)
    logits, rows = objective.logits(examples, made.network.learning())
    counts = [len(made.parts["t"]["train"].inputs[number].parts) for number in numbers]
    assert len(set(counts)) > 1 and torch.bincount(rows).tolist() == [2 * count for count in counts] and logits.shape[1] == 24
    inputs, targets = made.batch("t", "train", numbers)
    expected = made.task("t").loss(made.network.eval()("t", inputs), targets)
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, labels_of(examples)), expected, atol=1e-5)
    assert not bool(inputs[CONTEXT][:, 0].any())


def test_forms_of_answers() -> None:
    context = "Anna was seen."
    forms = [
        ({}, {"answers": [{"text": "Anna", "start": 0}]}),
        ({}, {"answers": [{"text": "Anna", "answer_start": 0}, {"text": "Anna", "answer_start": 0}]}),
        ({}, {"answers": {"text": ["Anna"], "answer_start": [0]}}),
        ({}, {"answers": '[{"text": "Anna", "start": 0}]'}),  # of a CSV file
        ({"answer": "a"}, {"a": "Anna", "answer_start": "0"}),
    ]
    for keys, values in forms:
        found = task_of(**keys).truth(Row({"question": "who", "context": context, **values}))
        assert found == Truth(("Anna",), (0,), context)
    assert task_of().truth(Row({"context": context, "answers": None})) is None
    assert task_of(unanswerable=True).truth(Row({"context": context, "answers": []})) == Truth((), (), context)
    several = task_of().truth(Row({"context": context, "answers": [{"text": "Anna", "start": 0}, {"text": "seen", "start": 9}]}))
    assert several is not None and several.texts == ("Anna", "seen") and task_of().show(several) == "Anna / seen"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answers": [{"text": "seen", "start": 3}]}, "the answer 'seen' does not stand at character 3 of the context (it stands at 9)"),
        ({"answers": [{"text": "Boris", "start": 0}]}, "does not stand at character 0 of the context (nor anywhere else in it)"),
        ({"answers": [{"text": "n.", "start": -2}]}, "does not stand at character -2"),
        ({"answers": []}, "field 'answers': has no answer (tasks.t.unanswerable: true learns such questions)"),
        ({"answers": ["seen"]}, "field 'answers': an answer is {text, start}: a text and the number of its first character"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "answers are {text: [...], answer_start: [...]} of the same length"),
        ({"answers": 3}, "field 'answers': must be a list, not a number"),
        ({"context": " "}, "field 'context': is empty"),
    ],
)  # fmt: skip
def test_wrong_records(values: dict[str, Any], message: str, setup: Any) -> None:
    rows = qa_rows(30)
    rows[2] = {"question": "who", "context": "Anna was seen.", "answers": [{"text": "Anna", "start": 0}], **values}
    with pytest.raises(DataError) as caught:
        assemble(setup(rows=rows))
    assert "t.jsonl, line 3, field" in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "backbone", "message"),
    [
        ({"input": ["text"]}, {}, "tasks.t.input: the columns of qa are named by question and context"),
        ({"overlap": 30}, {}, "backbone.max_length: leaves a window 24 tokens of the text, and overlap asks for 30"),
    ],
)
def test_mistakes(keys: dict[str, Any], backbone: dict[str, Any], message: str, setup: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(setup(keys, backbone=backbone))
    assert message in str(caught.value)


def test_answers_that_no_window_holds_are_told(setup: Any) -> None:
    rows = qa_rows(60)
    for row in rows:
        row["answers"] = [{"text": row["context"], "start": 0}]
    rows += [{**row, "context": "  ".join([row["context"]] * 5)} for row in rows[:20]]
    for row in rows[60:]:
        row["answers"] = [{"text": row["context"], "start": 0}]
    notes = assemble(setup(rows=rows, backbone={"max_length": 28})).notes
    assert any("answers are whole in no window" in note for note in notes)
    asked = [{**row, "question": " ".join([row["question"]] * 9)} for row in qa_rows(60)]
    assert any("longer than backbone.max_length and are cut off" in note for note in assemble(setup(rows=asked)).notes)


def test_squads_own_file(tmp_path: Path) -> None:
    paragraph = {
        "context": "Anna was seen near Oslo.",
        "qas": [
            {"id": "1", "question": "who", "answers": [{"text": "Anna", "answer_start": 0}]},
            {"id": "2", "question": "why", "answers": [], "is_impossible": True},
        ],
    }
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"version": "2.0", "data": [{"title": "Oslo", "paragraphs": [paragraph]}]}))
    first, second = read_rows(file)
    assert first.values == {
        "id": "1", "title": "Oslo", "context": paragraph["context"], "question": "who", "answers": [{"text": "Anna", "start": 0}]
    }  # fmt: skip
    assert second.line == 2 and task_of(unanswerable=True).truth(second) == Truth((), (), str(paragraph["context"]))
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "q"}]}]}]}))
    with pytest.raises(DataError, match=r"squad\.json: article 1 is not as SQuAD has it"):
        read_rows(file)


def test_the_plan_shows_answers(setup: Any) -> None:
    plan = plan_experiment(setup({"unanswerable": True}, rows=qa_rows(60, unanswerable=0.4))).tasks[0]
    assert set(plan.counts) == {"answered", "no answer"} and sum(plan.counts.values()) == plan.rows["train"]
    assert any(label.lower() in [*PEOPLE, *PLACES] for _, label in plan.samples) and " | " in plan.samples[0][0]


def test_the_example_learns(tmp_path: Path, bert: Path) -> None:
    text = files("retain").joinpath("multitask", "examples", "qa.yaml").read_text(encoding="utf-8")
    (tmp_path / "qa.yaml").write_text(text, encoding="utf-8")
    write(tmp_path / "questions.jsonl", qa_rows(200))
    small = {"backbone.model": str(bert), "backbone.max_length": 32, "training.epochs": 6, "training.learning_rate": 4e-3}
    found = train(load_experiment(tmp_path / "qa.yaml", small), tmp_path / "run")["tasks"]["answer"]
    assert found["test"]["f1"] > found["before"]["f1"] + 0.2
