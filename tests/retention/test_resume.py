"""Trap 11: a run that is saved and resumed between tasks ends with the same bits as one that was not, for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.retention.tiny import SETTINGS, learn, ragged, through_disk, tiny_model, tiny_params

from retain.retention import (
    EWC,
    L2,
    AveragedGem,
    DarkReplay,
    Distillation,
    OrthogonalGradient,
    OrthogonalLora,
    Params,
    Replay,
    Retention,
    methods,
)  # fmt: skip

SHORT = replace(SETTINGS, epochs=8)
METHODS: dict[str, Callable[[], list[Retention]]] = {
    "ewc": lambda: [EWC(1e4, gamma=0.9)],
    "ewc online, empirical, explicit": lambda: [EWC(10.0, form="online", labels="empirical", apply="loss", samples=5)],
    "l2": lambda: [L2(3.0)],
    "replay reservoir": lambda: [Replay(20, "reservoir", seed=1)],
    "replay importance": lambda: [Replay(20, "importance", seed=1)],
    "replay diversity": lambda: [Replay(20, "diversity", seed=1)],
    "replay hybrid": lambda: [Replay(20, "hybrid", seed=1)],
    "derpp": lambda: [DarkReplay(capacity=20, seed=1)],
    "derpp mse": lambda: [DarkReplay(capacity=20, distance="mse", seed=1)],
    "kl": lambda: [Distillation(ragged(10, seed=9), cache_bytes=5000)],
    "kl and replay": lambda: [Replay(20, seed=1), Distillation(ragged(10, seed=9))],
    "olora": lambda: [OrthogonalLora()],
    "olora projection": lambda: [OrthogonalLora(form="projection")],
    "agem": lambda: [AveragedGem(5, seed=1)],
    "agem gradient": lambda: [AveragedGem(5, subject="gradient", seed=1)],
    "ogd": lambda: [OrthogonalGradient(per_task=7, capacity=20)],
}


def test_every_registered_method_is_here() -> None:
    assert {method.name for make in METHODS.values() for method in make()} == {description.name for description in methods()}


def run(make: Callable[[], list[Retention]], fresh_adapter: bool, folder: Path | None) -> tuple[Params, list[Retention]]:
    """Four tasks; with a folder, everything is saved and made anew after each of them."""
    model, current = tiny_model(), make()
    params = tiny_params(model)
    for number in range(4):
        if fresh_adapter:
            params = tiny_params(model, seed=number)
        learn(model, number, params, current, SHORT)
        if folder is not None:
            states = [through_disk(method.state_dict(), folder / f"{number}-{place}") for place, method in enumerate(current)]
            stored = through_disk(dict(params), folder / f"{number}-params")
            params = {name: stored[name] for name in params}  # in the same order: the gradient norm is a sum over them
            current = make()
            for method, state in zip(current, states, strict=True):
                method.load_state_dict(state)
            model = tiny_model()
    return params, current


@pytest.mark.parametrize("name", METHODS)
def test_straight_is_resumed(name: str, tmp_path: Path) -> None:
    fresh_adapter = "olora" in name
    straight, left = run(METHODS[name], fresh_adapter, None)
    resumed, right = run(METHODS[name], fresh_adapter, tmp_path)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in straight.items())
    for one, other in zip(left, right, strict=True):
        a, b = one.state_dict(), other.state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key] for key, value in a.items())
    bare, _ = run(list, fresh_adapter, None)
    assert any(not torch.equal(tensor, bare[key]) for key, tensor in straight.items())  # the method did something at all


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_state_does_not_change_with_the_method(name: str) -> None:
    """A checkpoint taken before a task must not be altered by learning it (no tensor is shared)."""
    model, current = tiny_model(), METHODS[name]()
    params = tiny_params(model)
    learn(model, 0, params, current, SHORT)
    states = [method.state_dict() for method in current]
    copies = [{key: value.clone() for key, value in state.items() if isinstance(value, torch.Tensor)} for state in states]
    restored = METHODS[name]()
    for method, state in zip(restored, states, strict=True):
        method.load_state_dict(state)
    learn(model, 1, tiny_params(model, seed=3) if "olora" in name else params, restored, SHORT)
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(state[key], value) for key, value in copy.items())
