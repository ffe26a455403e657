"""Weighted sampling without replacement with weights that change: draws and updates in O(log n), vectorised over the draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

FAN = 16  # children of a node: 5 levels reach a million


class SumTree:
    """Non-negative weights of ``size`` places and the sums over blocks of 16, 256, ... of them.

    Every sum is computed anew from its children whenever one changes, so the tree depends on the weights alone, not on the order in which
    they were set: a tree rebuilt from saved weights draws the same places, bit for bit.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        widths = [FAN]
        while widths[-1] < size:
            widths.append(widths[-1] * FAN)
        self.levels: list[Floats] = [np.zeros(1), *(np.zeros(width) for width in widths)]
        self.weights: Floats = self.levels[-1][:size]

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self.levels[0][0])

    def set(self, places: ArrayLike, weights: ArrayLike) -> None:
        """Give places new weights. Raises ValueError for negative or non-finite ones."""
        index = np.atleast_1d(np.asarray(places, dtype=np.int64))
        values = np.asarray(weights, dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("weights must be finite and not negative")
        self.levels[-1][index] = values
        for level in range(len(self.levels) - 2, -1, -1):
            index = index // FAN if index.size < 256 else np.unique(index // FAN)
            self.levels[level][index] = self.levels[level + 1].reshape(-1, FAN)[index].sum(1)

    def draw(self, count: int, generator: np.random.Generator) -> Numbers:
        """Places in proportion to their weights, with replacement. The total must be positive."""
        rest = generator.random(count) * self.total
        place = np.zeros(count, dtype=np.int64)
        every = np.arange(count)
        for level in self.levels[1:]:
            cumulated = level.reshape(-1, FAN)[place].cumsum(1)
            # rounding may put a number at or above the block's sum: the largest number below it still falls on a positive weight
            rest = np.minimum(rest, np.nextafter(cumulated[:, -1], 0.0))
            child = (cumulated <= rest[:, None]).sum(1)
            before = np.where(child > 0, cumulated[every, child - 1], 0.0)
            rest = rest - before
            place = place * FAN + child
        return place

    def sample(self, count: int, generator: np.random.Generator) -> Numbers:
        """Different places, one after another in proportion to the weights that are left: the distribution of
        ``numpy.random.Generator.choice(size, count, replace=False, p=weights / total)``. Fewer when fewer weights are positive.

        Places are drawn with replacement and repetitions skipped, which is the same process; when some are missing, those found are
        taken out of the tree for the next round and put back at the end.
        """
        found: list[int] = []
        saved: list[float] = []
        while len(found) < count and self.total > 0.0:
            drawn = self.draw(count - len(found), generator)
            fresh = list(dict.fromkeys(drawn.tolist()))
            found += fresh
            if len(found) < count:
                saved += self.levels[-1][fresh].tolist()
                self.set(fresh, np.zeros(len(fresh)))
        if saved:
            self.set(found[: len(saved)], saved)
        return np.array(found, dtype=np.int64)
