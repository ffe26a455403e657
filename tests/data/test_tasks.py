"""Tasks from files: every form is read, halves share no question, the split is the seed's."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from retain.data import DataError
from retain.data.duplicates import containment
from retain.data.tasks import LanguageTask, TaskItem, load_task, load_tasks, read_items, shipped_tasks

WORDS = re.findall(
    r"\w+",
    """ferry lantern copper meadow harbour violin glacier pepper saddle orchard walnut tunnel beacon ribbon thimble canyon marble turnip
    anchor falcon cobble juniper mosaic pillow quarry""",
)


def question(number: int) -> str:
    """A question that is unlike the others."""
    chosen = random.Random(number).sample(WORDS, 8)
    return f"In which year did the {' '.join(chosen)} open for number {number}?"


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def plain(path: Path, count: int = 40) -> Path:
    return lines(path, [{"question": question(n), "answer": f"in {1900 + n}"} for n in range(count)])


def squad(path: Path, passages: int, questions: int) -> Path:
    def asked(p: int, q: int) -> dict[str, Any]:
        return {"id": f"{p}-{q}", "question": question(100 * p + q), "answers": [{"text": f"answer {q}"}, {"text": f"reply {q}"}]}

    paragraphs = [{"context": f"Passage {p}.", "qas": [asked(p, q) for q in range(questions)]} for p in range(passages)]
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    return path


def mmlu(folder: Path, subject: str, split: str, rows: list[list[str]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{subject}_{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def texts(items: tuple[TaskItem, ...]) -> set[str]:
    return {item.question for item in items}


def test_a_share_is_held_out_by_seed_whatever_the_order(tmp_path: Path) -> None:
    path = plain(tmp_path / "years.jsonl")
    task = load_task(path)
    assert task.name == "years" and (len(task.train), len(task.test)) == (32, 8) and task.left_out == 0
    assert not texts(task.train) & texts(task.test)
    assert load_task(path) == task != load_task(path, seed=1)
    shuffled = path.read_text().splitlines()
    random.Random(0).shuffle(shuffled)
    path.write_text("\n".join(shuffled))
    assert texts(load_task(path).test) == texts(task.test)
    assert len(load_task(path, held_out=0.5).test) == 20


def test_limit_keeps_both_halves(tmp_path: Path) -> None:
    path = plain(tmp_path / "years.jsonl")
    whole, some = load_task(path), load_task(path, limit=10)
    assert (len(some.train), len(some.test)) == (8, 2)
    assert texts(some.train) < texts(whole.train) and texts(some.test) < texts(whole.test)
    assert some == load_task(path, limit=10)
    assert [len(half) for half in (load_task(path, limit=2).train, load_task(path, limit=2).test)] == [1, 1]


def test_passages_stay_whole(tmp_path: Path) -> None:
    task = load_task(squad(tmp_path / "dev.json", 10, 4))
    assert (len(task.train), len(task.test)) == (32, 8)
    assert not {item.group for item in task.train} & {item.group for item in task.test}
    assert task.test[0].answers == ("answer 0", "reply 0") and task.test[0].context and task.test[0].context.startswith("Passage")
    with pytest.raises(DataError, match="cannot be divided"):
        load_task(squad(tmp_path / "one.json", 1, 4))


def test_nearly_the_same_question_is_never_in_both_halves(tmp_path: Path) -> None:
    records = []
    for n in range(60):
        asked = question(n)
        forms = [
            asked,
            asked.upper().replace("?", " ?!"),
            f"Please think step by step and tell me now: {asked}",
            asked.replace("did", "did,"),
        ]
        records += [{"prompt": form, "completion": "x"} for form in random.Random(n).sample(forms, 1 + n % 4)]
    random.Random(5).shuffle(records)
    for seed in range(5):
        task = load_task(lines(tmp_path / "a.jsonl", records), seed=seed)
        assert len(task.train) + len(task.test) == len(records) and 0.1 < len(task.test) / len(records) < 0.3
        worst = max(containment(one.question, other.question) for one in task.test for other in task.train)
        assert worst < 0.8
    same = lines(tmp_path / "same.jsonl", [{"prompt": f"{question(1)} {n}", "completion": "x"} for n in range(5)])
    with pytest.raises(DataError, match="nearly the same"):
        load_task(same)


def test_a_question_that_all_items_share_is_told_apart_by_its_options(tmp_path: Path) -> None:
    records = [{"question": "Which is right?", "choices": [question(n), question(n + 500)], "answer": n % 2} for n in range(20)]
    records += [{**record, "choices": record["choices"][::-1], "answer": 1 - record["answer"]} for record in records]  # the same, turned
    task = load_task(lines(tmp_path / "a.jsonl", records))

    def asked(items: tuple[TaskItem, ...]) -> set[frozenset[str]]:
        return {frozenset(item.choice.options) for item in items if item.choice}

    assert len(task.test) == 8 and not asked(task.train) & asked(task.test)


def test_mmlu_by_subject_mixed_or_as_its_files_are(tmp_path: Path) -> None:
    def rows(first: int, count: int) -> list[list[str]]:
        return [[question(n), "a", "b", "c", "d", "ABCD"[n % 4]] for n in range(first, first + count)]

    mmlu(tmp_path / "m", "anatomy", "test", rows(0, 20))
    mmlu(tmp_path / "m", "anatomy", "dev", rows(50, 4) + rows(3, 1))  # one of them is a test question
    mmlu(tmp_path / "m", "anatomy", "val", rows(70, 5))
    mixed = load_task("mmlu:anatomy", data=tmp_path / "m")
    assert mixed.name == "mmlu:anatomy" and len(mixed.train) + len(mixed.test) == 30
    for spec, data in (("mmlu:anatomy", tmp_path / "m"), (tmp_path / "m" / "anatomy_test.csv", None)):
        task = load_task(spec, data=data, split="files")
        assert texts(task.test) == {question(n) for n in range(20)} and len(task.train) == 9 and task.left_out == 1
        assert not texts(task.train) & texts(task.test)
        assert all(item.letters and item.choice and item.choice.subject == "anatomy" for item in task.test)
    assert not any(item.letters for item in load_task("mmlu:anatomy", data=tmp_path / "m", letters=False).train)
    with pytest.raises(DataError, match="no files of both halves"):
        load_task(plain(tmp_path / "years.jsonl"), split="files")
    with pytest.raises(DataError, match="did you mean 'anatomy'"):
        load_task("mmlu:anatomie", data=tmp_path / "m")


def test_forms(tmp_path: Path) -> None:
    assert read_items(lines(tmp_path / "p.jsonl", [{"prompt": "p?", "completion": "c"}])) == [TaskItem("p?", ("c",))]
    asked = {"question": "q?", "answer": "nine", "aliases": ["9"], "document": "d1"}
    assert read_items(lines(tmp_path / "q.jsonl", [asked])) == [TaskItem("q?", ("nine", "9"), group="d1")]
    (tmp_path / "task.json").write_text(json.dumps({"name": "t", "examples": [{"input": "i?", "target_scores": {"x": 0, "y": 1}}]}))
    (item,) = read_items(tmp_path / "task.json")
    assert item.answers == ("y",) and item.choice is not None and item.choice.correct == 1 and not item.letters
    (tmp_path / "list.json").write_text(json.dumps([{"instruction": "p?", "output": "c"}]))
    assert read_items(tmp_path / "list.json") == [TaskItem("p?", ("c",))]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"prompt": "p", "completion": "c"}\n{"prompt": "p"}\n', "line 2"),
        ('{"question": "q", "answer": "a"}\n{"question": "q", "answer": ""}\n', "line 2, field 'answer'"),
        ('{"question": "q", "choices": ["a", "b"], "answer": "c"}\n', "line 1, field 'answer'"),
        ('{"prompt": "p", "completion": "c"}\n{broken\n', "line 2"),
        ('{"text": "a text to read"}\n', "holds texts"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_task(path)
    assert what in str(caught.value) and str(path) in str(caught.value)


def test_arguments_are_checked(tmp_path: Path) -> None:
    path = plain(tmp_path / "years.jsonl")
    with pytest.raises(DataError, match="cannot be held out"):
        load_task(path, held_out=1.0)
    with pytest.raises(DataError, match="no two halves"):
        load_task(path, limit=1)


def test_a_stream_leaks_nothing_between_its_tasks(tmp_path: Path) -> None:
    first = lines(tmp_path / "first.jsonl", [{"prompt": question(n), "completion": "x"} for n in range(40)])
    second = lines(tmp_path / "second.jsonl", [{"prompt": question(n), "completion": "y"} for n in range(30, 70)])  # ten are the first's
    tasks = load_tasks([first, second])
    asked = {item.question for task in tasks for item in task.test}
    assert all(isinstance(task, LanguageTask) for task in tasks)
    assert not asked & {item.question for task in tasks for item in task.train}
    assert sum(task.left_out for task in tasks) > 0
    assert sum(len(task.train) + len(task.test) + task.left_out for task in tasks) == 80


def test_many_variants_are_grouped_in_time_linear_in_their_number(tmp_path: Path) -> None:
    records = [{"prompt": f"Solve this for me without any help at all. {question(n // 4)}", "completion": "x"} for n in range(4000)]
    task = load_task(lines(tmp_path / "many.jsonl", records))
    assert len(task.test) == 800 and not texts(task.train) & texts(task.test)


def test_only_the_answer_is_learned(tokenizers: dict[str, Any], supervised_text: Any, tmp_path: Path) -> None:
    task = load_task(squad(tmp_path / "dev.json", 10, 4))
    item = task.train[0]
    for tokenizer in tokenizers.values():
        for with_context in (False, True):
            example = item.example(tokenizer, with_context=with_context)
            assert item.answers[0] in supervised_text(tokenizer, example) and "open" not in supervised_text(tokenizer, example)
            assert ("Passage" in tokenizer.decode(example.tokens)) == with_context
        assert len(task.examples(tokenizer)) == len(task.train)


def test_two_tasks_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(shipped_tasks()) == ["bridges", "founders"]
    pair = load_tasks(["founders", "bridges"])
    assert [task.name for task in pair] == ["founders", "bridges"]
    assert all(len(task.train) + len(task.test) == 64 and task.test and not task.left_out for task in pair)
    assert all("founded the town of" in item.question for item in pair[0].train)
    with pytest.raises(DataError, match="there is no task 'foundrs': did you mean 'founders'"):
        load_task("foundrs")
    with pytest.raises(DataError, match="there is no task 'capitals': there are bridges, founders, mmlu:SUBJECT, and files"):
        load_task("capitals")
    plain(tmp_path / "founders")  # a file of one's own goes before it
    assert load_task("founders").train[0].question.startswith("In which year")
