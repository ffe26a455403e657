"""Ways to learn a sequence of tasks: one after another with retention methods, all together, or with parts that earlier tasks own.

A way learns task after task, gives the parameters with which a task is answered, and can be stored and loaded between tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.evaluation.sequences.sequence import NetworkSequence, TaskSequence
from retain.retention.base import Params, Retention, Task
from retain.training.loop import Progress, TrainingReport, TrainingSettings, train
from retain.training.network import NetworkObjective, perceptron

State = dict[str, Any]  # tensors and JSON values, as of retention methods
OnStep = Callable[[Progress], None]


class Way(Protocol):
    """``knows_task``: whether an answer needs to be told which task a question belongs to."""

    knows_task: bool

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        """Learn the task with that number."""

    def steps(self, number: int) -> int:
        """How many optimizer steps that takes."""

    def score(self, number: int) -> float:
        """Score on a task as things are."""

    def loss(self, number: int) -> float:
        """Loss on a task as things are."""

    def state_dict(self) -> State:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`."""

    @property
    def values(self) -> int:
        """How many numbers the model has now."""

    @property
    def memory_bytes(self) -> int:
        """What is kept beside the model for the sake of earlier tasks, in bytes."""


class Sequential:
    """One set of parameters goes on from task to task, protected by retention methods; without any: naive fine-tuning."""

    knows_task = False

    def __init__(self, sequence: TaskSequence, settings: TrainingSettings, retention: Sequence[Retention] = ()) -> None:
        self.sequence, self.settings, self.retention = sequence, settings, tuple(retention)
        self.params = sequence.start()

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        task = self.sequence.task(number)
        report = train(task, self.params, self.settings, self.retention, on_step)
        for method in self.retention:
            method.after_task(task, self.params)
        return report

    def steps(self, number: int) -> int:
        return steps_of(len(self.sequence.task(number).examples), self.settings)

    def score(self, number: int) -> float:
        return self.sequence.score(number, self.params)

    def loss(self, number: int) -> float:
        return self.sequence.loss(number, self.params)

    def state_dict(self) -> State:
        stored = {f"params/{name}": tensor for name, tensor in self.params.items()}
        return stored | {
            f"{place}/{key}": value for place, method in enumerate(self.retention) for key, value in method.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        found = _under("params/", state)
        self.params = {name: found[name] for name in self.params}  # in their order, on which what methods store may depend
        for place, method in enumerate(self.retention):
            method.load_state_dict(_under(f"{place}/", state))

    @property
    def values(self) -> int:
        return _values(self.params)

    @property
    def memory_bytes(self) -> int:
        return sum(_bytes(method.state_dict()) for method in self.retention)


class Joint(Sequential):
    """A fresh start on all tasks seen so far with every task: what forgetting and intransigence are measured against."""

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        self.params = self.sequence.start()
        return train(self.sequence.joint(number), self.params, self.settings, on_step=on_step)

    def steps(self, number: int) -> int:
        return steps_of(len(self.sequence.joint(number).examples), self.settings)


class PackNet:
    """PackNet (Mallya and Lazebnik, 1711.05769): every task owns a share of the weights, which is frozen when the task ends.

    A task trains all weights that no task owns; of these the largest, ``share`` of what is left shared evenly among the tasks to come,
    are kept, the others are set to zero, and the kept ones are trained again for half the epochs. Biases belong to the first task
    (section 3.2 there). A task is answered with its own and all earlier weights, so nothing is forgotten, but the task must be known.
    """

    knows_task = True

    def __init__(self, sequence: NetworkSequence, settings: TrainingSettings) -> None:
        self.sequence, self.settings = sequence, settings
        self.params = sequence.start()
        # the number of the task that owns a weight, -1 for none
        self.owner = {name: torch.full(tensor.shape, -1, dtype=torch.int8) for name, tensor in self.params.items()}
        self.done = 0

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        task = self.sequence.task(number)
        if number:  # free weights start afresh, or units whose weights were all pruned would never learn again
            fresh = perceptron(self.sequence.sizes, self.sequence.seed + number)
            self.params = {name: torch.where(self.owner[name] < 0, fresh[name], tensor) for name, tensor in self.params.items()}
        report = train(task, self.params, self.settings, [_Masked({name: owner < 0 for name, owner in self.owner.items()})], on_step)
        self._take(number)
        again = train(task, self.params, self._short, [_Masked({name: owner == number for name, owner in self.owner.items()})], on_step)
        report.losses += again.losses
        report.steps += again.steps
        self.done = number + 1
        return report

    def steps(self, number: int) -> int:
        return sum(steps_of(len(self.sequence.task(number).examples), settings) for settings in (self.settings, self._short))

    @property
    def _short(self) -> TrainingSettings:
        return replace(self.settings, epochs=max(1, self.settings.epochs // 2))

    def _take(self, number: int) -> None:
        left = len(self.sequence.tasks) - number
        for name, tensor in self.params.items():
            free = self.owner[name] < 0
            if name.endswith("bias"):
                self.owner[name][free] = number
                continue
            count = round(int(free.sum()) / left)
            values = tensor.abs().masked_fill(~free, -1.0).flatten()
            self.owner[name].view(-1)[values.topk(count).indices] = number
            tensor[self.owner[name] < 0] = 0.0

    def view(self, number: int) -> Params:
        """The parameters that answer a task; those of a task to come are all there are."""
        last = min(number, self.done - 1) if self.done else -1
        return {
            name: torch.where((self.owner[name] >= 0) & (self.owner[name] <= last), tensor, torch.zeros(())) if self.done else tensor
            for name, tensor in self.params.items()
        }

    def score(self, number: int) -> float:
        return self.sequence.known_task_score(number, self.sequence.logits(number, self.view(number))[0])

    def loss(self, number: int) -> float:
        return self.sequence.loss(number, self.view(number))

    def state_dict(self) -> State:
        owners = {f"owner/{name}": tensor for name, tensor in self.owner.items()}
        return {f"params/{name}": tensor for name, tensor in self.params.items()} | owners | {"done": self.done}

    def load_state_dict(self, state: State) -> None:
        params, owner = _under("params/", state), _under("owner/", state)
        self.params, self.owner = {name: params[name] for name in self.params}, {name: owner[name] for name in self.params}
        self.done = int(state["done"])

    @property
    def values(self) -> int:
        return _values(self.params)

    @property
    def memory_bytes(self) -> int:
        return sum(owner.nbytes for owner in self.owner.values())

    @property
    def free(self) -> float:
        """Share of the weights that no task owns yet."""
        return sum(int((owner < 0).sum()) for owner in self.owner.values()) / self.values


class _Masked(Retention):
    """Only the marked values learn; after the optimizer's step, so that neither momentum nor weight decay moves the others."""

    name = "masked"

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self.trained = trained

    def adjust_update(self, params: Params, previous: Params) -> None:
        for name, tensor in params.items():
            tensor.copy_(torch.where(self.trained[name], tensor, previous[name]))


class Progressive:
    """Progressive networks (Rusu et al., 1606.04671, section 2): a new column for every task, earlier columns frozen, and lateral
    connections from their hidden layers into the layer above of the new one. The task must be known; the model grows."""

    knows_task = True

    def __init__(self, sequence: NetworkSequence, settings: TrainingSettings) -> None:
        self.sequence, self.settings = sequence, settings
        self.columns: list[Params] = []

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        column = self._fresh(number)
        frozen = list(self.columns)
        objective = NetworkObjective(lambda params, x: progressive_forward([*frozen, params], x), self.sequence.stream.features)
        task = Task(self.sequence.tasks[number], self.sequence.stream.tasks[number].examples, objective)
        report = train(task, column, self.settings, on_step=on_step)
        self.columns.append(column)
        return report

    def steps(self, number: int) -> int:
        return steps_of(len(self.sequence.stream.tasks[number].examples), self.settings)

    def _fresh(self, number: int) -> Params:
        column = perceptron(self.sequence.sizes, self.sequence.seed + number)
        generator = torch.Generator().manual_seed(self.sequence.seed + number)
        for layer in range(1, len(self.sequence.sizes) - 1):
            bound = (self.sequence.sizes[layer] * (number + 1)) ** -0.5
            for earlier in range(number):
                shape = (self.sequence.sizes[layer + 1], self.sequence.sizes[layer])
                column[f"lateral.{earlier}.{layer}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return column

    @torch.no_grad()
    def _logits(self, number: int) -> Tensor:
        columns = self.columns[: number + 1] or [self._fresh(0)]
        return progressive_forward(columns, self.sequence.stream.features[self.sequence.stream.tasks[number].test])

    def score(self, number: int) -> float:
        return self.sequence.known_task_score(number, self._logits(number))

    def loss(self, number: int) -> float:
        return float(F.cross_entropy(self._logits(number), self.sequence.stream.labels[self.sequence.stream.tasks[number].test]))

    def state_dict(self) -> State:
        return {f"{place}/{name}": tensor for place, column in enumerate(self.columns) for name, tensor in column.items()}

    def load_state_dict(self, state: State) -> None:
        count = 1 + max((int(name.split("/")[0]) for name in state), default=-1)
        self.columns = [_under(f"{place}/", state) for place in range(count)]

    @property
    def values(self) -> int:
        return sum(map(_values, self.columns))

    @property
    def memory_bytes(self) -> int:
        return sum(tensor.nbytes for column in self.columns[:-1] for tensor in column.values())


def progressive_forward(columns: Sequence[Params], x: Tensor) -> Tensor:
    """Logits of the last of the columns, which takes part in what all earlier ones found."""
    layers = sum(name.startswith("layers.") for name in columns[0]) // 2
    hidden = [x] * len(columns)
    for layer in range(layers):
        following = []
        for place, column in enumerate(columns):
            out = F.linear(hidden[place], column[f"layers.{layer}.weight"], column[f"layers.{layer}.bias"])
            for earlier in range(place):
                if layer:
                    out = out + F.linear(hidden[earlier], column[f"lateral.{earlier}.{layer}"])
            following.append(F.relu(out) if layer < layers - 1 else out)
        hidden = following
    return hidden[-1]


def steps_of(examples: int, settings: TrainingSettings) -> int:
    """Optimizer steps of a training on so many examples."""
    return settings.epochs * math.ceil(examples / (settings.batch_examples or examples))


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _values(params: Params) -> int:
    return sum(tensor.numel() for tensor in params.values())


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))
