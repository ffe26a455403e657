"""Tasks from files: questions to learn and questions held out, with no question in both halves.

A stream of such tasks is what a continual-learning experiment runs over: each is learned from its ``train`` items and measured on its
``test`` items after every later task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from retain.data.chat import Tokenizer
from retain.data.choices import Choice, find_mmlu, letter_example, load_choices, mmlu_subject, read_choices
from retain.data.duplicates import shingles
from retain.data.errors import DataError, Note, did_you_mean
from retain.data.examples import Example, question_example
from retain.data.readers.plain import read_text
from retain.data.readers.records import parse_json, read_records
from retain.data.streams import is_squad, load_questions, squad_passages

NEAR = 0.8  # of the shorter question's phrases in the other one: nearly the same question
_COMPARED = 8  # questions with a phrase in common that a new one is compared with


@dataclass(frozen=True, slots=True)
class TaskItem:
    """A question to learn or to ask.

    Attributes:
        question: the prompt.
        answers: what counts as right, the answer that is learned first; one for multiple choice, the right option.
        context: the passage that it is about, or None.
        group: what must not be divided, for instance the id of the passage, or "".
        choice: the options, for multiple choice.
        letters: it is answered with the letter of an option (MMLU's prompt) rather than with the option.
    """

    question: str
    answers: tuple[str, ...]
    context: str | None = None
    group: str = ""
    choice: Choice | None = None
    letters: bool = False

    def example(self, tokenizer: Tokenizer, *, with_context: bool = False, max_tokens: int | None = None) -> Example:
        """The item to train on; only the answer is a target. Raises DataError when it is longer than ``max_tokens``."""
        if self.choice is not None and self.letters:
            return letter_example(tokenizer, self.choice, max_tokens=max_tokens)
        shown = self.context if with_context else None
        return question_example(tokenizer, self.question, self.answers[0], shown, document=self.group, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class LanguageTask:
    """Questions to learn (``train``) and questions held out (``test``); ``left_out``: how many could be in neither without a leak."""

    name: str
    train: tuple[TaskItem, ...]
    test: tuple[TaskItem, ...]
    left_out: int = 0

    def examples(self, tokenizer: Tokenizer, *, with_context: bool = False, max_tokens: int | None = None) -> list[Example]:
        """The train items to train on."""
        return [item.example(tokenizer, with_context=with_context, max_tokens=max_tokens) for item in self.train]


def load_task(
    spec: str | Path, *, data: str | Path | None = None, split: Literal["random", "files"] = "random", held_out: float = 0.2,
    seed: int = 0, limit: int | None = None, letters: bool | None = None, name: str | None = None,
) -> LanguageTask:  # fmt: skip
    """A task from a file, or from a subject of MMLU.

    spec: JSON lines with prompt and completion, with question and answer, or with choices; a SQuAD file; MMLU's CSV; BIG-bench's
    task.json; "mmlu:SUBJECT", whose files are in the folder ``data``; a name of :func:`shipped_tasks`. split: "random" holds out a share
    ``held_out``, the same for equal ``seed`` whatever the order in the file; "files" learns NAME_dev and NAME_val and holds out NAME_test,
    as MMLU is meant, where "random" mixes them. Passages, and questions that are nearly the same, stay together. limit: at most this many
    items in both halves together. letters: whether multiple choice is learned and asked by letter (default: where that is the custom).

    Raises:
        DataError: with file, line and field; or nothing can be held out.
    """
    if not 0 < held_out < 1:
        raise DataError(f"a share of {held_out} cannot be held out", field="held_out", fix="between 0 and 1, for example 0.2")
    if limit is not None and limit < 2:
        raise DataError(f"a task of {limit} items has no two halves", field="limit")
    found = _by_file(spec, data)
    if letters is not None:
        found = {key: [replace(item, letters=letters) for item in items] for key, items in found.items()}
    title = name or (str(spec) if str(spec).startswith("mmlu:") else Path(spec).stem)
    pool = [item for items in found.values() for item in items]
    groups = _groups(pool)
    if split == "files":
        if not found.get("test") or len(found) < 2:
            raise DataError("has no files of both halves", path=spec, field="split", fix="NAME_dev or NAME_val beside NAME_test")
        first = len(pool) - len(found["test"])
        asked = {groups[place] for place in range(first, len(pool))}
        train = [item for place, item in enumerate(pool[:first]) if groups[place] not in asked]
        test, lost = found["test"], first - len(train)
    else:
        chosen = _held_out(pool, groups, held_out, seed)
        train = [item for item, group in zip(pool, groups, strict=True) if group not in chosen]
        test, lost = [item for item, group in zip(pool, groups, strict=True) if group in chosen], 0
    if not train or not test:
        raise DataError(f"its {len(pool)} questions cannot be divided: they are nearly the same, or about one passage", path=spec)
    if limit is not None:
        share = min(max(1, round(limit * len(test) / len(pool))), limit - 1)
        train, test = _some(train, limit - share, seed), _some(test, share, seed)
    return LanguageTask(title, tuple(train), tuple(test), lost)


def load_tasks(specs: Sequence[str | Path], *, data: str | Path | None = None, seed: int = 0, **options: object) -> list[LanguageTask]:
    """A stream of tasks, see :func:`load_task`; what one task holds out is learned in no other either, nearly the same questions included.

    Raises:
        DataError: as load_task; or a task has nothing left to learn.
    """
    tasks = [load_task(spec, data=data, seed=seed, **options) for spec in specs]  # type: ignore[arg-type]
    pool = [item for task in tasks for item in (*task.train, *task.test)]
    groups = iter(_groups(pool))
    halves = [([next(groups) for _ in task.train], [next(groups) for _ in task.test]) for task in tasks]
    asked = {group for _, test in halves for group in test}
    kept = []
    for task, (train, _) in zip(tasks, halves, strict=True):
        left = tuple(item for item, group in zip(task.train, train, strict=True) if group not in asked)
        if not left:
            raise DataError(f"nothing is left to learn in {task.name}: other tasks hold its questions out")
        kept.append(replace(task, train=left, left_out=task.left_out + len(task.train) - len(left)))
    return kept


def shipped_tasks() -> dict[str, Path]:
    """The tasks that come with retain, by name: who founded invented towns (``founders``), what their bridges are made of (``bridges``)."""
    folder = Path(str(files("retain").joinpath("data", "shipped")))
    return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}


def is_shipped(name: str) -> bool:
    """Whether a task is meant that comes with retain; a file or folder of that name goes before it."""
    return name in shipped_tasks() and not Path(name).exists()


def read_items(path: str | Path) -> list[TaskItem]:
    """All items of one file, in its order; see :func:`load_task` for the forms. Raises DataError."""
    place = Path(path).expanduser()
    if place.suffix.lower() == ".csv":
        return _choices(read_choices(place), letters=True)
    text = read_text(place, _ignore)
    if place.suffix.lower() == ".json":
        value = parse_json(text, place, None)
        if is_squad(value):
            return [
                TaskItem(question.question, question.answers, passage.text, passage.id)
                for passage in squad_passages(value, place)
                for question in passage.questions
            ]
        if isinstance(value, dict):
            return _choices(read_choices(place))
        records = list(enumerate(value if isinstance(value, list) else [value], 1))
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [(number, parse_json(line, place, number)) for number, line in lines]
    first = records[0][1] if records else None
    if isinstance(first, dict) and "choices" in first:
        return _choices(read_choices(place))
    if isinstance(first, dict) and "question" in first and place.suffix.lower() != ".json":
        return [TaskItem(item.question, item.answers, group=item.document) for item in load_questions(place)]
    documents = read_records(records, place, unit="record" if place.suffix.lower() == ".json" else "line")
    pairs = [pair for document in documents for pair in document.pairs]
    if not pairs:
        raise DataError("holds texts, not questions with answers", path=place, fix="fields: prompt and completion, or question and answer")
    return [TaskItem(pair.question, (pair.answer,)) for pair in pairs]


def _by_file(spec: str | Path, data: str | Path | None) -> dict[str, list[TaskItem]]:
    """The items of each file of a task, those that are held out by custom ("test") last."""
    name = str(spec)
    if name.startswith("mmlu:") and data is None:
        found = load_choices(name)  # from the hub
        return {"dev": _choices(found.examples, letters=True), "test": _choices(found.items, letters=True)}
    if name.startswith("mmlu:"):
        subject = mmlu_subject(name.partition(":")[2])
        files = {key: find_mmlu(data or ".", subject, key) for key in ("dev", "val", "test")}
        if files["test"] is None:
            raise DataError(f"holds no {subject}_test.csv", path=data or ".", fix="the folder of MMLU's data, with dev, val and test")
        return {key: _choices(read_choices(path, subject), letters=True) for key, path in files.items() if path is not None}
    path = Path(spec).expanduser()
    if is_shipped(name):
        path = shipped_tasks()[name]
    elif path.name == name and not path.suffix and not path.exists():
        hint, there = did_you_mean(name, shipped_tasks()), f"there are {', '.join(shipped_tasks())}, mmlu:SUBJECT, and files"
        raise DataError(f"there is no task {name!r}: {hint or there}")
    if not path.stem.endswith("_test"):
        return {"all": read_items(path)}
    stem = path.stem.removesuffix("_test")
    named = {key: f"{stem}_{key}{path.suffix}" for key in ("train", "dev", "val")}
    places = {key: (path.with_name(file), path.parent.parent / key / file) for key, file in named.items()}
    others = {key: next((place for place in two if place.is_file()), None) for key, two in places.items()}
    return {**{key: read_items(place) for key, place in others.items() if place}, "test": read_items(path)}


def _choices(choices: Sequence[Choice], letters: bool = False) -> list[TaskItem]:
    return [TaskItem(choice.question, (choice.answer,), choice=choice, letters=letters) for choice in choices]


def _groups(items: Sequence[TaskItem]) -> list[int]:
    """For each item the number of the group that it belongs to: same passage, or nearly the same question.

    Two questions are nearly the same when ``NEAR`` of the five-word phrases of the shorter one are in the longer one; multiple-choice
    questions with their options, in any order. A phrase leads to the questions that it was met in last, not to all, and what is near to
    near is near (union-find), so that time grows with the length of the text.
    """
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    by_group: dict[str, int] = {}
    by_phrase: dict[str, list[int]] = {}
    phrases = [shingles(_compared(item)) for item in items]
    for place, item in enumerate(items):
        if item.group:
            parent[root(place)] = root(by_group.setdefault(item.group, place))
        for other in sorted({other for phrase in phrases[place] for other in by_phrase.get(phrase, ())}):
            if root(other) != root(place):
                least = min(len(phrases[place]), len(phrases[other]))
                if len(phrases[place] & phrases[other]) >= NEAR * least:
                    parent[root(place)] = root(other)
        for phrase in phrases[place]:
            met = by_phrase.setdefault(phrase, [])
            met.append(place)
            del met[:-_COMPARED]
    return [root(place) for place in range(len(items))]


def _compared(item: TaskItem) -> str:
    """The text by which an item is recognised. A question that many items share ("Which of these is true?") is told apart by options."""
    return item.question if item.choice is None else " ".join([item.question, *sorted(item.choice.options)])


def _held_out(items: Sequence[TaskItem], groups: Sequence[int], share: float, seed: int) -> set[int]:
    """Groups that make about ``share`` of the items together, by a hash of seed and content; the smallest one when none fits."""
    members: dict[int, list[str]] = {}
    for item, group in zip(items, groups, strict=True):
        members.setdefault(group, []).append(_compared(item))
    order = sorted(members, key=lambda group: _key(min(members[group]), seed))
    room = max(1, round(share * len(items)))
    chosen: set[int] = set()
    for group in order:
        if len(members[group]) <= room:
            chosen.add(group)
            room -= len(members[group])
    return chosen or {min(order, key=lambda group: len(members[group]))}


def _some(items: Sequence[TaskItem], count: int, seed: int) -> list[TaskItem]:
    """``count`` of the items, by a hash of seed and content, in their order."""
    order = sorted(range(len(items)), key=lambda place: _key(_compared(items[place]), seed))
    return [items[place] for place in sorted(order[:count])]


def _key(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "replace")).hexdigest()


def _ignore(note: Note) -> None:
    """Repaired encodings are not told here."""
