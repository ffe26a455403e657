"""Regression: a number for each record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from retain.data.errors import DataError
from retain.multitask.backbones.base import Backbone, Encoded
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import TASKS, Outputs, Targets, Task, View

GRID, STEP = 121, 0.1  # outcomes of a regression, in standard deviations from the mean: -6 to 6


class RegressionConfig(TaskConfig):
    """A number for each record."""

    label: str = Field("value", description="Column with the number")


def gaussian_logits(mean: Tensor, deviation: Tensor | float = 1.0) -> Tensor:
    """Logits [..., GRID] of a normal distribution over a grid of values from -6 to 6. Cross-entropy with the place of a value
    (:func:`place_of`) is its squared error over twice the variance, up to rounding and a constant; Fisher information and divergence
    are those of the normal distribution. So methods that know outcomes only know numbers too."""
    grid = (torch.arange(GRID, device=mean.device) - GRID // 2) * STEP
    scaled = (grid - mean[..., None]) / (deviation if isinstance(deviation, float) else deviation[..., None])
    return -0.5 * scaled.square()


def place_of(value: Tensor) -> Tensor:
    """The place of values in the grid, the ends for those beyond."""
    return (value / STEP).round().long().add(GRID // 2).clamp(0, GRID - 1)


@TASKS.register("regression")
class Regression(Task):
    """The mean of a number: half the squared error, in standard deviations of the training records."""

    Config: ClassVar[type[TaskConfig]] = RegressionConfig
    METRICS: ClassVar[dict[str, bool]] = {"r2": True, "mae": False, "rmse": False}

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, RegressionConfig)
        self.label = config.label
        self.centre, self.scale = 0.0, 1.0

    def columns(self) -> list[str]:
        return [self.label]

    def fit(self, rows: Sequence[Row]) -> None:
        check_columns(rows, [self.label])
        values = [value for row in rows if (value := row.number(self.label)) is not None]
        if len(set(values)) < 2:
            raise DataError("has one value only, which is nothing to learn", path=rows[0].path if rows else "", field=self.label)
        self.centre, self.scale = statistics.fmean(values), statistics.pstdev(values)

    def truth(self, row: Row) -> float | None:
        return row.number(self.label)

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        return {f"{min(truths):g} to {max(truths):g}": len(truths)} if truths else {}

    def show(self, truth: Any) -> str:
        return f"{truth:g}"

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        return {"value": torch.tensor((truth - self.centre) / self.scale, dtype=torch.float32)}

    def head(self, backbone: Backbone) -> nn.Module:
        return _Value(backbone.width, self.config.dropout)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return 0.5 * (outputs["value"].float() - targets["value"]).square().mean()

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        return (outputs["value"].double() * self.scale + self.centre).tolist()

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        return {"value": float(result)}

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        return dict(cls.METRICS)

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        errors = [found - truth for found, truth in zip(results, truths, strict=True)]
        if not errors:
            return dict.fromkeys(self.METRICS)
        squares, centre = [error * error for error in errors], statistics.fmean(truths)
        total = sum((truth - centre) ** 2 for truth in truths)
        return {
            "r2": 1.0 - sum(squares) / total if total else None,
            "mae": statistics.fmean([abs(error) for error in errors]),
            "rmse": statistics.fmean(squares) ** 0.5,
        }

    def main(self) -> str:
        return "r2"

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        return "the validation records all have the same value" if metric == "r2" and len(set(truths)) < 2 else ""

    def state(self) -> dict[str, Any]:
        return {"centre": self.centre, "scale": self.scale}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.centre, self.scale = float(state["centre"]), float(state["scale"])

    def outcomes(self) -> int:
        return GRID

    def labels(self, target: Targets) -> tuple[int, ...]:
        return (int(place_of(target["value"])),)

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        mean = outputs["value"].float()
        return gaussian_logits(mean)[:, None], torch.ones(len(mean), 1, dtype=torch.bool, device=mean.device)


class _Value(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(width, 1)

    def forward(self, view: View) -> Outputs:
        return {"value": self.linear(self.dropout(view.states))[:, 0]}
