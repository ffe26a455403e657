"""Values that stick out above the latest ones: losses and gradient norms of single records."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NORMAL_TENTH = 1.2816  # deviations above the mean of a normal distribution that a tenth of its values reach
ENOUGH = 0.25  # share of the window that must be there before anything is judged
LEAST = 0.1  # smallest deviation, as a share of the first median


class LatestValues:
    """The latest ``size`` values of one kind. A value's score is how far it is above their median, in robust deviations: the distance from
    the median to the value that a tenth of them exceed, over 1.28, and at least a tenth of the median at the beginning.

    Losses lean far to the right: the median absolute deviation, taken from both sides, calls every harder record an outlier; here as with
    it a tenth of bad values moves little. The lower bound keeps a network that has learned nearly everything from suspecting the rest.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = torch.zeros(0, dtype=torch.float64)
        self.first = torch.zeros((), dtype=torch.float64)

    def scores(self, new: Tensor) -> Tensor:
        """The scores [N] of new values [N] by the values before them, 0 while there are too few; then they are remembered."""
        found, new = torch.zeros(len(new), dtype=torch.float64), new.detach().double().cpu()
        if len(self.values) >= ENOUGH * self.size:
            middle, high = torch.quantile(self.values, torch.tensor([0.5, 0.9], dtype=torch.float64))
            if not self.first:
                self.first = middle.clone()
            found = (new - middle) / torch.stack([(high - middle) / NORMAL_TENTH, LEAST * self.first]).max().clamp(min=1e-12)
        self.values = torch.cat([self.values, new])[-self.size :]
        return torch.nan_to_num(found, nan=torch.inf, posinf=torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """The state."""
        return {"values": self.values, "first": self.first}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`."""
        self.values, self.first = tensors["values"].clone(), tensors["first"].clone()
