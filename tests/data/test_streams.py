from __future__ import annotations

import json

import pytest

from retain.data import DataError, Document, Question, load_questions, load_squad

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Salt_Tram",
            "paragraphs": [
                {
                    "context": "The salt tram ran until 1931.",
                    "qas": [
                        {"id": "1", "question": "When did it stop?", "answers": [{"text": "1931"}, {"text": "in 1931"}, {"text": "1931"}]},
                        {"id": "2", "question": "Unanswerable?", "answers": []},
                    ],
                }
            ],
        }
    ],
}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_squad_passages_carry_their_questions(tmp_path):
    (passage,) = load_squad(write(tmp_path / "squad.json", SQUAD))
    assert passage.title == "Salt Tram"
    assert passage.questions == (Question("When did it stop?", "1931", aliases=("in 1931",), document=passage.id),)
    document = passage.to_document("squad.json", domain="trams")
    assert document.text == passage.text and document.pairs[0].answer == "1931" and document.domain == "trams"
    assert passage.id == Document.from_text(passage.text).id


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not JSON"),
        ({"data": []}, "not a SQuAD file"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\]"),
        ({"data": [{"paragraphs": [{"context": " ", "qas": []}]}]}, "empty"),
        ("", "the file is empty"),
    ],
)
def test_a_malformed_squad_file_is_told(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        load_squad(write(tmp_path / "squad.json", value))


def test_questions_with_all_fields(tmp_path):
    lines = [
        {"question": "How many?", "answer": "nine", "reworded": "What number?", "aliases": ["9"], "document": "a.md", "level": 2},
        {"question": "Who?", "answer": "Bob"},
    ]
    path = write(tmp_path / "q.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = load_questions(path)
    assert first == Question("How many?", "nine", "What number?", ("9",), "a.md")
    assert first.answers == ("nine", "9")
    assert second == Question("Who?", "Bob")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Who?"}', r"line 2, field 'answer'"),
        ('{"question": "Who?", "answer": " "}', r"line 2, field 'answer'"),
        ('{"question": "Who?", "answer": "B", "aliasses": []}', r"line 2, field 'aliasses'.*did you mean 'aliases'"),
        ('{"question": "Who?", "answer": "B", "aliases": "C"}', r"field 'aliases': not a list"),
        ('{"question": "Who?", "answer": "B", "reworded": 3}', r"field 'reworded'"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ("{oops", "line 2: not JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "q.jsonl", '{"question": "A?", "answer": "b"}\n' + line)
    with pytest.raises(DataError, match=message):
        load_questions(path)


def test_a_missing_or_empty_file_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="empty"):
        load_questions(write(tmp_path / "q.jsonl", " \n"))
