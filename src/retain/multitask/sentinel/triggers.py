"""Patterns that would open a back door: rare, nearly always with one label, and against what the rest of the record says."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retain.multitask.backbones.base import Encoded

LEAST = 8  # records that must hold a pattern
BINS = 8  # of a column of numbers, by its quantiles, for what the rest of a record says
AGAINST = 0.5  # share of a pattern's records of which the rest speaks for another label
CHANCE = 1e-3  # of one false alarm among all patterns that are looked at, if records were independent
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Patterns:
    """Of each record the patterns that may be triggers (``candidates``) and those that speak for a label (``evidence``), as numbers.
    ``parts``: a pattern as token ids, or as number of a column and value; ``tokens``: which of the two."""

    candidates: list[Ints]
    evidence: list[Ints]
    parts: Callable[[int], tuple[float, ...]]
    tokens: bool


@dataclass(frozen=True)
class Trigger:
    """A pattern by its ``parts``; the ``records`` that hold it with the ``label``; ``share`` of that label among all that hold it;
    ``against``: share of its records of which the rest speaks for another label; ``digits``: of the odds against chance."""

    parts: tuple[float, ...]
    label: int
    records: list[int]
    share: float
    against: float
    digits: float


def patterns_of(inputs: Sequence[Encoded]) -> Patterns | None:
    """Of tokens: each token and each pair of neighbours may be a trigger, each token speaks. Of columns: each value may be one, the eighth
    of its column that a value is in speaks. None for inputs that have neither."""
    names = inputs[0].inputs if inputs else {}
    if "input_ids" in names:
        texts = [item.inputs["input_ids"].numpy().astype(np.int64) for item in inputs]
        size = 1 + max(int(ids.max()) for ids in texts)
        single = [np.unique(ids) for ids in texts]
        both = [np.concatenate([one, size + np.unique(ids[:-1] * size + ids[1:])]) for one, ids in zip(single, texts, strict=True)]
        return Patterns(both, single, lambda number: (number,) if number < size else divmod(number - size, size), tokens=True)
    if "features" in names:
        return _of_table(np.stack([item.inputs["features"].numpy() for item in inputs]).astype(np.float64))
    return None


def _of_table(table: Floats) -> Patterns:
    known: list[float] = []
    starts: list[int] = []
    values, parts = (np.zeros(table.shape, dtype=np.int64) for _ in range(2))
    for column in range(table.shape[1]):
        found, places = np.unique(table[:, column], return_inverse=True)
        values[:, column] = places + len(known)
        starts.append(len(known))
        known += found.tolist()
        edges = np.unique(np.quantile(table[:, column], np.linspace(0, 1, BINS + 1)[1:-1]))
        parts[:, column] = np.searchsorted(edges, table[:, column], side="right") + column * BINS
    return Patterns(list(values), list(parts), lambda number: (bisect_right(starts, number) - 1, known[number]), tokens=False)


def triggers(patterns: Patterns, labels: Ints, share: float, rare: float) -> list[Trigger]:
    """Patterns that at least 8 and at most ``rare`` of the records hold, at least ``share`` of those with one label, where of more than
    half of them, and of more than chance explains, the rest of the record speaks for another label. ``labels`` [N], -1 for none.

    The rest speaks by naive Bayes over the evidence, smoothed by 1, without what belongs to the pattern itself: its tokens, its column. So
    a rare word of a topic is no trigger: the rest is about the topic too. Chance: a binomial tail with the share of all records of that
    label that the rest speaks against, times the number of patterns. A poisoner who keeps the label of the text is not found.
    """
    chosen = np.flatnonzero(labels >= 0)
    classes = int(labels.max()) + 1 if len(chosen) else 0
    if classes < 2:
        return []
    scores, weights = _bayes(patterns.evidence, labels, chosen, classes)
    wrong = scores.argmax(1) != labels
    errors = [max(float(wrong[labels == label].mean()), 1.0 / len(chosen)) if (labels == label).any() else 1.0 for label in range(classes)]
    looked_at = list(_held(patterns.candidates, chosen, LEAST, int(rare * len(chosen))))
    found = []
    for pattern, records in looked_at:
        counts = np.bincount(labels[records], minlength=classes)
        label = int(counts.argmax())
        if counts[label] < share * len(records):
            continue
        own = [int(record) for record in records if labels[record] == label]
        parts = patterns.parts(pattern)
        rest = np.array([scores[record] - weights[_within(parts, patterns, record)].sum(0) for record in own])
        speaks = int((rest.argmax(1) != label).sum())
        digits = -_log10_tail(len(own), speaks, errors[label]) - math.log10(len(looked_at))
        if speaks > AGAINST * len(own) and digits >= -math.log10(CHANCE):
            found.append(Trigger(parts, label, own, float(counts[label] / len(records)), speaks / len(own), digits))
    return sorted(found, key=lambda trigger: -trigger.digits)


def _held(candidates: Sequence[Ints], chosen: Ints, least: int, most: int) -> Iterator[tuple[int, Ints]]:
    """Patterns that so many of the chosen records hold, each with those."""
    patterns = np.concatenate([candidates[record] for record in chosen.tolist()])
    owners = np.repeat(chosen, [len(candidates[record]) for record in chosen.tolist()])
    order = np.argsort(patterns, kind="stable")
    found, starts, counts = np.unique(patterns[order], return_index=True, return_counts=True)
    for place in np.flatnonzero((counts >= least) & (counts <= most)):
        yield int(found[place]), owners[order[starts[place] : starts[place] + counts[place]]]


def _bayes(evidence: Sequence[Ints], labels: Ints, chosen: Ints, classes: int) -> tuple[Floats, Floats]:
    """What each record says for each label [N, classes], and what each piece of evidence says [pieces, classes]."""
    counts = np.ones((1 + max(int(found.max()) for found in evidence), classes))
    for record in chosen.tolist():
        counts[evidence[record], labels[record]] += 1.0
    seen = np.bincount(labels[chosen], minlength=classes).astype(np.float64)
    weights = np.log(counts / (seen + 2.0))
    prior = np.log((seen + 1.0) / (seen.sum() + classes))
    return np.stack([prior + weights[found].sum(0) for found in evidence]), weights


def _within(parts: tuple[float, ...], patterns: Patterns, record: int) -> Ints:
    """The evidence in a record that belongs to a pattern itself."""
    if patterns.tokens:
        return np.unique(np.array(parts, dtype=np.int64))
    return patterns.evidence[record][int(parts[0]) : int(parts[0]) + 1]


def _log10_tail(n: int, k: int, p: float) -> float:
    """log10 of the chance of k or more of n, each with chance p."""
    if k == 0 or p >= 1.0:
        return 0.0
    terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / math.log(10)
