"""Lessons on the tiny model for learners whose adapters build on earlier ones, and what an adapter then knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tests.tiny import tiny_documents, tiny_questions
from torch import Tensor

from retain.adapters import Adapter, inject
from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.examples import prompt_tokens, question_example, text_example
from retain.evaluation.probes import Probe, answer_questions, recall
from retain.learners.base import Lesson, Memory
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

Earlier = Sequence[tuple[str, Adapter | Memory]]


def settings(**more: Mapping[str, Any]) -> Config:
    """Settings that teach the tiny model four facts in about two seconds; sections in ``more`` add to them."""
    learn = {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 14, "batch_tokens": 128, "learning_rate": 1e-2}
    return load_config(None, {**more, "learn": learn | dict(more.get("learn", {}))})


def lesson(model: LanguageModel, number: int, earlier: Earlier = (), seed: int = 0) -> Lesson:
    """A new document as its text and two wordings of each question; the last wording is kept back."""
    title, text = tiny_documents()[number]
    examples = [text_example(model.tokenizer, f"{title}\n\n{text}")]
    examples += [
        question_example(model.tokenizer, wording, fact.answer) for fact in tiny_questions(number) for wording in fact.wordings[:2]
    ]
    return Lesson(Document.from_text(text, title), (), tuple(examples), earlier=tuple(earlier), seed=seed)


def right(model: LanguageModel, number: int, adapter: Adapter | None) -> float:
    """Share of a document's questions, in the wording that was kept back, that are answered right."""
    probes = [Probe("", fact.wordings[-1], fact.answer) for fact in tiny_questions(number)]
    injection = inject([(adapter, 1.0)], model.dtype) if adapter else None
    found = recall(answer_questions(model, [probe.question for probe in probes], injection), probes)
    return sum(found) / len(found)


def logits(model: LanguageModel, number: int, adapter: Adapter | None) -> Tensor:
    """Logits at every token of a document's questions."""
    packed = Packed.of([prompt_tokens(model.tokenizer, fact.wordings[-1]) for fact in tiny_questions(number)])
    with torch.no_grad():
        return model.logits(model.hidden(packed, inject([(adapter, 1.0)], model.dtype) if adapter else None))


def silent(what: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
    """Nobody is told."""
