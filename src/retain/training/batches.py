"""Batches of a step: which examples, in which pieces, and one pass over what several parties want to know of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Objective, Params


def plan(examples: Sequence[Example], budget: int, generator: torch.Generator, cost: Callable[[Example], int] = len) -> list[list[Example]]:
    """One epoch: shuffled, cut into batches of about ``budget`` tokens (by ``cost``), each ordered by length."""
    batches: list[list[Example]] = []
    used = budget
    for number in torch.randperm(len(examples), generator=generator).tolist():
        size = cost(examples[number])
        if used + size > budget and used:
            batches.append([])
            used = 0
        batches[-1].append(examples[number])
        used += size
    return [sorted(batch, key=len) for batch in batches]


def pieces(batch: Sequence[Example], count: int) -> list[tuple[Sequence[Example], float]]:
    """A batch in at most ``count`` pieces, with each piece's share of the supervised tokens, so that their losses add up to the batch's."""
    size = math.ceil(len(batch) / count)
    parts = [batch[first : first + size] for first in range(0, len(batch), size)]
    supervised = [sum(example.n_supervised() for example in part) for part in parts]
    return [(part, number / sum(supervised)) for part, number in zip(parts, supervised, strict=True)]


def losses_and_logits(
    objective: Objective, new: Sequence[Example], replayed: Sequence[Example], consulted: Sequence[Sequence[Example]], params: Params
) -> tuple[tuple[Tensor, Tensor | None], list[Tensor | None]]:
    """Mean losses of the new and of the replayed examples (None without any), and the logits of each list of consulted ones.

    An objective that makes all logits anyway (it has ``losses``) runs once over everything; a language model, whose loss never holds all
    logits, runs once for each.
    """
    if hasattr(objective, "losses") and (replayed or any(consulted)):
        return objective.losses(new, replayed, consulted, params)
    replay_loss = objective.loss(replayed, params) if replayed else None
    return (objective.loss(new, params), replay_loss), [objective.logits(list(ask), params)[0] if ask else None for ask in consulted]
