"""From a document to what is trained on: a study set of text, questions, rewordings and clozes, some questions held out as probes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from retain.adapters import Adapter, inject
from retain.config import StudyConfig
from retain.data.document import Document
from retain.data.examples import Example, dialogue_examples, question_example, text_examples
from retain.data.selfstudy import StudyItem, grounded, hold_out, study_items, write_items
from retain.learners.distillation import read_labels
from retain.learners.teacher import teacher_items
from retain.lm.generation import Sampling, generate
from retain.lm.model import LanguageModel

WINDOW = 512  # tokens of one text example
LEAST_RULE_ITEMS, RULE_ITEMS_PER_WORD = 80, 0.6  # so that the cost of a document grows with its length and no faster


@dataclass(frozen=True)
class StudySet:
    """What is trained on (``train``) and the held-out questions that show what was learned (``probes``), for one document."""

    document: str
    train: tuple[StudyItem, ...]
    probes: tuple[StudyItem, ...]

    def to_json(self) -> bytes:
        """Canonical JSON."""
        items = {"train": [asdict(item) for item in self.train], "probes": [asdict(item) for item in self.probes]}
        return json.dumps({"document": self.document, **items}, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StudySet:
        """Inverse of :meth:`to_json`."""
        value = json.loads(data)
        return cls(value["document"], *(tuple(StudyItem(**item) for item in value[part]) for part in ("train", "probes")))


def write_questions(model: LanguageModel, skill: Adapter | None, document: Document, per_sentence: int, seed: int) -> list[StudyItem]:
    """Questions that the model itself writes about the document, with the study skill; only grounded, well-formed ones are kept."""
    injection = inject([(skill, 1.0)], model.dtype, model.device) if skill else None

    def write(prompts: list[str], n: int, seed: int) -> list[list[str]]:
        tokens = [model.tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts for _ in range(n)]
        texts = generate(model, tokens, Sampling(max_tokens=96, temperature=0.7, top_p=0.95, seed=seed), injection, batch=48)
        return [[f"Q:{text}" for text in texts[first : first + n]] for first in range(0, len(texts), n)]

    items = write_items(write, document.title, document.text, per_sentence=per_sentence, seed=seed)
    return [replace(item, written=True) for item in items]


def own_questions(document: Document, fraction: float, seed: int) -> list[StudyItem]:
    """The user's pairs as items. Of those whose answer stands in the text, which teaches it too, a share is held out."""
    items = [StudyItem(pair.question, pair.answer, "question", pair.answer, pair.answer) for pair in document.pairs]
    taught = [n for n, item in enumerate(items) if document.kind != "pairs" and grounded(item.fact, document.text)]
    held = random.Random(seed).sample(taught, round(fraction * len(taught)))
    return [replace(item, held_out=n in held) for n, item in enumerate(items)]


def build_study(
    model: LanguageModel, skill: Adapter | None, document: Document, config: StudyConfig, seed: int = 0,
    on_passage: Callable[[int, int], None] | None = None,
) -> StudySet:  # fmt: skip
    """Make the study set of a document: the user's own question/answer pairs, questions by rules, and questions by the model.

    ``config.writer`` "auto" lets the model write when it has the study skill, "teacher" a larger model elsewhere, of which
    ``on_passage`` is told how many passages of how many it was asked. Raises ValueError when
    nothing can be studied, TeacherError when the teacher cannot be asked.
    """
    items, made = own_questions(document, config.held_out_fraction, seed), list[StudyItem]()
    if document.kind not in ("pairs", "dialogue", "task"):
        if config.rules:
            limit = max(LEAST_RULE_ITEMS, round(RULE_ITEMS_PER_WORD * len(document.text.split())))
            made += study_items(document.title, document.text, limit=limit, seed=seed)
        if config.writer == "model" or (config.writer == "auto" and skill is not None):
            made += write_questions(model, skill, document, config.questions_per_fact, seed)
        if config.writer == "teacher":
            made += teacher_items(config.teacher, document, config.questions_per_fact, on_passage)
    items += [item for item in made if _fits(model, item)]
    if not any(item.kind == "text" for item in items) and document.kind not in ("dialogue", "task"):
        items.append(StudyItem(None, f"{document.title}\n\n{document.text}", "text", document.text, document.title))
    marked = hold_out(items, config.held_out_fraction, seed)
    return StudySet(
        document.id,
        tuple(item for item in marked if not item.held_out),
        tuple(item for item in marked if item.held_out),
    )


def _fits(model: LanguageModel, item: StudyItem) -> bool:
    """Whether a question with its answer fits the window; a table or a list of addresses can make one that does not."""
    if item.prompt is None or len(f"{item.prompt}{item.completion}".encode()) < WINDOW // 2:  # a token has a byte at least
        return True
    return len(question_example(model.tokenizer, item.prompt, item.completion)) <= WINDOW


def study_examples(
    model: LanguageModel, document: Document, study: StudySet, skill: Adapter | None = None, distillation: float = 0.0
) -> list[Example]:
    """Tokenised training examples of a study set; long texts are split with context, never cut.

    With the study ``skill``, ``distillation`` is the share that the model which reads the document has in the labels of a question that
    it wrote.
    """
    found: list[Example] = []
    if document.messages:
        found += dialogue_examples(model.tokenizer, document.messages, WINDOW, document=document.id, importance=document.importance)
    common: dict[str, Any] = {"document": document.id, "importance": document.importance}
    for item in study.train:
        if item.prompt is None:
            found += text_examples(model.tokenizer, item.completion, WINDOW, overlap=32, end=False, kind=item.kind, **common)
    asked = [item for item in study.train if item.prompt is not None]
    questions = [
        question_example(model.tokenizer, item.prompt or "", item.completion, kind=item.kind, max_tokens=WINDOW, **common) for item in asked
    ]
    if skill is not None and distillation > 0.0:
        questions = read_labels(model, skill, document, asked, questions, distillation)
    return found + questions


def kinds(items: Sequence[StudyItem]) -> dict[str, int]:
    """How many items there are of each kind."""
    return {kind: sum(item.kind == kind for item in items) for kind in sorted({item.kind for item in items})}
