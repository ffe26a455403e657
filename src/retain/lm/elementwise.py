"""The parts of a transformer block between its matrix products, with gradients written out.

Left to autograd, a norm, a rotation or a gate in bfloat16 is some twenty small operations and as many copies; at training batches of a few
hundred tokens they cost as much as the matrix products. The functions here do the same arithmetic (float32 inside) in a few. Where a
gradient is itself differentiated, autograd's own way is taken; inside :func:`retain.lm.derivatives.twice_differentiable` the whole
function is left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.derivatives import differentiated_twice, wide
from retain.lm.packing import Packed


def _differentiated_again(function: Callable[..., Tensor], inputs: Sequence[Tensor], g: Tensor) -> list[Tensor | None]:
    """The gradients by autograd, themselves differentiable; None for an input that needs none."""
    with torch.enable_grad():
        needed = [leaf for leaf in inputs if leaf.requires_grad]
        found = iter(torch.autograd.grad(function(*inputs), needed, g, create_graph=True))
    return [next(found) if leaf.requires_grad else None for leaf in inputs]


def _normed(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The result, and what x was multiplied by."""
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # one operation, where the mean of the squares is two
    scale = norm.square_().mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype), scale


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = _normed(x, weight, epsilon)
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.epsilon = weight, epsilon
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,) = gradients
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = _differentiated_again(lambda a, b: F.rms_norm(a, a.shape[-1:], b, ctx.epsilon), (x, ctx.weight), g)
            return again[0], again[1], None
        normed = x * scale
        for_weight = (g * normed).sum(0).to(ctx.weight.dtype) if ctx.needs_input_grad[1] else None
        g = g * ctx.weight.float()
        mean = (g * normed).mean(-1, keepdim=True)
        return g.sub_(normed.mul_(mean)).mul_(scale).to(x.dtype), for_weight, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x`` [T, d] divided by its root mean square over d (RMSNorm, 1910.07467), times ``weight`` [d]."""
    if differentiated_twice():
        broad = wide(x)
        return (broad * (broad.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight).to(x.dtype)
    if x.dtype not in (torch.float32, torch.bfloat16):
        return F.rms_norm(x, x.shape[-1:], weight, epsilon)
    return _Norm.apply(x, weight, epsilon) if torch.is_grad_enabled() else _normed(x, weight, epsilon)[0]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return out.to(x.dtype)


class _Rotation(torch.autograd.Function):
    """The transpose of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.cos, ctx.sin = cos, sin
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Rotation.apply(gradients[0], ctx.cos, -ctx.sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings (RoFormer, 2104.09864, with the halves of a head paired) of ``x`` [T, H, D]; cos and sin [T, 1, D] float32."""
    if differentiated_twice():
        broad = wide(x)
        first, second = broad.chunk(2, -1)
        return (broad * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)
    return _Rotation.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor | None:
        (g,) = gradients
        (gate_up,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiated_again(_gated, (gate_up,), g)[0]
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        d_gate.copy_(torch.ops.aten.silu_backward(g * up, gate))
        torch.mul(g, F.silu(gate), out=d_up)
        return out


def gated(gate_up: Tensor) -> Tensor:
    """SwiGLU's gate (2002.05202): the first half of ``gate_up`` [T, 2 F] through SiLU, times the second half; [T, F]."""
    return _gated(gate_up) if differentiated_twice() or not torch.is_grad_enabled() else _Gate.apply(gate_up)


class _Pad(torch.autograd.Function):
    """From [T, ...] to the groups' padded rows end to end [P, ...]. No gradient comes from the padding: nothing looks at it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return x[packed.padded]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Unpad.apply(gradients[0], ctx.packed), None


class _Unpad(torch.autograd.Function):
    """The real tokens of padded rows, in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return x[packed.unpadded]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        packed: Packed = ctx.packed
        zeros = g.new_zeros((packed.padded.shape[0], *g.shape[1:]))
        return zeros.index_copy(0, packed.unpadded, g), None


def pad(x: Tensor, packed: Packed) -> Tensor:
    """``x`` [T, ...] as the rows of the batch's groups, each padded to its group's length, end to end."""
    return x[packed.padded] if differentiated_twice() else _Pad.apply(x, packed)


def unpad(x: Tensor, packed: Packed) -> Tensor:
    """Inverse of :func:`pad`."""
    return x[packed.unpadded] if differentiated_twice() else _Unpad.apply(x, packed)
