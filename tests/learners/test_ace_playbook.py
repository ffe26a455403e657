"""The playbook as a value: patches, duplicates, the cap, forgetting a document, JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from retain.learners.ace import Add, Bullet, Patch, Playbook, Remove, Share, Update
from retain.learners.ace.playbook import LONGEST, alike
from retain.learners.base import LearnerError

FERRY = "The ferry to Tealsay leaves Marrow Pier at nine and takes three quarters of an hour."
FARES = "Islanders travel at half fare, school pupils and hearses go free."
CREW = "At least two deckhands on each shift must speak Gaelic."


def playbook(*texts: str, document: str = "d1", title: str = "Ferry") -> Playbook:
    return Playbook().apply([Add(text=text) for text in texts], document, title)


def texts(book: Playbook) -> list[str]:
    return [bullet.text for bullet in book.bullets]


def test_patches_edit_and_leave_the_rest() -> None:
    book = playbook(FERRY, FARES, CREW)
    edited = book.apply([Update(id="b2", text="Hearses go free."), Remove(id="b3"), Add(text="Disputes go to Perth.")], "d1", "Ferry")
    assert [str(bullet) for bullet in edited.ranked()] == [
        f"[b1] helpful=0 harmful=0 :: {FERRY}",
        "[b2] helpful=0 harmful=0 :: Hearses go free.",
        "[b4] helpful=0 harmful=0 :: Disputes go to Perth.",
    ]
    assert texts(book) == [FERRY, FARES, CREW], "the value itself changed"
    again = edited.apply([Remove(id="b4"), Add(text=CREW)], "d1", "Ferry")
    assert [bullet.id for bullet in again.bullets] == ["b1", "b2", "b5"], "an id was given twice"
    with pytest.raises(KeyError):
        book.apply([Update(id="b9", text=CREW)], "d1", "Ferry")


@pytest.mark.parametrize(
    "value",
    [
        {"op": "add"},
        {"op": "add", "text": ""},
        {"op": "add", "text": " \x00\n-- "},
        {"op": "add", "text": "x" * (LONGEST + 1)},
        {"op": "add", "text": ["a"]},
        {"op": "add", "text": "a", "helpful": 99},
        {"op": "update", "id": "b0", "text": "a"},
        {"op": "update", "id": "../b1", "text": "a"},
        {"op": "rewrite", "text": "a"},
        {"text": "a"},
        [],
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_no_patch_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Patch).validate_python(value)


def test_a_text_is_one_clean_line() -> None:
    assert Add(text="[b12] helpful=3 harmful=0 ::  The pier\n is\x1b closed. \ud800").text == "The pier is closed. \ufffd"


def test_duplicates_are_one_bullet_with_all_its_documents() -> None:
    long = " ".join([FERRY, FARES, CREW])
    near = long.replace("Islanders travel", "The islanders travel")
    assert alike(FERRY, FERRY.upper().rstrip(".")) and alike(long, near) and not alike(FERRY, FARES)
    assert not alike(long, long.replace("two deckhands", "2 deckhands")), "other numbers are another fact"
    book = playbook(long, FARES).tagged("d1", ["b1", "b1"], ["b2"])
    book = book.apply([Add(text=near), Add(text=FARES.lower())], "d2", "Notice").tagged("d2", ["b1"])
    assert [(bullet.id, bullet.documents, bullet.helpful, bullet.harmful) for bullet in book.bullets] == [
        ("b1", ("d1", "d2"), 3, 0),
        ("b2", ("d1", "d2"), 0, 1),
    ]
    once = book.apply([Add(text=FARES)], "d2", "Notice")
    assert len(once.bullets) == 2 and once.bullets[1].documents == ("d1", "d2")
    same = book.apply([Update(id="b2", text=long)], "d2", "Notice")
    assert [(bullet.id, bullet.score) for bullet in same.bullets] == [("b1", 2)], "bullets that an update made equal are not one"


def test_at_most_so_many_bullets_and_never_merely_the_oldest_go() -> None:
    book = playbook(*(f"Shed {number} belongs to gardener {number * 7}." for number in range(60)))
    book = book.tagged("d1", ["b1", "b1", "b60"], ["b30", "b31"])
    kept = {bullet.id for bullet in book.limited(50).bullets}
    assert len(kept) == 50 and {"b1", "b60"} <= kept and not {"b30", "b31"} & kept
    assert book.limited(60) == book
    old = playbook(*(f"Shed {number} has {number} doors." for number in range(50)))
    old = old.tagged("d1", [bullet.id for bullet in old.bullets])
    new = old.apply([Add(text=f"Gate {number} is painted green.") for number in range(30)], "d2", "Gates").limited(50)
    assert sum("d2" in bullet.documents for bullet in new.bullets) == 25, "a new document has its fair share"
    assert sum("d2" in bullet.documents for bullet in old.apply([Add(text=FERRY)], "d2", "Ferry").limited(50).bullets) == 1
    crowd = Playbook()
    for number in range(8):
        crowd = crowd.apply([Add(text=f"Page {number} of book {number}.")], f"d{number}", "Book").tagged(f"d{number}", [f"b{number + 1}"])
    best = crowd.tagged("d7", ["b2"]).tagged("d0", harmful=["b5"]).limited(3)
    assert "b2" in {bullet.id for bullet in best.bullets} and len(best.bullets) == 3
    assert "b5" not in {bullet.id for bullet in crowd.tagged("d0", harmful=["b5"]).limited(7).bullets}


def test_forgetting_a_document_takes_exactly_what_came_from_it() -> None:
    before = playbook(FERRY, FARES, CREW).tagged("d1", ["b1"], ["b2"])
    patches = [
        Add(text="Disputes go to Perth."),
        Update(id="b1", text="The ferry leaves at ten."),
        Remove(id="b3"),
        Add(text=FARES.lower()),
    ]
    both = before.apply(patches, "d2", "Notice").tagged("d2", ["b2", "b3"], ["b1"])
    assert texts(both) == ["The ferry leaves at ten.", FARES.lower(), CREW, "Disputes go to Perth."]
    assert both.bullets[2].harmful == 1, "a document takes away what another one says"
    assert both.documents == {"d1", "d2"} and set(both.titles) == {"d1", "d2"}
    assert both.without("d2").bullets == before.bullets and both.without("d2").titles == before.titles
    rest = both.without("d1")
    assert texts(rest) == ["The ferry leaves at ten.", FARES.lower(), "Disputes go to Perth."] and rest.documents == {"d2"}
    assert [(bullet.helpful, bullet.harmful) for bullet in rest.bullets] == [(0, 1), (1, 0), (0, 0)]
    assert rest.without("d2").bullets == () and not rest.without("d2").titles
    assert both.without("d3").bullets == both.bullets


def test_json_there_and_back() -> None:
    book = playbook(FERRY, FARES).apply([Add(text="Ein Fährplan für Öland"), Remove(id="b1")], "d2", "Zweiter").tagged("d2", ["b2"])
    assert Playbook.from_json(book.to_json()) == book and Playbook.from_json(book.to_json().encode()) == book
    assert Playbook.from_value(json.loads(json.dumps(book.value()))) == book
    assert Playbook.from_json(book.to_json()).to_json() == book.to_json()
    assert json.loads(book.to_json())["version"] == 1
    assert Playbook.from_json(Playbook().to_json()) == Playbook()


def damage(**changes: Any) -> str:
    return json.dumps(playbook(FERRY, FARES).value() | changes)


GOOD = {"id": "b1", "shares": [{"document": "d1", "text": FERRY}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("<html></html>", "not JSON"),
        (playbook(FERRY).to_json()[:-30], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "valid dictionary"),
        ("null", "no playbook"),
        (damage(version=2), "version 2"),
        (damage(version="1.5"), "version"),
        (damage(next=1), "number of the next bullet is taken"),
        (damage(bullets=[GOOD, GOOD]), "two bullets have one id"),
        (damage(bullets=[{**GOOD, "id": "x"}]), "bullets.0.id"),
        (damage(bullets=[{**GOOD, "shares": []}]), "no document says it"),
        (damage(bullets=[{**GOOD, "shares": [{"document": "d1", "helpful": 2}]}]), "no document says it"),
        (damage(bullets=[{**GOOD, "shares": GOOD["shares"] * 2}]), "two shares"),
        (damage(bullets=[{**GOOD, "shares": [{"document": "d1", "text": FERRY, "helpful": -1}]}]), "bullets.0.shares.0.helpful"),
        (damage(bullets=[{**GOOD, "shares": [{"document": "d1", "text": "x" * 9999}]}]), "bullets.0.shares.0.text"),
        (damage(titles={}), "a document has no title"),
        (damage(other=1), "other"),
    ],
)
def test_a_damaged_file_is_one_line(text: str, words: str) -> None:
    with pytest.raises(LearnerError) as caught:
        Playbook.from_json(text)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_bytes_that_are_no_text_are_one_line() -> None:
    with pytest.raises(LearnerError, match="not JSON"):
        Playbook.from_json(b"\xff\xfe\x00\xd8")


def test_the_wording_in_use_is_the_latest() -> None:
    bullet = Bullet(id="b1", shares=(Share(document="d1", text="one"), Share(document="d2", text="two"), Share(document="d3", helpful=2)))
    assert (bullet.text, bullet.documents, bullet.score) == ("two", ("d1", "d2"), 2)
