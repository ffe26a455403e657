"""O-LoRA: later adapters learn beside earlier ones."""

from __future__ import annotations

import pytest
import torch
from tests.retention.tiny import SCALE, SETTINGS, objective_of, table, task_of, tiny_model, tiny_params

from retain.adapters import Adapter, AdapterSpec, select_sites
from retain.lm.decoder import DecoderLM
from retain.retention import Batch, OrthogonalLora, Params, Retention, RetentionError, Task
from retain.training.loop import train


def frozen(model: DecoderLM, params: Params) -> Adapter:
    return Adapter(dict(params), AdapterSpec("lora", "", select_sites(model), 4, SCALE * 4))


def second(model: DecoderLM, first: Params, methods: list[Retention]) -> tuple[Params, float, float]:
    """A new adapter for task 1 beside the frozen one of task 0: its tensors, and the losses of both tasks with both adapters."""
    params = tiny_params(model, seed=1)
    adapter = frozen(model, first)
    train(task_of(model, 1, params, [(adapter, 1.0)]), params, SETTINGS, methods)
    objective = objective_of(model, params, [(adapter, 1.0)])
    with torch.no_grad():
        return params, float(objective.loss(table(0), params)), float(objective.loss(table(1), params))


@pytest.fixture(scope="module")
def model() -> DecoderLM:
    return tiny_model()


@pytest.fixture(scope="module")
def first(model: DecoderLM) -> Params:
    params = tiny_params(model)
    train(task_of(model, 0, params), params, SETTINGS)
    return params


def test_the_overlap_does_not_depend_on_size_or_number() -> None:
    """Trap 7: longer rows, more earlier adapters and shrinking do not change it; only directions do."""
    generator = torch.Generator().manual_seed(0)
    name = "s.lora_A.weight"
    old, new = torch.randn(3, 32, generator=generator), torch.randn(2, 32, generator=generator)
    method = OrthogonalLora([{name: old}])
    value = float(method.overlap({name: new}))
    cosines = (torch.nn.functional.normalize(new, dim=1) @ torch.nn.functional.normalize(old, dim=1).t()).abs()
    assert value == pytest.approx(float(cosines.mean(1).sum()), rel=1e-5)
    assert float(method.overlap({name: 0.001 * new})) == pytest.approx(value, rel=1e-4)
    method.add({name: 7.0 * old})
    assert method.rows[name].shape == (6, 32) and float(method.overlap({name: new})) == pytest.approx(value, rel=1e-5)


def test_the_penalty_is_there_at_the_second_task_only(model: DecoderLM, first: Params) -> None:
    method = OrthogonalLora()
    task = task_of(model, 0, first)
    batch = Batch(task.examples, [], 0, task.objective, 1e-3)
    method.before_task(task, first)
    assert method.loss(batch, first) is None
    method.after_task(task, first)
    fresh = tiny_params(model, seed=1)
    method.before_task(task, fresh)
    term = method.loss(batch, fresh)
    assert term is not None and float(term) > 0.0


def test_a_penalty_without_effect_is_an_error(model: DecoderLM) -> None:
    params = tiny_params(model, layers=1)
    task = task_of(model, 0, params)
    with pytest.raises(RetentionError, match="a site in common"):
        OrthogonalLora([{"elsewhere.lora_A.weight": torch.ones(1, 4)}]).before_task(task, params)
    name = next(name for name in params if ".lora_A." in name)
    left, right = torch.zeros(1, params[name].shape[1]), torch.zeros(1, params[name].shape[1])
    left[0, 0] = right[0, 1] = 1.0
    method = OrthogonalLora([{name: left}])
    method.before_task(task, {name: right})
    with pytest.raises(RetentionError, match="exactly zero"):
        method.loss(Batch(task.examples, [], 0, task.objective, 1e-3), {name: right})


def test_the_penalty_lowers_the_overlap(model: DecoderLM, first: Params) -> None:
    free, _, _ = second(model, first, [])
    held, _, learned = second(model, first, [OrthogonalLora([first], weight=0.5)])
    measure = OrthogonalLora([first])
    assert float(measure.overlap(held)) < 0.5 * float(measure.overlap(free)) and learned < 0.5


def test_a_strong_penalty_lowers_the_interference(model: DecoderLM) -> None:
    """The gain is small by nature: orthogonal rows of A do not make the inputs of two tasks orthogonal."""
    losses: dict[str, list[float]] = {"free": [], "held": []}
    for seed in (10, 11, 12):
        params = tiny_params(model, seed=seed)
        train(task_of(model, 0, params), params, SETTINGS)
        losses["free"].append(second(model, params, [])[1])
        losses["held"].append(second(model, params, [OrthogonalLora([params], weight=5.0)])[1])
    assert sum(losses["held"]) < 0.92 * sum(losses["free"])


def test_the_projection_keeps_directions_apart_to_rounding(model: DecoderLM, first: Params) -> None:
    free, _, _ = second(model, first, [])
    held, _, learned = second(model, first, [OrthogonalLora([first], form="projection")])
    measure = OrthogonalLora([first])
    assert float(measure.overlap(held)) < 1e-4 < 0.1 < float(measure.overlap(free)) and learned < 0.5


def test_no_direction_left_is_an_error(model: DecoderLM) -> None:
    method = OrthogonalLora([tiny_params(model, seed=seed) for seed in range(16)], form="projection")
    params = tiny_params(model, seed=99)
    with pytest.raises(RetentionError, match="fill all"):
        method.before_task(Task("t", table(0), objective_of(model, params)), params)
