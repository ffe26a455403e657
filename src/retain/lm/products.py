"""Products with matrices of a model, frozen or trained, on the fastest float32 kernels that this processor has.

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
    """``x`` [T, d_in] times the transpose of ``weight`` [d_out, d_in], plus ``bias`` [d_out]."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 2 or x.shape[0] == 0 or not onednn_pays():
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):  # which knows torch's own products only
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """The gradients are products of the same kind, so they can be differentiated again. A frozen matrix gets none, and ``x`` is not kept
    for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,), (x,), (for_x, for_weight, for_bias) = gradients, ctx.saved_tensors, ctx.needs_input_grad
        return (
            linear(g, ctx.weight.t()) if for_x else None,
            linear(g.t(), x.t()) if for_weight else None,
            g.sum(0) if for_bias else None,
        )


class _TokenLoss(torch.autograd.Function):
    """The gradients are made beside the loss, piece by piece, so that no more than ``PIECE`` rows of logits are ever there; four times as
    many where the head is trained, whose gradient every piece adds to."""

    PIECE = 128

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        head_gradient = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        size = _TokenLoss.PIECE * (1 if head_gradient is None else 4)
        for first in range(0, len(labels), size):
            piece = slice(first, first + size)
            logits, label, share = linear(hidden[piece], head).float(), labels[piece], soft[piece]
            logits.sub_(logits.amax(1, keepdim=True))  # so that the loss of a sure prediction keeps its digits
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser[:, 0] - (logits.gather(1, label) * share).sum(1)).sum()
            if gradient is None and head_gradient is None:
                continue
            difference = logits.sub_(normaliser).exp_().scatter_add_(1, label, -share).to(head.dtype)  # probabilities minus labels
            if gradient is not None:
                gradient[piece] = linear(difference, head.t())
            if head_gradient is not None:
                head_gradient += linear(difference.t(), hidden[piece].t())
        ctx.save_for_backward(hidden, gradient, head_gradient)
        ctx.head, ctx.labels, ctx.soft = head, labels, soft
        return loss / len(labels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (g,) = gradients
        hidden, *found = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            leaves = [leaf for leaf in (hidden, ctx.head) if leaf.requires_grad]
            with torch.enable_grad():
                loss = soft_cross_entropy(linear(hidden, ctx.head).float(), ctx.labels, ctx.soft)
                again = iter(torch.autograd.grad(loss, leaves, g, create_graph=True))
            found = [next(again) if leaf.requires_grad else None for leaf in (hidden, ctx.head)]
        else:
            found = [None if gradient is None else gradient * (g / len(ctx.labels)).to(gradient.dtype) for gradient in found]
        return found[0], found[1], None, None


def soft_cross_entropy(logits: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
    """Mean over the rows of ``logits`` [N, V] of the cross-entropy to the distribution that gives the tokens ``labels`` [N, K] the
    probabilities ``soft`` [N, K], which sum to 1 (Hinton et al., 1503.02531, section 2, at temperature 1)."""
    return (logits.logsumexp(1) - (logits.gather(1, labels) * soft).sum(1)).mean()


def token_loss(hidden: Tensor, head: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of ``labels`` [N] under the logits ``hidden`` [N, d] times the transpose of ``head`` [V, d].

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
