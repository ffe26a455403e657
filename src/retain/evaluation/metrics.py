"""Continual-learning metrics: pure functions of the accuracy matrix, and confidence intervals.

The matrix R has T + 1 rows and T columns. ``R[i, j]`` is the score on task j (1 .. T, column j - 1) after training on task i; row 0 is
before any training. Entries that a metric needs and that were not measured are NaN, and so is the metric then, as it is where it is
undefined (no earlier task, nothing to forget): never zero in silence. Other libraries give these names other meanings: Avalanche's
forgetting is minus our backward transfer; Mammoth and PyCIL take the last row into the maximum, so that theirs is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix: TypeAlias = NDArray[np.float64]
TARGET, LIMIT = 0.05, 0.15  # gates on the forgetting rate
_BLOCK = 2_000_000  # values drawn at once in a bootstrap


def accuracy_matrix(values: ArrayLike) -> Matrix:
    """The values as a matrix [T + 1, T] of float64; raises ValueError for another shape or an infinite value."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 1 or matrix.shape[0] != matrix.shape[1] + 1:
        shape = "x".join(map(str, matrix.shape))
        raise ValueError(f"an accuracy matrix of T tasks has T + 1 rows (row 0: before training) and T columns, this one is {shape}")
    if np.isinf(matrix).any():
        raise ValueError("an accuracy matrix holds finite scores, or NaN where nothing was measured")
    return matrix


def average_accuracy(values: ArrayLike) -> float:
    """ACC = 1/T sum_j R[T, j] (GEM, 1706.08840)."""
    return _mean(accuracy_matrix(values)[-1])


def average_anytime_accuracy(values: ArrayLike) -> float:
    """AAA = 1/T sum_i (1/i sum_{j <= i} R[i, j]) (average anytime accuracy, Caccia et al. 2104.05025), here at the ends of tasks."""
    matrix = accuracy_matrix(values)
    return _mean([_mean(matrix[i, :i]) for i in range(1, len(matrix))])


def learning_accuracy(values: ArrayLike) -> float:
    """LA = 1/T sum_j R[j, j]: each task right after it was learned (MER, 1810.11910)."""
    return _mean(_learned(accuracy_matrix(values)))


def backward_transfer(values: ArrayLike) -> float:
    """BWT = 1/(T-1) sum_{j < T} (R[T, j] - R[j, j]) (GEM, 1706.08840). Undefined for one task."""
    matrix = accuracy_matrix(values)
    return _mean(matrix[-1, :-1] - _learned(matrix)[:-1])


def forward_transfer(values: ArrayLike) -> float:
    """FWT = 1/(T-1) sum_{j > 1} (R[j-1, j] - R[0, j]) (GEM, 1706.08840; there R[0, j] is b_j). Undefined for one task."""
    matrix = accuracy_matrix(values)
    return _mean([matrix[j, j] - matrix[0, j] for j in range(1, matrix.shape[1])])


def forgetting(values: ArrayLike) -> float:
    """F = 1/(T-1) sum_{j < T} (max_{1 <= l < T} R[l, j] - R[T, j]) (Chaudhry, 1801.10112, section 3).

    Against the best value after any earlier task; below zero where the last training made old tasks better. Undefined for one task.
    """
    matrix = accuracy_matrix(values)
    if matrix.shape[1] < 2:
        return math.nan
    return _mean(matrix[1:-1, :-1].max(0) - matrix[-1, :-1])


def forgetting_rate(before: float, after: float) -> float:
    """(before - after) / before: the share of a score that was lost. Below zero is improvement; undefined when before is zero."""
    return (before - after) / before if before > 0 else math.nan


def forgetting_rates(values: ArrayLike) -> list[float]:
    """The :func:`forgetting_rate` of each task but the last: before = R[j, j], after = R[T, j]."""
    matrix = accuracy_matrix(values)
    return [forgetting_rate(float(b), float(a)) for b, a in zip(_learned(matrix)[:-1], matrix[-1, :-1], strict=True)]


def overall_forgetting_rate(values: ArrayLike) -> float:
    """sum_{j < T} (R[j, j] - R[T, j]) / sum_{j < T} R[j, j]: the rate of the earlier tasks taken together.

    A task that was never learned counts for nothing here, while its own rate would be undefined. Undefined for one task.
    """
    matrix = accuracy_matrix(values)
    return forgetting_rate(_mean(_learned(matrix)[:-1]), _mean(matrix[-1, :-1]))


def describe_rate(rate: float) -> Literal["forgetting", "improvement", "unchanged", "undefined"]:
    """What a forgetting rate says; a rate below zero is an improvement."""
    if math.isnan(rate):
        return "undefined"
    return "forgetting" if rate > 0 else "improvement" if rate < 0 else "unchanged"


def gate(rate: float) -> Literal["target", "limit", "failed", "undefined"]:
    """Whether a forgetting rate is below the target (5%), below the limit (15%), or neither."""
    if math.isnan(rate):
        return "undefined"
    return "target" if rate < TARGET else "limit" if rate < LIMIT else "failed"


def intransigence(values: ArrayLike, joint: Sequence[float] | None) -> float:
    """I = 1/T sum_j (joint[j] - R[j, j]) (Chaudhry, section 3; there for the last task alone).

    joint: each task's score by a model trained on all tasks up to it together. Undefined (NaN) without.
    """
    matrix = accuracy_matrix(values)
    if joint is None:
        return math.nan
    if len(joint) != matrix.shape[1]:
        raise ValueError(f"{len(joint)} joint scores for {matrix.shape[1]} tasks")
    return _mean(np.asarray(joint, dtype=np.float64) - _learned(matrix))


def retention_curve(values: ArrayLike) -> list[float]:
    """What is left of the learned scores at age a = 0 .. T-1 (tasks learned since).

    curve(a) = sum_{j <= T-a} R[j+a, j] / sum_{j <= T-a} R[j, j]; curve(0) = 1. Undefined where nothing was learned.
    """
    matrix = accuracy_matrix(values)
    learned, tasks = _learned(matrix), matrix.shape[1]
    curve = []
    for age in range(tasks):
        start = float(learned[: tasks - age].sum())
        kept = float(np.diagonal(matrix[1 + age :]).sum())
        curve.append(kept / start if start > 0 else math.nan)
    return curve


def retention_area(values: ArrayLike) -> float:
    """Area under :func:`retention_curve` by the trapezoid rule, divided by the largest age T-1: 1 when nothing is ever lost.

    retain's own definition, after the savings curves of Ebbinghaus (1885). Undefined for one task.
    """
    curve = np.asarray(retention_curve(values))
    return float(((curve[1:] + curve[:-1]) / 2).mean()) if len(curve) > 1 else math.nan


def summarise(values: ArrayLike, joint: Sequence[float] | None = None) -> dict[str, Any]:
    """Every metric by name, with the matrix itself. Numbers, texts and lists only; undefined numbers are NaN."""
    matrix = accuracy_matrix(values)
    rate = overall_forgetting_rate(matrix)
    return {
        "tasks": int(matrix.shape[1]),
        "average_accuracy": average_accuracy(matrix),
        "average_anytime_accuracy": average_anytime_accuracy(matrix),
        "learning_accuracy": learning_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "forgetting_rate": rate,
        "forgetting_rates": forgetting_rates(matrix),
        "verdict": describe_rate(rate),
        "gate": gate(rate),
        "intransigence": intransigence(matrix, joint),
        "retention_curve": retention_curve(matrix),
        "retention_area": retention_area(matrix),
        "matrix": matrix.tolist(),
    }


@dataclass(frozen=True, slots=True)
class Interval:
    """The ``mean`` of ``n`` values and its confidence interval ``low`` .. ``high`` at ``level``; NaN where undefined."""

    mean: float
    low: float
    high: float
    n: int
    level: float


def bootstrap(values: Sequence[float] | Sequence[bool] | Matrix, seed: int, level: float = 0.95, resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13) over facts, or over seeds.

    The values must be independent of each other: pass one value per fact, or one per seed. Equal seeds give equal intervals. One value
    has no interval, no value no mean either, and a NaN among the values leaves all undefined. Few values give too narrow an interval:
    with n equal answers it has no width, whatever n is.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError("level must lie between 0 and 1, and at least one resample is needed")
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    mean = _mean(data)
    if n < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan, n, level)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    means = np.concatenate([
        data[generator.integers(0, n, (min(rows, resamples - first), n))].mean(1) for first in range(0, resamples, rows)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n, level)


def seed_interval(values: Sequence[float] | Matrix, level: float = 0.95) -> Interval:
    """Student's t interval of the mean over seeds: mean +- t s / sqrt(n), with n - 1 degrees of freedom (Student 1908).

    For few values that are roughly normal, as the scores of a handful of seeds are; it does not keep to the range of a score. One value has
    no interval, no value no mean either, and a NaN among the values leaves all undefined.
    """
    if not 0 < level < 1:
        raise ValueError("level must lie between 0 and 1")
    data = np.asarray(values, dtype=np.float64)
    n, mean = len(data), _mean(data)
    if n < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan, n, level)
    half = _student(level, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, level)


def _student(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, by bisection of the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""

    def inside(angle: float) -> float:  # P(|T| <= sqrt(freedom) tan(angle))
        sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(2 + odd, freedom + 1, 2):
            total += term
            term *= cosine * cosine * (k - 1) / k
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _learned(matrix: Matrix) -> Matrix:
    """R[j, j] of every task."""
    return np.diagonal(matrix[1:])


def _mean(values: ArrayLike) -> float:
    """The mean; NaN of nothing, and of anything with a NaN in it."""
    data = np.asarray(values, dtype=np.float64)
    return float(data.mean()) if data.size else math.nan
