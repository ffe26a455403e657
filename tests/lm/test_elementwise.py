"""Norms, rotations, gates and padding with written-out gradients: the same numbers as autograd's, once and twice differentiated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.elementwise import gated, pad, rms_norm, rotate, unpad
from retain.lm.packing import Packed


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin).to(x.dtype)


def pairs(dtype: torch.dtype) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(8, generator=generator).to(dtype) + 0.5
    angles = torch.rand(5, 1, 4, generator=generator)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    return {
        "norm": (
            lambda x: rms_norm(x, weight, 1e-5),
            lambda x: F.rms_norm(x, (8,), weight, 1e-5),
            torch.randn(5, 8, generator=generator).to(dtype),
        ),
        "rotation": (
            lambda x: rotate(x, cos, sin),
            lambda x: plain_rotation(x, cos, sin),
            torch.randn(5, 3, 8, generator=generator).to(dtype),
        ),
        "gate": (
            gated,
            lambda x: F.silu(x[:, :4]) * x[:, 4:],
            torch.randn(5, 8, generator=generator).to(dtype),
        ),
    }


@pytest.mark.parametrize("name", ["norm", "rotation", "gate"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float64, 1e-7)])
def test_value_and_gradient(name: str, dtype: torch.dtype, tolerance: float) -> None:
    ours, plain, x = pairs(dtype)[name]
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    found, expected = ours(leaves[0]), plain(leaves[1])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = [torch.autograd.grad(out, leaf, upstream)[0] for out, leaf in zip((found, expected), leaves, strict=True)]
    assert float(gradients[1].abs().max()) > 0.1
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["norm", "rotation", "gate"])
def test_second_derivative(name: str) -> None:
    ours, plain, x = pairs(torch.float32)[name]
    seconds = []
    for function in (ours, plain):
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(leaf).pow(3).sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert float(seconds[1].abs().max()) > 0.1
    torch.testing.assert_close(*seconds, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("known", [False, True])
def test_a_norm_that_is_trained(known: bool) -> None:
    """The gradient of its weight, once and twice differentiated, whether or not its input has one."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 8, generator=generator), torch.rand(8, generator=generator) + 0.5
    found = []
    for norm in (rms_norm, lambda x, weight, epsilon: F.rms_norm(x, (8,), weight, epsilon)):
        x, weight = start[0].clone().requires_grad_(not known), start[1].clone().requires_grad_(True)
        leaves = [leaf for leaf in (x, weight) if leaf.requires_grad]
        plain = torch.autograd.grad(norm(x, weight, 1e-5).pow(3).sum(), leaves)
        again = torch.autograd.grad(norm(x, weight, 1e-5).pow(3).sum(), leaves, create_graph=True)
        found.append([*plain, *torch.autograd.grad(sum(gradient.square().sum() for gradient in again), leaves)])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-2, rtol=1e-4)


def test_padding_and_back() -> None:
    packed = Packed.of([[1, 2], [3] * 30, [4, 5, 6], [7] * 29])
    assert len(packed.groups) > 1
    x = torch.randn(packed.total, 2, dtype=torch.float64, requires_grad=True)
    padded = pad(x, packed)
    assert padded.shape[0] == sum(group.index.numel() for group in packed.groups) > packed.total
    assert torch.equal(unpad(padded, packed), x)
    weights = torch.randn(packed.total, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((unpad(pad(x, packed).square(), packed) * weights).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, 2 * x * weights)
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), x)[0], 2 * weights)
