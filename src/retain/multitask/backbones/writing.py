"""Text that a model writes: the likeliest token each time, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from retain.multitask.backbones.base import Inputs

TARGET, KNOWN = "target", "known"  # inputs: tokens [B, T] to be written, padded on the right, and [B, T] bool, which are not padding


class Writer(Protocol):
    """What a backbone that gives "generation" can do."""

    vocabulary: int  # outcomes of a token
    continues: ClassVar[bool]  # whether what is written follows the input in one text

    def spell(self, texts: list[str], most: int) -> list[Tensor]:
        """The tokens of texts that are to be written, each with the end token last; at most so many, a text that is cut has no end."""
        ...

    def complete(self, tokens: Tensor) -> bool:
        """Whether such tokens have an end."""
        ...

    def capacity(self) -> int | None:
        """Most tokens that can be written after the longest input; None for no limit."""
        ...

    def continued(self, inputs: Inputs) -> Tensor:
        """Logits [B, T, vocabulary] of each token of ``inputs[TARGET]``, given the input and the target's tokens before it."""
        ...

    def write(self, inputs: Inputs, most: int) -> Tensor:
        """The likeliest next token, again and again, until the end token or so many: [B, at most ``most``], after the end -1."""
        ...

    def text_of(self, tokens: Tensor) -> str:
        """The text of one row of :meth:`write`."""
        ...


def greedy(first: Tensor, step: Callable[[Tensor, int], Tensor], end: int, most: int) -> Tensor:
    """Tokens [B, at most ``most``], -1 after ``end``. ``first`` [B, V]: logits of the first token; ``step(tokens [B], place)`` gives those
    after the token at that place. Rows that have ended go on as the end token, and what is said of them is not used."""
    ended = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    logits, written = first, []
    for place in range(most):
        tokens = logits.float().argmax(-1).masked_fill(ended, end)
        written.append(tokens.masked_fill(ended, -1))
        ended |= tokens == end
        if place + 1 == most or bool(ended.all()):
            break
        logits = step(tokens, place)
    return torch.stack(written, 1)
