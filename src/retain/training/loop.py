"""The one training loop: flat, read from top to bottom. Every learner and every retention method goes through it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.lm.devices import out_of_memory, release_memory
from retain.retention.base import Batch, Params, Retention, Task, total
from retain.training.batches import losses_and_logits, pieces, plan

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on or had no effect; nothing was kept. The message is one line."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train on packed batches.

    ``batch_tokens``: tokens per step, or ``batch_examples`` examples per step where that is given; ``accumulation``: the pieces of a step
    that go through the model one after another, which saves memory and changes nothing else. ``warmup``: share of steps; the rate then
    falls as a cosine to ``final_rate`` of its peak. ``clip``: largest gradient norm, infinite for none. ``spike``: a loss above ``spike``
    times the first loss (and above 2 nats) stops training. The optimizer starts afresh with every task.
    """

    learning_rate: float = 1e-3
    epochs: int = 8
    batch_tokens: int = 1024
    warmup: float = 0.05
    final_rate: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    spike: float = 4.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0
    batch_examples: int | None = None
    accumulation: int = 1


@dataclass
class Progress:
    """What a callback sees after each step."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@dataclass
class TrainingReport:
    """What training did: per-step task losses, tokens passed through the model, supervised tokens, seconds, parameter change."""

    losses: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    tokens: int = 0
    supervised: int = 0
    steps: int = 0
    seconds: float = 0.0
    change: float = 0.0


def rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then cosine."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    task: Task, params: Params, settings: TrainingSettings, retention: Sequence[Retention] = (),
    on_step: Callable[[Progress], None] | None = None,
) -> TrainingReport:  # fmt: skip
    """Train ``params`` in place on the task's examples and return what happened.

    The loss is the mean over the new examples' supervised tokens plus, when a method replays, the mean over the replayed ones (two
    means, not one mean over both), plus each method's own term. Raises TrainingError for a non-finite loss, a loss spike, an empty
    task, or when no tensor changed. The caller trains a candidate: on an error it drops it.
    """
    if not task.examples:
        raise TrainingError(f"task {task.id}: no training examples")
    generator = torch.Generator().manual_seed(settings.seed)
    before = {name: tensor.detach().clone() for name, tensor in params.items()}
    ordered = [params[name] for name in sorted(params)]  # so that sums over tensors do not depend on the dictionary's order
    for tensor in ordered:
        tensor.requires_grad_(True)
    optimizer = _optimizer(ordered, settings)
    for method in retention:
        method.before_task(task, params)
    counted = settings.batch_examples is not None
    budget, cost = settings.batch_examples or settings.batch_tokens, (lambda example: 1) if counted else len
    epochs = [plan(task.examples, budget, generator, cost) for _ in range(settings.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    supervised = settings.epochs * sum(example.n_supervised() for example in task.examples)
    report, started = TrainingReport(steps=len(batches), supervised=supervised), time.perf_counter()
    adjusting = [method for method in retention if type(method).adjust_update is not Retention.adjust_update]
    looking_back = any(method.looks_back for method in adjusting)
    accumulation = settings.accumulation

    def check(step: int, task_loss: float, loss: float) -> None:
        _check(task, step, task_loss, loss, report, settings)

    for step, new in enumerate(batches):
        replayed = [example for method in retention for example in method.replay(len(new))]
        consulted = [method.consult(len(new)) for method in retention]
        rate = rate_at(step, len(batches), settings)
        batch = Batch(new, replayed, step, task.objective, rate)
        while (found := _backward(batch, consulted, accumulation, params, retention, check)) is None:
            accumulation = _more_pieces(task, new, accumulation, ordered[0].device)
        task_value, value = found
        gradients = {name: tensor.grad for name, tensor in params.items() if tensor.grad is not None}
        with torch.no_grad():
            for method in retention:
                method.adjust_gradients(params, gradients)
            if math.isfinite(settings.clip):
                torch.nn.utils.clip_grad_norm_(ordered, settings.clip)
            previous = {name: tensor.clone() for name, tensor in params.items()} if looking_back else {}
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            for method in adjusting:
                method.adjust_update(params, previous)
        report.losses.append(task_value)
        report.penalties.append(value - task_value)
        report.tokens += sum(map(len, new)) + sum(map(len, replayed))
        report.seconds = time.perf_counter() - started
        if on_step:
            on_step(Progress(step + 1, len(batches), report.losses[-1], report.tokens, report.seconds))

    for tensor in params.values():
        tensor.requires_grad_(False)
    report.change = math.sqrt(sum(float((params[name] - before[name]).square().sum()) for name in params))
    if not report.change > 0.0 or not math.isfinite(report.change):
        raise TrainingError(f"task {task.id}: training changed nothing (parameter change {report.change})")
    return report


def _backward(
    batch: Batch, consulted: Sequence[Sequence[Example]], accumulation: int, params: Params, retention: Sequence[Retention],
    check: Callable[[int, float, float], None],
) -> tuple[float, float] | None:  # fmt: skip
    """The gradients of a step, in place of those that are there: its task loss, and its loss with the methods' terms. None when the device
    has no memory for them."""
    for tensor in params.values():
        tensor.grad = None
    try:
        (last, share), *others = reversed(pieces(batch.new, accumulation)) if accumulation > 1 else [(batch.new, 1.0)]
        done = 0.0
        for piece, part in others:
            piece_loss = part * batch.objective.loss(piece, params)
            piece_loss.backward()
            done += float(piece_loss.detach())
        (task_loss, replay_loss), logits = losses_and_logits(batch.objective, last, batch.replayed, consulted, params)
        terms: list[Tensor | None] = [task_loss if share == 1.0 else share * task_loss, replay_loss]
        terms += [
            method.loss(replace(batch, consulted=ask, logits=found), params)
            for method, ask, found in zip(retention, consulted, logits, strict=True)
        ]
        loss = total(terms)
        assert loss is not None
        task_value, value = done + share * float(task_loss.detach()), done + float(loss.detach())
        check(batch.step, task_value, value)
        loss.backward()
        return task_value, value
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None  # not handled here: the error holds on to the tensors of the step


def _more_pieces(task: Task, new: Sequence[Example], accumulation: int, device: torch.device) -> int:
    """Twice the accumulation, told. Raises TrainingError where each piece is a single example already."""
    if accumulation >= len(new):
        raise TrainingError(f"task {task.id}: the device has no memory for a single example; shorten the passages or take a smaller model")
    release_memory(device)
    log.warning("task %s: out of memory: a step goes through the model in %d pieces from here on", task.id, 2 * accumulation)
    return 2 * accumulation


class _PlainDescent:
    """p <- p - lr * gradient. On small networks torch.optim.SGD spends more on its bookkeeping than the whole forward pass takes."""

    def __init__(self, params: list[Tensor]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": params, "lr": 0.0}]

    def step(self) -> None:
        group = self.param_groups[0]
        moved = [tensor for tensor in group["params"] if tensor.grad is not None]
        torch._foreach_add_(moved, [tensor.grad for tensor in moved], alpha=-group["lr"])


def _optimizer(params: list[Tensor], settings: TrainingSettings) -> torch.optim.Optimizer | _PlainDescent:
    rate, decay, fused = settings.learning_rate, settings.weight_decay, params[0].device.type in ("cpu", "cuda")
    if settings.optimizer == "sgd" and not settings.momentum and not decay:
        return _PlainDescent(params)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(params, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=fused)
    return torch.optim.AdamW(params, lr=rate, weight_decay=decay, fused=fused)


def _check(task: Task, step: int, task_loss: float, loss: float, report: TrainingReport, settings: TrainingSettings) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"task {task.id}: the loss became {loss} at step {step + 1}; the update is rolled back")
    if report.losses and task_loss > max(2.0, settings.spike * report.losses[0]):
        raise TrainingError(f"task {task.id}: the loss rose from {report.losses[0]:.2f} to {task_loss:.2f} at step {step + 1}; rolled back")
