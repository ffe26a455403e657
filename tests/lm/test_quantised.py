"""Matrices in few bits stand for what they were made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retain.lm.quantised import EightBitProduct, EightBits, FourBits, product, quantised

fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def on_steps(outputs: int, inputs: int) -> Tensor:
    """Weights as a file in four bits holds them: each 32 a least value and up to 15 steps, the first and last of which occur."""
    generator = torch.Generator().manual_seed(3)
    whole = torch.randint(0, 16, (outputs, inputs // 32, 32), generator=generator)
    whole[..., 0], whole[..., 1] = 0, 15
    steps, least = (torch.rand(2, outputs, inputs // 32, 1, generator=generator) * 0.02 + 0.001).unbind()
    return (whole * steps - 5 * least).flatten(1)


def usual(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(4)) * 0.05


def error(found: Tensor, right: Tensor) -> float:
    return float((found.float() - right).norm() / right.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_lose_nothing_that_was_there(dtype: torch.dtype) -> None:
    weight = on_steps(64, 96)
    matrix = FourBits.of(weight.to(dtype))
    assert matrix is not None
    unit = matrix(torch.eye(96, dtype=torch.bfloat16)).float().t()  # the weights themselves
    assert error(unit, weight) < 2**-8
    coarse = EightBits(weight.to(dtype))(torch.eye(96, dtype=torch.bfloat16)).float().t()
    assert error(unit, weight) <= 1.2 * error(coarse, weight)


def test_four_bits_only_where_the_weights_have_no_more() -> None:
    assert FourBits.of(usual(64, 96)) is None
    spoilt = on_steps(64, 96)
    spoilt[40, 70] += 0.3 * (spoilt[40, 64:96].max() - spoilt[40, 64:96].min()) / 15
    assert FourBits.of(spoilt) is None  # one weight between two steps
    assert FourBits.of(on_steps(64, 96)[:40]) is None and FourBits.of(on_steps(64, 96)[:, :80]) is None  # shapes of no kernel


def test_the_form_follows_the_matrix() -> None:
    assert isinstance(quantised(usual(64, 96)), EightBits) and isinstance(quantised(usual(256, 64)), EightBitProduct)
    assert isinstance(quantised(on_steps(256, 64)), FourBits if fast else EightBitProduct)


def test_whole_inputs_are_exact_but_for_the_weights() -> None:
    """With outliers among the inputs, and each row alone as beside others."""
    weight, x = usual(256, 64), torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    x[2, 7], x[3] = 80.0, 0.0
    matrix = EightBitProduct(weight)
    rounded = (weight / (weight.abs().amax(1, keepdim=True) / 127)).round() * (weight.abs().amax(1, keepdim=True) / 127)
    assert error(matrix(x), x @ rounded.t()) < 2e-4 < error(EightBits(weight)(x), x @ rounded.t())
    assert error(matrix(x), x @ weight.t()) < 0.01
    assert all(torch.equal(matrix(x)[row], matrix(x[row : row + 1])[0]) for row in range(5))


@pytest.mark.parametrize("inputs", [1, 3, 8, 16, 20, 33])
def test_any_number_of_inputs(inputs: int) -> None:
    """The factors of adapters are narrow. Sixteen inputs are the fewest that the kernel can read."""
    weight, x = usual(5, inputs), torch.randn(3, inputs, generator=torch.Generator().manual_seed(6))
    assert error(EightBits(weight)(x), x @ weight.t()) < 0.02


def test_many_rows_are_multiplied_with_the_weights_themselves() -> None:
    weight, x = usual(64, 96), torch.randn(3, 96)
    matrix = quantised(weight)
    assert error(product(matrix, x, False), x @ weight.t()) < 1e-6 < 1e-4 < error(product(matrix, x, True), x @ weight.t())
