"""Kinds of adapters that sit beside a whole MLP of the model: they read what it reads and add to what it writes.

A kind says which tensors it has at a site (the name of an MLP, such as "model.layers.22.mlp") and what they add. To add one is to
register it here; storing, routing, mixing with LoRA adapters and different weights in different rows of a batch come with that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Change = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class BlockKind:
    """``names``: of the tensors at every site, ``<site>.<name>``; further ones are allowed. ``change(tensors, x)``: what the tensors of one
    site, by name, add to the MLP's output [T, width], before the adapter's scale, given its input ``x`` [T, width]. ``check(tensors,
    width)``: a line that says what is wrong with their shapes, or nothing."""

    names: tuple[str, ...]
    change: Change
    check: Callable[[Mapping[str, Tensor], int], str]


BLOCK_KINDS: dict[str, BlockKind] = {}


def at_site(tensors: Mapping[str, Tensor], site: str) -> dict[str, Tensor]:
    """The tensors of one site by their short names."""
    prefix = f"{site}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
