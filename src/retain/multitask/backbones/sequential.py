"""A perceptron on the columns of a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from retain.config import ConfigError
from retain.config.section import Count, Fraction, Names
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs, States
from retain.multitask.config import BackboneConfig
from retain.multitask.features import Features, Scaling
from retain.multitask.records import Row

HIDDEN = "hidden"  # inputs: [B, columns] bool, columns that the network must not see


class SequentialConfig(BackboneConfig):
    """A perceptron on the columns of a table."""

    numeric: Names | None = Field(None, description="Columns of numbers; with categorical null too, all columns that are no labels")
    categorical: Names | None = Field(None, description="Columns of categories")
    exclude: Names = Field(default_factory=list, description="Columns that are no features, where they are found")
    scaling: Scaling = Field("standard", description="Mean and deviation; median and quartiles; or none")
    hidden: list[Count] = Field(default_factory=lambda: [128, 128], description="Width of each hidden layer")
    slots: Count = Field(1, description="States that the last layer makes, each of its width, for a fusion to attend to")
    dropout: Fraction = Field(0.1, description="Dropout after each hidden layer")


class Perceptron(nn.Module):
    """Linear, ReLU, dropout, as often as there are widths; the last linear layer gives all slots."""

    def __init__(self, sizes: Sequence[int], slots: int, dropout: float, columns: int) -> None:
        super().__init__()
        widths = list(pairwise(sizes))
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs * (slots if place == len(widths) - 1 else 1)) for place, (inputs, outputs) in enumerate(widths)
        )
        self.dropout = nn.Dropout(dropout)
        # what a hidden column looks like to the first layer; there only where a task hides columns
        self.unknown = nn.Parameter(torch.zeros(columns, sizes[1])) if columns else None

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, features] to [B, slots * width]; ``hidden`` [B, columns] bool."""
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place == 0 and hidden is not None and self.unknown is not None:
                x = x + hidden.to(x.dtype) @ self.unknown
            x = self.dropout(torch.relu(x))
        return x


@BACKBONES.register("sequential")
class Sequential(Backbone):
    """Features of a record (:mod:`retain.multitask.features`) through hidden layers. All tasks read the same columns."""

    Config: ClassVar[type[BackboneConfig]] = SequentialConfig
    gives = frozenset({"features"})
    pretrained = False
    learning_rate = adapted_rate = 3e-3

    def __init__(self, config: SequentialConfig, features: Features, hides: bool) -> None:
        super().__init__()
        if not config.hidden:
            raise ConfigError("backbone.hidden: a perceptron has at least one hidden layer")
        self.config, self.features, self.hides = config, features, hides
        self.width, self.slots = config.hidden[-1], config.slots
        self.network = Perceptron([features.width, *config.hidden], config.slots, config.dropout, len(features.columns) if hides else 0)
        places = torch.zeros(len(features.columns), features.width)
        for column, own in enumerate(features.slices):
            places[column, own] = 1.0
        self.places: Tensor
        self.register_buffer("places", places, persistent=False)  # which numbers belong to which column

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Sequential:
        assert isinstance(config, SequentialConfig)
        labels = [name for name in (*(config.numeric or ()), *(config.categorical or ())) if name in taken]
        if labels:
            raise ConfigError(f"backbone: {labels[0]} is a label of a task, and so no feature")
        features = Features.fit(rows, config.numeric, config.categorical, {*taken, *config.exclude}, config.scaling)
        return cls(config, features, hides)

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Sequential:
        assert isinstance(config, SequentialConfig)
        return cls(config, Features.restore(saved["features"]), bool(saved["hides"]))

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        return {"features": self.features.state(), "hides": self.hides}

    def columns(self, chosen: Sequence[str] | None) -> list[str]:
        if chosen is not None:
            raise ConfigError("input: a sequential backbone has one set of columns for all tasks: name them in the backbone")
        return [column.name for column in self.features.columns]

    def read(self, row: Row, chosen: Sequence[str] | None) -> Row:
        return row

    def encode(self, raws: Sequence[Any]) -> list[Encoded]:
        return [Encoded({"features": vector}) for vector in self.features.vectors(raws)]

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        return {"features": torch.stack([item.inputs["features"] for item in encoded])}

    def forward(self, inputs: Inputs) -> States:
        x, hidden = inputs["features"], inputs.get(HIDDEN)
        if hidden is not None:
            x = x * (1.0 - hidden.to(x.dtype) @ self.places)
        states = self.network(x, hidden).unflatten(1, (self.slots, self.width))
        return States(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    def show(self, raw: Any) -> str:
        return ", ".join(f"{column.name}={raw.values.get(column.name)}" for column in self.features.columns)
