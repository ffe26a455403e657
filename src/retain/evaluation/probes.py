"""What a model knows: answers to probe questions, perplexity, distance from the base model, multiple choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from retain.data import prompt_tokens, question_example
from retain.data.chat import affixes, tokenise
from retain.evaluation.answers import contains
from retain.lm.generation import Sampling, generate
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, targets

_PASS = 2048  # tokens in one forward pass
_CHUNK = 128  # positions whose logits are held at once


@dataclass(frozen=True, slots=True)
class Probe:
    """A question about one fact. ``document``: id of the document that states it, or ""; ``aliases``: other right answers."""

    document: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers, the expected one first."""
        return (self.answer, *self.aliases)


def answer_questions(
    model: LanguageModel, questions: Sequence[str], injection: Injection | None = None, contexts: Sequence[str | None] | None = None,
    max_tokens: int = 24, batch: int = 64,
) -> list[str]:  # fmt: skip
    """Greedy answers, in the order of the questions.

    contexts: a text to answer from for each question, or None; what does not fit the model's context is cut off at its end.
    batch: questions at a time; an injection with one weight per row needs all in one (``batch`` >= number of questions).
    """
    if not questions:
        return []
    given = [None] * len(questions) if contexts is None else contexts
    room = model.context - max_tokens
    prompts = [
        prompt_tokens(model.tokenizer, question, context, max_tokens=room) for question, context in zip(questions, given, strict=True)
    ]  # fmt: skip
    stop = () if getattr(model.tokenizer, "chat_template", None) else ("\nQuestion:",)
    texts = generate(model, prompts, Sampling(max_tokens=max_tokens, stop=stop), injection, batch=batch)
    return [text.strip() for text in texts]


def recall(answers: Sequence[str], probes: Sequence[Probe]) -> list[bool]:
    """For each probe, whether its answer holds the expected words (:func:`retain.evaluation.contains`)."""
    return [contains(answer, probe.answers) for answer, probe in zip(answers, probes, strict=True)]


def perplexity(model: LanguageModel, texts: Sequence[str], injection: Injection | None = None, window: int = 512) -> float:
    """exp of the mean negative log-likelihood of a token, over all texts together.

    Each text is cut into windows of ``window`` tokens (at most the model's context) that do not overlap; the first token of a window
    has nothing before it and is not counted. NaN when no token is left to count, infinite for a model that has diverged.
    """
    total, count = 0.0, 0
    for sequences in _passes(_windows(model, texts, window)):
        sums, numbers = model.sequence_log_likelihood(sequences, [_all_but_first(tokens) for tokens in sequences], injection)
        total += math.fsum(sums)
        count += sum(numbers)
    return float(torch.tensor(-total / count, dtype=torch.float64).exp()) if count else math.nan


def mean_kl(model: LanguageModel, texts: Sequence[str], injection: Injection | None, window: int = 512) -> float:
    """Mean over the tokens that :func:`perplexity` counts of KL(base || adapted) of the distributions that predict them, in nats.

    Zero without an injection. NaN when no token is left to count.
    """
    total, count = 0.0, 0
    for sequences in _passes(_windows(model, texts, window)):
        packed = Packed.of(sequences, model.device)
        positions, _ = targets(packed, [_all_but_first(tokens) for tokens in sequences])
        count += int(positions.numel())
        if injection is None:
            continue
        with torch.inference_mode():
            base, adapted = model.hidden(packed)[positions], model.hidden(packed, injection)[positions]
            for before, after in zip(base.split(_CHUNK), adapted.split(_CHUNK), strict=True):
                log_p, log_q = torch.log_softmax(model.logits(before), -1), torch.log_softmax(model.logits(after), -1)
                total += float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return max(total, 0.0) / count if count else math.nan  # rounding can make the sum of tiny divergences negative


def multiple_choice(model: LanguageModel, question: str, options: Sequence[str], injection: Injection | None = None) -> list[float]:
    """Mean log-likelihood per token, in nats, of each option as the answer, with the token that ends the answer.

    The option with the largest value is the model's choice (GPT-3, 2005.14165, section 2.4: likelihood per token).
    """
    examples = [question_example(model.tokenizer, question, option, max_tokens=model.context) for option in options]
    scores: list[float] = []
    for sequences in _passes([example.tokens for example in examples]):
        masks = [example.supervised for example in examples[len(scores) : len(scores) + len(sequences)]]
        sums, numbers = model.sequence_log_likelihood(sequences, masks, injection)
        scores += [value / number for value, number in zip(sums, numbers, strict=True)]
    return scores


def _windows(model: LanguageModel, texts: Sequence[str], window: int) -> list[Sequence[int]]:
    """The texts' tokens in windows of two tokens or more; the tokenizer's own beginning (bos) comes first in a text."""
    size = min(window, model.context)
    if size < 2:
        raise ValueError(f"a window of {size} tokens has none to predict")
    before = affixes(model.tokenizer)[0]
    tokens = [before + tokenise(model.tokenizer, text, literal=True) for text in texts]
    pieces = [ids[start : start + size] for ids in tokens for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) > 1]


def _passes(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """The sequences in their order, as many at a time as make about ``_PASS`` tokens."""
    gathered: list[Sequence[int]] = []
    for sequence in sequences:
        if gathered and sum(map(len, gathered)) + len(sequence) > _PASS:
            yield gathered
            gathered = []
        gathered.append(sequence)
    if gathered:
        yield gathered


def _all_but_first(tokens: Sequence[int]) -> list[bool]:
    return [False] + [True] * (len(tokens) - 1)
