"""What a model knows: answers to probe questions, perplexity, distance from the base model, multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from retain.data import DataError, Message, dialogue_example, prompt_tokens
from retain.data.answers import contains
from retain.data.chat import affixes, tokenise, user_turn
from retain.lm.generation import Processor, Sampling, generate
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, common_prefix, targets

Tell: TypeAlias = Callable[[int, int, int], None]  # how many are done, of how many, and the tokens that have gone through the model
_Row: TypeAlias = tuple[tuple[int, ...], int]  # tokens, and at how many positions at their end a prediction is read
_PASS = 2048  # tokens in one forward pass
_CHUNK = 128  # positions whose logits are held at once
_WORTH = 64  # tokens that sharing a prefix must save to be worth a pass of its own


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
    max_tokens: int = 24, batch: int = 64, tell: Tell | None = None, processors: Sequence[Processor] = (),
) -> list[str]:  # fmt: skip
    """Greedy answers, in the order of the questions.

    contexts: a text to answer from for each question, or None; what does not fit the model's context is cut off at its end.
    batch: questions at a time; an injection with one weight per row needs all in one (``batch`` >= number of questions).
    tell: is called after every batch. processors: of logits, for questions that are all in one batch: row n is question n.
    """
    if not questions:
        return []
    given = [None] * len(questions) if contexts is None else contexts
    room = model.context - max_tokens
    prompts = [
        prompt_tokens(model.tokenizer, question, context, max_tokens=room) for question, context in zip(questions, given, strict=True)
    ]  # fmt: skip
    stop = () if getattr(model.tokenizer, "chat_template", None) else ("\nQuestion:",)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    texts, tokens = [""] * len(prompts), 0
    for first in range(0, len(order), batch):
        members = sorted(order[first : first + batch])
        found = generate(
            model, [prompts[number] for number in members], Sampling(max_tokens=max_tokens, stop=stop), injection, processors,
            batch=batch,
        )  # fmt: skip
        for number, text in zip(members, found, strict=True):
            texts[number] = text.strip()
        tokens += sum(len(prompts[number]) for number in members)
        if tell:
            tell(min(first + batch, len(order)), len(order), tokens)
    return texts


def recall(answers: Sequence[str], probes: Sequence[Probe]) -> list[bool]:
    """For each probe, whether its answer holds the expected words (:func:`retain.evaluation.contains`)."""
    return [contains(answer, probe.answers) for answer, probe in zip(answers, probes, strict=True)]


def perplexity(model: LanguageModel, texts: Sequence[str], injection: Injection | None = None, window: int = 512) -> float:
    """exp of the mean negative log-likelihood of a token, over all texts together.

    Each text is cut into windows of ``window`` tokens (at most the model's context) that do not overlap; the first token of a window
    has nothing before it and is not counted. NaN when no token is left to count, infinite for a model that has diverged.
    """
    total, count = 0.0, 0
    for sequences in _passes([tokens for _, tokens in _windows(model, texts, window)]):
        sums, numbers = model.sequence_log_likelihood(sequences, [_all_but_first(tokens) for tokens in sequences], injection)
        total += math.fsum(sums)
        count += sum(numbers)
    return float(torch.tensor(-total / count, dtype=torch.float64).exp()) if count else math.nan


def mean_kl(model: LanguageModel, texts: Sequence[str], injection: Injection | None, window: int = 512) -> float:
    """Mean over the tokens that :func:`perplexity` counts of KL(base || adapted) of the distributions that predict them, in nats.

    Zero without an injection. NaN when no token is left to count.
    """
    if injection is None:
        return 0.0 if _windows(model, texts, window) else math.nan
    windows = text_windows(model, texts, injection, window)
    count = sum(item.tokens for item in windows)
    return max(math.fsum(item.kl for item in windows), 0.0) / count if count else math.nan  # rounding can make a tiny sum negative


class Window(NamedTuple):
    """A window of a text, number ``text``: tokens that count, the sums over them of the negative log-likelihood by the base and by the
    adapted model and of KL(base || adapted), in nats."""

    text: int
    tokens: int
    base: float
    adapted: float
    kl: float


def text_windows(
    model: LanguageModel, texts: Sequence[str], injection: Injection | None = None, window: int = 512, tell: Tell | None = None
) -> list[Window]:
    """What :func:`perplexity` and :func:`mean_kl` are means of, window by window, from one pass of the base and one with the injection."""
    pieces = _windows(model, texts, window)
    found: list[Window] = []
    passed = 0
    for sequences in _passes([tokens for _, tokens in pieces]):
        packed = Packed.of(sequences, model.device)
        positions, labels = targets(packed, [_all_but_first(tokens) for tokens in sequences])
        sums = torch.zeros(3, len(sequences), dtype=torch.float64)  # base, adapted, kl
        with torch.inference_mode():
            base = model.hidden(packed)[positions]
            adapted = base if injection is None else model.hidden(packed, injection)[positions]
            parts = (base.split(_CHUNK), adapted.split(_CHUNK), labels.split(_CHUNK), packed.rows[positions].split(_CHUNK))
            for before, after, wanted, rows in zip(*parts, strict=True):
                log_p = torch.log_softmax(model.logits(before), -1)
                log_q = log_p if injection is None else torch.log_softmax(model.logits(after), -1)
                kl = torch.zeros_like(wanted, dtype=log_p.dtype)
                if injection is not None:
                    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
                values = torch.stack([-log_p.gather(1, wanted[:, None])[:, 0], -log_q.gather(1, wanted[:, None])[:, 0], kl])
                sums.index_add_(1, rows.cpu(), values.double().cpu())
        for column, tokens in enumerate(sequences):
            figures = sums[:, column].tolist()
            found.append(Window(pieces[len(found)][0], len(tokens) - 1, figures[0], figures[1], figures[2]))
        passed += packed.total * (1 if injection is None else 2)
        if tell:
            tell(len(found), len(pieces), passed)
    return found


def ratio_interval(
    values: Sequence[float], weights: Sequence[float], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(values) / sum(weights) over pairs drawn together (Efron and Tibshirani 1993, section 10.3);
    for a mean over tokens whose independent units are windows. NaN for fewer than two pairs."""
    if len(values) < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    above, below = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    ratios = []
    for _ in range(resamples):
        drawn = generator.integers(0, len(above), len(above))
        ratios.append(above[drawn].sum() / below[drawn].sum())
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def multiple_choice(model: LanguageModel, question: str, options: Sequence[str], injection: Injection | None = None) -> list[float]:
    """Mean log-likelihood per token, in nats, of each option as the answer, with the token that ends the answer.

    The option with the largest value is the model's choice (GPT-3, 2005.14165, section 2.4: likelihood per token).
    """
    pairs = [option_tokens(model, question, option) for option in options]
    found = continuation_scores(model, pairs, injection)
    return [score / len(continuation) for (score, _), (_, continuation) in zip(found, pairs, strict=True)]


def option_tokens(model: LanguageModel, question: str, option: str, history: Sequence[Message] = ()) -> tuple[list[int], list[int]]:
    """The tokens of a question as it is asked, and those of an option as its answer with the token that ends it.

    history: turns before; the oldest are left out until all fits the model's context. Raises DataError when it does not even so.
    """
    turns = list(history)
    while True:
        spoken = [*turns, *user_turn(model.tokenizer, question, None), Message("assistant", option)]
        example = dialogue_example(model.tokenizer, spoken)
        if len(example) <= model.context or not turns:
            break
        turns = turns[2:]
    if len(example) > model.context:
        what = f"question and option have {len(example)} tokens, {model.name} reads {model.context}"
        raise DataError(what, field="question", fix="shorten them")
    start = len(prompt_tokens(model.tokenizer, question, history=turns))
    return list(example.tokens[:start]), list(example.tokens[start:])


def continuation_scores(
    model: LanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], injection: Injection | None = None, tell: Tell | None = None
) -> list[tuple[float, bool]]:
    """For each (context, continuation) of tokens, the continuation's log-likelihood in nats and whether greedy decoding writes it.

    What is too long for the model loses tokens at its left. Continuations that differ in their last token only are read from one row of
    one pass, which is how all letters of a multiple-choice question come from a single prompt; contexts that begin alike share a pass
    over what they share. An injection with one weight per row has no row to go by here (ValueError).
    """
    if injection is not None and injection.by_row:
        raise ValueError("continuations are gathered across questions: use an injection that is the same for all of them")
    readers: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        if not continuation or not context:
            raise ValueError("a continuation and something before it are needed")
        if len(continuation) > model.context:
            raise ValueError(f"a continuation of {len(continuation)} tokens is longer than the model's context of {model.context}")
        readers.setdefault((*context, *continuation[:-1])[-model.context :], []).append(number)
    shares = type(model).hidden_after is not LanguageModel.hidden_after  # elsewhere a shared prefix would run once for each row
    order = sorted(readers) if shares else sorted(readers, key=len)
    rows = [(tokens, max(len(pairs[number][1]) for number in readers[tokens])) for tokens in order]
    scores = [(0.0, False)] * len(pairs)
    done = passed = 0
    for shared, batch in _sharing(rows, shares):
        owned = [tokens[shared:] for tokens, _ in batch]
        with torch.inference_mode():
            if shared:
                final = model.hidden_after(batch[0][0][:shared], owned, injection)
            else:
                final = model.hidden(Packed.of(owned, model.device), injection)
            for states, (tokens, read) in zip(final.split([len(tokens) for tokens in owned]), batch, strict=True):
                log_p = torch.log_softmax(model.logits(states[-read:]), -1)
                for number in readers[tokens]:
                    wanted = torch.tensor(pairs[number][1], device=log_p.device)
                    own = log_p[-len(wanted) :]
                    greedy = bool((own.argmax(-1) == wanted).all())
                    scores[number] = float(own.gather(1, wanted[:, None]).double().sum()), greedy
                    done += 1
        passed += shared + sum(map(len, owned))
        if tell:
            tell(done, len(pairs), passed)
    return scores


def _sharing(rows: Sequence[_Row], shares: bool) -> Iterator[tuple[int, list[_Row]]]:
    """(tokens, positions read at the end) in passes of about ``_PASS`` tokens, each with the length of the prefix that its rows
    share and that none reads from. A row for whose sake the others would share less begins a pass of its own."""
    gathered: list[_Row] = []
    shared = 0
    for row in rows:
        together = _prefix([*gathered, row]) if shares else 0
        cost = together + sum(len(tokens) - together for tokens, _ in (*gathered, row))
        loses = (len(gathered) - 1) * shared - len(gathered) * together
        if gathered and (cost > _PASS or loses > _WORTH):
            yield shared, gathered
            gathered, together = [], 0
        gathered.append(row)
        shared = together
    if gathered:
        yield shared, gathered


def _prefix(rows: Sequence[_Row]) -> int:
    return common_prefix([tokens[: len(tokens) - read + 1] for tokens, read in rows])


def _windows(model: LanguageModel, texts: Sequence[str], window: int) -> list[tuple[int, Sequence[int]]]:
    """Windows of two tokens or more, each with its text's number; the tokenizer's own beginning (bos) comes first in a text."""
    size = min(window, model.context)
    if size < 2:
        raise ValueError(f"a window of {size} tokens has none to predict")
    before = affixes(model.tokenizer)[0]
    tokens = [before + tokenise(model.tokenizer, text, literal=True) for text in texts]
    pieces = [(text, ids[start : start + size]) for text, ids in enumerate(tokens) for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece[1]) > 1]


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
