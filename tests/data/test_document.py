from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.data import DataError, Document, Message, QuestionAnswer


def test_the_id_is_that_of_the_content():
    document = Document.from_text("The ferry  sails\nat nine.")
    assert document.id == Document.from_text("The ferry sails at nine.", title="Other", domain="boats").id
    assert document.id[0] == "d" and len(document.id) == 13
    others = [
        Document.from_text("The ferry sails at ten."),
        Document.from_text("The ferry sails at nine.", pairs=[QuestionAnswer("When?", "At nine.")]),
        Document.from_text("The ferry sails at nine.", messages=[Message("user", "When?")]),
    ]
    assert len({document.id, *(other.id for other in others)}) == 4


def test_the_same_letters_written_differently_are_the_same_content():
    assert Document.from_text("caf\u00e9").id == Document.from_text("cafe\u0301").id


def test_a_title_is_found():
    assert Document.from_text("\n\n# The Ferry\n\nIt sails.").title == "The Ferry"
    assert Document.from_text("x" * 200).title == "x" * 79 + "…"
    assert Document.from_text("text", "  Named ").title == "Named"


@given(st.text(min_size=1).filter(str.strip), st.floats(0, 1), st.text(min_size=1).filter(str.strip))
def test_json_round_trip(text, importance, answer):
    document = Document.from_text(
        text, importance=importance, domain="a.b-c", pairs=[QuestionAnswer("Q?", answer)], messages=[Message("assistant", answer)]
    )
    assert Document.from_dict(json.loads(json.dumps(document.to_dict()))) == document


def test_unpaired_surrogates_are_replaced():
    document = Document.from_text("broken \ud800 text \U0001f600")
    assert document.text == "broken \ufffd text \U0001f600"


@pytest.mark.parametrize("domain", ["", ".hidden", "../up", "a b", "a/b", "x" * 65, "ü", "a\n", None])
def test_a_wrong_domain_is_refused(domain):
    with pytest.raises(DataError, match="field 'domain'"):
        Document.from_text("text", domain=domain)


@pytest.mark.parametrize("importance", [-0.1, 1.1, float("nan"), "high", True, None])
def test_a_wrong_importance_is_refused(importance):
    with pytest.raises(DataError, match="field 'importance'"):
        Document.from_text("text", importance=importance)


def test_wrong_fields_are_named():
    values = Document.from_text("text").to_dict()
    with pytest.raises(DataError, match=r"'titel'.*did you mean 'title'"):
        Document.from_dict(values | {"titel": "x"})
    with pytest.raises(DataError, match="field 'source'"):
        Document.from_dict({key: value for key, value in values.items() if key != "source"})
    with pytest.raises(DataError, match="malformed"):
        Document.from_dict(values | {"pairs": [{"question": "only"}]})
    with pytest.raises(DataError, match=r"unknown role 'assistent'.*did you mean 'assistant'"):
        Message("assistent", "x")
    with pytest.raises(DataError, match="kind"):
        Document.from_text("text", kind="song")
    with pytest.raises(DataError, match="empty"):
        Document.from_text(" \n")


def test_documents_are_values():
    document = Document.from_text("text")
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.text = "other"  # type: ignore[misc]
    assert document == Document.from_text("text") and hash(document) == hash(Document.from_text("text"))


def test_an_error_is_one_line_and_can_be_pickled():
    error = DataError("is empty", path="a.jsonl", line=3, field="text", fix="remove it")
    assert str(error) == "a.jsonl, line 3, field 'text': is empty (remove it)"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error) and again.line == 3
