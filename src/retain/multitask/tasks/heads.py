"""Heads that tell labels apart: one label of a list, or any labels of a list. What the kinds of classification are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.config import ConfigError
from retain.config.section import Positive
from retain.data.errors import DataError, did_you_mean
from retain.multitask.backbones.base import Backbone, Encoded
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import IGNORED, Outputs, Targets, Task, View, widened
from retain.multitask.tasks.metrics import Floats, best_threshold, mean, multi_label, single_label

ClassWeights = Literal["none", "balanced"] | dict[str, Positive]
SINGLE = ("accuracy", "macro_f1", "micro_f1", "auroc", "average_precision")
MULTI = ("micro_f1", "macro_f1", "exact", "auroc", "average_precision")
MOST_WEIGHT = 100.0  # of a rare label, when balanced


@dataclass
class Head:
    """A head in use. ``thresholds``: probabilities from which a label is given, one for each label of a multi-label head, one for the
    positive label of a head with ``positive``."""

    name: str
    column: str
    multi: bool
    asked: Sequence[str] | None
    weight: float = 1.0
    class_weights: ClassWeights = "none"
    separator: str = ","
    positive: str | None = None
    columns: Sequence[str] | None = None
    labels: tuple[str, ...] = ()
    places: dict[str, int] = field(default_factory=dict)
    weights: list[float] | None = None
    thresholds: list[float] = field(default_factory=list)

    def name_labels(self, labels: Sequence[str]) -> None:
        """These are the labels, in this order."""
        self.labels = tuple(labels)
        self.places = {label: place for place, label in enumerate(labels)}
        self.thresholds = [0.5] * (len(labels) if self.multi else bool(self.positive))

    def read(self, row: Row) -> list[str] | None:
        """The labels of a record as they stand there; None where there is nothing."""
        if self.columns is not None:
            values = [(name, row.number(name)) for name in self.columns]
            for name, value in values:
                if value not in (0.0, 1.0):
                    raise row.error("is missing" if value is None else f"must be 0 or 1, not {value:g}", name)
            return [name for name, value in values if value]
        if self.multi:
            return row.labels(self.column, self.separator)
        label = row.label(self.column)
        return None if label is None else [label]

    def truth(self, row: Row) -> tuple[int, ...] | None:
        """Their numbers."""
        found = self.read(row)
        for label in found or ():
            if label not in self.places:
                hint = did_you_mean(label, self.labels) or f"there is {', '.join(self.labels[:12])}"
                raise row.error(f"the label {label!r} is not in the list", self.column, hint)
        return None if found is None else tuple(sorted({self.places[label] for label in found}))


class Heads(Task):
    """What the three kinds of classification share. A label is ``{head: numbers of labels}``; a result ``{head: probabilities}``."""

    heads: list[Head]

    def columns(self) -> list[str]:
        return [name for head in self.heads for name in head.columns or [head.column]]

    def fit(self, rows: Sequence[Row]) -> None:
        check_columns(rows, self.columns())
        for head in self.heads:
            read = [head.read(row) for row in rows]
            counts = Counter(label for labels in read for label in labels or ())
            if head.asked is not None and len(set(head.asked)) < len(head.asked):
                raise ConfigError(f"tasks.{self.name}: the labels of {head.column} hold one twice")
            head.name_labels(head.asked if head.asked is not None else sorted(counts))
            for row in rows:
                head.truth(row)
            path = rows[0].path if rows else ""
            if len(head.labels) < (1 if head.multi else 2):
                raise DataError(f"has {len(head.labels)} labels, which is nothing to tell apart", path=path, field=head.column)
            if head.positive is not None and (len(head.labels) != 2 or head.positive not in head.places):
                raise ConfigError(f"tasks.{self.name}.positive: must be one of two labels; {head.column} has {', '.join(head.labels)}")
            without = [label for label in head.labels if not counts[label]]
            if without:
                fix = "add some, or leave it out of the list"
                raise DataError(f"no training record has the label {without[0]!r}", path=path, field=head.column, fix=fix)
            head.weights = self._weights(head, counts, sum(labels is not None for labels in read))

    def _weights(self, head: Head, counts: Counter[str], records: int) -> list[float] | None:
        if head.class_weights == "none":
            return None
        if head.class_weights == "balanced":
            if head.multi:  # how much rarer having a label is than not having it
                return [min(MOST_WEIGHT, max(1.0, records - counts[label]) / counts[label]) for label in head.labels]
            return [min(MOST_WEIGHT, records / (len(head.labels) * counts[label])) for label in head.labels]
        for label in head.class_weights:
            if label not in head.places:
                hint = did_you_mean(label, head.labels) or f"there is {', '.join(head.labels)}"
                raise ConfigError(f"tasks.{self.name}.class_weights: there is no label {label!r}: {hint}")
        return [float(head.class_weights.get(label, 1.0)) for label in head.labels]

    def truth(self, row: Row) -> dict[str, tuple[int, ...] | None] | None:
        found = {head.name: head.truth(row) for head in self.heads}
        return None if all(value is None for value in found.values()) else found

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        found = {}
        for head in self.heads:
            seen = Counter(place for truth in truths for place in truth[head.name] or ())
            start = f"{head.name}: " if len(self.heads) > 1 else ""
            found.update({f"{start}{label}": seen[place] for place, label in enumerate(head.labels)})
        return found

    def show(self, truth: Any) -> str:
        parts = []
        for head in self.heads:
            labels = [head.labels[place] for place in truth[head.name]] if truth[head.name] is not None else ["?"]
            parts.append((f"{head.name}=" if len(self.heads) > 1 else "") + (", ".join(labels) or "(none)"))
        return "; ".join(parts)

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        found = {}
        for head in self.heads:
            places = truth[head.name]
            if head.multi:
                row = torch.full((len(head.labels),), IGNORED if places is None else 0)
                row[list(places or ())] = 1
                found[head.name] = row
            else:
                found[head.name] = torch.tensor(IGNORED if places is None else places[0])
        return found

    def head(self, backbone: Backbone) -> nn.Module:
        return _Linears({head.name: len(head.labels) for head in self.heads}, backbone.width, self.config.dropout)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        terms = [head.weight * _head_loss(head, outputs[head.name], targets[head.name]) for head in self.heads]
        return torch.stack(terms).sum() / sum(head.weight for head in self.heads)

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        found: dict[str, Floats] = {}
        for head in self.heads:
            logits = outputs[head.name].double()
            found[head.name] = (torch.sigmoid(logits) if head.multi else torch.softmax(logits, -1)).cpu().numpy()
        return [{name: values[number] for name, values in found.items()} for number in range(len(encoded))]

    def tune(self, results: Sequence[Any], truths: Sequence[Any]) -> None:
        for head in self.heads:
            probabilities, labels = _known(head, results, truths)
            if not len(labels):
                continue
            if head.multi:
                head.thresholds = [best_threshold(probabilities[:, place], labels[:, place]) for place in range(len(head.labels))]
            elif head.positive is not None:
                place = head.places[head.positive]
                head.thresholds = [best_threshold(probabilities[:, place], labels == place)]

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for head in self.heads:
            probabilities = result[head.name]
            decided = _decided(head, probabilities[None])[0]
            shares = {label: float(probabilities[place]) for place, label in enumerate(head.labels)}
            if head.multi:
                found[head.name] = {"labels": [label for place, label in enumerate(head.labels) if decided[place]], "probabilities": shares}
            else:
                label = head.labels[int(decided)]
                found[head.name] = {"label": label, "probability": shares[label], "probabilities": shares}
        return found

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for head in self.heads:
            probabilities, labels = _known(head, results, truths)
            start = f"{head.name}." if len(self.heads) > 1 else ""
            if not len(labels):
                found.update(dict.fromkeys(f"{start}{name}" for name in (MULTI if head.multi else SINGLE)))
                continue
            decided = _decided(head, probabilities)
            if head.multi:
                measured = multi_label(probabilities, labels, decided)
            else:
                measured = single_label(probabilities, labels, decided, head.places.get(head.positive or "", 1))
            found.update({f"{start}{name}": value for name, value in measured.items()})
        if len(self.heads) > 1:
            mains = [found[f"{head.name}.{'micro_f1' if head.multi else 'accuracy'}"] for head in self.heads]
            found["score"] = mean([value for value in mains if value is not None])
        return found

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        head = next((head for head in self.heads if metric.startswith(f"{head.name}.")), self.heads[0])
        if metric.rpartition(".")[2] not in ("auroc", "average_precision"):
            return ""
        known = [truth[head.name] for truth in truths if truth[head.name] is not None]
        both = any(0 < sum(place in truth for truth in known) < len(known) for place in range(len(head.labels)))
        return "" if both else "the validation records all have the same label"

    def state(self) -> dict[str, Any]:
        return {head.name: {"labels": list(head.labels), "weights": head.weights, "thresholds": head.thresholds} for head in self.heads}

    def restore(self, state: Mapping[str, Any]) -> None:
        for head in self.heads:
            head.name_labels(state[head.name]["labels"])
            head.weights, head.thresholds = state[head.name]["weights"], list(state[head.name]["thresholds"])

    def outcomes(self) -> int:
        return max(2 if head.multi else len(head.labels) for head in self.heads)

    def labels(self, target: Targets) -> tuple[int, ...]:
        found = torch.cat([target[head.name].view(-1) for head in self.heads])
        return tuple(found[found != IGNORED].tolist())

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        parts, known, outcomes = [], [], self.outcomes()
        for head in self.heads:
            logits = outputs[head.name].float()
            if head.multi:  # one position for each label, with the outcomes "not" and "has it"
                logits = torch.stack([torch.zeros_like(logits), logits], -1)
            parts.append(widened(logits if head.multi else logits[:, None], outcomes))
            known.append((targets[head.name] != IGNORED).view(len(logits), -1))
        return torch.cat(parts, 1), torch.cat(known, 1)


class _Linears(nn.Module):
    """Dropout, then a linear layer for each head."""

    def __init__(self, sizes: Mapping[str, int], width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.names = list(sizes)
        self.linears = nn.ModuleList(nn.Linear(width, size) for size in sizes.values())

    def forward(self, view: View) -> Outputs:
        states = self.dropout(view.states)
        return {name: linear(states) for name, linear in zip(self.names, self.linears, strict=True)}


def _head_loss(head: Head, logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the records that have the head's labels; 0 where none of the batch has."""
    logits = logits.float()
    weights = None if head.weights is None else torch.tensor(head.weights, device=logits.device)
    if not head.multi:
        known = target != IGNORED
        return F.cross_entropy(logits, target, weight=weights, ignore_index=IGNORED) if bool(known.any()) else logits.sum() * 0.0
    known = target[:, 0] != IGNORED
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits[known], target[known].float(), pos_weight=weights)


def _decided(head: Head, probabilities: Floats) -> Any:
    """[N, C] True where a label is given, for multi-label heads; else [N] numbers of labels. Thresholds are on probabilities."""
    if head.multi:
        return probabilities >= np.array(head.thresholds)
    if head.positive is None:
        return probabilities.argmax(1)
    place = head.places[head.positive]
    return np.where(probabilities[:, place] >= head.thresholds[0], place, 1 - place)


def _known(head: Head, results: Sequence[Any], truths: Sequence[Any]) -> tuple[Floats, Any]:
    """Probabilities and labels of the records that have this head's labels."""
    numbers = [number for number, truth in enumerate(truths) if truth[head.name] is not None]
    probabilities = np.array([results[number][head.name] for number in numbers]).reshape(len(numbers), len(head.labels))
    if not head.multi:
        return probabilities, np.array([truths[number][head.name][0] for number in numbers], dtype=np.int64)
    labels = np.zeros((len(numbers), len(head.labels)), dtype=bool)
    for place, number in enumerate(numbers):
        labels[place, list(truths[number][head.name])] = True
    return probabilities, labels
