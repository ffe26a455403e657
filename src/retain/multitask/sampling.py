"""Which records are learned in which step: a pure function of the seed and the step, so that a run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from retain.multitask.config import ExperimentConfig

Batch = tuple[str, list[int]]  # a task, and numbers of its training records
BUCKET = 50  # batches that are cut from one sorted stretch of a shuffled pass


@dataclass
class Schedule:
    """The batches of one phase. ``order``: the task of every batch; ``batches(step)``: those of a step.

    A pass over a task's records is a shuffle of its own; stretches of 50 batches are sorted by length, so that the records of a batch
    are of like lengths, and the batches are shuffled again. A task that comes more often than it has batches begins another pass.
    """

    tasks: list[str]
    lengths: Mapping[str, Sequence[int]]
    order: list[str]
    size: int
    accumulation: int
    seed: int
    epochs: int

    def __post_init__(self) -> None:
        before: dict[str, int] = dict.fromkeys(self.tasks, 0)
        self._turns: list[int] = []  # how many batches of the same task came before
        for name in self.order:
            self._turns.append(before[name])
            before[name] += 1
        self._passes: dict[str, tuple[int, list[list[int]]]] = {}

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return len(self.order) // self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many batches were drawn as all tasks have."""
        return max(1, self.steps // self.epochs)

    def batches(self, step: int) -> list[Batch]:
        """The batches of a step, counted from 0."""
        first = step * self.accumulation
        places = range(first, first + self.accumulation)
        return [(self.order[place], self._batch(self.order[place], self._turns[place])) for place in places]

    def _batch(self, name: str, turn: int) -> list[int]:
        each = math.ceil(len(self.lengths[name]) / self.size)
        number, place = divmod(turn, each)
        if self._passes.get(name, (-1, []))[0] != number:
            self._passes[name] = number, one_pass(self.lengths[name], self.size, _mixed(self.seed, self.tasks.index(name), number))
        return self._passes[name][1][place]


def one_pass(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """All records once, in batches of ``size`` of like lengths."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for first in range(0, len(numbers), size * BUCKET):
        stretch = sorted(numbers[first : first + size * BUCKET], key=lambda number: lengths[number])
        batches += [stretch[start : start + size] for start in range(0, len(stretch), size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def schedule_of(config: ExperimentConfig, tasks: Sequence[str], lengths: Mapping[str, Sequence[int]], phase: int) -> Schedule:
    """The schedule of a phase: in an epoch as many batches are drawn as all its tasks have together."""
    training, pcgrad = config.training, config.conflicts.kind == "pcgrad"
    accumulation = training.accumulation or (len(tasks) if pcgrad else 1)
    counts = [math.ceil(len(lengths[name]) / training.batch) for name in tasks]
    steps = training.epochs * max(1, round(sum(counts) / accumulation))
    seed = _mixed(config.seed, phase, -1)
    order = draw_tasks(config, list(tasks), counts, steps * accumulation, seed)
    return Schedule(list(tasks), lengths, order, training.batch, accumulation, seed, training.epochs)


def draw_tasks(config: ExperimentConfig, tasks: list[str], counts: Sequence[int], batches: int, seed: int) -> list[str]:
    """The task of each of so many batches: shares proportional to ``counts ** (1 / temperature)``.

    Round robin takes each in turn. The others keep every task as near to its share as whole batches allow at any time, with a random
    start, rather than draw independently: a small task is never left out for long.
    """
    if config.sampling.kind == "round-robin":
        return [tasks[place % len(tasks)] for place in range(batches)]
    power = 1.0 / config.sampling.temperature if config.sampling.kind == "temperature" else 1.0
    raised = [count**power for count in counts]
    shares = [value / sum(raised) for value in raised]
    credit = torch.rand(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist()
    order = []
    for _ in range(batches):
        credit = [value + share for value, share in zip(credit, shares, strict=True)]
        place = max(range(len(tasks)), key=lambda number: credit[number])
        credit[place] -= 1.0
        order.append(tasks[place])
    return order


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    found = 0
    for number in numbers:
        found = (found * 1_000_003 + number + 0x9E3779B9) % (2**63 - 1)
    return found
