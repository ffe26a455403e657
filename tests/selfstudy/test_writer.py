"""Questions written by a model: the format, the tolerant reader and the filter."""

import json
from pathlib import Path

import pytest

from retain.data.selfstudy import load_study_corpus, write_items, writer_completion, writer_examples, writer_prompt
from retain.data.selfstudy.writer import near_duplicate, parse_completion

TEXT = "The seed swap will take place in the Methodist hall on 9 March. Idris will obtain quotes for a new pipe."


def test_format_round_trip() -> None:
    prompt = writer_prompt("Minutes", "", "A  sentence.")
    assert prompt == "Title: Minutes\nSentence: A sentence.\nQ:"
    assert "\nBefore: earlier\n" in writer_prompt("Minutes", "earlier", "A sentence.")
    assert parse_completion(writer_completion("Who will obtain quotes?", "Idris")) == [("Who will obtain quotes?", "Idris")]


@pytest.mark.parametrize(
    ("completion", "pairs"),
    [
        (" Where is it held? A: the hall.\nQ: When?\nA: 9 March", [("Where is it held?", "the hall"), ("When?", "9 March")]),
        ('Q: Where is it held?\nAnswer: "the hall"\nTitle: Next', [("Where is it held?", "the hall")]),
        ("Q1: One?\nA1: yes\nQ2: Two?\nA2: no", [("One?", "yes"), ("Two?", "no")]),
        ("no question at all", []),
        ("", []),
    ],
)
def test_reader_is_tolerant(completion: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_completion(completion) == pairs


def test_only_good_questions_are_kept() -> None:
    calls = []

    def generate(prompts: list[str], n: int, seed: int) -> list[list[str]]:
        calls.append((len(prompts), n, seed))
        first = [
            " Where will the seed swap take place?\nA: the Methodist hall\n",
            " Where will the seed swap take place?\nA: in the Methodist hall\n",  # repeats the first
            " Which building hosts the seed swap of the gardeners?\nA: Methodist hall\n",
            " When will the seed swap be held?\nA: 12 April\n",  # not in the text
            " Is the seed swap in the Methodist hall?\nA: the Methodist hall\n",  # gives its answer
            " What will he bring to the meeting?\nA: quotes\n",  # dangling
            " garbage",
        ]
        return [first, [" Who will obtain quotes for a new pipe?\nA: Idris"]]

    items = write_items(generate, "Minutes: Ottermere", TEXT, per_sentence=7, seed=9)
    assert calls == [(2, 7, 9)]
    assert [(i.kind, i.prompt, i.completion) for i in items] == [
        ("question", "Where will the seed swap take place?", "the Methodist hall"),
        ("rewording", "Which building hosts the seed swap of the gardeners?", "Methodist hall"),
        ("question", "Who will obtain quotes for a new pipe?", "Idris"),
    ]
    assert all(i.source in TEXT for i in items)


def test_answers_from_another_sentence_get_its_source() -> None:
    items = write_items(lambda p, n, s: [[" Who will obtain quotes for the pipe?\nA: Idris"], []], "Minutes", TEXT, per_sentence=1)
    assert items[0].source == "Idris will obtain quotes for a new pipe."


def test_wrong_number_of_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 prompts got 0"):
        write_items(lambda p, n, s: [], "T", TEXT)


def test_near_duplicates() -> None:
    assert near_duplicate("Where is the seed swap held?", "Where was the seed swap held?")
    assert not near_duplicate("Where is the seed swap held?", "When is the seed swap held?")


def test_corpus(tmp_path: Path) -> None:
    question = {"question": "Where is the swap?", "reworded": "Which hall?", "answer": "the Methodist hall", "evidence": "x"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "T", "text": TEXT, "questions": [question]}) + "\n\n", encoding="utf-8")
    passages = load_study_corpus(path)
    assert passages == load_study_corpus([path])
    examples = writer_examples(passages)
    assert sorted(c for _, c in examples) == [" Where is the swap?\nA: the Methodist hall\n", " Which hall?\nA: the Methodist hall\n"]
    assert examples[0][0].endswith("Sentence: The seed swap will take place in the Methodist hall on 9 March.\nQ:")
    path.write_text('{"title": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        load_study_corpus(path)
