"""The forgetting bound: exact where the loss is quadratic, and in the space of factors or of their product."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.evaluation.curvature.dense import SCALE, decoder, examples, few_factors, with_eigenvalues
from tests.retention.tiny import learn, noisy, objective_of, table, tiny_model, tiny_params
from torch import Tensor, nn

from retain.adapters import Adapter, AdapterSpec
from retain.adapters.adapter import LORA_A, LORA_B
from retain.evaluation.curvature import (
    HessianOperator,
    Params,
    adapter_loss,
    dense_deltas,
    forgetting_bound,
    lanczos,
    loss_along_path,
    module_loss,
    product_space,
)
from retain.lm.derivatives import twice_differentiable

MATRIX = with_eigenvalues([6.0, 2.0, 0.5, -1.0, *torch.linspace(0, 0.3, 16).tolist()]).matrix
SLOPE = torch.linspace(-1, 1, 20, dtype=torch.float64)


def quadratic(params: Params) -> Tensor:
    w = torch.cat([params["a"].reshape(-1), params["b"]])
    return 3.0 + SLOPE @ w + 0.5 * w @ MATRIX @ w


def point(seed: int) -> Params:
    values = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"a": values[:12].view(3, 4), "b": values[12:]}


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic_loss(seed: int) -> None:
    before, after = point(seed), point(seed + 100)
    operator = HessianOperator(quadratic, before)
    found = forgetting_bound(operator, after)
    w1, w2 = operator.flatten(before), operator.flatten(after)
    gradient = SLOPE + MATRIX @ w1
    assert found.measured == pytest.approx(float(quadratic(after) - quadratic(before)), rel=1e-12)
    assert found.prediction == pytest.approx(found.measured, rel=1e-10)
    assert found.gradient_term == pytest.approx(float(gradient @ (w2 - w1)), rel=1e-10)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert found.distance == pytest.approx(float((w2 - w1).norm()), rel=1e-12)
    assert found.lambda_max == pytest.approx(6.0, rel=1e-5) and found.converged
    assert found.measured <= found.bound and found.holds
    exact = found.gradient_term + 3.0 * found.distance**2
    assert exact <= found.bound * (1 + 1e-5) and found.bound == pytest.approx(exact, rel=1e-2)
    assert found.without_gradient == pytest.approx(found.bound - found.gradient_term)
    assert found.alignment == pytest.approx(found.curvature / found.lambda_max)
    assert json.loads(json.dumps(found.to_dict()))["holds"] is True


def test_the_bound_is_tight_along_the_sharpest_direction() -> None:
    before = point(0)
    operator = HessianOperator(quadratic, before)
    spectrum = lanczos(operator, 2, tolerance=1e-8)
    top = spectrum.largest()[0]
    after = operator.unflatten(operator.flatten(before) + 2.0 * top.vector)
    found = forgetting_bound(operator, after, spectrum=spectrum)
    assert found.holds and found.measured == pytest.approx(found.bound, rel=1e-6) and found.alignment == pytest.approx(1.0, rel=1e-8)
    with pytest.raises(ValueError, match="not asked for the largest"):
        forgetting_bound(operator, after, spectrum=lanczos(operator, 2, which=("magnitude",)))
    with pytest.raises(ValueError, match="nothing was learned"):
        forgetting_bound(operator, before)


def test_the_path_of_a_quadratic_loss() -> None:
    before, after = point(1), point(2)
    path = loss_along_path(quadratic, before, after, 5)
    assert path.t == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert path.losses == pytest.approx(path.predictions, rel=1e-10)
    assert path.losses[0] == pytest.approx(float(quadratic(before))) and path.losses[-1] == pytest.approx(float(quadratic(after)))
    length = math.sqrt(sum(float((after[name] - tensor).square().sum()) for name, tensor in before.items()))
    assert path.distances == pytest.approx([share * length for share in path.t])
    again = loss_along_path(HessianOperator(quadratic, before), before, after, [0.5])
    assert again.losses == pytest.approx([path.losses[2]], rel=1e-12) and set(again.to_dict()) == {
        "t",
        "losses",
        "predictions",
        "distances",
    }
    with pytest.raises(ValueError, match="at least 2 points"):
        loss_along_path(quadratic, before, after, 1)
    with pytest.raises(ValueError, match="not taken at the beginning"):
        loss_along_path(HessianOperator(quadratic, after), before, after)


def test_forgetting_of_an_adapter_that_learns_on() -> None:
    """Task 1, then a little of task 2: near the checkpoint the prediction is what is measured, in both spaces."""
    model = tiny_model()
    params = tiny_params(model, layers=1, rank=2)
    learn(model, 0, params, [])
    first = {name: tensor.detach().clone() for name, tensor in params.items()}
    learn(model, 1, params, [])
    near = {name: tensor + 0.02 * (params[name] - tensor) for name, tensor in first.items()}
    precise = decoder()
    for space in ("factors", "product"):
        loss, before = adapter_loss(precise, table(0), first, SCALE, space=space)  # type: ignore[arg-type]
        after = near if space == "factors" else dense_deltas(near, SCALE)
        operator = HessianOperator(loss, before)
        found = forgetting_bound(operator, {name: tensor.double() for name, tensor in after.items()})
        assert found.converged and found.holds
        assert found.prediction == pytest.approx(found.measured, rel=0.1) and abs(found.measured) > 1e-6
        path = loss_along_path(operator, before, {name: tensor.double() for name, tensor in after.items()}, [0.0, 0.1])
        errors = [abs(a - b) for a, b in zip(path.losses, path.predictions, strict=True)]
        assert errors[0] < 1e-12 and errors[1] < 0.01 * abs(path.losses[1] - path.losses[0])


def test_product_space_is_the_same_loss_at_the_same_adapter() -> None:
    model = decoder()
    params = {name: tensor.double() for name, tensor in noisy(tiny_params(model, rank=2)).items()}
    objective = objective_of(model, params)
    wide, deltas = product_space(objective, params)
    sites = sorted({name.removesuffix(LORA_A).removesuffix(LORA_B) for name in params})
    assert sorted(deltas) == [f"{site}.delta" for site in sites]
    squares = 0.0
    for site in sites:
        expected = SCALE * params[site + LORA_B] @ params[site + LORA_A]
        torch.testing.assert_close(deltas[f"{site}.delta"], expected)
        squares += float(expected.square().sum())
    assert math.sqrt(sum(float(delta.square().sum()) for delta in deltas.values())) == pytest.approx(math.sqrt(squares), rel=1e-12)
    with twice_differentiable():
        here, there = objective.loss(examples(), params), wide.loss(examples(), deltas)
        identity = {name: tensor for site in sites for name, tensor in _identity(site, deltas[f"{site}.delta"]).items()}
        same = type(objective)(model, sites, 1.0).loss(examples(), identity)  # A = 1, B = dW
    assert float(there) == pytest.approx(float(here), rel=1e-12) and float(same) == pytest.approx(float(here), rel=1e-12)
    assert abs(float(here) - float(wide.loss(examples(), {name: 0 * delta for name, delta in deltas.items()}))) > 1e-2


def _identity(site: str, delta: Tensor) -> Params:
    return {site + LORA_A: torch.eye(delta.shape[1], dtype=delta.dtype), site + LORA_B: delta}


def test_curvature_of_the_product_is_that_of_the_factors() -> None:
    """Along a change of B alone the map to the product is linear, so g'd and d'Hd are the same numbers; with other adapters injected,
    and sites missing in a group."""
    model = decoder()
    params = few_factors(model, rank=2)
    sites = tuple(sorted({name.rsplit(".", 2)[0] for name in params}))
    other = Adapter({name: 0.5 * tensor.flip(1) for name, tensor in params.items()}, AdapterSpec("lora", model.fingerprint, sites, 2, 2.0))
    moved = {name: tensor + (0.1 * torch.cos(100 * tensor) if name.endswith(LORA_B) else 0) for name, tensor in params.items()}
    found = []
    for space in ("factors", "product"):
        loss, before = adapter_loss(model, examples(), params, SCALE, frozen=[(other, 0.7)], space=space)  # type: ignore[arg-type]
        after = moved if space == "factors" else dense_deltas(moved, SCALE)
        bound = forgetting_bound(HessianOperator(loss, before), after)
        found.append(bound)
    one, two = found
    for name in ("gradient_term", "prediction", "measured", "loss_before"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9)
    assert one.distance != pytest.approx(two.distance, rel=1e-2)


def test_losses_of_modules() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 2))
    batches = [(torch.randn(n, 3), torch.randint(0, 2, (n,))) for n in (6, 2)]

    def criterion(run: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(run(batch[0]), batch[1])

    with pytest.raises(ValueError, match="training mode"):
        module_loss(network, criterion, batches)
    network.eval()
    loss, params = module_loss(network, criterion, batches, weights=[6, 2])
    x, y = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    assert float(loss(params).detach()) == pytest.approx(float(nn.functional.cross_entropy(network(x), y).detach()), rel=1e-6)
    operator = HessianOperator(loss, params)
    assert operator.size == 3 * 5 + 5 + 5 * 2 + 2 and float(operator.gradient.norm()) > 0
    assert HessianOperator(*module_loss(network, criterion, batches, names=["3.weight"])).size == 10
    with pytest.raises(ValueError, match="no parameter nothing"):
        module_loss(network, criterion, batches, names=["nothing"])
    with pytest.raises(ValueError, match="convert the module first"):
        module_loss(network.bfloat16(), criterion, batches)


def test_a_model_of_less_than_float32_is_refused() -> None:
    model = decoder(torch.bfloat16)
    with pytest.raises(ValueError, match="needs a model in float32"):
        adapter_loss(model, examples(), few_factors(model, torch.bfloat16), SCALE)
    with pytest.raises(ValueError, match="at least one example"):
        adapter_loss(decoder(), [], few_factors(model), SCALE)
    with pytest.raises(ValueError, match="is a LoRA factor"):
        adapter_loss(decoder(), examples(), {"a": torch.ones(2)}, SCALE)
