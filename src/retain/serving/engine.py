"""Answers for many clients from one copy of the model: one thread runs the batch, the others prepare questions and read pieces of text.

A question is prepared in the state that it finds; its adapters are immutable objects, so it ends with what it began with, whatever is
learned, reverted or forgotten meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from retain.adapters import Adapter, Composer
from retain.data.document import Message
from retain.lm.batching import Batch, OneByOne, Request, Written, check_room
from retain.lm.decoder import DecoderLM
from retain.lm.generation import Sampling, cut
from retain.lm.packing import Packed
from retain.serving.journal import named
from retain.workspace.asking import Asked, adapter_named, prepare
from retain.workspace.continual import ContinualLM
from retain.workspace.knowledge import Decision

log = logging.getLogger("retain.serving")

Active = tuple[tuple[Adapter, float], ...]


@dataclass(frozen=True)
class Piece:
    """Some text of an answer; ``tokens``: those that are in it, with likelihoods where they were asked for; ``finish`` with the last."""

    text: str
    tokens: tuple[Written, ...] = ()
    finish: Literal["stop", "length", "error"] | None = None


@dataclass(eq=False)
class Answering:
    """An answer that is being written. ``hear`` gets its pieces, in the engine's thread."""

    request: Request
    hear: Callable[[Piece], None]
    text: Text
    submitted: float = field(default_factory=time.monotonic)
    first: float | None = None  # when its first token came
    number: int | None = None


class Text:
    """Tokens to text as they come: no half characters, and nothing that may become a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.shown = 0

    def add(self, token: int) -> str:
        """The new text that is sure to stay."""
        self.ids.append(token)
        return self._new(last=False)

    def end(self) -> str:
        """What was held back, up to the first stop string."""
        return self._new(last=True)

    def _new(self, last: bool) -> str:
        text, stopped = cut(self.tokenizer.decode(self.ids, skip_special_tokens=True), self.stop)
        sure = len(text)
        if not stopped and not last:
            if text.endswith("\ufffd"):
                sure = len(text.rstrip("\ufffd"))
            for mark in self.stop:
                for size in range(min(len(mark) - 1, sure), 0, -1):
                    if text[:sure].endswith(mark[:size]):
                        sure -= size
                        break
        new = text[self.shown : sure] if sure > self.shown else ""
        self.shown = max(self.shown, sure)
        return new


@dataclass
class Counters:
    """What the engine did since it began. ``first_token``: seconds to the first token of the latest answers."""

    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    errors: int = 0
    first_token: list[float] = field(default_factory=list)


class Engine:
    """``slots`` answers are written at a time, of at most ``capacity`` tokens each with its prompt; ``eight_bits``: see
    :meth:`retain.lm.decoder.DecoderLM.quantise`, and the adapters are rounded too."""

    def __init__(self, lm: ContinualLM, slots: int = 8, capacity: int = 2048, eight_bits: bool = False) -> None:
        self.lm, model = lm, lm.model
        if eight_bits and isinstance(model, DecoderLM):
            model.quantise()
        self._knowledge = lm.knowledge
        self._preparing = threading.Lock()  # what was learned is read and routed by one thread at a time
        self._compose = Composer(model.dtype, model.device, eight_bits=eight_bits)
        self._make: Callable[[], Batch | OneByOne] = (
            (lambda: Batch(model, slots, capacity, self._compose)) if isinstance(model, DecoderLM) else
            (lambda: OneByOne(model, capacity, self._compose))
        )  # fmt: skip
        self.batch = self._make()
        self.counters = Counters()
        self._live: dict[int, Answering] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def prepare(
        self, messages: Sequence[Message], sampling: Sampling, *, adapters: Sequence[str] | None = None, retrieval: bool | None = None
    ) -> Asked:
        """A conversation as the model gets it; its last message is the question. ``adapters``: exactly these, or None for routing."""
        with self._preparing:
            knowledge = self._knowledge
            return prepare(
                knowledge, self.lm.state, messages[-1].content, sampling, history=messages[:-1], adapters=adapters, retrieval=retrieval,
                capacity=self.batch.capacity,
            )  # fmt: skip

    def route(self, prompt: str, adapter: str | None) -> Active:
        """The adapters of a text that is continued as it is: one by name, or None for routing."""
        with self._preparing:
            state = self.lm.state
            if adapter is None:
                decision = self._knowledge.decide(prompt, state)
            else:
                chosen = adapter_named(state, adapter)
                decision = Decision((chosen,), chosen.documents)
            return self._knowledge.active(decision, state)

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """The mean of the base's final hidden states of each text, of length 1; and the number of tokens."""
        model, vectors, count = self.lm.model, list[list[float]](), 0
        with torch.inference_mode():
            for text in texts:
                ids = model.tokenizer(text).input_ids
                check_room(Request(ids), self.batch.capacity)
                count += len(ids)
                mean = model.hidden(Packed.of([ids], model.device)).float().mean(0)
                vectors.append(torch.nn.functional.normalize(mean, dim=0).tolist())
        return vectors, count

    def submit(self, request: Request, hear: Callable[[Piece], None]) -> Answering:
        """Answer a request. Raises LanguageModelError when its prompt does not fit."""
        check_room(request, self.batch.capacity)
        answering = Answering(request, hear, Text(self.lm.model.tokenizer, request.sampling.stop))
        self._commands.put(lambda: self._join(answering))
        return answering

    def cancel(self, answering: Answering) -> None:
        """Nobody reads it any more: its slot is free."""
        self._commands.put(lambda: self._leave(answering))

    def close(self) -> None:
        """End when the answers that are being written are done."""
        self._commands.put(None)
        self._thread.join()

    def _join(self, answering: Answering) -> None:
        answering.number = self.batch.join(answering.request)
        self._live[answering.number] = answering
        self.counters.prompt_tokens += len(answering.request.prompt)

    def _leave(self, answering: Answering) -> None:
        if answering.number is not None and self._live.pop(answering.number, None) is not None:
            self.batch.leave(answering.number)

    def _run(self) -> None:
        open_ = True
        while open_ or self.batch.busy:
            try:
                command = self._commands.get(block=not self.batch.busy)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                open_ = False
            else:
                command()

    def _step(self) -> None:
        try:
            events = self.batch.step()
        except Exception as error:  # a damaged adapter, no memory: these answers end, later ones begin anew
            self.counters.errors += len(self._live)
            log.error("%d answers failed: %s", len(self._live), named(error))
            for answering in self._live.values():
                answering.hear(Piece(" ".join(str(error).split())[:300], finish="error"))
            self._live.clear()
            self.batch = self._make()
            return
        for event in events:
            answering = self._live[event.request]
            if isinstance(event, Written):
                self._written(answering, event)
            else:
                del self._live[event.request]
                self.counters.answers += 1
                answering.hear(Piece(answering.text.end(), finish=event.reason))

    def _written(self, answering: Answering, event: Written) -> None:
        self.counters.tokens += 1
        if answering.first is None:
            answering.first = time.monotonic() - answering.submitted
            self.counters.first_token = [*self.counters.first_token[-999:], answering.first]
        answering.hear(Piece(answering.text.add(event.token), (event,)))


def request_of(asked: Asked, top: int | None = None, seed: int | None = None) -> Request:
    """A prepared question as the batch takes it, with another seed where one is given."""
    sampling = asked.sampling if seed is None else replace(asked.sampling, seed=seed)
    return Request(asked.prompt, sampling, asked.active, asked.guide, top)
