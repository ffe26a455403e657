"""Searching chunks: relevance, safety of queries, and work that does not grow with the index."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retain.workspace import Chunk, Ledger, State, Store

TEXTS = [
    ("Orchard", "The apples in the old orchard ripen in September."),
    ("Ferry", "The ferry to the island runs every running hour, except on Sundays."),
    ("Café", "The café on the pier serves strong coffee and C++ books."),
    ("Notes", 'She said "NEAR the gate" AND left -- nobody OR somebody saw it.'),
]


def fill(ledger: Ledger, store: Store, chunks: list[tuple[str, str]], per_document: int = 2) -> None:
    """Commit documents that have these chunks."""
    pieces = [Chunk(f"d{n // per_document}", n % per_document, *chunk) for n, chunk in enumerate(chunks)]
    keys = list(dict.fromkeys(piece.document for piece in pieces))
    with ledger.transaction():
        for key in keys:
            ledger.add_document({"id": key}, store.put(b"text"))
        ledger.commit_update("learn", ledger.head(), store.put(State().to_bytes()), documents=keys, chunks=pieces)


@pytest.fixture
def filled(ledger: Ledger, store: Store) -> Ledger:
    fill(ledger, store, TEXTS)
    return ledger


@pytest.mark.parametrize(
    ("query", "document", "chunk"),
    [
        ("When does an apple ripen?", "d0", 0),
        ("orchard", "d0", 0),  # in the heading, too
        ("FERRIES run", "d0", 1),
        ("cafe", "d1", 0),
        ("CAFÉ", "d1", 0),
        ("c++", "d1", 0),
        ('"near', "d1", 1),
        ("somebody OR (", "d1", 1),
    ],
)
def test_the_best_chunk_comes_first(filled: Ledger, query: str, document: str, chunk: int) -> None:
    best = filled.search(query)[0]
    assert (best.document, best.chunk) == (document, chunk)
    assert (best.heading, best.text) == TEXTS[2 * int(document[1]) + chunk]
    assert best.score > 0


def test_any_of_the_words_is_enough_and_more_rank_higher(filled: Ledger) -> None:
    hits = filled.search("ferry coffee pier island nonsense")
    assert {(hit.document, hit.chunk) for hit in hits} == {("d0", 1), ("d1", 0)}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(filled.search("the", k=2)) == 2
    assert filled.search("apples", documents=["d1"]) == []
    assert [hit.document for hit in filled.search("the", k=9, documents=["d1"])] == ["d1", "d1"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.text("\"*()^:+-{}ANDORNOTEAR apples,_\0'", max_size=40))
def test_no_text_breaks_the_search(filled: Ledger, query: str) -> None:
    filled.search(query)
    filled.document_frequency([query])


@pytest.mark.parametrize("query", ["", " ", "?!", "nonsense", "_", "\0"])
def test_nothing_to_find(filled: Ledger, query: str) -> None:
    assert filled.search(query) == []
    assert filled.search("apples", k=0) == []


def test_neighbours(ledger: Ledger, store: Store) -> None:
    fill(ledger, store, [(f"h{n}", f"text {n}") for n in range(7)], per_document=7)
    assert [chunk.ordinal for chunk in ledger.neighbours("d0", 3)] == [2, 3, 4]
    assert [chunk.ordinal for chunk in ledger.neighbours("d0", 0, reach=2)] == [0, 1, 2]
    assert ledger.neighbours("d9", 0) == []
    assert [chunk.text for chunk in ledger.chunks("d0")] == [f"text {n}" for n in range(7)]


def test_document_frequency_sees_what_search_sees(filled: Ledger, store: Store) -> None:
    assert filled.document_frequency(["apple", "APPLES", "the", "café", "nothing", ""]) == {
        "apple": 1, "APPLES": 1, "the": 4, "café": 1, "nothing": 0, "": 0,
    }  # fmt: skip
    assert filled.chunk_count() == 4
    filled.add_document({"id": "new"}, store.put(b"new"))
    filled.commit_update("learn", filled.head(), filled.head(), documents=["new"], chunks=[Chunk("new", 0, "", "apple pie")])
    assert filled.document_frequency(["apple"]) == {"apple": 2}
    with Ledger.open(filled.path, store) as other:  # what another process writes is noticed, too
        other.forget_document("new", other.head(), other.head())
    assert filled.document_frequency(["apple"]) == {"apple": 1}


def test_learning_a_document_again_replaces_its_chunks(filled: Ledger) -> None:
    filled.commit_update("learn", filled.head(), filled.head(), documents=["d0"], chunks=[Chunk("d0", 0, "", "bananas")])
    assert filled.search("apples") == filled.search("ferry") == []
    assert [hit.document for hit in filled.search("banana")] == ["d0"]
    filled.commit_update("consolidate", filled.head(), filled.head(), documents=["d0"])
    assert len(filled.chunks("d0")) == 1
    assert filled.check() == []


def test_frequent_words_do_not_cost(ledger: Ledger, store: Store) -> None:
    chance = random.Random(0)
    common = [f"common{n}" for n in range(20)]
    texts = [("", " ".join([*chance.choices(common, k=30), f"rare{n}"])) for n in range(2000)]
    fill(ledger, store, texts, per_document=10)
    statements: list[str] = []
    ledger._connection.set_trace_callback(statements.append)
    (hit,) = ledger.search(f"{' '.join(common)} rare1234", postings=500)
    ledger._connection.set_trace_callback(None)
    assert (hit.document, hit.chunk) == ("d123", 4)
    assert "common" not in statements[-1]
    assert len(ledger.search(" ".join(common), k=3, postings=500)) == 3  # the rarest is always used
    assert ledger.search("common1 rare7", k=1, postings=10**6)[0].document == "d0"


def test_all_words_rank_the_chunks_that_the_rarest_choose(ledger: Ledger, store: Store) -> None:
    words = [[f"own{n}", *["ferry"] * (n % 4 == 0), *["rope"] * (n % 5 < 2), *["sand"] * (n % 5 >= 2)] for n in range(1000)]
    fill(ledger, store, [("", " ".join(found)) for found in words], per_document=10)
    statements: list[str] = []
    ledger._connection.set_trace_callback(statements.append)
    for query, chunk in (("ferry rope own800 own804", 0), ("ferry sand own800 own804", 4)):
        (hit,) = ledger.search(query, k=1)
        assert (hit.document, hit.chunk) == ("d80", chunk), "the commonest word did not decide between two rare ones"
    ledger._connection.set_trace_callback(None)
    deciding, _, every = next(statement for statement in statements if "bm25" in statement).partition(") AND (")
    assert "ferry" not in deciding and "rope" not in deciding, "chunks were ranked that have none of the rare words"
    assert "ferry" in every and "rope" in every
    assert len(ledger.search("ferry own800", k=40)) == 40, "more than the rarest words find is filled up"


def test_in_one_document_all_words_count(ledger: Ledger, store: Store) -> None:
    texts = [("", f"{'lantern' if n < 5 else 'boat'} number {n}") for n in range(900)]
    fill(ledger, store, texts, per_document=10)
    hits = ledger.search("lantern boat", k=20, documents=["d30", "d70"])
    assert {hit.document for hit in hits} == {"d30", "d70"} and len(hits) == 20
    assert [hit.chunk for hit in ledger.search("lantern boat 305", k=1, documents=["d30"])] == [5]
    assert ledger.search("boat", documents=[]) == []
