"""Hutch++ and stochastic Lanczos quadrature against traces and eigenvalues that are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.evaluation.curvature.dense import SCALE, Matrix, decoder, dense_hessian, examples, few_factors, with_eigenvalues

from retain.evaluation.curvature import HessianOperator, adapter_loss, hutchpp, spectral_density


def test_trace_of_the_decoders_hessian() -> None:
    model = decoder()
    loss, params = adapter_loss(model, examples(), few_factors(model), SCALE)
    trace = float(dense_hessian(loss, params).trace())
    operator = HessianOperator(loss, params)
    found = hutchpp(operator, 90, seed=1)
    assert operator.products == found.products == 90
    assert abs(found.value - trace) < 4 * found.error < 0.2 * abs(trace)


def test_low_rank_and_full_rank_are_exact() -> None:
    low = hutchpp(with_eigenvalues([9.0, -4.0, 2.0] + [0.0] * 97), 30)
    assert low.value == pytest.approx(7.0, rel=1e-9) and low.error < 1e-9
    assert low.captured == pytest.approx(7.0, rel=1e-9)
    full = hutchpp(with_eigenvalues(torch.arange(1.0, 11.0)), 30)
    assert full.value == pytest.approx(55.0, rel=1e-12) and full.error == 0 and full.products == 20


def test_the_error_is_the_spread_of_the_estimates() -> None:
    """Over many seeds: no bias, and the mean squared error is what the reported errors say."""
    matrix = with_eigenvalues(1.0 / torch.arange(1.0, 201.0))
    trace = float(matrix.matrix.trace())
    estimates = [hutchpp(matrix, 45, seed=seed) for seed in range(200)]
    deviations = torch.tensor([estimate.value - trace for estimate in estimates])
    errors = torch.tensor([estimate.error for estimate in estimates])
    spread = float(deviations.square().mean().sqrt())
    assert abs(float(deviations.mean())) < 4 * spread / math.sqrt(200)
    assert float(errors.square().mean().sqrt()) == pytest.approx(spread, rel=0.25)
    plain = float(2 * (matrix.matrix - torch.diag(matrix.matrix.diagonal())).square().sum() / 45) ** 0.5  # Hutchinson with 45 products
    assert spread < 0.5 * plain


def test_zero_and_not_finite() -> None:
    zero = hutchpp(Matrix(torch.zeros(20, 20)), 9)
    assert zero.value == zero.error == 0
    density = spectral_density(Matrix(torch.zeros(20, 20)), probes=2, steps=5)
    assert density.mean == 0 and float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1.0, abs=1e-6)
    broken = Matrix(torch.full((5, 5), torch.inf))
    for estimate in (hutchpp, spectral_density):
        with pytest.raises(ArithmeticError, match="not finite"):
            estimate(broken)
    with pytest.raises(ValueError, match="at least 3"):
        hutchpp(broken, 2)
    with pytest.raises(ValueError, match="at least one probe"):
        spectral_density(broken, sigma=0.0)
    assert math.isnan(hutchpp(with_eigenvalues([1.0] * 9), 3).error)


def test_density_of_the_decoders_hessian() -> None:
    model = decoder()
    loss, params = adapter_loss(model, examples(), few_factors(model), SCALE)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(loss, params))
    found = spectral_density(HessianOperator(loss, params), probes=10, steps=40)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-6)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12) and float(found.density.min()) >= 0
    mean = float(torch.trapezoid(found.density * found.grid, found.grid))
    assert mean == pytest.approx(found.mean, abs=1e-6)
    assert abs(found.mean - float(eigenvalues.mean())) < 4 * found.mean_error
    assert float(found.nodes.max()) == pytest.approx(float(eigenvalues.max()), rel=1e-6)
    assert float(found.nodes.min()) == pytest.approx(float(eigenvalues.min()), rel=1e-6)
    json.dumps(found.to_dict())


def test_density_of_a_known_spectrum() -> None:
    """A third of the eigenvalues at -1, two thirds around 2: the shares, and an early end of the Krylov space."""
    matrix = with_eigenvalues([-1.0] * 100 + [2.0] * 200)
    found = spectral_density(matrix, probes=20, steps=30, sigma=0.05, seed=3)
    assert found.products == matrix.products == 40  # two distinct eigenvalues, two steps
    assert found.share(-1.1, -0.9) == pytest.approx(1 / 3, abs=0.03)
    assert found.share(-1.1, -0.9) + found.share(1.9, 2.1) == pytest.approx(1.0, abs=1e-12)
    peak = found.density[(found.grid - 2.0).abs().argmin()]
    assert float(peak) == pytest.approx(2 / 3 / (0.05 * math.sqrt(2 * math.pi)), rel=0.05)
    again = spectral_density(matrix, probes=20, steps=30, sigma=0.05, seed=3)
    assert again.density.equal(found.density)
    assert found.mean == pytest.approx(1.0, abs=4 * found.mean_error)
