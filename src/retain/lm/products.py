"""Products with frozen matrices, on the fastest float32 kernels that this processor has.

torch takes float32 products on a CPU from MKL, which on AMD processors leaves AVX-512 unused; oneDNN, which torch brings along for
bfloat16, uses it. Measured on an AMD EPYC with AVX-512, one thread: 100 against 220 GFLOP/s from 32 rows on, forward and backward, no
slower for one row. Everywhere else, and for other types, this is ``torch.nn.functional.linear``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.derivatives import differentiated_twice, wide
from retain.lm.devices import machine


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [T, d_in] times the transpose of ``weight`` [d_out, d_in], which is frozen: gradients reach ``x`` alone."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 2 or x.shape[0] == 0 or weight.requires_grad or not onednn_pays():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Frozen.apply(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Frozen(torch.autograd.Function):
    """The gradient is a product of the same kind, so it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return linear(gradients[0], ctx.weight.t()), None, None


class _TokenLoss(torch.autograd.Function):
    """The gradient is made beside the loss, piece by piece, so that no more than ``PIECE`` rows of logits are ever there."""

    PIECE = 128

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for first in range(0, len(labels), _TokenLoss.PIECE):
            piece = slice(first, first + _TokenLoss.PIECE)
            logits, label, share = linear(hidden[piece], head).float(), labels[piece], soft[piece]
            logits.sub_(logits.amax(1, keepdim=True))  # so that the loss of a sure prediction keeps its digits
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser[:, 0] - (logits.gather(1, label) * share).sum(1)).sum()
            if gradient is not None:
                probabilities = logits.sub_(normaliser).exp_()
                probabilities.scatter_add_(1, label, -share)
                gradient[piece] = linear(probabilities.to(head.dtype), head.t())
        ctx.save_for_backward(hidden, gradient)
        ctx.head, ctx.labels, ctx.soft = head, labels, soft
        return loss / len(labels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = gradients
        hidden, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            with torch.enable_grad():
                loss = soft_cross_entropy(linear(hidden, ctx.head).float(), ctx.labels, ctx.soft)
                return torch.autograd.grad(loss, hidden, g, create_graph=True)[0], None, None, None
        return gradient * (g / len(ctx.labels)).to(gradient.dtype), None, None, None


def soft_cross_entropy(logits: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
    """Mean over the rows of ``logits`` [N, V] of the cross-entropy to the distribution that gives the tokens ``labels`` [N, K] the
    probabilities ``soft`` [N, K], which sum to 1 (Hinton et al., 1503.02531, section 2, at temperature 1)."""
    return (logits.logsumexp(1) - (logits.gather(1, labels) * soft).sum(1)).mean()


def token_loss(hidden: Tensor, head: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of ``labels`` [N] under the logits ``hidden`` [N, d] times the transpose of the frozen ``head`` [V, d].

    With ``soft`` [N, K] the labels are [N, K] too, as in :func:`soft_cross_entropy`.

    Never holds all logits: in float32 those of 1,000 tokens over a vocabulary of 49,152 are 197 MB, twice with their gradient. Only a
    pass that is to be differentiated twice does.
    """
    if soft is None:
        labels = labels[:, None]
        soft = torch.ones(labels.shape, device=labels.device)
    if differentiated_twice():
        return soft_cross_entropy(wide(linear(hidden, head)), labels, soft)
    return _TokenLoss.apply(hidden, head, labels, soft)


@cache
def onednn_pays() -> bool:
    """True on an AMD processor with AVX-512 when torch has oneDNN and its product is right on a small example."""
    here = machine()
    if "amd" not in here.cpu.lower() or "avx512f" not in here.flags or not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode(False), torch.no_grad():
        x, weight = torch.arange(12.0).reshape(3, 4), torch.arange(20.0).reshape(5, 4)
        try:
            same = torch.equal(_product(x, weight, None), F.linear(x, weight))
            return same and torch.equal(_product(weight.t(), torch.ones(3, 5), None), F.linear(weight.t(), torch.ones(3, 5)))
        except (AttributeError, RuntimeError, NotImplementedError):
            return False
