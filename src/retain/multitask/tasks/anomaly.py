"""Anomalies among records: how unlikely a record is, column by column, and so which columns make it unusual."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from retain.config import ConfigError
from retain.config.section import Count, Names, Positive
from retain.multitask.backbones.base import Backbone, Encoded, Inputs
from retain.multitask.backbones.sequential import HIDDEN, Sequential
from retain.multitask.config import TaskConfig
from retain.multitask.features import Features, Numeric
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import NEVER, TASKS, Outputs, Targets, Task, View, widened
from retain.multitask.tasks.metrics import best_threshold, ranked
from retain.multitask.tasks.regression import GRID, gaussian_logits, place_of

LABELLED = {"auroc": True, "average_precision": True, "f1": True, "precision": True, "recall": True}
SHARPEST = 0.05  # smallest deviation of a number that the others predict, in deviations of the training records
MOST_ROWS = 4096  # records with a hidden column that go through the network at once


class AnomalyConfig(TaskConfig):
    """Records that are unlike those of the training."""

    label: str | None = Field(None, description="Column that tells anomalies apart, to tune and measure with; never learned from")
    normal: Names = Field(default_factory=lambda: ["normal", "0", "false"], description="Labels of records that are no anomalies")
    quantile: Positive = Field(0.99, le=1.0, description="Share of normal validation records below the threshold, without labels")
    reasons: Count = Field(3, description="Columns named as the reason of a score")


@TASKS.register("anomaly")
class Anomaly(Task):
    """How likely a record is: hidden columns are predicted from those that are not, numbers by a normal distribution, categories by their
    probabilities, and by averaging over which are hidden that becomes the likelihood of the record in any order of its columns (Uria,
    Murray and Larochelle, 1310.1757, section 4).

    In training each record has a random number of random columns hidden. For a score fixed sets are hidden in turn: all columns, three
    quarters, halves, quarters, and each one alone; the surprise of a column is the mean of its negative log-likelihood over these five,
    less the mean over the normal validation records. The score of a record is the sum over its columns, and the columns with the highest
    surprise are its reasons. A category that was never seen is as surprising as one in ``records + 1``.

    The threshold has the best F1 on labelled validation records, else it is a quantile of the validation scores. Anomalies that are
    labelled in the training records are left out of training.
    """

    Config: ClassVar[type[TaskConfig]] = AnomalyConfig
    needs = frozenset({"features"})
    hides = True

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, AnomalyConfig)
        self.settings: AnomalyConfig = config
        self.threshold = math.inf
        self.usual: list[float] = []  # mean surprise of each column
        self.rare = 0.0  # surprise of a category that was never seen
        self._features: Features | None = None

    def columns(self) -> list[str]:
        return [self.settings.label] if self.settings.label is not None else []

    def fit(self, rows: Sequence[Row]) -> None:
        check_columns(rows, self.columns())
        self.rare = math.log(len(rows) + 1)

    def truth(self, row: Row) -> bool | None:
        """Whether a record is an anomaly; without a column of labels none is."""
        if self.settings.label is None:
            return False
        label = row.label(self.settings.label)
        return None if label is None else label not in self.settings.normal

    def trains_on(self, truth: Any) -> bool:
        return not truth

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        return {"normal": len(truths) - sum(truths), "anomaly": sum(truths)}

    def show(self, truth: Any) -> str:
        return "anomaly" if truth else "normal"

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        """What is predicted are the columns of the record itself."""
        return {"features": encoded.inputs["features"]}

    def head(self, backbone: Backbone) -> nn.Module:
        assert isinstance(backbone, Sequential)
        self._features = backbone.features
        self.usual = self.usual or [0.0] * len(backbone.features.columns)
        return _Columns(backbone.width, backbone.features)

    def run(self, network: Any, inputs: Inputs) -> Outputs:
        """In training: one pass, with a random set of columns hidden in each record. Else: the surprise of each column, ``nats``, and the
        prediction of each from all others, ``columns``."""
        x = inputs["features"]
        count = len(self.features.columns)
        if network.training:
            hidden = torch.rand(len(x), count, device=x.device) < torch.rand(len(x), 1, device=x.device)
            hidden[torch.arange(len(x)), torch.randint(count, (len(x),), device=x.device)] = True  # at least one
            return {**network.head(self)(network.view(self, {**inputs, HIDDEN: hidden})), "hidden": hidden}
        sets, weights = (made.to(x.device) for made in hidden_sets(count))
        nats, alone = [], []
        for some in x.split(max(1, MOST_ROWS // len(sets))):
            again = some.repeat_interleave(len(sets), 0)
            found = network.head(self)(network.view(self, {"features": again, HIDDEN: sets.repeat(len(some), 1)}))
            each = self.surprise(found, again).unflatten(0, (len(some), len(sets)))
            nats.append((each * weights).sum(1))
            alone.append(self._own(found["columns"].unflatten(0, (len(some), len(sets)))[:, -count:]))
        return {"nats": torch.cat(nats), "columns": torch.cat(alone), "deviations": found["deviations"]}

    def _own(self, made: Tensor) -> Tensor:
        """Of [B, hidden column, width] the part that predicts the hidden column, [B, width]."""
        return torch.cat([made[:, column, own] for column, own in enumerate(_places(self.features))], 1)

    @property
    def features(self) -> Features:
        """The columns of the backbone."""
        assert self._features is not None
        return self._features

    def surprise(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Negative log-likelihood of each column, float32 [B, columns]; 0 for numbers that are missing."""
        found = []
        for number, (column, source, own) in enumerate(
            zip(self.features.columns, self.features.slices, _places(self.features), strict=True)
        ):
            made = outputs["columns"][:, own].float()
            if isinstance(column, Numeric):
                deviation = outputs["deviations"][number]
                error = (x[:, source.start] - made[:, 0]) / deviation
                nats = 0.5 * error.square() + deviation.log() + 0.5 * math.log(2 * math.pi)
                found.append(nats * (1.0 - x[:, source.start + 1]) if column.marks else nats)
            else:
                one = x[:, source]
                nats = -(one * torch.log_softmax(made, -1)).sum(1)
                found.append(torch.where(one.any(1), nats, torch.full_like(nats, self.rare)))
        return torch.stack(found, 1)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Mean surprise of a column that is hidden."""
        if "nats" in outputs:
            return outputs["nats"].mean()
        nats, hidden = self.surprise(outputs, targets["features"]), outputs["hidden"]
        return ((nats * hidden).sum(1) / hidden.sum(1)).mean()

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        return list(outputs["nats"].double().cpu().numpy())

    def tune(self, results: Sequence[Any], truths: Sequence[Any]) -> None:
        nats, anomalous = np.array(results), np.array(truths, dtype=bool)
        if not len(nats) or anomalous.all():
            return
        self.usual = nats[~anomalous].mean(0).tolist()
        scores = self._scores(results)
        quantile = float(np.quantile(scores[~anomalous], self.settings.quantile))
        self.threshold = best_threshold(scores, anomalous, quantile)

    def _scores(self, results: Sequence[Any]) -> Any:
        return np.array(results).reshape(len(results), -1).sum(1) - sum(self.usual)

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        excess = result - np.array(self.usual)
        score = float(self._scores([result])[0])
        most = np.argsort(-excess, kind="stable")[: self.settings.reasons]
        reasons = [
            {"column": column.name, "value": row.values.get(column.name), "surprise": float(excess[place])}
            for place, column in ((int(place), self.features.columns[place]) for place in most)
            if excess[place] > 0.0
        ]
        return {"anomaly": score >= self.threshold, "score": score, "threshold": self.threshold, "reasons": reasons}

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        assert isinstance(config, AnomalyConfig)
        return {"likelihood": True, **(LABELLED if config.label is not None else {})}

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        """``likelihood``: mean log-likelihood of a column of normal records, in nats."""
        nats, anomalous = np.array(results), np.array(truths, dtype=bool)
        found: dict[str, float | None] = {"likelihood": -float(nats[~anomalous].mean()) if (~anomalous).any() else None}
        if self.settings.label is None:
            return found
        scores = self._scores(results)
        given = scores >= self.threshold
        right = int((given & anomalous).sum())
        precision, recall = right / max(1, int(given.sum())), right / max(1, int(anomalous.sum()))
        found |= {"f1": 2 * right / max(1, int(given.sum()) + int(anomalous.sum())), "precision": precision, "recall": recall}
        return found | ranked(scores, anomalous)

    def main(self) -> str:
        return "likelihood" if self.settings.label is None else "auroc"

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        if metric == "likelihood":
            return "" if not all(truths) else "the validation records are all anomalies"
        return (
            ""
            if 0 < sum(truths) < len(truths)
            else "the validation records hold " + ("no anomaly" if not any(truths) else "anomalies only")
        )

    def state(self) -> dict[str, Any]:
        return {"threshold": self.threshold if math.isfinite(self.threshold) else None, "usual": self.usual, "rare": self.rare}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.threshold = math.inf if state["threshold"] is None else float(state["threshold"])
        self.usual, self.rare = list(state["usual"]), float(state["rare"])

    def outcomes(self) -> int:
        return max(GRID if isinstance(column, Numeric) else column.width for column in self.features.columns)

    def labels(self, target: Targets) -> tuple[int, ...]:
        """Numbers as places of a grid, categories by their number; a category that was never seen has none."""
        x, found = target["features"], []
        for column, own in zip(self.features.columns, self.features.slices, strict=True):
            if isinstance(column, Numeric):
                if not (column.marks and bool(x[own.start + 1])):
                    found.append(int(place_of(x[own.start])))
            elif bool(x[own].any()):
                found.append(int(x[own].argmax()))
        return tuple(found)

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        x, parts, known, outcomes = targets["features"], [], [], self.outcomes()
        for number, (column, source, own) in enumerate(
            zip(self.features.columns, self.features.slices, _places(self.features), strict=True)
        ):
            made = outputs["columns"][:, own].float()
            if isinstance(column, Numeric):
                made = gaussian_logits(made[:, 0], outputs["deviations"][number])
                known.append(x[:, source.start + 1] == 0 if column.marks else torch.ones(len(x), dtype=torch.bool, device=x.device))
            else:
                known.append(x[:, source].any(1))
            parts.append(widened(made.clamp(min=NEVER), outcomes))
        return torch.stack(parts, 1), torch.stack(known, 1)


class _Columns(nn.Module):
    """A mean for each numeric column, logits for each categorical one, and the deviation of each numeric column around its mean."""

    def __init__(self, width: int, features: Features) -> None:
        super().__init__()
        if not features.columns:
            raise ConfigError("an anomaly task needs feature columns")
        self.linear = nn.Linear(width, _places(features)[-1].stop)
        self.spread = nn.Parameter(torch.zeros(len(features.columns)))

    def forward(self, view: View) -> Outputs:
        return {"columns": self.linear(view.states), "deviations": SHARPEST + nn.functional.softplus(self.spread)}


def _places(features: Features) -> list[slice]:
    """Where the prediction of each column is among all: one number for a numeric column, one for each category."""
    ends = [0]
    for column in features.columns:
        ends.append(ends[-1] + (1 if isinstance(column, Numeric) else column.width))
    return [slice(first, last) for first, last in pairwise(ends)]


@functools.cache
def hidden_sets(columns: int) -> tuple[Tensor, Tensor]:
    """Sets of columns to hide, [sets, columns] bool, and the weight of each column's surprise in each set, of the same shape.

    Five levels weigh alike: everything hidden, all but a quarter, halves, quarters, each column alone (the last sets, in order). At a
    level a column weighs alike in all sets that hide it. Which columns are together is drawn once, from a fixed seed.
    """
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
    quarters = torch.zeros(4, columns, dtype=torch.bool)
    for part, members in enumerate(torch.tensor_split(order, 4)):
        quarters[part, members] = True
    halves = torch.stack([quarters[0] | quarters[1], quarters[2] | quarters[3]])
    levels = [torch.ones(1, columns, dtype=torch.bool), ~quarters, halves, quarters, torch.eye(columns, dtype=torch.bool)]
    weights = [level / (len(levels) * level.sum(0)) for level in levels]
    return torch.cat(levels), torch.cat(weights)
