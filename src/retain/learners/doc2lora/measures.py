"""What a hypernetwork's adapters are worth on texts that it was not trained on, against every arm that could explain it away.

Arms: ``base``, nothing; ``own``, the adapter of the text that is asked about; ``wrong``, that of another text; ``bias``, what all adapters
have in common; ``context``, the text itself in the prompt; in text mode ``random``, the adapter of a description of random letters.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from retain.adapters import Adapter
from retain.data.examples import Example, prompt_tokens, question_example, text_example
from retain.data.selfstudy import normalise
from retain.learners.doc2lora.hypernetwork import Hypernetwork, Written
from retain.learners.doc2lora.injection import frozen_injection, inject_written
from retain.learners.doc2lora.reading import read
from retain.learners.doc2lora.settings import EvaluationSettings
from retain.learners.doc2lora.sources import Source, World, haystacks
from retain.lm.generation import Sampling, generate
from retain.lm.model import Injection, LanguageModel

GROUP = 8  # texts whose questions are answered at once
CONTROL_ADAPTERS = 4


@dataclass(frozen=True)
class Arm:
    """``accuracy``: share of the answers that hold the right words; ``log_likelihood`` of the right answers, in nats per token."""

    accuracy: float
    log_likelihood: float


@dataclass(frozen=True)
class Quiz:
    """A text and what is asked about it, with the right answers."""

    source: Source
    pairs: tuple[tuple[str, str], ...]


@torch.no_grad()
def measure(
    network: Hypernetwork, model: LanguageModel, quizzes: Sequence[Quiz], settings: EvaluationSettings, *, frozen: Sequence[Adapter] = (),
    world: World | None = None, control: Sequence[str] = (), seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """JSON values: ``arms`` by name; ``needle``, a fact in a long text at several depths (where there is a ``world``); ``control``,
    perplexity of texts that have nothing to do with the documents, without and with adapters; ``texts`` and ``questions`` asked."""
    exam = _Exam(network, model, frozen, settings.answer_tokens)
    texts = [read(network, model, quiz.source.text) for quiz in quizzes]
    found: dict[str, Any] = {"arms": {name: asdict(arm) for name, arm in exam.arms(quizzes, texts, seed).items()}}
    if network.config.mode == "document" and world is not None and settings.depths:
        found["needle"] = exam.needles(world, settings, seed)
    if control:
        found["control"] = exam.control(texts[:CONTROL_ADAPTERS], control)
    return {**found, "texts": len(quizzes), "questions": sum(len(quiz.pairs) for quiz in quizzes)}


@dataclass(frozen=True)
class _Exam:
    network: Hypernetwork
    model: LanguageModel
    frozen: Sequence[Adapter]
    answer_tokens: int

    def arms(self, quizzes: Sequence[Quiz], texts: Sequence[Written], seed: int) -> dict[str, Arm]:
        """All arms over all questions."""
        count, written = len(quizzes), list(texts)
        rows: dict[str, Callable[[int], Sequence[int]]] = {"own": lambda i: [i], "bias": lambda i: [-1]}
        if count > 1:
            rows["wrong"] = lambda i: [(i + 1) % count]
        if self.network.config.mode == "text":
            written += [read(self.network, self.model, text) for text in _random_descriptions(count, seed)]
            rows["random"] = lambda i: [count + i]
        found = {"base": self._arm(quizzes, self._nothing)}
        for name, active in rows.items():
            found[name] = self._arm(quizzes, partial(self._active, written, active))
        found["context"] = self._arm(quizzes, self._nothing, context=True)
        return found

    def _nothing(self, owners: Sequence[int]) -> Injection | None:
        return frozen_injection(self.model, self.frozen)

    def _active(self, texts: Sequence[Written], active: Callable[[int], Sequence[int]], owners: Sequence[int]) -> Injection:
        return self._injection(texts, [active(owner) for owner in owners])

    def needles(self, world: World, settings: EvaluationSettings, seed: int) -> list[dict[str, Any]]:
        """One row for each depth: tokens and chunks of the haystack, and the arms base, own and (where it fits) context."""
        rows = []
        for hay in haystacks(world, lambda text: len(self.model.tokenizer(text, add_special_tokens=False).input_ids),
                             settings.haystack_tokens, settings.depths, seed):  # fmt: skip
            quiz = Quiz(Source(hay.text, ()), tuple((question, hay.fact.answer) for question in hay.fact.questions))
            text = read(self.network, self.model, hay.text)
            row: dict[str, Any] = {"depth": hay.depth, "chunks": len(text.a[0])}
            row["tokens"] = len(self.model.tokenizer(hay.text, add_special_tokens=False).input_ids)
            row["base"] = asdict(self._arm([quiz], self._nothing))
            row["own"] = asdict(self._arm([quiz], partial(self._active, [text], lambda i: [0])))
            if row["tokens"] + 4 * self.answer_tokens + 64 <= self.model.context:
                row["context"] = asdict(self._arm([quiz], self._nothing, context=True))
            rows.append(row)
        return rows

    def control(self, texts: Sequence[Written], control: Sequence[str]) -> dict[str, float]:
        """Perplexity of control texts with nothing, with the bias alone, and the mean with one adapter at a time."""
        examples = [text_example(self.model.tokenizer, text) for text in control]
        longest = [example for example in examples if len(example) <= self.model.context]
        base = self._perplexity(longest, self._nothing([]))
        bias = self._perplexity(longest, self._injection([], [[-1]] * len(longest)))
        own = [self._perplexity(longest, self._injection([text], [[0]] * len(longest))) for text in texts]
        return {"base": base, "bias": bias, "own": sum(own) / len(own)}

    def _arm(self, quizzes: Sequence[Quiz], injection: Callable[[Sequence[int]], Injection | None], context: bool = False) -> Arm:
        right, likely, tokens, asked = 0, 0.0, 0, 0
        for group in _groups(len(quizzes)):
            owners = [number for number in group for _ in quizzes[number].pairs]
            pairs = [(*pair, quizzes[number].source.text if context else None) for number in group for pair in quizzes[number].pairs]
            active, tokenizer, room = injection(owners), self.model.tokenizer, self.model.context - self.answer_tokens
            prompts = [prompt_tokens(tokenizer, question, text, max_tokens=room) for question, _, text in pairs]
            answers = generate(self.model, prompts, Sampling(max_tokens=self.answer_tokens), active, batch=len(prompts))
            right += sum(holds(answer, pair[1]) for answer, pair in zip(answers, pairs, strict=True))
            sums, counts = self._likelihood([question_example(tokenizer, *pair, max_tokens=self.model.context) for pair in pairs], active)
            likely, tokens, asked = likely + sums, tokens + counts, asked + len(pairs)
        return Arm(right / asked, likely / tokens)

    def _likelihood(self, examples: Sequence[Example], injection: Injection | None) -> tuple[float, int]:
        sums, counts = self.model.sequence_log_likelihood(
            [example.tokens for example in examples], [example.supervised for example in examples], injection
        )
        return sum(sums), sum(counts)

    def _perplexity(self, examples: Sequence[Example], injection: Injection | None) -> float:
        total, tokens = self._likelihood(examples, injection)
        return math.exp(-total / tokens)

    def _injection(self, texts: Sequence[Written], active: Sequence[Sequence[int]]) -> Injection:
        needed = sorted({number for row in active for number in row if number >= 0})
        places = {number: place for place, number in enumerate(needed)}
        rows = [[places.get(number, -1) for number in row] for row in active]
        return inject_written(self.network, self.model, [texts[number] for number in needed], rows, self.frozen)


def holds(answer: str, right: str) -> bool:
    """Whether an answer holds the right words, whole and in a row."""
    return f" {normalise(right)} " in f" {normalise(answer)} "


def _groups(count: int) -> Iterator[range]:
    for first in range(0, count, GROUP):
        yield range(first, min(first + GROUP, count))


def _random_descriptions(count: int, seed: int) -> list[str]:
    """Descriptions that say nothing: words of random letters."""
    draw = random.Random(f"{seed}/random descriptions")
    words = [["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(8)] for _ in range(count)]
    return [" ".join(row) for row in words]
