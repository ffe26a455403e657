from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.data import DataError, chunks, sentences

PIECES = [
    "Dr. Who ",
    "ends. ",
    "No! ",
    "# Head\n",
    "\n\n",
    "\n",
    "- item\n",
    "```\n",
    "x = 1. \n",
    "3.14 ",
    " ",
    "\t",
    "word ",
    "é",
    "字。",
    "|a|\n",
    "----\n",
    "...",
    "\r\n",
]
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.text(max_size=200))
COUNTERS = {"characters": len, "words": lambda text: len(text.split()), "bytes": lambda text: len(text.encode("utf-8", "replace"))}


def visible(text: str) -> str:
    return "".join(text.split())


@given(text=texts, limit=st.integers(1, 40), counter=st.sampled_from(sorted(COUNTERS)))
@settings(max_examples=300, deadline=None)
def test_chunks_lose_nothing_and_repeat_nothing(text, limit, counter):
    found = chunks(text, COUNTERS[counter], limit)
    position = 0
    for chunk in found:
        assert chunk.text == text[chunk.start : chunk.end] and chunk.text.strip()
        assert not text[position : chunk.start].strip(), "skipped visible characters"
        assert chunk.start >= position
        position = chunk.end
    assert not text[position:].strip()
    assert all(COUNTERS[counter](chunk.text) <= limit or len(chunk.text) == 1 for chunk in found)


@given(text=texts, limit=st.integers(4, 40), share=st.floats(0.1, 0.5))
@settings(max_examples=200, deadline=None)
def test_overlapping_chunks_cover_the_text_within_the_limit(text, limit, share):
    found = chunks(text, len, limit, overlap=int(limit * share))
    covered = {position for chunk in found for position in range(chunk.start, chunk.end)}
    assert all(character.isspace() or position in covered for position, character in enumerate(text))
    assert all(len(chunk.text) <= limit for chunk in found)
    assert all(a.end < b.end for a, b in itertools.pairwise(found)), "each chunk brings something new"


@given(texts)
@settings(max_examples=300, deadline=None)
def test_sentences_lose_nothing(text):
    assert "".join(map(visible, sentences(text))) == visible(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. J. R. Smith paid $3.14 to the U.S. Treasury. He left.", ["Dr. J. R. Smith paid $3.14 to the U.S. Treasury.", "He left."]),
        ("It closes at 5 p.m. The night guard stays, e.g. Bob.", ["It closes at 5 p.m.", "The night guard stays, e.g. Bob."]),
        ('"Did he?" she asked. Yes! See Fig. 3.', ['"Did he?" she asked.', "Yes!", "See Fig. 3."]),
        ('He said: "Go." Then he went.', ['He said: "Go."', "Then he went."]),
        ("Wait... and see. It was 1999. Nobody knew.", ["Wait... and see.", "It was 1999.", "Nobody knew."]),
        ("Acme Inc. reported gains. Acme Corp. The rest fell.", ["Acme Inc. reported gains.", "Acme Corp.", "The rest fell."]),
        ("这是第一句。这是第二句！好", ["这是第一句。", "这是第二句！", "好"]),
        ("A line\nwraps here. Next", ["A line\nwraps here.", "Next"]),
        ("1. First item\n2. Second item\n- dash", ["1. First item", "2. Second item", "- dash"]),
        ("# A title. With a dot\nText.", ["# A title. With a dot", "Text."]),
        ("Title\n=====\nText.", ["Title\n=====", "Text."]),
        ("See:\n```python\nx = 1. \n\ny = 'A. B'\n```\nDone.", ["See:", "```python\nx = 1. \n\ny = 'A. B'\n```", "Done."]),
        ("| a. B | c |\n| d | e |", ["| a. B | c |", "| d | e |"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_chunks_end_where_sentences_end_and_know_their_heading():
    text = "# Ferry\n\nIt sails at nine. It is red.\n\n## Tickets\n\nA ticket is two pounds. Dogs go free."
    found = chunks(text, lambda piece: len(piece.split()), 9)
    assert [chunk.text for chunk in found] == [
        "# Ferry\n\nIt sails at nine. It is red.",
        "## Tickets\n\nA ticket is two pounds.",
        "Dogs go free.",
    ]
    assert [chunk.heading for chunk in found] == ["Ferry", "Tickets", "Tickets"]


def test_a_heading_stays_with_what_follows():
    found = chunks("One two three four. Five.\n\n# Head\n\nSix seven eight nine.", lambda piece: len(piece.split()), 8)
    assert [chunk.text for chunk in found] == ["One two three four. Five.", "# Head\n\nSix seven eight nine."]


def test_overlap_repeats_whole_sentences():
    found = chunks("One one. Two two. Three three. Four four.", lambda piece: len(piece.split()), 4, overlap=2)
    assert [chunk.text for chunk in found] == ["One one. Two two.", "Two two. Three three.", "Three three. Four four."]


def test_a_sentence_that_is_too_long_is_cut_between_words():
    found = chunks(" ".join(f"word{i}" for i in range(100)), lambda piece: len(piece.split()), 30)
    assert [len(chunk.text.split()) for chunk in found] == [30, 30, 30, 10]


@pytest.mark.parametrize("unit", ["A sentence here. ", "word ", "x", "....", "# H\n", " \n", "|a|\n", "```\n", "\"'"])
def test_work_grows_linearly(unit):
    def work(text: str) -> int:
        characters = 0

        def count(piece: str) -> int:
            nonlocal characters
            characters += len(piece)
            return (len(piece) + 3) // 4

        chunks(text, count, 50)
        return characters

    small, large = work(unit * 2_000), work(unit * 16_000)
    assert large <= 14 * small + 1_000


def test_wrong_sizes_are_told():
    with pytest.raises(DataError, match="at least 1 token"):
        chunks("a", len, 0)
    with pytest.raises(DataError, match="overlap of 6 tokens"):
        chunks("a", len, 10, overlap=6)
    assert chunks(" \n ", len, 10) == []
