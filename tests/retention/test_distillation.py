"""Distillation: the divergence is the formula, general text is a quarter of a step, and drift is held down."""

from __future__ import annotations

import pytest
import torch
from tests.retention.tiny import learn, loss_on, noisy, objective_of, ragged, table, tiny_model, tiny_params

from retain.data.examples import Example
from retain.retention import Batch, Distillation, Params, Replay, RetentionError, Task, kl_divergence


def drift(general: list[Example], params: Params) -> float:
    objective = objective_of(tiny_model(), params)
    with torch.no_grad():
        return float(kl_divergence(objective.base_logits(general), objective.logits(general, params)[0]))


def test_the_divergence_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(5, 9, generator=generator, dtype=torch.float64).float() for _ in range(2))
    for temperature in (1.0, 2.5):
        p, q = (torch.softmax(logits.double() / temperature, -1) for logits in (teacher, student))
        expected = temperature**2 * float((p * (p.log() - q.log())).sum(-1).mean())
        assert float(kl_divergence(teacher, student, temperature)) == pytest.approx(expected, rel=1e-5)
    # at a high temperature the gradient keeps its size because of T^2: it tends to (student - teacher) / V, centred
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(kl_divergence(teacher, student, 1000.0), student)
    difference = (student - teacher).detach()
    expected_gradient = (difference - difference.mean(-1, keepdim=True)) / 9 / 5
    torch.testing.assert_close(gradient, expected_gradient, rtol=2e-2, atol=2e-4)


def test_nothing_to_hold_at_the_start_and_no_gradient_into_the_teacher() -> None:
    model = tiny_model()
    params = tiny_params(model)
    general = ragged(6, seed=9)
    method = Distillation(general)
    task = Task("t", table(0), objective_of(model, params))
    method.before_task(task, params)
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
    term = method.loss(Batch(task.examples, [], 0, task.objective, 1e-3), leaves)
    assert term is not None and abs(float(term.detach())) < 1e-4  # float16 rounding of the teacher


def test_about_a_quarter_of_each_step_is_general_text() -> None:
    general = ragged(40, seed=9)
    method = Distillation(general, fraction=0.25)
    shares, order = [], []
    for _ in range(60):
        taken = method.take(120)
        tokens = sum(len(example.tokens) for example in taken)
        shares.append(tokens / (tokens + 120))
        order += taken
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.03)
    assert order[:80] == [*general, *general]  # in turn, over and over
    assert len(Distillation(ragged(3, seed=9)).take(10_000)) == 3  # never the same example twice in one step
    assert Distillation().take(100) == []


def test_the_cache_changes_nothing_but_the_cost() -> None:
    model = tiny_model()
    results = []
    for size in (0, 4000, 256 << 20):
        params = tiny_params(model)
        learn(model, 0, params, [Distillation(ragged(8, seed=9), cache_bytes=size)])
        results.append(params)
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-3)


def test_general_text_holds_the_model_near_the_base() -> None:
    """The headline cost, KL(base || new) on text that was not used for holding."""
    model = tiny_model()
    params, naive = tiny_params(model), tiny_params(model)
    learn(model, 0, naive, [])
    learn(model, 0, params, [Distillation(ragged(60, seed=9))])
    apart = ragged(20, seed=77)
    assert drift(apart, params) < 0.5 * drift(apart, naive)
    assert loss_on(model, 0, params) < 1.0


def term_at(method: Distillation, params: Params, before: Params) -> float:
    """The term of a step with ``params`` in a task that began with ``before``."""
    objective = objective_of(tiny_model(), params)
    method.before_task(Task("t", table(0), objective), before)
    term = method.loss(Batch(table(0), [], 0, objective, 1e-3), params)
    assert term is not None
    return float(term)


def test_an_adapter_that_goes_on_is_held_to_itself_and_not_to_the_base() -> None:
    """The control is the base as the teacher: it finds a divergence at the start, where nothing was changed yet, and none in the base."""
    general = ragged(40, seed=9)
    fresh = tiny_params(tiny_model())
    grown = noisy(fresh)
    assert abs(term_at(Distillation(general), grown, grown)) < 1e-4 < 0.1 < term_at(Distillation(general, teacher="base"), grown, grown)
    assert abs(term_at(Distillation(general, teacher="base"), fresh, grown)) < 1e-4 < 0.1 < term_at(Distillation(general), fresh, grown)
    same = [term_at(Distillation(general, teacher=teacher), fresh, fresh) for teacher in ("before", "base")]
    assert same[0] == pytest.approx(same[1], abs=1e-5)  # for a fresh adapter there is no difference


def test_learning_on_keeps_what_the_grown_adapter_says() -> None:
    model, general, apart = tiny_model(), ragged(60, seed=9), ragged(20, seed=77)
    grown = noisy(tiny_params(model))
    moved = {}
    for teacher in ("before", "base"):
        params = {name: tensor.clone() for name, tensor in grown.items()}
        learn(model, 0, params, [Distillation(general, weight=4.0, teacher=teacher)])
        with torch.no_grad():
            then, now = (objective_of(model, params).logits(apart, each)[0] for each in (grown, params))
        moved[teacher] = float(kl_divergence(then, now)), drift(apart, params)
    assert moved["before"][0] < 0.7 * moved["base"][0]  # nearer to what was said before
    assert moved["base"][1] < 0.7 * moved["before"][1]  # nearer to the base


def test_replayed_text_is_held_to_the_model_before_the_task() -> None:
    """The teacher there is the model that knows the earlier task, not the base."""
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    method = Distillation()
    method.before_task(Task("t1", table(1), objective), params)
    batch = Batch(table(1), table(0), 0, objective, 1e-3)
    same, moved = method.loss(batch, params), method.loss(batch, noisy(params, seed=5))
    assert same is not None and moved is not None
    assert abs(float(same)) < 1e-5 < 0.1 < float(moved)
    base = kl_divergence(objective.base_logits(table(0)), objective.logits(table(0), params)[0])
    assert float(base) > 0.1


def test_replayed_text_alone_keeps_an_old_task() -> None:
    model = tiny_model()
    params, naive = tiny_params(model), tiny_params(model)
    methods = [Replay(fraction=0.25), Distillation()]
    for number in range(2):
        learn(model, number, naive, [])
        learn(model, number, params, methods)
    assert loss_on(model, 0, params) < 0.4 < 2.0 < loss_on(model, 0, naive)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(RetentionError, match="supervised"):
        Distillation([Example((1, 2), (False, False))])
    with pytest.raises(RetentionError, match="general_fraction"):
        Distillation(fraction=1.0)
