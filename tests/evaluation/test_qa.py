"""The benchmark reads both kinds of files and reports every item."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from retain.adapters import AdapterInjection
from retain.data import DataError
from retain.evaluation import Choice, answer_questions, choose, load_items, multiple_choice, question_answering
from retain.lm.decoder import DecoderLM


def squad(folder: Path, passages: int, questions: int) -> Path:
    def asked(p: int, q: int) -> dict[str, Any]:
        return {"id": f"{p}-{q}", "question": f"What is {p}, {q}?", "answers": [{"text": f"answer {q}"}, {"text": f"reply {q}"}]}

    paragraphs = [{"context": f"Passage {p}.", "qas": [asked(p, q) for q in range(questions)]} for p in range(passages)]
    paragraphs[0]["qas"].append({"id": "x", "question": "Unanswerable?", "answers": [], "is_impossible": True})
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": paragraphs}]}, indent=1))
    return path


def test_squad_items_are_spread_over_the_passages(tmp_path: Path) -> None:
    path = squad(tmp_path, passages=3, questions=30)
    assert len(load_items(path)) == 50 and len(load_items(path, None)) == 90
    items = load_items(path, 4)
    assert [item.question for item in items] == ["What is 0, 0?", "What is 1, 0?", "What is 2, 0?", "What is 0, 1?"]
    assert items[1].answers == ("answer 0", "reply 0") and items[1].context == "Passage 1."
    assert len({item.document for item in items}) == 3


def test_a_squad_file_may_have_any_name(tmp_path: Path) -> None:
    path = squad(tmp_path, 1, 1).rename(tmp_path / "dev.jsonl")
    assert load_items(path)[0].context == "Passage 0."


@pytest.mark.parametrize("lines", [1, 2])
def test_questions_jsonl(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "questions.jsonl"
    record = {"question": "How many cabins?", "answer": "nine", "aliases": ["9"], "document": "ferry"}
    path.write_text(f"{json.dumps(record)}\n" * lines)
    items = load_items(path)
    assert len(items) == lines and items[0].answers == ("nine", "9") and items[0].context is None


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_items(tmp_path / "absent.jsonl")
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"other\.json"):
        load_items(tmp_path / "other.json")
    with pytest.raises(DataError, match="no question with an answer"):
        load_items(squad(tmp_path, 1, 0))
    with pytest.raises(DataError, match="0 questions"):
        load_items(squad(tmp_path, 1, 1), 0)


def test_the_result_has_every_item_and_its_means(model: DecoderLM, injection: AdapterInjection, tmp_path: Path) -> None:
    items = load_items(squad(tmp_path, 2, 3), 5)
    closed = question_answering(model, items, injection, max_tokens=4)
    assert [row["answer"] for row in closed["items"]] == answer_questions(model, [item.question for item in items], injection, max_tokens=4)
    assert closed["n"] == 5 and not closed["in_context"] and closed["contains"] == closed["em"] == 0.0
    open_book = question_answering(model, items, injection, in_context=True, max_tokens=4)
    assert open_book["in_context"] and [row["answer"] for row in open_book["items"]] != [row["answer"] for row in closed["items"]]
    json.dumps(closed, allow_nan=False)


def test_scores_are_those_of_the_answers(model: DecoderLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = load_items(squad(tmp_path, 2, 2))
    said = ["The answer 0.", "It is reply 0, surely", "no", "answer 1"]
    monkeypatch.setattr("retain.evaluation.qa.answer_questions", lambda *_: said)
    found = question_answering(model, items)
    assert [row["contains"] for row in found["items"]] == [True, True, False, True]
    assert [row["em"] for row in found["items"]] == [True, False, False, True]
    assert [row["f1"] for row in found["items"]] == pytest.approx([1.0, 4 / 7, 0.0, 1.0])  # 2 of 5 words, 2 of 2
    assert (found["contains"], found["em"]) == (0.75, 0.5) and found["f1"] == pytest.approx((2 + 4 / 7) / 4)
    low, high = found["intervals"]["contains"]
    assert 0 <= low < 0.75 < high <= 1


def test_passages_must_be_there_to_be_shown(model: DecoderLM, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "Who?", "answer": "nobody"}))
    with pytest.raises(DataError, match="1 of 1 questions have no passage"):
        question_answering(model, load_items(path), in_context=True)


def test_no_items_have_no_score(model: DecoderLM) -> None:
    assert math.isnan(question_answering(model, [])["f1"]) and math.isnan(choose(model, [])["accuracy"])


def test_the_likeliest_option_is_chosen(model: DecoderLM, injection: AdapterInjection) -> None:
    options = ("Bread", "A boat with sails", "Dogs")
    scores = multiple_choice(model, "What?", options, injection)
    best = scores.index(max(scores))
    right, wrong = Choice("What?", options, best), Choice("What?", options, (best + 1) % 3)
    found = choose(model, [right, wrong, wrong, wrong], injection)
    assert found["accuracy"] == 0.25 and found["chance"] == pytest.approx(1 / 3)
    assert [row["chosen"] for row in found["items"]] == [best] * 4
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="cannot be the right one"):
        Choice("What?", options, 3)
