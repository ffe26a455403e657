"""What a sequence of tasks is to an experiment: something to start from, examples of each task, and a score on each.

Networks on tables are here; language models with an adapter are in :mod:`retain.evaluation.sequences.language`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.data.tables import TableStream
from retain.retention.base import Params, Task
from retain.training.network import NetworkObjective, perceptron, perceptron_forward, perceptron_squares


class TaskSequence(Protocol):
    """``tasks``: their names in order; ``score_name``: what :meth:`score` is; ``notes``: what was noticed while the tasks were read;
    ``base``: fingerprint of a base model, or ""."""

    name: str
    score_name: str
    base: str

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def start(self) -> Params:
        """The parameters before any training, fresh tensors with every call."""

    def task(self, number: int) -> Task:
        """The task with that number, counted from 0."""

    def joint(self, number: int) -> Task:
        """All tasks up to that number as one."""

    def score(self, number: int, params: Params) -> float:
        """Score on the held-out part of a task, from 0 to 1; higher is better."""

    def loss(self, number: int, params: Params) -> float:
        """Mean loss in nats on the held-out part of a task."""

    def asked(self, number: int) -> int:
        """How many questions a task's score is the mean of."""

    def chance(self, number: int) -> float | None:
        """The score of guessing; None where nothing can be guessed."""

    def identity(self) -> str:
        """A digest of everything that the experiment's results depend on beside its settings: model, examples, questions."""

    def shown(self, number: int, place: int) -> str:
        """A training example of a task as a person reads it."""


class NetworkSequence:
    """A multilayer perceptron with ``hidden`` layers on a stream of tables: one head for all classes, no task id at test time."""

    score_name = "accuracy"
    base = ""
    notes: Sequence[str] = ()

    def __init__(self, stream: TableStream, hidden: Sequence[int] = (256,), seed: int = 0) -> None:
        self.stream, self.seed = stream, seed
        self.name, self.tasks = stream.name, [task.name for task in stream.tasks]
        self.sizes = (stream.features[0].numel(), *hidden, stream.classes)
        self.objective = NetworkObjective(perceptron_forward, stream.features, self.start(), perceptron_squares)

    def start(self) -> Params:
        return perceptron(self.sizes, self.seed)

    def task(self, number: int) -> Task:
        return Task(self.tasks[number], self.stream.tasks[number].examples, self.objective)

    def joint(self, number: int) -> Task:
        examples = [example for task in self.stream.tasks[: number + 1] for example in task.examples]
        return Task(f"up to {self.tasks[number]}", examples, self.objective)

    @torch.no_grad()
    def logits(self, number: int, params: Params) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and labels [n] of a task's test rows."""
        rows = self.stream.tasks[number].test
        return self.objective.forward(params, self.stream.features[rows]), self.stream.labels[rows]

    def score(self, number: int, params: Params) -> float:
        logits, labels = self.logits(number, params)
        return float((logits.argmax(1) == labels).float().mean())

    def loss(self, number: int, params: Params) -> float:
        logits, labels = self.logits(number, params)
        return float(F.cross_entropy(logits, labels))

    def asked(self, number: int) -> int:
        return len(self.stream.tasks[number].test)

    def chance(self, number: int) -> float | None:
        return 1 / self.stream.classes

    def identity(self) -> str:
        rows = repr([(task.name, [example.tokens for example in task.examples], task.test.tolist()) for task in self.stream.tasks])
        return hashlib.sha256(self.stream.features.numpy().tobytes() + rows.encode()).hexdigest()

    def shown(self, number: int, place: int) -> str:
        row, label = self.stream.tasks[number].examples[place].tokens
        values = self.stream.features[row].flatten()
        return f"row {row}: {values.numel()} numbers from {float(values.min()):g} to {float(values.max()):g} → class {label}"

    def known_task_score(self, number: int, logits: Tensor) -> float:
        """The score where the task is known at test time: only its own classes are in question."""
        task = self.stream.tasks[number]
        classes = torch.tensor(task.classes)
        return float((classes[logits[:, classes].argmax(1)] == self.stream.labels[task.test]).float().mean())
