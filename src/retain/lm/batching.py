"""Continuous batching (Orca, OSDI 2022): requests join and leave a running batch between two steps, each with its own adapters.

A step is one token for every live request. A prompt is read in pieces between the steps, so that the others wait for a piece and not
for a prompt. Keys and values lie in slots that are allocated once. The last prompt that was read stays: one that begins like it, as the
next turn of a conversation does, goes on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from retain.lm.attention import KeyValueCache
from retain.lm.decoder import DecoderLM
from retain.lm.generation import Sampling, Step, cut, end_tokens, pick, stream
from retain.lm.model import Injection, LanguageModel, LanguageModelError
from retain.lm.packing import Packed

Compose = Callable[[Sequence[Any]], Injection | None]
PIECE = 128  # tokens of a prompt between two steps


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt (token ids) to be continued. ``adapters``: what the batch's ``compose`` knows them by, such as
    their digests; ``guide``: (final hidden
    state, logits, token written last) -> logits; ``top``: how many of the likeliest tokens are told with each, None for no likelihoods."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    adapters: Any = ()
    guide: Callable[[Tensor, Tensor, int | None], Tensor] | None = None
    top: int | None = None


@dataclass(frozen=True)
class Written:
    """A token of a request's answer; its log-likelihood (before temperature) and the likeliest ones', where they were asked for."""

    request: int
    token: int
    log_likelihood: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Ended:
    """A request's answer is complete: by an end token or a stop string, or because there is no more room."""

    request: int
    reason: Literal["stop", "length"]


@dataclass(eq=False)
class _Live:
    number: int
    request: Request
    generator: torch.Generator
    room: int  # tokens that may still be written
    written: list[int] = field(default_factory=list)


class Batch:
    """Requests that are being answered. Not for several threads: one owns it and calls :meth:`step` as long as :attr:`busy`.

    ``slots``: requests answered at a time, others wait; ``capacity``: tokens of a prompt with its answer, by default the model's context;
    ``compose``: the injection of a batch whose rows have these adapters.
    """

    def __init__(self, model: DecoderLM, slots: int = 8, capacity: int | None = None, compose: Compose = lambda adapters: None) -> None:
        self.model, self.slots, self.compose = model, slots, compose
        self.capacity = min(capacity or model.context, model.context)
        self._cache = KeyValueCache.empty(model, slots, self.capacity)
        self._keys, self._values = self._cache.keys, self._cache.values
        self._cache.filled = True
        self._lengths = torch.zeros(0, dtype=torch.int64, device=model.device)  # tokens in the live rows
        self._ends = end_tokens(model)
        self._live: list[_Live] = []  # in the order of the cache's rows
        self._waiting: deque[_Live] = deque()
        self._reading: _Live | None = None
        self._read = KeyValueCache.empty(model, 1, self.capacity)  # the prompt that is being read, or was last
        self._read_tokens: list[int] = []
        self._read_with: Any = None
        self._injection: Injection | None = None
        self._composed: list[Any] | None = None
        self._count = 0
        self._narrow()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._live or self._waiting or self._reading)

    @property
    def waiting(self) -> int:
        """Requests that no slot is free for."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Requests that are being answered or read."""
        return len(self._live) + (self._reading is not None)

    def join(self, request: Request) -> int:
        """Take a request in; its number. Raises LanguageModelError when the prompt is empty or leaves no room for an answer."""
        check_room(request, self.capacity)
        generator = torch.Generator(device=self.model.device).manual_seed(request.sampling.seed)
        self._count += 1
        self._waiting.append(_Live(self._count, request, generator, min(request.sampling.max_tokens, self.capacity - len(request.prompt))))
        return self._count

    def leave(self, number: int) -> None:
        """Stop answering a request; its slot is free at once. A request that has ended already is none of the batch's."""
        self._waiting = deque(one for one in self._waiting if one.number != number)
        if self._reading is not None and self._reading.number == number:
            self._reading = None
        self._keep([place for place, one in enumerate(self._live) if one.number != number])

    @torch.inference_mode()
    def step(self) -> list[Written | Ended]:
        """Read a piece of a waiting prompt, write a token of every live request, and tell."""
        told: list[Written | Ended] = []
        together = self._short() if self._reading is None else []
        if len(together) == 1:
            self._begin(together[0])
        if self._live:
            self._advance(told)
        if self._reading is not None:
            self._read_on(told)
        if len(together) > 1:
            self._read_together(together, told)
        return told

    def _short(self) -> list[_Live]:
        """The next waiting requests that free slots and one piece hold together; the first of them in any case."""
        found: list[_Live] = []
        while self._waiting and len(self._live) + len(found) < self.slots:
            if found and sum(len(one.request.prompt) for one in (*found, self._waiting[0])) > PIECE:
                break
            found.append(self._waiting.popleft())
        return found

    def _read_together(self, those: Sequence[_Live], told: list[Written | Ended]) -> None:
        """Read several short prompts in one pass, into the slots after the live ones."""
        first, last = len(self._live), len(self._live) + len(those)
        cache = KeyValueCache(self._keys[:, first:last], self._values[:, first:last])
        packed = Packed.of([one.request.prompt for one in those], self.model.device)
        hidden = self.model.hidden(packed, self.compose([one.request.adapters for one in those]), cache=cache)[packed.last]
        self._admit(those, [len(one.request.prompt) for one in those])
        stay = self._choose(those, hidden, told)
        self._keep([*range(first), *(first + place for place, stays in enumerate(stay) if stays)])

    def _admit(self, those: Sequence[_Live], lengths: Sequence[int]) -> None:
        """The slots after the live ones hold these requests now."""
        self._live += those
        self._lengths = torch.cat([self._lengths, torch.tensor(lengths, device=self.model.device)])
        self._narrow()

    def _begin(self, one: _Live) -> None:
        """Read a prompt, from where it differs from the last one read with the same adapters."""
        prompt, known = one.request.prompt, 0
        if self._read_tokens and self._read_with == one.request.adapters:
            limit = min(len(prompt) - 1, len(self._read_tokens))  # the last token runs in any case: its state is wanted
            known = next((place for place in range(limit) if prompt[place] != self._read_tokens[place]), limit)
        self._reading, self._read_with = one, one.request.adapters
        del self._read_tokens[known:]
        self._reading_with = self.compose([one.request.adapters])

    def _read_on(self, told: list[Written | Ended]) -> None:
        one = self._reading
        assert one is not None
        first = len(self._read_tokens)
        piece = list(one.request.prompt[first : first + PIECE])
        self._read.continue_from(first)
        hidden = self.model.hidden(Packed.of([piece], self.model.device, first), self._reading_with, cache=self._read)[-1:]
        self._read_tokens += piece
        if len(self._read_tokens) < len(one.request.prompt):
            return
        self._reading = None
        if self._choose([one], hidden, told) == [True]:
            place, length = len(self._live), len(self._read_tokens)
            self._keys[:, place, :, :length] = self._read.keys[:, 0, :, :length]
            self._values[:, place, :, :length] = self._read.values[:, 0, :, :length]
            self._admit([one], [length])

    def _advance(self, told: list[Written | Ended]) -> None:
        """Run the tokens written last through the model and choose the next ones."""
        wanted = [one.request.adapters for one in self._live]
        if self._composed != wanted:
            self._injection, self._composed = self.compose(wanted), wanted
        tokens = torch.tensor([one.written[-1] for one in self._live], device=self.model.device)
        packed = Packed(tokens, self._cache.lengths.clone(), (1,) * len(self._live))
        hidden = self.model.hidden(packed, self._injection, cache=self._cache)
        self._lengths += 1
        stay = self._choose(self._live, hidden, told)
        if not all(stay):
            self._keep([place for place, stays in enumerate(stay) if stays])

    def _choose(self, rows: Sequence[_Live], hidden: Tensor, told: list[Written | Ended]) -> list[bool]:
        """Write the next token of each row, and say which go on."""
        logits = self.model.logits(hidden)
        chosen = logits.argmax(-1).tolist()
        stay = []
        for place, one in enumerate(rows):
            request, own = one.request, logits[place]
            if request.guide is not None:
                own = request.guide(hidden[place], own, one.written[-1] if one.written else None)
            if request.guide is not None or request.sampling.temperature > 0:
                chosen[place] = int(pick(own[None], request.sampling, one.generator))
            token = chosen[place]
            if token in self._ends:
                told.append(Ended(one.number, "stop"))
                stay.append(False)
                continue
            one.written.append(token)
            one.room -= 1
            told.append(Written(one.number, token, *_likelihoods(own, token, request.top)))
            stopped = bool(request.sampling.stop) and cut(self.model.tokenizer.decode(one.written[-24:]), request.sampling.stop)[1]
            if stopped or not one.room:
                told.append(Ended(one.number, "stop" if stopped else "length"))
            stay.append(not stopped and one.room > 0)
        return stay

    def _keep(self, places: list[int]) -> None:
        if len(places) == len(self._live):
            return
        order = self._cache.keep(torch.tensor(places, dtype=torch.int64, device=self.model.device)).tolist()
        self._live = [self._live[place] for place in order]
        self._lengths = self._cache.lengths
        self._narrow()

    def _narrow(self) -> None:
        """The cache's rows are those of the live requests."""
        count = len(self._live)
        self._cache.keys, self._cache.values, self._cache.lengths = self._keys[:, :count], self._values[:, :count], self._lengths


def _likelihoods(logits: Tensor, token: int, top: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if top is None:
        return None, ()
    log = torch.log_softmax(logits, -1)
    values, places = log.topk(top)
    return float(log[token]), tuple(zip(places.tolist(), values.tolist(), strict=True))


class OneByOne:
    """The same for models without slots of their own: requests are answered one after another."""

    def __init__(self, model: LanguageModel, capacity: int | None = None, compose: Compose = lambda adapters: None) -> None:
        self.model, self.compose = model, compose
        self.capacity = min(capacity or model.context, model.context)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._now: tuple[int, Iterator[Written | Ended]] | None = None
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._now or self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that are not being answered yet."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Requests that are being answered."""
        return int(self._now is not None)

    def join(self, request: Request) -> int:
        """As :meth:`Batch.join`."""
        check_room(request, self.capacity)
        self._count += 1
        self._waiting.append((self._count, request))
        return self._count

    def leave(self, number: int) -> None:
        """As :meth:`Batch.leave`."""
        self._waiting = deque(item for item in self._waiting if item[0] != number)
        if self._now is not None and self._now[0] == number:
            self._now = None

    def step(self) -> list[Written | Ended]:
        """As :meth:`Batch.step`."""
        if self._now is None and self._waiting:
            number, request = self._waiting.popleft()
            self._now = number, self._answer(number, request)
        if self._now is None:
            return []
        told = next(self._now[1])
        if isinstance(told, Ended):
            self._now = None
        return [told]

    def _answer(self, number: int, request: Request) -> Iterator[Written | Ended]:
        seen: list[Tensor] = []

        def watch(step: Step, logits: Tensor) -> Tensor:
            changed = logits if request.guide is None else request.guide(step.hidden[0], logits[0], _only(step.tokens))[None]
            seen[:] = [changed[0]]
            return changed

        room = min(request.sampling.max_tokens, self.capacity - len(request.prompt))
        made, ids = 0, list[int]()
        for _, token in stream(self.model, [request.prompt], request.sampling, self.compose([request.adapters]), [watch]):
            made += 1
            ids.append(token)
            yield Written(number, token, *_likelihoods(seen[0], token, request.top))
            if made == room:
                break
        stopped = bool(request.sampling.stop) and cut(self.model.tokenizer.decode(ids[-24:]), request.sampling.stop)[1]
        yield Ended(number, "length" if made == room and not stopped else "stop")


def _only(tokens: Tensor | None) -> int | None:
    return None if tokens is None else int(tokens[0])


def check_room(request: Request, capacity: int) -> None:
    """Raise LanguageModelError when the prompt is empty or leaves no room for an answer."""
    if not 0 < len(request.prompt) < capacity:
        raise LanguageModelError(f"the prompt has {len(request.prompt)} tokens: between 1 and {capacity - 1} can be answered")
