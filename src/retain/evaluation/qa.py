"""The question-answering benchmark: the user's questions, put to a model and compared with the expected answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retain.data import DataError, Question, load_questions, load_squad
from retain.data.streams import is_squad
from retain.evaluation.answers import contains, exact_match, f1
from retain.evaluation.metrics import bootstrap
from retain.evaluation.probes import answer_questions, multiple_choice
from retain.lm.model import Injection, LanguageModel

ITEMS = 50


@dataclass(frozen=True, slots=True)
class Item:
    """A question with all right ``answers``, the expected one first; ``context``: the passage that holds the answer, or None."""

    question: str
    answers: tuple[str, ...]
    document: str = ""
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question; ``correct`` is the index of the right one of the ``options``."""

    question: str
    options: tuple[str, ...]
    correct: int

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not 0 <= self.correct < len(self.options):
            raise ValueError(f"option {self.correct} of {len(self.options)} cannot be the right one of a choice")


def load_items(path: str | Path, limit: int | None = ITEMS) -> list[Item]:
    """Questions from a SQuAD file (v1.1 or 2.0, those with an answer) or a questions.jsonl.

    At most ``limit`` of them (None: all), spread over the documents: the first question of each, then the second of each, and so on.

    Raises:
        DataError: the file cannot be read or is of neither form.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a benchmark of {limit} questions", field="limit")
    found = _squad_items(path) if _holds_squad(path) else [_item(question) for question in load_questions(path)]
    if not found:
        raise DataError("holds no question with an answer", path=path)
    return _spread(found)[:limit]


def question_answering(
    model: LanguageModel, items: Sequence[Item], injection: Injection | None = None, *, in_context: bool = False, max_tokens: int = 24,
    batch: int = 64, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Ask every item and compare: contains, exact match and F1, each with a bootstrap interval over the items.

    in_context: show the model each item's context; otherwise closed book. Every item needs one then (DataError).
    Returns ``{"n", "in_context", "contains", "em", "f1", "intervals": {name: [low, high]}, "items": [...]}``; the items have question,
    answers, document, answer, contains, em, f1. JSON values; undefined numbers are NaN.
    """
    lacking = sum(not item.context for item in items)
    if in_context and lacking:
        raise DataError(f"{lacking} of {len(items)} questions have no passage to show", fix="use a SQuAD file, or ask without the passages")
    contexts = [item.context for item in items] if in_context else None
    answers = answer_questions(model, [item.question for item in items], injection, contexts, max_tokens, batch)
    rows = [
        {
            "question": item.question,
            "answers": list(item.answers),
            "document": item.document,
            "answer": answer,
            "contains": contains(answer, item.answers),
            "em": exact_match(answer, item.answers),
            "f1": f1(answer, item.answers),
        }
        for item, answer in zip(items, answers, strict=True)
    ]
    return {"n": len(rows), "in_context": in_context, **_means(rows, ("contains", "em", "f1"), seed), "items": rows}


def choose(model: LanguageModel, choices: Sequence[Choice], injection: Injection | None = None, seed: int = 0) -> dict[str, Any]:
    """Accuracy on multiple-choice questions: the option with the largest mean log-likelihood per token is the answer.

    Returns ``{"n", "accuracy", "chance", "intervals", "items"}``; the items have question, options, correct, chosen, accuracy, scores.
    """
    rows = []
    for choice in choices:
        scores = multiple_choice(model, choice.question, choice.options, injection)
        chosen = max(range(len(scores)), key=scores.__getitem__)
        right = chosen == choice.correct
        rows.append({**asdict(choice), "options": list(choice.options), "chosen": chosen, "accuracy": right, "scores": scores})
    chance = math.fsum(1 / len(choice.options) for choice in choices) / len(choices) if choices else math.nan
    return {"n": len(rows), "chance": chance, **_means(rows, ("accuracy",), seed), "items": rows}


def _means(rows: Sequence[Mapping[str, Any]], names: Iterable[str], seed: int) -> dict[str, Any]:
    found = {name: bootstrap([float(row[name]) for row in rows], seed) for name in names}
    means = {name: interval.mean for name, interval in found.items()}
    return {**means, "intervals": {name: [interval.low, interval.high] for name, interval in found.items()}}


def _holds_squad(path: str | Path) -> bool:
    """Whether the file is one JSON value of SQuAD's form. Files that cannot be read or parsed are left to the readers' messages."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return is_squad(value)


def _squad_items(path: str | Path) -> list[Item]:
    passages = load_squad(path)
    return [_item(question, passage.text) for passage in passages for question in passage.questions]


def _item(question: Question, context: str | None = None) -> Item:
    return Item(question.question, question.answers, question.document, context)


def _spread(items: Sequence[Item]) -> list[Item]:
    """Every document's first question, then every document's second, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for item in items:
        turns.append(seen.get(item.document, 0))
        seen[item.document] = turns[-1] + 1
    return [items[number] for number in sorted(range(len(items)), key=turns.__getitem__)]
