"""Batches of like lengths: every record once, in another order each time, and little padding."""

from __future__ import annotations

import random

import pytest

from retain.multitask.sampling import one_pass


def lengths(count: int) -> list[int]:
    """As texts have them: most are short, a few are very long."""
    draw = random.Random(0)
    return [min(256, 5 + int(draw.lognormvariate(4.0, 0.8))) for _ in range(count)]


def padding(sizes: list[int], batches: list[list[int]]) -> float:
    """Share of a pass that is padding."""
    taken = sum(len(batch) * max(sizes[number] for number in batch) for batch in batches)
    return 1.0 - sum(sizes) / taken


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000, 3000])
def test_every_record_comes_once(count: int) -> None:
    batches = one_pass(lengths(count), 16, 0)
    assert sorted(number for batch in batches for number in batch) == list(range(count))
    assert len(batches) == -(-count // 16) and all(len(batch) == 16 for batch in batches if len(batch) > count % 16)
    assert batches == one_pass(lengths(count), 16, 0)


def test_a_batch_has_records_of_like_lengths() -> None:
    sizes = lengths(1600)
    shuffled = random.Random(0).sample(range(1600), 1600)
    control = padding(sizes, [shuffled[first : first + 16] for first in range(0, 1600, 16)])
    assert control > 0.5  # without order more than half of the work is on padding
    assert padding(sizes, one_pass(sizes, 16, 0)) < 0.06


def test_neither_batches_nor_their_order_are_always_the_same() -> None:
    sizes = lengths(1600)
    one, other = one_pass(sizes, 16, 0), one_pass(sizes, 16, 1)
    together = {frozenset(batch) for batch in one} & {frozenset(batch) for batch in other}
    assert len(together) < 5
    longest = [max(sizes[number] for number in batch) for batch in one]
    halves = [sum(longest[:50]) / 50, sum(longest[50:]) / 50]
    assert max(halves) < 1.35 * min(halves), "the long ones come together"
