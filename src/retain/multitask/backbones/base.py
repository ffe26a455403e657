"""What every backbone is: records to inputs, inputs to states."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from retain.multitask.config import BackboneConfig
from retain.multitask.records import Row
from retain.multitask.registry import Registry

Inputs = dict[str, Tensor]


class States(NamedTuple):
    """What a backbone makes of a batch: ``tokens`` [B, L, width], and ``mask`` [B, L], True where a state is not padding."""

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One record as the backbone takes it. ``inputs``: a tensor for each name, without the batch; ``length``: what batches of like sizes
    are made by; ``offsets``: first and last character of each token, (0, 0) for special ones, where the backbone has tokens of a text;
    ``truncated``: whether a part was cut off."""

    inputs: Inputs
    length: int = 1
    offsets: tuple[tuple[int, int], ...] = ()
    truncated: bool = False


class Backbone(nn.Module):
    """Base of all backbones. A kind is a subclass with a ``Config`` (its section), registered with ``BACKBONES.register(name)``.

    ``gives``: what tasks may need: "tokens" (a state for each token), "offsets" (where each token is in the text), "features" (columns of
    a table), "generation" (text that is written). ``width``: numbers in a state.
    ``network``: the part that :mod:`retain.multitask.adapting` freezes and adapts.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[BackboneConfig]]
    gives: ClassVar[frozenset[str]] = frozenset()
    learning_rate: ClassVar[float] = 1e-3  # of all weights; with adapters, see adapted_rate
    adapted_rate: ClassVar[float] = 1e-3
    pretrained: ClassVar[bool] = True  # whether frozen weights can be had again from where they came
    four_bits: ClassVar[bool] = False  # whether it can be loaded in 4 bits, for qlora
    limit: ClassVar[str] = "max_length"  # the key that says how long an input may be
    width: int
    network: nn.Module

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Backbone:
        """A backbone for training: fitted on these training records, with pretrained weights where the kind has them.

        ``taken``: columns that hold labels; ``folder``: where relative paths start; ``hides``: whether a task hides columns of the input
        (see :class:`retain.multitask.tasks.anomaly.Anomaly`).
        """
        raise NotImplementedError

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Backbone:
        """A backbone as it was saved in ``directory`` with :meth:`save`; trained weights are loaded into it afterwards."""
        raise NotImplementedError

    def prepare(self, needs: Collection[str]) -> None:
        """Called once, before freezing and adapting: what the tasks need of what this kind :attr:`gives`. Parts that nobody needs may go.
        Raises ConfigError where this very model cannot give it."""

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        """Write what :meth:`restore` needs beside the weights that were trained, and give JSON values for it. ``whole``: all weights
        of the backbone are among those."""
        raise NotImplementedError

    def columns(self, chosen: Sequence[str] | None) -> list[str]:
        """The columns that are read, given a task's own choice."""
        raise NotImplementedError

    def read(self, row: Row, chosen: Sequence[str] | None) -> Any:
        """The raw input in a record. Raises DataError with its line."""
        raise NotImplementedError

    def encode(self, raws: Sequence[Any]) -> list[Encoded]:
        """Raw inputs as the network takes them."""
        raise NotImplementedError

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        """A batch of them."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> States:
        """The states of a batch."""
        raise NotImplementedError

    def pool(self, states: States) -> Tensor:
        """One state [B, width] for each record: the mean over those that are not padding."""
        return masked_mean(states)

    def show(self, raw: Any) -> str:
        """A raw input as a person reads it."""
        return str(raw)

    def notes(self) -> list[str]:
        """What a user should know of how the inputs so far were read."""
        return []


def masked_mean(states: States) -> Tensor:
    """Mean [B, width] over the states that are not padding."""
    weights = states.mask.to(states.tokens.dtype)[:, :, None]
    return (states.tokens * weights).sum(1) / weights.sum(1)


def last_state(states: States) -> Tensor:
    """The last state [B, width] that is not padding; padding is on the right."""
    return states.tokens[torch.arange(len(states.tokens), device=states.tokens.device), states.mask.sum(1) - 1]


BACKBONES: Registry[Backbone] = Registry("kind of backbone")
