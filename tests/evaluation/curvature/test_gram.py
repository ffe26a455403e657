"""The empirical Fisher spectrum from inner products of gradients, against the matrix written out and against the Fisher diagonal."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.curvature.dense import SCALE, decoder, examples, few_factors
from tests.retention.tiny import objective_of

from retain.evaluation.curvature import example_losses, gram_spectrum
from retain.retention.fisher import fisher_by_loop


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("held", [1, 4, 100])
def test_spectrum_of_the_empirical_fisher(reduction: str, held: int) -> None:
    model = decoder()
    losses, params = example_losses(model, examples(), few_factors(model), SCALE, reduction=reduction)  # type: ignore[arg-type]
    found = gram_spectrum(losses, params, reduction=reduction, held=held)
    gradients = []
    for example, loss in zip(examples(), losses, strict=True):
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
        loss(leaves).backward()
        gradients.append(torch.cat([leaf.grad.reshape(-1) for leaf in leaves.values() if leaf.grad is not None]))
        mean = float(objective_of(model, params).loss([example], params))
        assert float(loss(params)) == pytest.approx(mean * (example.n_supervised() if reduction == "sum" else 1), rel=1e-6)
    rows = torch.stack(gradients)
    fisher = rows.t() @ rows / len(rows)  # [p, p]
    dense = torch.linalg.eigvalsh(fisher).flip(0)
    assert found.size == len(fisher) == 208 and found.reduction == reduction and not found.is_zero
    torch.testing.assert_close(found.values, dense[: len(rows)], rtol=1e-5, atol=1e-9)
    assert float(dense[len(rows)]) < 1e-9 * float(dense[0])
    assert found.trace == pytest.approx(float(fisher.trace()), rel=1e-5)
    assert found.to_dict()["examples"] == 6


def test_the_trace_is_that_of_the_fisher_diagonal() -> None:
    """One convention in all of retain: log-likelihoods of sequences, divided by their number."""
    model = decoder(torch.float32)
    losses, params = example_losses(model, examples(), few_factors(model, torch.float32), SCALE)
    found = gram_spectrum(losses, params, reduction="sum")
    diagonal = fisher_by_loop(objective_of(model, params), examples(), params).diagonal
    assert found.trace == pytest.approx(sum(float(tensor.sum()) for tensor in diagonal.values()), rel=1e-4)


def test_what_cannot_be_measured() -> None:
    params = {"a": torch.ones(3)}
    with pytest.raises(ValueError, match="at least one example"):
        gram_spectrum([], params, reduction="mean")
    with pytest.raises(ArithmeticError, match="loss is not finite"):
        gram_spectrum([lambda p: p["a"].sum() * torch.inf], params, reduction="mean")
    flat = gram_spectrum([lambda p: (p["a"] * 0).sum()] * 2, params, reduction="mean")
    assert flat.is_zero and flat.values.tolist() == [0.0, 0.0]
