"""The one training loop: flat, read from top to bottom. Every learner and every retention method goes through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Batch, Params, Retention, Task, total


class TrainingError(RuntimeError):
    """Training cannot go on or had no effect; nothing was kept. The message is one line."""


@dataclass(frozen=True)
class TrainingSettings:
    """AdamW on packed batches. ``batch_tokens``: tokens per step; ``warmup``: share of steps; the rate then falls as a cosine to
    ``final_rate`` of its peak. ``spike``: a loss above ``spike`` times the first loss (and above 2 nats) stops training."""

    learning_rate: float = 1e-3
    epochs: int = 8
    batch_tokens: int = 1024
    warmup: float = 0.05
    final_rate: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    spike: float = 4.0


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


def plan(examples: Sequence[Example], batch_tokens: int, generator: torch.Generator) -> list[list[Example]]:
    """One epoch: shuffled, cut into batches of about ``batch_tokens`` tokens, each ordered by length."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    batches: list[list[Example]] = []
    used = batch_tokens
    for number in order:
        size = len(examples[number].tokens)
        if used + size > batch_tokens and used:
            batches.append([])
            used = 0
        batches[-1].append(examples[number])
        used += size
    return [sorted(batch, key=lambda example: len(example.tokens)) for batch in batches]


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
    fused = ordered[0].device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(ordered, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    for method in retention:
        method.before_task(task, params)
    epochs = [plan(task.examples, settings.batch_tokens, generator) for _ in range(settings.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    report, started = TrainingReport(steps=len(batches)), time.perf_counter()

    for step, new in enumerate(batches):
        replayed = [example for method in retention for example in method.replay(len(new))]
        rate = rate_at(step, len(batches), settings)
        batch = Batch(new, replayed, step, task.objective, rate)
        task_loss = task.objective.loss(new, params)
        terms: list[Tensor | None] = [task_loss]
        if replayed:
            terms.append(task.objective.loss(replayed, params))
        terms += [method.loss(batch, params) for method in retention]
        loss = total(terms)
        assert loss is not None
        task_value, value = float(task_loss.detach()), float(loss.detach())
        _check(task, step, task_value, value, report, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = {name: tensor.grad for name, tensor in params.items() if tensor.grad is not None}
        with torch.no_grad():
            for method in retention:
                method.adjust_gradients(params, gradients)
            torch.nn.utils.clip_grad_norm_(ordered, settings.clip)
            previous = {name: tensor.clone() for name, tensor in params.items()} if retention else {}
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            for method in retention:
                method.adjust_update(params, previous)
        report.losses.append(task_value)
        report.penalties.append(value - task_value)
        report.tokens += sum(len(example.tokens) for example in (*new, *replayed))
        report.supervised += sum(sum(example.supervised) for example in new)
        report.seconds = time.perf_counter() - started
        if on_step:
            on_step(Progress(step + 1, len(batches), report.losses[-1], report.tokens, report.seconds))

    for tensor in params.values():
        tensor.requires_grad_(False)
    report.change = math.sqrt(sum(float((params[name] - before[name]).square().sum()) for name in params))
    if not report.change > 0.0 or not math.isfinite(report.change):
        raise TrainingError(f"task {task.id}: training changed nothing (parameter change {report.change})")
    return report


def _check(task: Task, step: int, task_loss: float, loss: float, report: TrainingReport, settings: TrainingSettings) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"task {task.id}: the loss became {loss} at step {step + 1}; the update is rolled back")
    if report.losses and task_loss > max(2.0, settings.spike * report.losses[0]):
        raise TrainingError(f"task {task.id}: the loss rose from {report.losses[0]:.2f} to {task_loss:.2f} at step {step + 1}; rolled back")
