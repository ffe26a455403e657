"""EWC and L2: the pull is what the formula says, holds old knowledge, and stays finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.retention.tiny import learn, loss_on, objective_of, table, tiny_model, tiny_params

from retain.retention import EWC, L2, Batch, Objective, Params, Retention, Task
from retain.retention.ewc import Form, QuadraticPull


class Fixed(QuadraticPull):
    """A pull whose F is given."""

    def measure(self, objective: Objective, examples: object, params: Params) -> Params:
        raise AssertionError("not asked for here")


def random_params(seed: int, positive: bool = False) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found = {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)}
    return {name: tensor.abs() for name, tensor in found.items()} if positive else found


def by_hand(anchors: list[tuple[Params, Params]], params: Params, decay: float = 1.0) -> float:
    """sum_i decay^(n - 1 - i) F_i (p - w_i)^2 / 2 in float64, one anchor after another."""
    total = 0.0
    for number, (weights, anchor) in enumerate(anchors):
        for name in weights:
            distance = (params[name].double() - anchor[name].double()).square()
            total += 0.5 * decay ** (len(anchors) - 1 - number) * float((weights[name].double() * distance).sum())
    return total


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_many_anchors_in_the_memory_of_one(gamma: float) -> None:
    anchors = [(random_params(seed, positive=True), random_params(seed + 50)) for seed in range(4)]
    anchors[2][0]["b"][:3] = 0.0  # places without information
    pull = Fixed(strength=3.0, gamma=gamma)
    for weights, anchor in anchors:
        pull.add(weights, anchor)
    params = random_params(99)
    assert float(pull.penalty(params)) == pytest.approx(3.0 * by_hand(anchors, params, gamma), rel=1e-5)
    # the gradient, too, is the sum of all the pulls
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
    pull.penalty(leaves).backward()
    expected = torch.zeros(3, 4)
    for number, (weights, anchor) in enumerate(anchors):
        expected += 3.0 * gamma ** (3 - number) * weights["a"] * (params["a"] - anchor["a"])
    assert leaves["a"].grad is not None
    torch.testing.assert_close(leaves["a"].grad, expected, rtol=1e-4, atol=1e-5)


def test_online_form_keeps_the_latest_anchor_and_decays_fisher() -> None:
    pull = Fixed(strength=1.0, gamma=0.5, form="online")
    first, second = (random_params(seed, positive=True) for seed in (0, 1))
    pull.add(first, random_params(10))
    latest = random_params(11)
    pull.add(second, latest)
    params = random_params(12)
    summed = {name: 0.5 * first[name] + second[name] for name in first}
    assert float(pull.penalty(params)) == pytest.approx(by_hand([(summed, latest)], params), rel=1e-5)


def test_the_proximal_step_is_the_formula() -> None:
    anchors = [(random_params(seed, positive=True), random_params(seed + 50)) for seed in range(3)]
    pull = Fixed(strength=7.0)
    for weights, anchor in anchors:
        pull.add(weights, anchor)
    params, rate = random_params(99), 0.03
    pull.loss(Batch([], [], 0, objective=None, learning_rate=rate), params)  # type: ignore[arg-type]
    expected = {
        name: (tensor + rate * 7.0 * sum(weights[name] * anchor[name] for weights, anchor in anchors))
        / (1 + rate * 7.0 * sum(weights[name] for weights, _ in anchors))
        for name, tensor in params.items()
    }
    pull.adjust_update(params, {})
    for name, tensor in params.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["anchors", "online"])
def test_explicit_steps_diverge_where_proximal_ones_stay_finite(form: Form) -> None:
    """Trap 2, at lambda 1e6 with plain gradient steps."""
    weights, anchor = random_params(0, positive=True), random_params(1)
    explicit, proximal = Fixed(1e6, apply="loss", form=form), Fixed(1e6, form=form)
    explicit.add(weights, anchor)
    proximal.add(weights, anchor)
    batch = Batch([], [], 0, objective=None, learning_rate=1e-3)  # type: ignore[arg-type]
    one = {name: (tensor + 0.1).requires_grad_(True) for name, tensor in anchor.items()}
    two = {name: tensor + 0.1 for name, tensor in anchor.items()}
    assert proximal.loss(batch, two) is None
    for _ in range(20):
        term = explicit.loss(batch, one)
        assert term is not None
        gradients = torch.autograd.grad(term, list(one.values()))
        with torch.no_grad():
            for tensor, gradient in zip(one.values(), gradients, strict=True):
                tensor -= batch.learning_rate * gradient
        proximal.adjust_update(two, {})
    assert not all(bool(tensor.isfinite().all()) for tensor in one.values())
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, anchor[name], atol=1e-3, rtol=0)


def test_training_at_lambda_a_million_stays_finite_and_holds() -> None:
    model = tiny_model()
    params = tiny_params(model)
    ewc = EWC(1e6)
    learn(model, 0, params, [ewc])
    before = loss_on(model, 0, params)
    report = learn(model, 1, params, [ewc])
    assert all(math.isfinite(loss) for loss in report.losses)
    assert loss_on(model, 0, params) == pytest.approx(before, abs=0.02)


def test_no_strength_is_too_large() -> None:
    pull = Fixed(1e300)
    anchor = {"a": torch.zeros(3)}
    pull.add({"a": torch.tensor([0.0, 1e-20, 1e30])}, anchor)
    params = {"a": torch.ones(3)}
    pull.loss(Batch([], [], 0, objective=None, learning_rate=1e-3), params)  # type: ignore[arg-type]
    pull.adjust_update(params, {})
    assert params["a"].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-9)


def test_a_tensor_that_came_later_is_free() -> None:
    pull = Fixed(5.0)
    pull.add({"a": torch.ones(2)}, {"a": torch.zeros(2)})
    params = {"a": torch.ones(2), "late": torch.ones(3)}
    pull.loss(Batch([], [], 0, objective=None, learning_rate=1.0), params)  # type: ignore[arg-type]
    assert float(pull.penalty(params)) == 5.0
    pull.adjust_update(params, {})
    assert torch.equal(params["late"], torch.ones(3)) and float(params["a"][0]) == pytest.approx(1 / 6)
    pull.add({"a": torch.ones(2), "late": torch.ones(3)}, params)  # and is held from its own first task on
    assert set(pull.weights) == {"a", "late"}


@pytest.mark.parametrize(
    "method",
    [lambda: EWC(1e4), lambda: EWC(1e5, labels="empirical"), lambda: EWC(1e4, form="online"), lambda: L2(30.0)],
    ids=["true Fisher", "empirical Fisher", "online", "l2"],
)
def test_the_pull_holds_an_old_task(method: Callable[[], Retention]) -> None:
    """Against the same two tasks without it; some of the new task is still learned."""
    model = tiny_model()
    results = {}
    for arm in ("none", "held"):
        params = tiny_params(model)
        methods = [method()] if arm == "held" else []
        learn(model, 0, params, methods)
        start = loss_on(model, 1, params)
        learn(model, 1, params, methods)
        results[arm] = loss_on(model, 0, params), loss_on(model, 1, params)
    assert results["held"][0] < 0.6 * results["none"][0]
    assert results["held"][1] < 0.85 * start


def test_refresh_takes_one_new_anchor() -> None:
    model = tiny_model()
    params = tiny_params(model)
    ewc = EWC()
    learn(model, 0, params, [ewc])
    learn(model, 1, params, [ewc])
    assert float(ewc.penalty(params)) > 0.0
    ewc.refresh(objective_of(model, params), table(0), params)
    assert float(ewc.penalty(params)) == 0.0 and ewc.constant == 0.0
    assert all(torch.equal(ewc.anchors[name], tensor) for name, tensor in params.items())


def test_the_task_object_is_what_is_measured() -> None:
    """Fisher information comes from the task's own objective and no penalty takes part in it."""
    model = tiny_model()
    params = tiny_params(model)
    free, held = EWC(0.0, labels="empirical"), EWC(1e3, labels="empirical")
    for ewc in (free, held):
        ewc.add({name: torch.ones_like(tensor) for name, tensor in params.items()}, params)
    moved = {name: tensor + 0.05 for name, tensor in params.items()}
    task = Task("t", table(0), objective_of(model, moved))
    for ewc in (free, held):
        ewc.after_task(task, moved)
    assert all(torch.equal(free.weights[name], held.weights[name]) for name in params)
