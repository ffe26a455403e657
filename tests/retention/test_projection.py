"""A-GEM and OGD: the projections hold their bounds, and training with them forgets less."""

from __future__ import annotations

import pytest
import torch
from tests.retention.tiny import learn, loss_on, noisy, objective_of, table, tiny_model, tiny_params

from retain.retention import AveragedGem, OrthogonalGradient, Params, RetentionError, Task
from retain.retention.positions import labels_of
from retain.retention.projection import Subject


def prepared(subject: Subject) -> tuple[AveragedGem, Params, Params]:
    """A-GEM with a memory of task 0, parameters, and the gradient of the memory's loss there."""
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    method = AveragedGem(examples=12, subject=subject)
    method.after_task(Task("t0", table(0), objective), params)
    method.before_task(Task("t1", table(1), objective), params)
    leaves = {name: tensor.requires_grad_(True) for name, tensor in params.items()}
    found = torch.autograd.grad(objective.loss(table(0), leaves), list(leaves.values()))
    return method, params, dict(zip(params, found, strict=True))


def dot(left: Params, right: Params) -> float:
    return sum(float((left[name].double() * right[name].double()).sum()) for name in left)


def test_a_conflicting_gradient_is_projected_and_another_is_not() -> None:
    method, params, reference = prepared("gradient")
    against = {name: tensor.detach() - 2.0 * reference[name] for name, tensor in noisy(reference, seed=3).items()}
    expected = {name: tensor - dot(against, reference) / dot(reference, reference) * reference[name] for name, tensor in against.items()}
    assert dot(against, reference) < 0.0
    with torch.no_grad():
        method.adjust_gradients(params, against)
    assert abs(dot(against, reference)) < 1e-4 * dot(reference, reference)
    for name, tensor in against.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
    along = {name: tensor.clone() for name, tensor in reference.items()}
    with torch.no_grad():
        method.adjust_gradients(params, along)
    assert all(torch.equal(along[name], reference[name]) for name in along) and method.conflicts == 1
    assert all(tensor.grad is None for tensor in params.values())  # the memory's gradient is not mixed in


def test_a_step_never_raises_the_memory_loss_to_first_order() -> None:
    method, params, reference = prepared("update")
    previous = {name: tensor.detach().clone() for name, tensor in params.items()}
    with torch.no_grad():
        method.adjust_gradients(params, {name: tensor.clone() for name, tensor in reference.items()})
        for name, tensor in params.items():
            tensor += 1e-3 * reference[name].sign()  # a step uphill, as Adam might take it
        method.adjust_update(params, previous)
    step = {name: params[name].detach() - previous[name] for name in params}
    assert abs(dot(step, reference)) < 1e-4 * (dot(step, step) * dot(reference, reference)) ** 0.5


@pytest.mark.parametrize("subject", ["gradient", "update"])
def test_averaged_gem_forgets_less(subject: Subject) -> None:
    model = tiny_model()
    params, naive = tiny_params(model), tiny_params(model)
    method = AveragedGem(examples=12, subject=subject)
    for number in range(2):
        learn(model, number, naive, [])
        learn(model, number, params, [method])
    assert method.conflicts > 5
    assert loss_on(model, 0, params) < (0.95 if subject == "gradient" else 0.7) * loss_on(model, 0, naive)
    assert loss_on(model, 1, params) < 0.3


def answers(objective: object, params: Params) -> torch.Tensor:
    logits, _ = objective.logits(table(0), params)  # type: ignore[attr-defined]
    return logits.gather(1, labels_of(table(0))[:, None])[:, 0]


def test_orthogonal_gradient_steps_leave_the_stored_logits() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    method = OrthogonalGradient(per_task=36)
    task = Task("t0", table(0), objective)
    method.before_task(task, params)
    method.after_task(task, params)
    assert len(method.basis) == 36
    torch.testing.assert_close(method.basis @ method.basis.t(), torch.eye(36), atol=1e-5, rtol=0)
    before = answers(objective, params)
    moved = {}
    for arm in ("free", "held"):
        generator = torch.Generator().manual_seed(2)
        here = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in params.items()}
        if arm == "held":
            method.adjust_update(here, params)
        moved[arm] = float((answers(objective, here) - before).norm())
    assert moved["held"] < 0.1 * moved["free"]  # what is left is of second order


def test_orthogonal_gradient_forgets_less() -> None:
    model = tiny_model()
    params, naive = tiny_params(model), tiny_params(model)
    method = OrthogonalGradient(per_task=36)
    for number in range(2):
        learn(model, number, naive, [])
        learn(model, number, params, [method])
    assert loss_on(model, 0, params) < loss_on(model, 0, naive) and loss_on(model, 1, params) < 0.3
    with pytest.raises(RetentionError, match="one adapter"):
        other = tiny_params(model, rank=2)
        method.before_task(Task("t", table(2), objective_of(model, other)), other)


def test_orthogonal_gradient_keeps_to_its_capacity() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    method = OrthogonalGradient(per_task=10, capacity=15)
    for number in range(3):
        task = Task(f"t{number}", table(number), objective_of(model, params))
        method.before_task(task, params)
        method.after_task(task, params)
    assert len(method.basis) == 15
