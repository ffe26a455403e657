"""What the curvature code is compared with: matrices with known eigenvalues, and the Hessian of a tiny decoder written out."""

from __future__ import annotations

import torch
from tests.retention.tiny import CONFIG, SCALE, noisy, ragged, tiny_model, tiny_params
from torch import Tensor

from retain.adapters import select_sites
from retain.data.examples import Example
from retain.evaluation.curvature import Loss, Params
from retain.lm.decoder import DecoderLM
from retain.lm.derivatives import twice_differentiable


class Matrix:
    """A dense symmetric matrix as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device
        self.products = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ v


def with_eigenvalues(values: list[float] | Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Matrix:
    """A matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    return Matrix((q * values @ q.t()).to(dtype))


def decoder(dtype: torch.dtype = torch.float64) -> DecoderLM:
    """The tiny decoder of the retention tests, in another type."""
    return DecoderLM(CONFIG, tiny_model().parameters(), None, name="tiny", dtype=dtype)


def few_factors(model: DecoderLM, dtype: torch.dtype = torch.float64, rank: int = 1) -> Params:
    """LoRA factors of both kinds of sites in the last layer, 208 values at rank 1, none of them zero."""
    chosen = set(select_sites(model, 1, ("q_proj", "v_proj", "down_proj")))
    params = noisy(tiny_params(model, rank=rank))
    return {name: tensor.to(dtype) for name, tensor in params.items() if name.rsplit(".", 2)[0] in chosen}


def examples() -> list[Example]:
    """Examples of several lengths, in more than one padded group."""
    return ragged(6)


def dense_hessian(loss: Loss, params: Params) -> Tensor:
    """The Hessian [n, n] of a loss, by autograd's own function."""
    names, shapes = list(params), [tensor.shape for tensor in params.values()]
    sizes = [shape.numel() for shape in shapes]

    def flat(v: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(v.split(sizes), shapes, strict=True)]
        return loss(dict(zip(names, pieces, strict=True)))

    with twice_differentiable():
        found = torch.autograd.functional.hessian(flat, torch.cat([tensor.reshape(-1) for tensor in params.values()]))
    return (found + found.t()) / 2


__all__ = ["SCALE", "Matrix", "decoder", "dense_hessian", "examples", "few_factors", "with_eigenvalues"]
