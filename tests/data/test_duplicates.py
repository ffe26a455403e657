from __future__ import annotations

import random

import pytest

from retain.data import DataError, NearDuplicateIndex, Signature, containment
from retain.data.duplicates import shingles

WORDS = [f"word{number}" for number in range(2000)]


def passage(seed: int, length: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], count: int, seed: int = 9) -> list[str]:
    words = list(words)
    for position in random.Random(seed).sample(range(len(words)), count):
        words[position] = f"other{position}"
    return words


def test_equal_near_and_different_texts_are_told_apart():
    index = NearDuplicateIndex()
    for seed in range(50):
        index.add(f"d{seed}", " ".join(passage(seed)))
    same = index.find("\n\n".join(passage(7)))
    assert same is not None and same.id == "d7" and same.exact
    near = index.find(" ".join(changed(passage(7), 3)))
    assert near is not None and near.id == "d7" and not near.exact and 0.8 <= near.similarity < 1.0
    assert index.find(" ".join(changed(passage(7), 60))) is None
    assert index.find(" ".join(passage(99))) is None
    assert len(index) == 50 and "d7" in index


def test_estimates_are_near_the_true_similarity():
    base = passage(1)
    for count in (2, 8, 20):
        other = changed(base, count)
        first, second = shingles(" ".join(base)), shingles(" ".join(other))
        true = len(first & second) / len(first | second)
        assert Signature.of(" ".join(base)).similarity(Signature.of(" ".join(other))) == pytest.approx(true, abs=0.15)


def test_case_and_punctuation_make_no_difference():
    index = NearDuplicateIndex()
    index.add("a", "The ferry sails at nine, from the old pier!")
    match = index.find("the FERRY sails at nine from the old pier")
    assert match is not None and match.similarity == 1.0 and not match.exact


def test_signatures_survive_storage_and_never_change():
    signature = Signature.of("The ferry sails at nine from the old pier.")
    data = signature.to_bytes()
    assert Signature.from_bytes(data) == signature
    assert len(data) == 548
    assert signature.minima[:3] == (284736545, 920533994, 435433798), "stored signatures would no longer match"
    with pytest.raises(DataError, match="not a signature"):
        Signature.from_bytes(data[:-1])


def test_an_index_is_restored_from_signatures():
    index = NearDuplicateIndex()
    index.add("a", " ".join(passage(1)))
    index.add("b", " ".join(passage(2)))
    again = NearDuplicateIndex.restore(index.signatures())
    probe = " ".join(changed(passage(2), 2))
    assert again.query(probe) == index.query(probe) != []


def test_removed_and_replaced_texts_are_forgotten():
    index = NearDuplicateIndex()
    text = " ".join(passage(1))
    index.add("a", text)
    index.add("b", text)
    index.remove("a")
    match = index.find(text)
    assert match is not None and match.id == "b" and match.exact
    index.add("b", " ".join(passage(2)))
    assert index.find(text) is None
    index.remove("unknown")


def test_text_without_spaces_is_compared_by_characters():
    sentence = "今日は天気がとても良いので公園まで散歩に行きました。犬も一緒に喜んで走り回っていました。"
    index = NearDuplicateIndex(threshold=0.6)
    index.add("a", sentence)
    assert index.find(sentence.replace("公園", "学校")) is not None
    assert index.find("まったく別の文章で、共通する部分はほとんど見つからないはずです。そう思いませんか。") is None


def test_containment_finds_a_leaked_question():
    training = " ".join(passage(1)) + " who gives back the shed key deposit at corvane " + " ".join(passage(2))
    assert containment("Who gives back the shed key deposit at Corvane?", training) == 1.0
    assert containment("Who sold the shed to the museum?", training) == 0.0
    assert containment("shed key", training) == 1.0


def test_a_threshold_out_of_range_is_told():
    with pytest.raises(DataError, match="threshold"):
        NearDuplicateIndex(0.0)
