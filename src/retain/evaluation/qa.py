"""Benchmarks of questions: free answers compared with the expected ones, and multiple choice by letters or by options."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from retain.data import DataError, Message, Question, load_questions, load_squad
from retain.data.answers import contains, exact_match, f1
from retain.data.choices import Choice, letter_tokens
from retain.data.streams import is_squad
from retain.data.tasks import TaskItem
from retain.evaluation.metrics import bootstrap
from retain.evaluation.probes import Tell, answer_questions, continuation_scores, option_tokens
from retain.lm.model import Injection, LanguageModel

ITEMS = 50
Score: TypeAlias = Literal["letters", "options"]


@dataclass(frozen=True, slots=True)
class Item:
    """A question with all right ``answers``, the expected one first; ``context``: the passage that holds the answer, or None."""

    question: str
    answers: tuple[str, ...]
    document: str = ""
    context: str | None = None


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
    batch: int = 64, seed: int = 0, tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Ask every item and compare: contains, exact match and F1, each with a bootstrap interval over the items.

    in_context: show the model each item's context; otherwise closed book. Every item needs one then (DataError).
    Returns what :func:`grade_answers` does.
    """
    contexts = passages(items) if in_context else None
    answers = answer_questions(model, [item.question for item in items], injection, contexts, max_tokens, batch, tell)
    return {**grade_answers(items, answers, seed), "in_context": in_context}


def passages(items: Sequence[Item]) -> list[str | None]:
    """Every item's context; DataError where one has none."""
    lacking = sum(not item.context for item in items)
    if lacking:
        raise DataError(f"{lacking} of {len(items)} questions have no passage to show", fix="use a SQuAD file, or ask without the passages")
    return [item.context for item in items]


def grade_answers(items: Sequence[Item], answers: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Compare answers with the items that they are to.

    Returns ``{"n", "contains", "em", "f1", "intervals": {name: [low, high]}, "items": [...]}``; the items have question, answers,
    document, answer, contains, em, f1. JSON values; undefined numbers are NaN.
    """
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
    return {"n": len(rows), **_means(rows, ("contains", "em", "f1"), seed), "items": rows}


def choose(
    model: LanguageModel, choices: Sequence[Choice], injection: Injection | None = None, seed: int = 0, *, score: Score = "options",
    shots: Sequence[Sequence[Choice]] | None = None, tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy on multiple-choice questions; see :func:`choice_scores` and :func:`grade_choices`."""
    return grade_choices(choices, choice_scores(model, choices, injection, score=score, shots=shots, tell=tell), seed)


def choice_scores(
    model: LanguageModel, choices: Sequence[Choice], injection: Injection | None = None, *, score: Score = "options",
    shots: Sequence[Sequence[Choice]] | None = None, tell: Tell | None = None,
) -> list[list[float]]:  # fmt: skip
    """What a model gives each option of each question; the option with the largest is its choice.

    "letters": log-likelihood of the letter after MMLU's prompt, as lm-evaluation-harness does it, one forward pass for all letters of a
    question. "options": mean log-likelihood per token of the option as the answer to the question as a user asks it, with the token that
    ends it (GPT-3, 2005.14165, section 2.4). shots: for each question, the questions with answers that are shown before it.
    """
    examples = [()] * len(choices) if shots is None else shots
    pairs: list[tuple[list[int], list[int]]] = []
    for choice, shown in zip(choices, examples, strict=True):
        if score == "letters":
            prompt, letters = letter_tokens(model.tokenizer, choice, shown)
            pairs += [(prompt, letter) for letter in letters]
        else:
            history = [turn for item in shown for turn in (Message("user", item.question), Message("assistant", item.answer))]
            pairs += [option_tokens(model, choice.question, option, history) for option in choice.options]
    found = iter(zip(continuation_scores(model, pairs, injection, tell), pairs, strict=True))
    values = [[(total, len(tokens)) for _ in choice.options for (total, _), (_, tokens) in [next(found)]] for choice in choices]
    return [[total if score == "letters" else total / count for total, count in row] for row in values]


def grade_choices(choices: Sequence[Choice], scores: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Compare what was chosen with what is right.

    Returns ``{"n", "accuracy", "chance", "intervals", "note", "subjects", "items"}``: ``chance`` is the expected accuracy of guessing,
    ``note`` says so where the interval includes it ("" otherwise), ``subjects`` has n, accuracy, chance and intervals of each subject;
    the items have question, options, correct, subject, chosen, accuracy, scores.
    """
    rows = []
    for choice, values in zip(choices, scores, strict=True):
        chosen = max(range(len(values)), key=values.__getitem__)
        facts = {"question": choice.question, "options": list(choice.options), "correct": choice.correct, "subject": choice.subject}
        rows.append({**facts, "chosen": chosen, "accuracy": chosen == choice.correct, "scores": list(values)})
    subjects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["subject"]:
            subjects.setdefault(str(row["subject"]), []).append(row)
    summary = _accuracy(rows, seed)
    low, high = summary["intervals"]["accuracy"]
    guessing = low <= summary["chance"] <= high
    note = f"not told from guessing: the interval includes chance, {summary['chance']:.1%}" if guessing else ""
    each = {name: _accuracy(members, seed) for name, members in sorted(subjects.items())}
    return {**summary, "note": note, "subjects": each, "items": rows}


def measure_task(
    model: LanguageModel, items: Sequence[TaskItem], injection: Injection | None = None, *, score: Score | None = None, seed: int = 0,
    tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The score of a model on a task's items, for instance :attr:`retain.data.tasks.LanguageTask.test`, under the name "score".

    Multiple choice: accuracy by letters or by options (None: letters for a task of letters). Other questions: the share of answers that
    contain the expected words, closed book. The rest is what :func:`grade_choices` or :func:`grade_answers` returns.
    """
    if items and all(item.choice is not None for item in items):
        choices = [item.choice for item in items if item.choice is not None]
        way: Score = score or ("letters" if items[0].letters else "options")
        found = choose(model, choices, injection, seed, score=way, tell=tell)
        return {"score": found["accuracy"], "by": way, **found}
    asked = [Item(item.question, item.answers, item.group) for item in items]
    found = question_answering(model, asked, injection, seed=seed, tell=tell)
    return {"score": found["contains"], "by": "contains", **found}


def _accuracy(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    chance = math.fsum(1 / len(row["options"]) for row in rows) / len(rows) if rows else math.nan
    return {"n": len(rows), "chance": chance, **_means(rows, ("accuracy",), seed)}


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
