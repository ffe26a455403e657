"""Training of a hypernetwork by context distillation: the frozen model with the text in its prompt teaches the same model with the adapter.

Every step draws what it needs from the seed and its own number, so that a run that is resumed goes on as one that was not interrupted.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from retain.adapters import Adapter
from retain.learners.doc2lora.hypernetwork import Hypernetwork, Places, Written
from retain.learners.doc2lora.injection import frozen_injection, inject_written
from retain.learners.doc2lora.reading import chunk_tokens, layer_states
from retain.learners.doc2lora.settings import HypernetworkSettings
from retain.learners.doc2lora.sources import Source
from retain.learners.doc2lora.teacher import Lesson, Teacher
from retain.lm.devices import choose_precision
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed, targets
from retain.training.loop import TrainingError, TrainingSettings, rate_at


@dataclass(frozen=True)
class Progress:
    """What a callback sees: ``loss`` of a step, the ``divergence`` KL(teacher || student) in nats per token in it, the mean ``size`` of
    what was written, the learning ``rate``; ``tokens`` and ``seconds`` so far; ``measured``: measurements, where some were made."""

    step: int
    steps: int
    loss: float
    divergence: float
    size: float
    rate: float
    tokens: int
    seconds: float
    measured: Mapping[str, Any] | None = None


Watch = Callable[[Progress], None]


@dataclass
class Losses:
    """Sums over the parts of a step."""

    loss: float = 0.0
    divergence: float = 0.0
    size: float = 0.0
    tokens: int = 0


@dataclass
class State:
    """Where training stands: steps done, tokens that went through the base, seconds, and what is told of the steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """The network, its optimizer and its data. ``frozen``: adapters that teacher and student have beneath, such as the study skill."""

    def __init__(
        self, settings: HypernetworkSettings, model: LanguageModel, sources: Sequence[Source], frozen: Sequence[Adapter] = ()
    ) -> None:
        t = settings.training
        self.settings, self.model, self.sources, self.frozen = settings, model, list(sources), tuple(frozen)
        config = settings.network.config(settings.mode)
        self.network = Hypernetwork(config, Places.of(model, config.targets), t.seed).to(model.device)
        self.network.mixed = mixed(model, settings.precision)
        self.teacher = Teacher(model, t.labels, t.top, t.answer_tokens, frozen_injection(model, self.frozen))
        betas = (0.9, t.beta2)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=t.learning_rate, betas=betas, weight_decay=t.weight_decay)
        self.schedule = TrainingSettings(learning_rate=t.learning_rate, warmup=t.warmup, final_rate=0.1)
        self.state = State()
        self._chunks: dict[tuple[str, int], list[tuple[int, ...]]] = {}
        self._orders: dict[int, list[int]] = {}

    def run(self, until: int, watch: Watch | None = None) -> None:
        """Train until ``until`` steps are done. Raises TrainingError when the loss is no number."""
        steps = self.settings.training.steps
        while self.state.step < until:
            began, rate = time.perf_counter(), rate_at(self.state.step, steps, self.schedule)
            losses = self._step(rate)
            self.state.step += 1
            self.state.tokens += losses.tokens
            self.state.seconds += time.perf_counter() - began
            so_far = (self.state.tokens, self.state.seconds)
            told = Progress(self.state.step, steps, losses.loss, losses.divergence, losses.size, rate, *so_far)
            if self.state.step % self.settings.training.tell_every == 0 or self.state.step == steps:
                self.state.history.append({key: getattr(told, key) for key in ("step", "loss", "divergence", "size", "rate", "tokens")})
            if watch:
                watch(told)

    def batch(self, step: int) -> list[Source]:
        """The sources of a step: every epoch goes through all of them in an order of its own."""
        first, found = step * self.settings.training.batch, []
        for place in range(first, first + self.settings.training.batch):
            epoch, number = divmod(place, len(self.sources))
            if epoch not in self._orders:
                order = list(range(len(self.sources)))
                random.Random(f"{self.settings.training.seed}/epoch/{epoch}").shuffle(order)
                self._orders = {**{key: value for key, value in self._orders.items() if key == epoch - 1}, epoch: order}
            found.append(self.sources[self._orders[epoch][number]])
        return found

    def _step(self, rate: float) -> Losses:
        t = self.settings.training
        draw, batch, losses = random.Random(f"{t.seed}/step/{self.state.step}"), self.batch(self.state.step), Losses()
        self.optimizer.zero_grad(set_to_none=True)
        for part in _parts(batch, t.accumulation):
            self._part(part, draw, losses)
        if losses.tokens == 0:  # the base answers none of these questions
            return losses
        if not math.isfinite(losses.loss):
            raise TrainingError(f"the loss became {losses.loss} at step {self.state.step + 1}: lower training.learning_rate")
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), t.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return losses

    def _part(self, sources: Sequence[Source], draw: random.Random, losses: Losses) -> None:
        """Forward and backward of some texts of a step; adds to ``losses``."""
        t, share = self.settings.training, 1 / self.settings.training.accumulation
        pieces = [self._pieces(source, draw.choice(t.chunks)) for source in sources]
        states, valid = layer_states(self.model, [piece for row in pieces for piece in row], self.network.places.layers)
        texts = [*_by_text(self.network(states, valid), [len(row) for row in pieces])]
        companions = draw.choice(t.companions)
        lessons: list[Lesson] = []
        active: list[list[int]] = []
        for number, source in enumerate(sources):
            known, others = self.teacher.lessons(source), [other for other in range(len(sources)) if other != number]
            lessons += draw.sample(known, min(t.questions, len(known)))
            active += [[number, *draw.sample(others, companions)]] * (len(lessons) - len(active))
        if not lessons:
            return
        packed = Packed.of([lesson.example.tokens for lesson in lessons], self.model.device)
        positions, _ = targets(packed, [lesson.example.supervised for lesson in lessons])
        hidden = self.model.hidden(packed, inject_written(self.network, self.model, texts, active, self.frozen))
        width = max(lesson.tokens.shape[1] for lesson in lessons)
        tokens, shares = (torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in each])
                          for each in ([lesson.tokens for lesson in lessons], [lesson.shares for lesson in lessons]))  # fmt: skip
        crossed = self.model.token_loss(hidden[positions], tokens, shares)
        size = _size(texts, self.network.bias)
        (share * (crossed + t.l1 * size)).backward()
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum(1).mean()
        losses.loss += share * float((crossed + t.l1 * size).detach())
        losses.divergence += share * float((crossed - entropy).detach())
        losses.size += share * float(size.detach())
        losses.tokens += packed.total + int(valid.sum())

    def _pieces(self, source: Source, count: int) -> list[tuple[int, ...]]:
        """The chunks of a text, about ``count`` of them, or as many as the longest chunk makes necessary."""
        key = (source.text, count)
        if key not in self._chunks:
            self._chunks[key] = chunk_tokens(self.model, self.network.config, source.text, count)
        return self._chunks[key]


def mixed(model: LanguageModel, precision: str = "auto") -> bool:
    """Whether a network reads in bfloat16: on a GPU that has it, unless float32 was asked for."""
    return model.device.type == "cuda" and precision != "float32" and choose_precision(model.device) == torch.bfloat16


def _parts(sources: Sequence[Source], count: int) -> Iterator[Sequence[Source]]:
    size = len(sources) // count
    for first in range(0, len(sources), size):
        yield sources[first : first + size]


def _by_text(written: Written, counts: Sequence[int]) -> Iterator[Written]:
    first = 0
    for count in counts:
        yield written.chunks(range(first, first + count))
        first += count


def _size(texts: Sequence[Written], bias: Written) -> torch.Tensor:
    """Mean magnitude of A plus that of B over texts, the bias with them, averaged over modules."""

    def of(text: Written) -> torch.Tensor:
        pairs = zip((*text.a, *text.b), (*bias.a, *bias.b), strict=True)
        return torch.stack([torch.cat(pair).abs().mean() for pair in pairs]).sum() / len(bias.a)

    return torch.stack([of(text) for text in texts]).mean()
