"""Packed batches: segments one after another without padding, and the one place where labels are shifted.

Linear layers run over the ``T`` real tokens only. Attention needs rows of equal length, so segments of similar length are gathered
into small padded groups for that one operation; with right padding and a causal mask no real token ever sees a padded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Segments of similar length: ``index`` [n, L] points into the packed tokens, ``valid`` [n, L] marks real ones."""

    index: Tensor
    valid: Tensor
    source: Tensor  # [n_valid] packed positions in the order in which index[valid] lists them


@dataclass(frozen=True)
class Packed:
    """A batch of token sequences laid end to end.

    ``tokens`` [T] int64; ``positions`` [T] int64, restarting in each segment; ``lengths``: the S segment lengths.
    """

    tokens: Tensor
    positions: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu", offset: int = 0) -> Packed:
        """Pack sequences in the given order; each begins at position ``offset``. Raises ValueError when there is none or one is empty."""
        lengths = tuple(len(sequence) for sequence in sequences)
        if not lengths or min(lengths) == 0:
            raise ValueError("a packed batch needs at least one sequence and no empty one")
        tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64, device=device)
        positions = torch.cat([torch.arange(offset, offset + length, device=device) for length in lengths])
        return cls(tokens, positions, lengths)

    @property
    def total(self) -> int:
        """Number of tokens T."""
        return int(self.tokens.shape[0])

    @cached_property
    def rows(self) -> Tensor:
        """Segment number of every token, [T]."""
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.tokens.device), lengths)

    @cached_property
    def starts(self) -> Tensor:
        """Packed position of each segment's first token, [S]."""
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.cumsum(lengths, 0) - lengths

    @cached_property
    def last(self) -> Tensor:
        """Packed position of each segment's last token, [S]."""
        return self.starts + torch.tensor(self.lengths, device=self.tokens.device) - 1

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Segments grouped so that no row is padded to more than about 1.5 times its length."""
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        batches: list[list[int]] = []
        for segment in order:
            if batches and self.lengths[segment] <= 1.5 * self.lengths[batches[-1][0]] + 8:
                batches[-1].append(segment)
            else:
                batches.append([segment])
        return tuple(self._group(batch) for batch in batches)

    @cached_property
    def padded(self) -> Tensor:
        """The packed position of every place when the groups' padded rows are laid end to end, [P]; padding repeats a row's first."""
        return torch.cat([group.index.flatten() for group in self.groups])

    @cached_property
    def unpadded(self) -> Tensor:
        """Where each token stands in ``padded``, [T]."""
        places = torch.empty_like(self.tokens)
        offset = 0
        for group in self.groups:
            places[group.source] = offset + group.valid.flatten().nonzero(as_tuple=True)[0]
            offset += group.valid.numel()
        return places

    def _group(self, segments: list[int]) -> Group:
        device = self.tokens.device
        width = max(self.lengths[segment] for segment in segments)
        steps = torch.arange(width, device=device)
        lengths = torch.tensor([self.lengths[segment] for segment in segments], device=device)
        starts = self.starts[torch.tensor(segments, device=device)]
        valid = steps[None, :] < lengths[:, None]
        index = torch.where(valid, starts[:, None] + steps[None, :], starts[:, None])
        return Group(index, valid, index[valid])


def targets(packed: Packed, supervised: Sequence[Sequence[bool]]) -> tuple[Tensor, Tensor]:
    """Shift labels: the hidden state at position ``t - 1`` predicts the supervised token ``t`` of the same segment.

    Returns ``(positions [N], labels [N])``. This is the only label shift in retain. Raises ValueError when nothing is
    supervised or when a segment's first token is (nothing precedes it).
    """
    flags = [flag for mask in supervised for flag in mask]
    if len(flags) != packed.total:
        raise ValueError(f"the loss mask has {len(flags)} entries for {packed.total} tokens")
    chosen = torch.tensor(flags, dtype=torch.bool, device=packed.tokens.device)
    if bool(chosen[packed.starts].any()):
        raise ValueError("the first token of a segment cannot be supervised: nothing precedes it")
    labels_at = chosen.nonzero(as_tuple=True)[0]
    if labels_at.numel() == 0:
        raise ValueError("no supervised token in the batch: there is nothing to learn from")
    return labels_at - 1, packed.tokens[labels_at]


def common_prefix(prompts: Sequence[Sequence[int]], least: int = 32) -> int:
    """How many tokens all prompts begin with, the last token of the shortest not counted; 0 when it does not pay (below ``least``)."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # what the first and the last in order have in common, all have
    limit = min(len(prompt) for prompt in prompts) - 1
    found = min(limit, next((place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), limit))
    return found if found >= least else 0
