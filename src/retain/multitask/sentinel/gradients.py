"""The gradient norm of every record of a batch, from one backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.multitask.network import MultitaskNetwork


class GradientNorms:
    """Norms of single records' gradients by linear layers' inputs and output gradients (Goodfellow, 1510.01799): for a layer that a record
    goes through at T positions with inputs x_t and output gradients g_t, |sum_t g_t x_t^T|^2 = sum_{t,s} (g_t . g_s)(x_t . x_s).

    Looked at are the first and the last linear layer of the backbone that learn, and all of the heads: where an unusual input and an
    unusual label show, at a price that does not grow with the depth. A layer that sees a batch in another shape is left out.
    """

    def __init__(self, network: MultitaskNetwork) -> None:
        self.batch = 0
        self.squares: dict[int, list[Tensor]] = {}  # number of the batch: what the layers add, each [B]
        self._open = False
        inside = [module for module in network.backbone.modules() if _learns(module)]
        chosen = [*inside[:1], *inside[1:][-1:], *(module for module in network.heads.modules() if _learns(module))]
        self._handles = [module.register_forward_hook(self._forward) for module in chosen]

    def close(self) -> None:
        """Leave the layers."""
        for handle in self._handles:
            handle.remove()

    def watch(self, on: bool) -> None:
        """Begin with the next step, or end."""
        self._open = on
        if on:
            self.batch, self.squares = 0, {}

    def norms(self, batch: int, size: int) -> Tensor:
        """[B] of a batch of the step, as if each record were a batch of its own."""
        parts = [part for part in self.squares.get(batch, []) if len(part) == size]
        return size * torch.stack(parts).sum(0).sqrt() if parts else torch.zeros(0)

    def _forward(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._open and output.requires_grad:
            x, batch, bias = inputs[0].detach(), self.batch, getattr(module, "bias", None) is not None

            def backward(gradient: Tensor) -> None:
                if self._open:
                    self.squares.setdefault(batch, []).append(_squares(x.float(), gradient.float(), bias))

            output.register_hook(backward)


def _learns(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad


def _squares(x: Tensor, gradient: Tensor, bias: bool) -> Tensor:
    """Squared norms [B] of the gradients of a linear layer, from x [B, ..., in] and the gradient of its output [B, ..., out]."""
    if x.ndim == 2:
        return (x.square().sum(1) + bias) * gradient.square().sum(1)
    x, gradient = x.flatten(1, -2), gradient.flatten(1, -2)
    found = ((x @ x.transpose(1, 2)) * (gradient @ gradient.transpose(1, 2))).sum((1, 2))
    return found + gradient.sum(1).square().sum(1) if bias else found
