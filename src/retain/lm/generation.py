"""Decoding: greedy or sampled, for many prompts at once, with adapters and logit processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retain.lm.model import Injection, LanguageModel, LanguageModelError


@dataclass(frozen=True)
class Step:
    """What a processor sees of a step of decoding: ``rows`` [B], the numbers of the prompts that are being continued, ``hidden``
    [B, width], their final hidden states, and ``tokens`` [B], what was written last (None at the first step)."""

    rows: Tensor
    hidden: Tensor
    tokens: Tensor | None


Processor = Callable[[Step, Tensor], Tensor]  # (step, logits [B, V]) -> logits [B, V]


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy; ``top_p`` keeps the smallest set of tokens with that probability; ``stop``: strings that end a text."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("max_tokens must be at least 1, temperature at least 0, top_p in (0, 1]")


def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling = Sampling(), injection: Injection | None = None,
    processors: Sequence[Processor] = (), batch: int = 32,
) -> list[str]:  # fmt: skip
    """Continue every prompt (token ids) and return the texts without the prompt, end marks and stop strings.

    ``batch`` prompts run at a time, longest first; rows that ended leave the batch. An injection whose weights differ by row needs
    ``batch`` >= number of prompts.
    """
    texts: list[str] = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    for first in range(0, len(order), batch):
        members = sorted(order[first : first + batch])
        tokens: dict[int, list[int]] = {number: [] for number in members}
        for row, token in stream(model, [prompts[number] for number in members], sampling, injection, processors):
            tokens[members[row]].append(token)
        for number, ids in tokens.items():
            texts[number] = cut(model.tokenizer.decode(ids, skip_special_tokens=True), sampling.stop)[0]
    return texts


@torch.inference_mode()
def stream(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling = Sampling(), injection: Injection | None = None,
    processors: Sequence[Processor] = (),
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Yield (row, token) as they are made; the end token is not yielded. Raises LanguageModelError when a prompt leaves no room."""
    longest = max(len(prompt) for prompt in prompts)
    capacity = min(longest + sampling.max_tokens, model.context)
    if longest >= model.context:
        raise LanguageModelError(f"the prompt has {longest} tokens; {model.name} reads at most {model.context - 1} and one for the answer")
    ends = end_tokens(model)
    decoding = model.decode(prompts, injection, capacity)
    generator = torch.Generator(device=decoding.logits.device).manual_seed(sampling.seed)
    written: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    last: dict[int, int] = {}
    for _ in range(capacity - longest):
        logits = decoding.logits
        if processors:
            live = decoding.rows.tolist()
            step = Step(decoding.rows, decoding.hidden, torch.tensor([last[row] for row in live], device=logits.device) if last else None)
            for processor in processors:
                logits = processor(step, logits)
        chosen = pick(logits, sampling, generator)
        rows = decoding.rows.tolist()
        keep = torch.ones(len(rows), dtype=torch.bool)
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token in ends:
                keep[place] = False
                continue
            last[row] = token
            yield row, token
            if sampling.stop:
                written[row].append(token)
                keep[place] = not cut(model.tokenizer.decode(written[row][-24:]), sampling.stop)[1]
        if not bool(keep.any()):
            return
        decoding.advance(chosen, keep.to(chosen.device))


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next tokens [B] from logits [B, V]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    top, places = _most_probable(probabilities, sampling.top_p)
    top[(top.cumsum(-1) - top) >= sampling.top_p] = 0
    return places.gather(1, torch.multinomial(top, 1, generator=generator))[:, 0]


def _most_probable(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The largest probabilities of every row, sorted, as many as hold ``mass`` in each row, and their places.

    The few of a peaked distribution are found some fifty times faster than by sorting the whole vocabulary.
    """
    size = 64
    while True:
        size = min(size, probabilities.shape[-1])
        top, places = probabilities.topk(size, -1)
        if size == probabilities.shape[-1] or bool((top.sum(-1) >= mass).all()):
            return top, places
        size *= 16


def end_tokens(model: LanguageModel) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's end token and the chat templates' turn ends."""
    tokenizer = model.tokenizer
    ids = {tokenizer.eos_token_id} | {
        tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>")
    }
    return frozenset(number for number in ids if isinstance(number, int) and number != tokenizer.unk_token_id)


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [text.find(mark) for mark in stop if mark in text]
    return (text[: min(places)], True) if places else (text, False)
