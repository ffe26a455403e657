"""Matrices in few bits for answering on a CPU: a decoding step reads every weight once, so it takes as long as there are bytes.

Three forms, of which :func:`quantised` chooses one for each matrix W [d_out, d_in]:

- ``FourBits``, for weights that are no more than that: those of a model that came from a file in four bits (GGUF's Q4_0 and Q4_1), where
  32 neighbours of a row are a least value plus 0 to 15 steps. Nothing is lost but what bfloat16 rounds off a step.
- ``EightBits``: whole numbers from -127 to 127 with a scale for each output. A weight is widened when it is used.
- ``EightBitProduct``: the same numbers, and the inputs become whole numbers too, of sixteen bits, from each row's least value to its
  largest, so that the product runs on eight-bit numbers, once for the high byte and once for the low one. On processors with VNNI this
  is the fastest for many outputs, and it is nearer to the true product than inputs in bfloat16 are.

Perplexity of SmolLM2-135M on the control text, by ``python -m benchmarks.decoding``: docs/serve.md.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.products import linear

GROUP = 32  # neighbours with a least value and a step of their own
FEW = 16  # rows up to which a matrix in few bits is faster than the weights themselves
WIDE = 4  # outputs for each input from which on whole inputs pay


class Quantised(Protocol):
    """x [T, d_in] -> [T, d_out], with few rows. ``weight`` is the matrix that it stands for."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor: ...


def quantised(weight: Tensor) -> Quantised:
    """The fastest form of a frozen matrix [d_out, d_in] that keeps its perplexity."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and (four := FourBits.of(weight)):
        return four
    return EightBitProduct(weight) if weight.shape[0] >= WIDE * weight.shape[1] else EightBits(weight)


class FourBits:
    """See the module; made by :meth:`of`."""

    def __init__(self, weight: Tensor, whole: Tensor, steps: Tensor, least: Tensor) -> None:
        self.weight = weight
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        # The kernel's weights are (number - 8) * step + middle.
        self._steps = torch.stack([steps, least + 8 * steps], -1).transpose(0, 1).contiguous().to(torch.bfloat16)

    @classmethod
    def of(cls, weight: Tensor) -> FourBits | None:
        """None when the weights do not lie on such steps, to the precision of bfloat16, or when the kernel does not take the shape."""
        outputs, inputs = weight.shape
        if inputs % GROUP or outputs % 16:
            return None
        groups = weight.detach().float().unflatten(1, (-1, GROUP))
        least, most = groups.aminmax(dim=-1, keepdim=True)
        steps = ((most - least) / 15).clamp_(min=1e-12)
        whole = ((groups - least) / steps).round_()
        error = torch.addcmul(least, whole, steps).sub_(groups).abs_()
        if bool((error > 2**-7 * groups.abs().amax(-1, keepdim=True)).any()):
            return None
        return cls(weight, whole.to(torch.int32).flatten(1), steps[..., 0], least[..., 0])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), self._packed, GROUP, self._steps).to(x.dtype)


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [d_out, d_in] and the scale of each output."""
    wide = weight.detach().float()
    scales = wide.abs().amax(1).clamp_(min=1e-12) / 127
    return (wide / scales[:, None]).round_().to(torch.int8), scales


class EightBits:
    """See the module."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        whole, scales = _eight_bits(weight)
        self._missing = -weight.shape[1] % 16  # the kernel reads inputs by sixteen, and beyond the end of fewer
        self._whole, self._scales = F.pad(whole, (0, self._missing)), scales.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        narrow = F.pad(x, (0, self._missing)) if self._missing else x
        return torch._weight_int8pack_mm(narrow.to(torch.bfloat16), self._whole, self._scales).to(x.dtype)


class EightBitProduct:
    """See the module."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        whole, self._scales = _eight_bits(weight)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        self._sums = (whole.float() * self._scales[:, None]).sum(1)
        self._packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self._half = torch.tensor(0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """With each row x = least + span / 65535 * u and u = 256 * high + low: W x = span / 65535 * W u + least * (sums over W's rows)."""
        wide = x.float()
        least, most = wide.aminmax(dim=1, keepdim=True)
        span = (most - least).clamp_(min=1e-12)
        u = torch.addcmul(self._half, wide - least, 65535 / span).to(torch.int32)
        low_high = u.view(torch.uint8).view(*u.shape, 4)[..., :2].permute(2, 0, 1).reshape(-1, u.shape[1])
        found = torch.ops.onednn.qlinear_pointwise(
            low_high, 1.0, 0, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        low, high = found.chunk(2)
        return low.add_(high, alpha=256).mul_(span / 65535).addcmul_(least, self._sums).to(x.dtype)


def product(matrix: Quantised, x: Tensor, step: bool) -> Tensor:
    """x [T, d_in] -> [T, d_out]. ``step``: whether every row is a token of its own, as in a decoding step. Where there are many rows, as
    in a prompt, the weights themselves are faster."""
    return matrix(x) if step else linear(x, matrix.weight)
