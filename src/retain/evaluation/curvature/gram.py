"""The spectrum of the empirical Fisher matrix, from the inner products of the gradients of single examples.

With the gradients g_i of n examples in the rows of G [n, p], F = 1/n G'G = 1/n sum_i g_i g_i' [p, p] and K = 1/n G G' [n, n] have the same
nonzero eigenvalues, and K is small (n examples, where p may be millions of parameters). The leading eigenvectors of F follow from those of
K: u = G'q / sqrt(n lambda).

Conventions: 1/n, no 1/2. What g_i is the gradient of is the caller's choice and has to be said with every figure: of the log-likelihood of
a whole sequence (``reduction="sum"`` in :func:`retain.evaluation.curvature.example_losses`, as in :mod:`retain.retention.fisher`), or of
its mean over tokens. F is the *empirical* Fisher where the labels are those of the data. It estimates the Fisher matrix, which for softmax
cross-entropy is the generalised Gauss-Newton matrix (Martens, 1412.1193, section 9), only where labels are drawn from the model itself
(Kunstner et al., 1905.12558).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retain.evaluation.curvature.operator import Loss, Params, finite
from retain.lm.derivatives import twice_differentiable


@dataclass(frozen=True)
class GramSpectrum:
    """``values`` [n]: the eigenvalues of K, float64, from the largest; those of F are the same and zeros. ``gram`` [n, n]: K itself;
    ``trace``: of F, 1/n sum ||g_i||^2; ``size``: p; ``reduction``: what the gradients are of, in the caller's words."""

    values: Tensor
    gram: Tensor
    trace: float
    size: int
    reduction: str

    @property
    def is_zero(self) -> bool:
        """Whether every gradient is zero."""
        return self.trace == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = self.values.tolist()
        return {"values": values, "trace": self.trace, "examples": len(values), "size": self.size, "reduction": self.reduction}


def gram_spectrum(losses: Sequence[Loss], params: Params, *, reduction: str, held: int = 256) -> GramSpectrum:
    """Spectrum of the empirical Fisher matrix from one loss per example.

    ``held``: how many gradients are in memory at once; with n examples, about n (1 + n / (2 held)) gradients are computed.
    Raises ArithmeticError when a loss or a gradient is not finite.
    """
    count = len(losses)
    if not count or held < 1:
        raise ValueError("a Gram matrix needs at least one example, and room for one gradient")
    gram = torch.zeros(count, count, dtype=torch.float64)
    for first in range(0, count, held):
        rows = torch.stack([_gradient(loss, params) for loss in losses[first : first + held]])
        block = slice(first, first + len(rows))
        gram[block, block] = (rows @ rows.t()).double().cpu()
        for other in range(first + len(rows), count):
            gram[block, other] = gram[other, block] = (rows @ _gradient(losses[other], params)).double().cpu()
    gram /= count
    size = sum(tensor.numel() for tensor in params.values())
    return GramSpectrum(torch.linalg.eigvalsh(gram).flip(0), gram, float(gram.trace()), size, reduction)


def _gradient(loss: Loss, params: Params) -> Tensor:
    """The gradient [p] of one example's loss."""
    leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in params.items()}
    with torch.enable_grad(), twice_differentiable():  # the arithmetic of the other figures
        found = torch.autograd.grad(finite(loss(leaves), "loss"), list(leaves.values()), allow_unused=True)
    pairs = zip(found, leaves.values(), strict=True)
    return finite(torch.cat([(torch.zeros_like(leaf) if g is None else g).reshape(-1) for g, leaf in pairs]), "gradient")
