"""Lanczos: the eigenvalues of matrices with every difficulty, and of the tiny decoder's Hessian written out in float64."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.evaluation.curvature.dense import SCALE, Matrix, decoder, dense_hessian, examples, few_factors, with_eigenvalues
from torch import Tensor, nn

from retain.evaluation.curvature import Eigenpair, HessianOperator, Search, adapter_loss, lanczos


def values(pairs: tuple[Eigenpair, ...]) -> list[float]:
    return [pair.value for pair in pairs]


def test_the_decoders_hessian() -> None:
    model = decoder()
    loss, params = adapter_loss(model, examples(), few_factors(model), SCALE)
    dense = torch.linalg.eigvalsh(dense_hessian(loss, params))
    operator = HessianOperator(loss, params)
    found = lanczos(operator, 8, which=("magnitude", "largest", "smallest"), tolerance=1e-7)
    assert found.converged and found.complete and operator.products == found.products < 150
    by_magnitude = dense[dense.abs().argsort(descending=True)][:8]
    for pairs, expected in ((found.by_magnitude(), by_magnitude), (found.largest(), dense.flip(0)[:8]), (found.smallest(), dense[:8])):
        assert len(pairs) == 8
        for pair, value in zip(pairs, expected.tolist(), strict=True):
            assert abs(pair.value - value) < 1e-6 * abs(value)
            assert abs(pair.value - value) <= pair.residual + 1e-12
    assert found.smallest()[0].value < -1e-3 < 1e-1 < found.largest()[0].value  # both signs are there


def test_the_decoders_hessian_in_float32() -> None:
    """Eigenvalues that are flagged converged are within the tolerance, here 1e-3, of those in float64."""
    wide, narrow = decoder(), decoder(torch.float32)
    dense = torch.linalg.eigvalsh(dense_hessian(*adapter_loss(wide, examples(), few_factors(wide), SCALE)))
    found = lanczos(HessianOperator(*adapter_loss(narrow, examples(), few_factors(narrow, torch.float32), SCALE)), 8)
    expected = dense[dense.abs().argsort(descending=True)][:8].tolist()
    errors = [abs(pair.value - value) / abs(value) for pair, value in zip(found.by_magnitude(), expected, strict=True) if pair.converged]
    assert len(errors) == 8 and max(errors) < 1e-4 and errors[0] < 1e-5


def test_negative_eigenvalues_keep_their_sign() -> None:
    matrix = with_eigenvalues([-10.0, -3.0, 0.5, 2.0, 7.0, *torch.linspace(-0.4, 0.4, 55).tolist()])
    found = lanczos(matrix, 3, which=("magnitude", "largest", "smallest"), tolerance=1e-9)
    assert values(found.by_magnitude()) == pytest.approx([-10.0, 7.0, -3.0], rel=1e-10)
    assert values(found.largest()) == pytest.approx([7.0, 2.0, 0.5], rel=1e-10)
    assert values(found.smallest()) == pytest.approx([-10.0, -3.0, -0.4], rel=1e-7)
    assert found.converged and not found.is_zero
    for pair in found.pairs:
        assert float((matrix.matrix @ pair.vector - pair.value * pair.vector).norm()) == pytest.approx(pair.residual, rel=0.2, abs=1e-12)
    below = lanczos(with_eigenvalues([-4.0, -3.0, -2.0] + [-1.0] * 30), 2, which=("largest",))
    assert values(below.largest()) == pytest.approx([-1.0, -1.0], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiple_eigenvalues_are_found_as_often_as_they_are_there(dtype: torch.dtype) -> None:
    spread = torch.linspace(0, 1, 194).tolist()
    found = lanczos(with_eigenvalues([5.0, 5.0, 5.0, -4.0, -4.0, 3.0, *spread], dtype=dtype), 6)
    assert values(found.by_magnitude()) == pytest.approx([5.0, 5.0, 5.0, -4.0, -4.0, 3.0], rel=1e-5)
    assert found.complete and found.converged
    vectors = torch.stack([pair.vector for pair in found.by_magnitude()])
    torch.testing.assert_close(vectors @ vectors.t(), torch.eye(6, dtype=dtype), atol=1e-3, rtol=0)


def test_factors_of_a_linear_loss() -> None:
    """L = <G, s B A> is linear in the product, and the Hessian of its factors is +- s sigma_i(G), each as often as the rank says."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    params = {"a": torch.randn(3, 9, generator=generator, dtype=torch.float64), "b": torch.zeros(6, 3, dtype=torch.float64)}
    found = lanczos(HessianOperator(lambda p: 2.0 * (g * (p["b"] @ p["a"])).sum(), params), 12, which=("magnitude", "largest"))
    sigma = (2.0 * torch.linalg.svdvals(g)).tolist()
    assert values(found.largest()) == pytest.approx([value for value in sigma[:4] for _ in range(3)], rel=1e-6)
    assert sorted(values(found.by_magnitude())) == pytest.approx(
        [-sigma[0]] * 3 + [-sigma[1]] * 3 + [sigma[1]] * 3 + [sigma[0]] * 3, rel=1e-6
    )


def test_invariant_subspaces() -> None:
    """Few distinct eigenvalues: the Krylov space ends after three products, and goes on from other starts."""
    few = with_eigenvalues([2.0] * 4 + [-1.0] * 3 + [0.0] * 93)
    found = lanczos(few, 8, which=("magnitude",))
    assert values(found.by_magnitude()) == pytest.approx([2.0] * 4 + [-1.0] * 3 + [0.0], abs=1e-9)
    assert found.converged and found.complete
    identity = lanczos(Matrix(torch.eye(50)), 5)
    assert values(identity.largest()) == pytest.approx([1.0] * 5, rel=1e-6) and identity.converged and identity.products < 40


def test_a_zero_hessian_is_reported_as_one() -> None:
    found = lanczos(Matrix(torch.zeros(40, 40)), 4)
    assert found.is_zero and found.converged and found.complete and values(found.largest()) == [0.0] * 4
    assert found.to_dict()["is_zero"] is True
    linear = HessianOperator(lambda p: p["a"].sum(), {"a": torch.ones(5)})
    assert lanczos(linear, 2).is_zero
    assert not lanczos(with_eigenvalues([1e-30] + [0.0] * 9), 1).is_zero


def test_what_is_not_finite_raises() -> None:
    matrix = torch.eye(10)
    matrix[3, 3] = torch.nan
    with pytest.raises(ArithmeticError, match="product with a vector is not finite"):
        lanczos(Matrix(matrix), 2)


def test_a_small_basis_restarts() -> None:
    """Eigenvalues close together need many products; the basis stays small."""
    matrix = with_eigenvalues(torch.linspace(0.0, 1.0, 400) ** 3)
    large = lanczos(matrix, 4, which=("largest",), tolerance=1e-6, basis=200)
    small = lanczos(matrix, 4, which=("largest",), tolerance=1e-6, basis=16, max_products=2000)
    expected = torch.linalg.eigvalsh(matrix.matrix).flip(0)[:4].tolist()
    assert values(large.largest()) == pytest.approx(expected, rel=1e-9) and large.converged
    assert values(small.largest()) == pytest.approx(expected, rel=1e-9) and small.converged
    assert 60 < large.products < small.products < 1000


def test_too_few_products_are_said() -> None:
    matrix = with_eigenvalues(torch.linspace(0.0, 1.0, 400))
    found = lanczos(matrix, 4, max_products=20)
    assert found.products == matrix.products <= 20 and not found.converged and not found.complete
    for pair in found.pairs:
        assert pair.residual > 1e-3 * abs(pair.value)


def test_residuals_cost_one_product_and_tell_of_a_matrix_that_is_not_symmetric() -> None:
    spread = [2.0 * 0.8**n for n in range(60)]
    told: list[Search] = []
    matrix = with_eigenvalues(spread)
    found = lanczos(matrix, 10, which=("magnitude",), max_products=30, tolerance=1e-2, watch=told.append)
    assert found.products == matrix.products <= 30 and found.converged
    assert values(found.by_magnitude()) == pytest.approx(spread[:10], rel=1e-3)
    for pair in found.pairs:
        true = float((matrix.matrix @ pair.vector - pair.value * pair.vector).norm())
        assert true == pytest.approx(pair.residual, rel=0.2, abs=1e-12)
    assert [step.products for step in told] == sorted({step.products for step in told})
    assert told[0].converged < told[-1].converged == told[-1].wanted == 10 and told[-1].residual < 0.5e-2 < told[0].residual
    skew = with_eigenvalues(spread)
    skew.matrix = skew.matrix + 0.05 * torch.triu(torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert not any(pair.converged for pair in lanczos(skew, 10, which=("magnitude",), tolerance=1e-2).pairs)


def test_everything_of_a_small_matrix() -> None:
    matrix = with_eigenvalues([3.0, -2.0, 1.0, 0.0])
    found = lanczos(matrix, 10, tolerance=1e-9)
    assert found.k == 4 and found.complete and found.converged
    assert values(found.by_magnitude()) == pytest.approx([3.0, -2.0, 1.0, 0.0], abs=1e-12)
    assert values(lanczos(Matrix(torch.tensor([[-2.5]])), 1).largest()) == [-2.5]


def test_equal_seeds_give_equal_results() -> None:
    matrix = with_eigenvalues(torch.linspace(-1.0, 2.0, 100))
    one, same, other = (lanczos(matrix, 3, tolerance=1e-6, seed=seed) for seed in (1, 1, 2))
    assert json.dumps(one.to_dict()) == json.dumps(same.to_dict())
    assert all(a.vector.equal(b.vector) for a, b in zip(one.pairs, same.pairs, strict=True))
    assert values(one.largest()) == pytest.approx(values(other.largest()), rel=1e-8) and not one.pairs[0].vector.equal(
        other.pairs[0].vector
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k >= 1"),
        ({"k": 2, "which": ("biggest",)}, "which of magnitude, largest, smallest"),
        ({"k": 9, "max_products": 10}, "products are too few"),
        ({"k": 9, "basis": 10}, "too small"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lanczos(with_eigenvalues(torch.linspace(0, 1, 50)), **options)
    with pytest.raises(ValueError, match="not asked for the smallest"):
        lanczos(with_eigenvalues([1.0, 2.0]), 1).smallest()


def test_against_hessian_eigenthings() -> None:
    """Another implementation on the same network: its Lanczos needs ``reorthogonalize=True``."""
    other = pytest.importorskip("hessian_eigenthings")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.randint(0, 4, (64,))
    from retain.evaluation.curvature import module_loss

    def criterion(run: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(run(batch[0]), batch[1])

    ours = lanczos(HessianOperator(*module_loss(network.eval(), criterion, [(x, y)])), 6, which=("magnitude",), tolerance=1e-8)
    theirs = other.lanczos(other.HessianOperator(network, [(x, y)], criterion), k=6, max_iter=100, tol=1e-8, reorthogonalize=True, seed=0)
    found = sorted(theirs.eigenvalues.tolist(), key=abs, reverse=True)
    assert values(ours.by_magnitude()) == pytest.approx(found, rel=1e-8)
