from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.data import (
    Document,
    Message,
    NearDuplicateIndex,
    QualityRules,
    QuestionAnswer,
    clean,
    clean_documents,
    quality_problem,
    remove_boilerplate,
)

PROSE = "The ferry sails at nine from the old pier. It carries forty people, two bicycles and one patient goat. Nobody pays on Sundays."


@given(st.text(max_size=120))
@settings(max_examples=200, deadline=None)
def test_cleaning_is_stable_and_normal(text):
    once, _ = clean(text)
    twice, notes = clean(once)
    assert twice == once
    assert notes == []
    assert unicodedata.is_normalized("NFC", once)
    once.encode()


def test_repairs_are_made_and_told():
    text, notes = clean("The cafÃ© is open\u200b.\r\nIt\u00a0is   red.  \n\n\n\nE\u0301nd\x00")
    assert text == "The café is open.\nIt is red.\n\nÉnd"
    assert notes[0].what == "repaired broken Unicode"
    assert any("control characters" in note.what for note in notes)
    assert clean("It is red.")[1] == []


def test_layout_of_code_and_lists_stays():
    code = "def f():\n    x  =  'â€œ'\n\n\n    return x"
    assert clean(code, keep_layout=True)[0] == code
    fenced = "Text  here\n```\na  =  1\n\n\nb\n```\n  - item"
    assert clean(fenced)[0] == "Text here\n```\na  =  1\n\n\nb\n```\n  - item"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi", "too short"),
        ("$$$ ### !!! %%% &&& *** ((( abcdefghijkl )))" + "-=+" * 20, "mostly symbols"),
        ("\n".join(["Menu item"] * 9 + ["Something else", "And more"]), "repeated lines"),
        ("buy our fine new shoes " * 30, "repetitive"),
        ("abcdefgh" * 300, "the same characters"),
        ("The f\ufffdrry s\ufffdils at nine", "decoded wrongly"),
    ],
)
def test_rubbish_has_a_reason(text, reason):
    assert reason in (quality_problem(text) or "")


@pytest.mark.parametrize(
    "text",
    [PROSE, "My locker code is 4711.", "これは短い日本語の文章です。", "नमस्ते दुनिया, यह हिंदी है।", "- Milk 2.50\n- Bread 3.10\n- Eggs 4.00"],
)
def test_short_facts_and_other_scripts_are_kept(text):
    assert quality_problem(text) is None


def test_limits_can_be_set():
    assert "too short" in (quality_problem(PROSE, QualityRules(min_letters=500)) or "")


def test_boilerplate_lines_go_one_by_one():
    text, notes = remove_boilerplate("Skip to content\nThe cookie jar is blue.\nAccept all cookies\nPage 3 of 12\nWe sign in blood here.")
    assert text == "The cookie jar is blue.\nWe sign in blood here."
    assert [note.where for note in notes] == ["line 1", "line 3", "line 4"]


def test_a_report_accounts_for_every_document():
    story = " ".join(f"At stop {number} the tram waits for {number * 7} minutes." for number in range(40))
    near = story + " One more sentence that is new here."
    documents = [
        Document.from_text(story, source="a.txt"),
        Document.from_text(story.replace(" ", "\n"), source="same.txt"),
        Document.from_text(near, source="near.txt"),
        Document.from_text("!!! ???", source="rubbish.txt"),
        Document.from_text("Accept all cookies\n" + PROSE, source="page.html"),
    ]
    report = clean_documents(documents)
    assert [document.source for document in report.kept] == ["a.txt", "page.html"]
    reasons = dict(report.dropped)
    assert reasons["same.txt"] == f"same content as {report.kept[0].id}"
    assert "near-duplicate of" in reasons["near.txt"]
    assert "too short" in reasons["rubbish.txt"]
    assert "boilerplate" in reasons["page.html line 1"]


def test_known_documents_are_recognised_and_new_ones_added():
    known = NearDuplicateIndex()
    assert len(clean_documents([Document.from_text(PROSE)], known=known).kept) == 1
    assert not clean_documents([Document.from_text(PROSE)], known=known).kept


def test_new_questions_about_a_known_text_are_no_duplicate():
    first = Document.from_text(PROSE, pairs=[QuestionAnswer("When does it sail?", "At nine.")])
    second = Document.from_text(PROSE, pairs=[QuestionAnswer("Who travels?", "A goat.")])
    assert clean_documents([first, second]).kept == (first, second)
    assert len(clean_documents([first, first]).kept) == 1


def test_a_repaired_document_has_the_id_of_its_new_content():
    broken = Document.from_text(
        "The cafÃ© is open on Sundays.", kind="dialogue", messages=[Message("user", "cafÃ©?"), Message("assistant", "Yes.")]
    )
    (repaired,) = clean_documents([broken]).kept
    assert repaired.messages[0].content == "café?" and "café" in repaired.text
    assert repaired.id == Document.from_text(repaired.text, messages=repaired.messages).id != broken.id
