"""Answers are compared as SQuAD compares them."""

from __future__ import annotations

import pytest

from retain.evaluation import contains, exact_match, f1, load_control, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("  an   apple\n a day", "apple day"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("theatre", "theatre"),
        ("don't", "dont"),
        ("don’t", "dont"),
        ("“A” – the", ""),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_takes_any_gold() -> None:
    assert exact_match("the Denver Broncos!", ["Broncos", "Denver Broncos"])
    assert not exact_match("Denver", ["Broncos", "Denver Broncos"])
    assert not exact_match("Denver", [])


@pytest.mark.parametrize(
    ("answer", "golds", "expected"),
    [
        ("the cat sat", ["cat sat"], 1.0),
        ("cat sat down", ["cat sat"], 0.8),  # precision 2/3, recall 1
        ("cat cat", ["cat"], 2 / 3),  # a word counts as often as it is in both
        ("dog", ["cat", "a dog"], 1.0),
        ("dog", ["cat"], 0.0),
        ("", ["cat"], 0.0),
        ("the", ["a"], 1.0),
        ("cat", [], 0.0),
    ],
)
def test_f1(answer: str, golds: list[str], expected: float) -> None:
    assert f1(answer, golds) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "golds", "expected"),
    [
        ("It was built in 1889, I think.", ["1889"], True),
        ("It was built in 18890.", ["1889"], False),
        ("The answer is New York City", ["the new york"], True),
        ("York, New", ["New York"], False),
        ("I like cats", ["cat"], False),
        ("twenty-one", ["twenty one"], True),
        ("twenty one", ["twenty-one"], True),
        ("the co-op shop", ["coop"], True),
        ("Either is fine", ["x", "fine"], True),
        ("anything", [""], False),
        ("anything", [], False),
        ("A.", ["A"], True),
        ("a dog", ["A"], False),
    ],
)
def test_containment_is_of_whole_words(answer: str, golds: list[str], expected: bool) -> None:
    assert contains(answer, golds) is expected


def test_the_control_set_is_complete() -> None:
    control = load_control()
    assert (len(control.texts), len(control.questions), len(control.prompts)) == (10, 40, 40)
    assert len(set(control.texts)) == 10 and len(set(control.prompts)) == 40
    assert len({question.question for question in control.questions}) == 40
    assert all(80 <= len(text.split()) <= 100 for text in control.texts)
    assert all(len(question.answer.split()) <= 3 and question.question.endswith("?") for question in control.questions)
    assert not any(contains(question.question, question.answers) for question in control.questions)  # no question gives its answer away
