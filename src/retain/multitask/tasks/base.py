"""What every task is: labels of records, a head on the backbone's states, a loss, decisions with tuned thresholds, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.data.examples import Example
from retain.multitask.backbones.base import Backbone, Encoded, Inputs
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row
from retain.multitask.registry import Registry

if TYPE_CHECKING:
    from retain.multitask.network import MultitaskNetwork

Outputs = dict[str, Tensor]
Targets = dict[str, Tensor]
IGNORED = -100  # a label that takes no part in the loss
NEVER = -1e4  # logit of an outcome that a task does not have; its probability is 0 in float32


class View(NamedTuple):
    """What a head sees of a batch: ``states``, [B, width] for tasks on whole records and [B, L, width] for tasks on tokens; ``mask``
    [B, L], True where a state is not padding."""

    states: Tensor
    mask: Tensor


class Task:
    """Base of all tasks. A kind is a subclass with a ``Config`` (its section), registered with ``TASKS.register(name)``.

    ``needs``: what the backbone must give (:attr:`Backbone.gives`); ``reads``: states of whole records, or of tokens; ``hides``: whether
    it hides columns of the input; ``fuses``: whether its head reads fused states. :meth:`fit` sees the training
    records once, before anything else; what it finds, and the thresholds that :meth:`tune` finds, are in :meth:`state`, as JSON values.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[TaskConfig]]
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[Literal["records", "tokens"]] = "records"
    hides: ClassVar[bool] = False
    fuses: ClassVar[bool] = True

    def __init__(self, name: str, config: TaskConfig) -> None:
        self.name, self.config = name, config

    # labels

    def columns(self) -> list[str]:
        """The columns that hold labels; they are never features."""
        raise NotImplementedError

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn from the training records what labels there are. Raises DataError for one that cannot be right."""

    def truth(self, row: Row) -> Any:
        """The label of a record; None where it has none. Raises DataError with its line."""
        raise NotImplementedError

    def trains_on(self, truth: Any) -> bool:
        """Whether a record with this label is learned from."""
        return True

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        """How many records have each label."""
        return {}

    def show(self, truth: Any) -> str:
        """A label as a person reads it."""
        return str(truth)

    # inputs and targets

    def inputs(self, backbone: Backbone) -> list[str]:
        """The columns that must be there to answer."""
        return backbone.columns(self.config.input)

    def raw(self, row: Row, backbone: Backbone) -> Any:
        """The raw input of a record."""
        return backbone.read(row, self.config.input)

    def check(self, row: Row, truth: Any, raw: Any) -> None:
        """Raise DataError where a record's label does not fit its input."""

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        """The label as tensors, for one record."""
        raise NotImplementedError

    def encode(self, backbone: Backbone, raws: Sequence[Any]) -> list[Encoded]:
        """Raw inputs as the network takes them."""
        return backbone.encode(raws)

    def targets(self, backbone: Backbone, truths: Sequence[Any], encoded: Sequence[Encoded]) -> list[Targets]:
        """The labels of records as tensors; the training records come first."""
        return [self.target(truth, item) for truth, item in zip(truths, encoded, strict=True)]

    def remarks(self, truths: Sequence[Any], targets: Sequence[Targets]) -> list[str]:
        """What a user should know of these targets, such as what was cut off."""
        return []

    def batch(self, backbone: Backbone, encoded: Sequence[Encoded], targets: Sequence[Targets] | None) -> tuple[Inputs, Targets | None]:
        """Inputs and, where there are any, targets of a batch."""
        return backbone.collate(encoded), None if targets is None else self.collate(targets)

    def collate(self, targets: Sequence[Targets]) -> Targets:
        """A batch of targets."""
        return {name: torch.stack([target[name] for target in targets]) for name in targets[0]}

    # network

    def head(self, backbone: Backbone) -> nn.Module:
        """The trainable part that is the task's own."""
        raise NotImplementedError

    def run(self, network: MultitaskNetwork, inputs: Inputs) -> Outputs:
        """Logits of a batch."""
        return network.head(self)(network.view(self, inputs))

    def answer(self, network: MultitaskNetwork, inputs: Inputs) -> Outputs:
        """What :meth:`results` are made of: logits, unless a task's answers take more than one pass."""
        return network(self.name, inputs)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Mean loss of a batch, without the task's weight."""
        raise NotImplementedError

    # answers

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        """What the network says of each record: probabilities or values, in plain numbers."""
        raise NotImplementedError

    def tune(self, results: Sequence[Any], truths: Sequence[Any]) -> None:
        """Set thresholds by validation records."""

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        """The answer for one record, as JSON values, with the thresholds that were tuned."""
        raise NotImplementedError

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        """The metrics of a task, each with whether higher is better."""
        raise NotImplementedError

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        """All of :meth:`metrics_of`; None for one that these records do not define."""
        raise NotImplementedError

    def main(self) -> str:
        """The metric that stands for the task; higher is better."""
        raise NotImplementedError

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        """Why a metric cannot be had on records with these labels; empty where it can."""
        return ""

    # saved state

    def state(self) -> dict[str, Any]:
        """JSON values: label names, thresholds, scales."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""

    # what retention methods see: every target is a position with an outcome, as a token is

    def outcomes(self) -> int:
        """Most outcomes of a position."""
        raise NotImplementedError

    def labels(self, target: Targets) -> tuple[int, ...]:
        """The outcomes that are the record's targets, in the order of :meth:`logits`."""
        raise NotImplementedError

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """Logits [B, positions, outcomes] and which positions have a target, [B, positions]."""
        raise NotImplementedError

    def example(self, number: int, target: Targets) -> Example:
        """A record as retention methods store it: its number and its outcomes."""
        labels = self.labels(target)
        group = f"{self.name}/{labels[0]}" if len(labels) == 1 else self.name
        return Example((number, *labels), (False, *([True] * len(labels))), group, self.name)


def widened(logits: Tensor, outcomes: int) -> Tensor:
    """Logits with as many outcomes as asked for; those that are added never happen."""
    return F.pad(logits, (0, outcomes - logits.shape[-1]), value=NEVER)


TASKS: Registry[Task] = Registry("kind of task")
