"""What several methods need to know about examples: labels, batches by tokens, losses per example."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Objective, Params

Key = tuple[tuple[int, ...], tuple[bool, ...]]


def key_of(example: Example) -> Key:
    """What makes two examples the same: the same tokens learned at the same places."""
    return example.tokens, example.supervised


def labels_of(examples: Sequence[Example], device: torch.device | str = "cpu") -> Tensor:
    """Supervised token ids [N] in the order in which ``Objective.logits`` lists its positions."""
    found = [token for example in examples for token in compress(example.tokens, example.supervised)]
    return torch.tensor(found, dtype=torch.int64, device=device)


def by_tokens(examples: Sequence[Example], budget: int) -> list[list[int]]:
    """Numbers of the examples in batches of at most ``budget`` tokens (at least one example each), short ones first."""
    batches: list[list[int]] = []
    used = 0
    for number in sorted(range(len(examples)), key=lambda index: len(examples[index].tokens)):
        size = len(examples[number].tokens)
        if not batches or used + size > budget:
            batches.append([])
            used = 0
        batches[-1].append(number)
        used += size
    return batches


@torch.no_grad()
def example_losses(objective: Objective, examples: Sequence[Example], params: Params, batch_tokens: int = 2048) -> Tensor:
    """Mean cross-entropy over the supervised tokens of each example, float64 [number of examples] on the CPU."""
    losses = torch.zeros(len(examples), dtype=torch.float64)
    for batch in by_tokens(examples, batch_tokens):
        chosen = [examples[number] for number in batch]
        logits, rows = objective.logits(chosen, params)
        values = F.cross_entropy(logits, labels_of(chosen, logits.device), reduction="none").double().cpu()
        sums = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, rows.cpu(), values)
        losses[batch] = sums / torch.bincount(rows.cpu(), minlength=len(chosen))
    return losses
