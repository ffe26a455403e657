"""Gradients of a step: added up, or with conflicts between tasks projected away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retain.multitask.assembly import Experiment
from retain.multitask.backbones.base import Inputs
from retain.multitask.sampling import Batch
from retain.multitask.scoring import autocast
from retain.multitask.tasks.base import Outputs, Targets
from retain.retention import total


@dataclass(frozen=True)
class Seen:
    """A batch that went through the network in training, or a piece of one: numbers of the task's training records, and tensors of them.
    ``share``: what part of the batch's records these are."""

    task: str
    numbers: list[int]
    inputs: Inputs
    outputs: Outputs
    targets: Targets
    share: float = 1.0


Look = Callable[[Seen, Tensor], Tensor]  # a batch and its loss to the loss that is minimised in its place


def backward(
    experiment: Experiment, batches: Sequence[Batch], params: Mapping[str, Tensor], seed: int, looks: Sequence[Look] = (), pieces: int = 1
) -> dict[str, float]:
    """Add the gradients of a step's batches to the parameters; the mean loss of each task in it, as the task measures it.

    The step's loss is the mean over its batches of the weighted losses, each as ``looks``, one after another, make it. With
    ``conflicts.kind: pcgrad`` the gradients of batches of one task are added up first, then :func:`project` takes conflicts out of the
    parameters that several of the tasks use. ``pieces``: in how many pieces a batch goes through the network; each counts by its records.
    """
    counts = Counter(name for name, _ in batches)
    values = dict.fromkeys(counts, 0.0)
    apart: dict[str, list[Tensor | None]] = {}
    ordered = [params[name] for name in sorted(params)]
    pcgrad = experiment.config.conflicts.kind == "pcgrad"
    for name, numbers, share in _pieces(batches, pieces):
        task = experiment.task(name)
        inputs, targets = experiment.batch(name, "train", numbers)
        with autocast(experiment.device, experiment.precision):
            outputs = experiment.network(name, inputs)
        loss = task.loss(outputs, targets)
        values[name] += share * float(loss.detach())
        for look in looks:
            loss = look(Seen(name, numbers, inputs, outputs, targets, share), loss)
        loss = share * experiment.network.weighted(task, loss) / len(batches)
        if not pcgrad:
            loss.backward()
            continue
        found = torch.autograd.grad(loss, ordered, allow_unused=True)
        before = apart.get(name, [None] * len(ordered))
        apart[name] = [total((one, other)) for one, other in zip(before, found, strict=True)]
    if pcgrad:
        _take_over(ordered, list(apart.values()), torch.Generator().manual_seed(seed))
    return {name: value / counts[name] for name, value in values.items()}


def _pieces(batches: Sequence[Batch], count: int) -> Iterator[tuple[str, list[int], float]]:
    """Each batch in at most ``count`` pieces: task, numbers of records, share of the batch."""
    for name, numbers in batches:
        size = math.ceil(len(numbers) / count)
        for first in range(0, len(numbers), size):
            piece = numbers[first : first + size]
            yield name, piece, len(piece) / len(numbers)


def _take_over(ordered: Sequence[Tensor], apart: Sequence[Sequence[Tensor | None]], generator: torch.Generator) -> None:
    """Set the gradients: those of one task as they are, those of several projected together."""
    columns = [[gradients[place] for gradients in apart] for place in range(len(ordered))]
    shared = [place for place, column in enumerate(columns) if sum(gradient is not None for gradient in column) > 1]
    for parameter, column in zip(ordered, columns, strict=True):
        parameter.grad = total(column)
    if shared:
        filled = [[_or_zeros(gradients[place], ordered[place]) for place in shared] for gradients in apart]
        for place, gradient in zip(shared, project(filled, generator), strict=True):
            ordered[place].grad = gradient


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def project(gradients: Sequence[Sequence[Tensor]], generator: torch.Generator) -> list[Tensor]:
    """PCGrad (Yu et al., 2001.06782, algorithm 1) on the gradients of shared parameters: each task's gradient loses, for the others in
    random order, its component along one that it conflicts with (a negative product); the sum of what is left."""
    vectors = [torch.cat([part.flatten().float() for part in gradient]) for gradient in gradients]
    squares = [vector.dot(vector) for vector in vectors]
    added = torch.zeros_like(vectors[0])
    for number, vector in enumerate(vectors):
        left = vector.clone()
        for other in torch.randperm(len(vectors), generator=generator).tolist():
            along = left.dot(vectors[other])
            if other != number and float(along) < 0.0:
                left -= along / squares[other] * vectors[other]
        added += left
    parts = added.split([part.numel() for part in gradients[0]])
    return [part.view_as(like).to(like.dtype) for part, like in zip(parts, gradients[0], strict=True)]
