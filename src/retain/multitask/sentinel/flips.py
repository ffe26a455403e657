"""Labels that the network contradicts, visit after visit, before it has learned them by heart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Margins:
    """Of every record of a task and each of its positions (a head, or a label that it has or has not) the mean, over its visits, of the
    share of its own label less that of the likeliest other. A visit is what the network says in training before it learns the record
    again: the area under the margin (Pleiss et al., 2001.10528), of shares in place of logits, so that one visit alone does not decide."""

    def __init__(self, records: int) -> None:
        self.sums = torch.zeros(records, 0)
        self.visits = torch.zeros(records, dtype=torch.int64)

    def add(self, numbers: list[int], margins: Tensor) -> None:
        """Margins [B, positions] of one visit of these records, 0 where a position has no label."""
        if self.sums.shape[1] < margins.shape[1]:
            self.sums = torch.zeros(len(self.visits), margins.shape[1])
        self.sums[numbers] += margins
        self.visits[numbers] += 1

    def means(self, numbers: list[int]) -> Tensor:
        """The lowest mean margin [B] of each record, over its positions."""
        return (self.sums[numbers] / self.visits[numbers][:, None]).min(1).values

    def tensors(self) -> dict[str, Tensor]:
        """The state."""
        return {"sums": self.sums, "visits": self.visits}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`."""
        self.sums, self.visits = tensors["sums"].clone(), tensors["visits"].clone()


def margins_of(flat: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """[B, positions], 0 where a position has no label, from logits [M, outcomes] and labels [M] at the ``known`` ones."""
    shares = torch.softmax(flat, -1)
    own = shares.gather(1, labels[:, None])[:, 0]
    other = shares.scatter(1, labels[:, None], -1.0).max(1).values
    found = torch.zeros(known.shape, device=flat.device)
    found[known] = own - other
    return found.cpu()
