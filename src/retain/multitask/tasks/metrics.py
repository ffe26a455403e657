"""Metrics and thresholds: plain functions of probabilities and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Span = tuple[str, int, int]  # kind, first and last


class MissingExtra(RuntimeError):
    """Something that has to be installed first. The message is one line with the command."""


def sklearn_metrics() -> Any:
    """scikit-learn's module of metrics."""
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtra("metrics need scikit-learn: pip install 'retain[multitask]'") from None
    return metrics


def single_label(
    probabilities: Floats, labels: NDArray[np.int64], decided: NDArray[np.int64], positive: int = 1
) -> dict[str, float | None]:
    """Of records with one of C labels: ``probabilities`` [N, C], ``labels`` and ``decided`` [N]. F1 is over the labels that occur in
    either; AUROC and average precision are the mean over the labels that occur, each against the rest, and of two labels those of the
    ``positive`` one."""
    tools, names = sklearn_metrics(), range(probabilities.shape[1])
    occurring = [name for name in names if 0 < int((labels == name).sum()) < len(labels)]
    if len(names) == 2:
        occurring = [name for name in occurring if name == positive]
    seen = sorted({*labels.tolist(), *decided.tolist()})
    return {
        "accuracy": float((labels == decided).mean()),
        "macro_f1": float(tools.f1_score(labels, decided, labels=seen, average="macro", zero_division=0)),
        "micro_f1": float(tools.f1_score(labels, decided, average="micro", zero_division=0)),
        "auroc": mean([float(tools.roc_auc_score(labels == name, probabilities[:, name])) for name in occurring]),
        "average_precision": mean([float(tools.average_precision_score(labels == name, probabilities[:, name])) for name in occurring]),
    }


def multi_label(probabilities: Floats, labels: NDArray[np.bool_], decided: NDArray[np.bool_]) -> dict[str, float | None]:
    """Of records with any of C labels: all [N, C]. Macro figures are means over the labels; AUROC and average precision over those that
    some records have and some have not. ``exact``: share of the records whose labels are all right."""
    tools = sklearn_metrics()
    both = [name for name in range(labels.shape[1]) if 0 < int(labels[:, name].sum()) < len(labels)]
    return {
        "micro_f1": float(tools.f1_score(labels, decided, average="micro", zero_division=0)),
        "macro_f1": float(tools.f1_score(labels, decided, average="macro", zero_division=0)),
        "exact": float((labels == decided).all(1).mean()),
        "auroc": mean([float(tools.roc_auc_score(labels[:, name], probabilities[:, name])) for name in both]),
        "average_precision": mean([float(tools.average_precision_score(labels[:, name], probabilities[:, name])) for name in both]),
    }


def ranked(scores: Floats, positive: NDArray[np.bool_]) -> dict[str, float | None]:
    """AUROC and average precision of scores that are higher for positives."""
    if not 0 < int(positive.sum()) < len(positive):
        return {"auroc": None, "average_precision": None}
    tools = sklearn_metrics()
    return {
        "auroc": float(tools.roc_auc_score(positive, scores)),
        "average_precision": float(tools.average_precision_score(positive, scores)),
    }


def best_threshold(scores: Floats, positive: NDArray[np.bool_], without: float = 0.5) -> float:
    """The threshold (positive at or above it) with the highest F1, of equals the highest, in the middle between two scores. Where there
    are no positives, or nothing else: ``without``."""
    if not 0 < int(positive.sum()) < len(positive):
        return without
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(positive[order])
    taken = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (taken + int(positive.sum()))
    ends = np.append(ordered[:-1] != ordered[1:], True)  # scores that are equal are decided alike
    place = int(np.argmax(np.where(ends, f1, -1.0)))
    below = ordered[place + 1] if place + 1 < len(ordered) else ordered[place]
    return float((ordered[place] + below) / 2)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities in a sequence of BIO tags (also IOBES): kind, first and last position. As seqeval's ``get_entities`` reads them: an
    I after another kind or after O begins an entity."""
    found: list[Span] = []
    start, kind, before = 0, "", "O"
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if before != "O" and (mark in ("B", "S", "O") or before in ("E", "S") or name != kind):
            found.append((kind, start, place - 1))
        if mark != "O" and (before == "O" or mark in ("B", "S") or before in ("E", "S") or name != kind):
            start = place
        kind, before = name, mark
    return found


def entity_scores(truth: Sequence[Iterable[Hashable]], found: Sequence[Iterable[Hashable]]) -> dict[str, float | None]:
    """Entity-level precision, recall and F1 over all records, and the mean F1 over kinds: an entity counts where kind and both ends are
    right (CoNLL-2003; seqeval's averages "micro" and "macro"). An entity is a tuple that begins with its kind."""
    wanted, given, right = Counter[Any](), Counter[Any](), Counter[Any]()
    for own, theirs in zip(truth, found, strict=True):
        expected, answered = set(own), set(theirs)
        wanted.update(entity[0] for entity in expected)  # type: ignore[index]
        given.update(entity[0] for entity in answered)  # type: ignore[index]
        right.update(entity[0] for entity in expected & answered)  # type: ignore[index]
    kinds = sorted({*wanted, *given})
    precision = right.total() / given.total() if given else 0.0
    recall = right.total() / wanted.total() if wanted else 0.0
    return {
        "f1": 2 * right.total() / (wanted.total() + given.total()) if kinds else None,
        "macro_f1": mean([2 * right[kind] / (wanted[kind] + given[kind]) for kind in kinds]),
        "precision": precision,
        "recall": recall,
    }


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None
