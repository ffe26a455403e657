"""What the hypernetwork's adapters are to make the model say: the frozen model with the text before the question is the teacher.

Context distillation (2209.15189, 2602.15902 section 3.2): the labels of an answer's tokens are the likeliest tokens of the model that reads
the text, with their probabilities. Each source is answered in passes of its own, so its labels never depend on what else is in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from retain.data.errors import DataError
from retain.data.examples import Example, prompt_tokens, question_example
from retain.learners.doc2lora.sources import Asked, Source
from retain.lm.generation import Sampling, generate
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, targets

Labels = Literal["own", "given", "hard"]
PASS_TOKENS = 8192


@dataclass(frozen=True)
class Lesson:
    """A question as the student sees it, without the text: the ``example``, whose answer's N tokens are supervised; the teacher's
    ``tokens`` [N, K] there and the ``shares`` [N, K] of each, which sum to 1; the answer in words."""

    example: Example
    tokens: Tensor
    shares: Tensor
    question: str
    answer: str


class Teacher:
    """The labels of sources, made once for each and kept. ``frozen``: adapters that answer too, such as the study skill."""

    def __init__(self, model: LanguageModel, labels: Labels, top: int, answer_tokens: int, frozen: Injection | None = None) -> None:
        self.model, self.labels, self.top, self.answer_tokens, self.frozen = model, labels, top, answer_tokens, frozen
        self._known: dict[tuple[str, tuple[Asked, ...]], tuple[Lesson, ...]] = {}

    def lessons(self, source: Source) -> tuple[Lesson, ...]:
        """The lessons of a source's questions, in their order; questions that the model answers with nothing are left out.

        Raises:
            DataError: the text and a question are longer than the model's context, so that the teacher would not see all of it.
        """
        key = (source.text, source.questions)
        if key not in self._known:
            self._known[key] = tuple(self._made(source))
        return self._known[key]

    def _made(self, source: Source) -> list[Lesson]:
        tokenizer, hard = self.model.tokenizer, self.labels == "hard"
        pairs = [(question, answer) for question, answer in self._answers(source) if answer.strip()]
        bare = [question_example(tokenizer, *pair, max_tokens=self.model.context) for pair in pairs]
        if hard:
            labels = [torch.tensor(targets_of(example), device=self.model.device)[:, None] for example in bare]
            soft = [(found, torch.ones(found.shape, device=found.device)) for found in labels]
        else:
            soft = self._likely([question_example(tokenizer, *pair, source.text) for pair in pairs], source)
        return [Lesson(example, *label, *pair) for example, label, pair in zip(bare, soft, pairs, strict=True)]

    def _answers(self, source: Source) -> list[tuple[str, str]]:
        if self.labels != "own":
            return [(question, answer or "") for question, answer in source.questions]
        prompts = [prompt_tokens(self.model.tokenizer, asked.question, source.text) for asked in source.questions]
        self._check(max(map(len, prompts)) + self.answer_tokens, source)
        answers = generate(self.model, prompts, Sampling(max_tokens=self.answer_tokens), self.frozen)
        return [(asked.question, answer.strip()) for asked, answer in zip(source.questions, answers, strict=True)]

    @torch.no_grad()
    def _likely(self, readings: Sequence[Example], source: Source) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        self._check(max(map(len, readings), default=0), source)
        count = max(1, PASS_TOKENS // max(map(len, readings), default=1))
        for first in range(0, len(readings), count):
            batch = readings[first : first + count]
            packed = Packed.of([example.tokens for example in batch], self.model.device)
            positions, _ = targets(packed, [example.supervised for example in batch])
            hidden = self.model.hidden(packed, self.frozen)[positions]
            best = [torch.softmax(self.model.logits(part), -1).topk(min(self.top, self.model.vocabulary), 1) for part in hidden.split(128)]
            shares = torch.cat([part.values for part in best])
            sizes = [example.n_supervised() for example in batch]
            tokens, shares = torch.cat([part.indices for part in best]), shares / shares.sum(1, keepdim=True)
            found += zip(tokens.split(sizes), shares.split(sizes), strict=True)
        return found

    def _check(self, tokens: int, source: Source) -> None:
        if tokens > self.model.context:
            what = f"the text and a question have {tokens} tokens, the model's context {self.model.context}"
            raise DataError(what, path=source.origin, fix="divide the text: the teacher must see all of it")


def targets_of(example: Example) -> list[int]:
    """The tokens that are supervised."""
    return [token for token, supervised in zip(example.tokens, example.supervised, strict=True) if supervised]
