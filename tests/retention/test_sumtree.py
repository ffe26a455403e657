"""The sum tree draws what numpy draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.retention import SumTree


def tree_of(weights: list[float]) -> SumTree:
    tree = SumTree(len(weights))
    tree.set(np.arange(len(weights)), weights)
    return tree


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=600), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_different_places_with_weight_and_the_tree_is_as_before(weights: list[float], count: int, seed: int) -> None:
    tree = tree_of(weights)
    before = [level.copy() for level in tree.levels]
    found = tree.sample(count, np.random.default_rng(seed)).tolist()
    assert len(set(found)) == len(found) == min(count, sum(weight > 0 for weight in weights))
    assert all(weights[place] > 0 for place in found)
    assert all(np.array_equal(left, right) for left, right in zip(before, tree.levels, strict=True))
    assert tree.total == pytest.approx(sum(weights))


@given(st.lists(st.tuples(st.integers(0, 299), st.floats(0, 10)), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_updates_leave_the_tree_of_the_final_weights(changes: list[tuple[int, float]]) -> None:
    """Whatever the order: a tree rebuilt from saved weights is the same, bit for bit."""
    tree, plain = SumTree(300), np.zeros(300)
    for place, weight in changes:
        tree.set(place, weight)
        plain[place] = weight
    fresh = tree_of(plain.tolist())
    assert all(np.array_equal(left, right) for left, right in zip(tree.levels, fresh.levels, strict=True))


def test_the_order_of_draws_is_distributed_as_numpys() -> None:
    """Frequencies of ordered triples out of six places against the exact probabilities of successive sampling, and against numpy's."""
    weights = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.5])
    tree, generator = tree_of(weights.tolist()), np.random.default_rng(0)
    rounds = 12_000

    def exact(triple: tuple[int, ...]) -> float:
        left, value = weights.sum(), 1.0
        for place in triple:
            value *= weights[place] / left
            left -= weights[place]
        return value

    def distance(draws: list[tuple[int, ...]]) -> tuple[float, int]:
        """Pearson's statistic over the triples that are expected at least five times, and their number."""
        triples = [(a, b, c) for a in range(6) for b in range(6) for c in range(6) if len({a, b, c}) == 3]
        counts: dict[tuple[int, ...], int] = dict.fromkeys(triples, 0)
        for draw in draws:
            counts[draw] += 1
        frequent = [triple for triple in triples if exact(triple) * rounds >= 5]
        return sum((counts[t] - exact(t) * rounds) ** 2 / (exact(t) * rounds) for t in frequent), len(frequent)

    ours, cells = distance([tuple(tree.sample(3, generator).tolist()) for _ in range(rounds)])
    theirs, _ = distance([tuple(generator.choice(6, 3, replace=False, p=weights / weights.sum()).tolist()) for _ in range(rounds)])
    limit = cells + 4 * np.sqrt(2 * cells)  # four standard deviations of chi-squared
    assert ours < limit and theirs < limit


def test_one_weight_that_dwarfs_all_others() -> None:
    tree = tree_of([1e-9] * 500 + [1e9])
    found = tree.sample(501, np.random.default_rng(0)).tolist()
    assert sorted(found) == list(range(501)) and found[0] == 500


def test_bad_weights_are_refused() -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            tree_of([1.0, weight])
