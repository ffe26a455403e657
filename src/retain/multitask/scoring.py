"""What a network says of records, and what that is worth: one way for training, for a saved network, and for the dry run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from retain.multitask.assembly import Experiment, moved
from retain.multitask.backbones.base import Encoded
from retain.multitask.network import MultitaskNetwork
from retain.multitask.tasks.base import Targets, Task
from retain.training.loop import TrainingError

Tell = Callable[[int, int], None]  # records done, of all


def scores(
    network: MultitaskNetwork, task: Task, inputs: Sequence[Encoded], size: int, device: torch.device, precision: torch.dtype,
    targets: Sequence[Targets] | None = None, tell: Tell | None = None,
) -> tuple[list[Any], float]:  # fmt: skip
    """Results of records in their order, and with ``targets`` their mean loss (else 0), in batches of ``size`` of like lengths.

    The same records in the same sizes give the same bits; in other batches the last bits can differ, as padding and sizes of products do.
    """
    order = sorted(range(len(inputs)), key=lambda number: inputs[number].length)
    found: list[Any] = [None] * len(inputs)
    total = 0.0
    with evaluating(network), torch.no_grad():
        for first in range(0, len(order), size):
            numbers = order[first : first + size]
            items = [inputs[number] for number in numbers]
            own = [targets[number] for number in numbers] if targets is not None else None
            read, wanted = task.batch(network.backbone, items, own)
            batch, labels = moved(read, device), moved(wanted, device) if wanted is not None else None
            with autocast(device, precision):
                outputs = task.answer(network, batch)
            if labels is not None:
                total += float(task.loss(outputs, labels)) * len(numbers)
            for number, result in zip(numbers, task.results(outputs, labels, items), strict=True):
                found[number] = result
            if tell is not None:
                tell(first + len(numbers), len(order))
    return found, total / max(1, len(order))


def evaluate(experiment: Experiment, name: str, split: str, tune: bool) -> dict[str, float | None]:
    """The loss and the metrics of a task on a split; with ``tune`` thresholds are set by it first."""
    part, task = experiment.parts[name][split], experiment.task(name)
    size = experiment.config.training.batch
    results, loss = scores(experiment.network, task, part.inputs, size, experiment.device, experiment.precision, part.targets)
    if not math.isfinite(loss):
        raise TrainingError(f"task {name}: the loss on its {split} records is {loss}: lower training.learning_rate")
    if tune:
        task.tune(results, part.truths)
    return {"loss": loss, **task.metrics(results, part.truths)}


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout inside the block."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Products in ``precision``; in float32 nothing is changed."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
