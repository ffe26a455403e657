"""Routing by the words that say what a prompt is about."""

from __future__ import annotations

from typing import Any

import pytest

from retain.adapters.routing import Surprise, content_words, match, route, stem, telling

ABOUT = "Report\nOttilie Brannagh surveyed the harbour of Quellenbeck. She kept a heron."
OTHER = "Report\nThe harbour is deep. What was the name of the one that was there? They say that it is so."


@pytest.fixture(scope="module")
def surprise(tiny_model: Any) -> Surprise:
    return Surprise(tiny_model.tokenizer)


def test_only_words_that_say_something_are_telling(surprise: Surprise) -> None:
    found = telling("What was the name of the heron that Brannagh kept in 12?", surprise)
    assert "brannagh" in found and found["brannagh"][0] == "Brannagh"
    assert not found.keys() & {"what", "was", "the", "name", "of", "that", "in", "12"}
    assert all(bits > 0 for _, bits in found.values())
    assert found["brannagh"][1] > found.get("heron", ("", 0.0))[1]
    assert telling("What is it, and who are they?", surprise) == {}


def test_a_document_is_scored_by_the_share_of_those_words(surprise: Surprise) -> None:
    prompt = "Where did Brannagh, who came from Quellenbeck, go with Zadruk?"
    words = telling(prompt, surprise)
    best, worst = match(prompt, {"other": OTHER, "about": ABOUT}, surprise)
    covered = words["brannagh"][1] + words["quellenbeck"][1]
    assert best.document == "about" and best.bits == pytest.approx(covered)
    assert best.score == pytest.approx(covered / sum(bits for _, bits in words.values())) and 0.3 < best.score < 1
    assert (worst.document, worst.score, worst.bits) == ("other", 0.0, 0.0)
    assert route([best, worst], threshold=0.3, margin=0.05, most=2).documents == ("about",)
    assert route([best, worst], threshold=1.0, margin=0.05, most=2).documents == ()
    assert match("What is it?", {"about": ABOUT}, surprise) == []


def test_words_of_a_text_are_found_in_other_forms() -> None:
    assert stem("ferries") == stem("ferry") and stem("repaired") == stem("repair") and stem("Brannagh's") == "brannagh"
    assert {"well-known", "well", "known", "bridg"} >= content_words("the well-known bridges").keys() >= {"well-known", "known"}


def test_common_words_find_the_document_that_they_are_the_topic_of(surprise: Surprise) -> None:
    prompt = "What about the heron?"
    bits = telling(prompt, surprise)["heron"][1]
    once, often = "Report\nA heron was seen.", "Report\nThe heron eats. One more heron came. No heron left."
    titled = "The heron\nIt eats fish."
    passing, topic, title = (match(prompt, {"d": text}, surprise)[0] for text in (once, often, titled))
    assert passing.bits == topic.bits == title.bits == pytest.approx(bits)
    assert (passing.topic, topic.topic, title.topic) == (0.0, pytest.approx(bits), pytest.approx(bits))
    rules = {"threshold": 0.3, "margin": 0.05, "most": 2, "least_bits": bits + 1, "topic_bits": bits - 0.1}
    chosen = [route([item], **rules).documents for item in (passing, topic, title)]
    assert chosen == [(), ("d",), ("d",)]
    assert route([topic], **rules, topic_threshold=1.01).documents == ()
    assert [item.document for item in match(prompt, {"a": once, "b": often}, surprise)] == ["b", "a"]
