"""DER++: stored logits are those of the end of the task, the distance is a divergence, and old knowledge stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.retention.tiny import CONFIG, learn, loss_on, noisy, objective_of, ragged, table, tiny_model, tiny_params
from torch import Tensor

from retain.retention import Batch, DarkReplay, Objective, Params, Task
from retain.retention.derpp import Distance
from retain.retention.positions import labels_of


def test_nothing_is_replayed_in_the_first_task() -> None:
    model = tiny_model()
    params, plain = tiny_params(model), tiny_params(model)
    method = DarkReplay()
    report = learn(model, 0, params, [method])
    learn(model, 0, plain, [])
    assert set(report.penalties) == {0.0} and all(torch.equal(params[name], plain[name]) for name in params)


def test_what_is_stored_are_the_logits_at_the_end_of_the_task() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    method = DarkReplay(k=16)
    examples = ragged(9)
    objective = objective_of(model, params)
    method.after_task(Task("t0", examples, objective), params)
    for example in examples:
        logits, _ = objective.logits([example], params)
        logs, tokens, sums = method.stored(example)
        assert logs.shape == tokens.shape == (sum(example.supervised), 16)
        torch.testing.assert_close(logs.float() + sums[:, None], logits.topk(16).values, rtol=2e-3, atol=2e-2)
        torch.testing.assert_close(sums, logits.logsumexp(-1), rtol=1e-4, atol=1e-4)
    # a second task leaves the first one's logits as they were
    before = method.stored(examples[0])[0].clone()
    method.after_task(Task("t1", table(1), objective), noisy(params, seed=9))
    assert torch.equal(method.stored(examples[0])[0], before)
    assert method.bytes == sum(sum(example.supervised) * (16 * (2 + 4) + 4) for example in [*examples, *table(1)])


def term_of(method: DarkReplay, objective: Objective, params: Params) -> Tensor | None:
    """The method's term in a step on table 1, as the loop asks for it."""
    memory = method.consult(len(table(1)))
    logits = objective.logits(memory, params)[0] if memory else None
    return method.loss(Batch(table(1), [], 0, objective, 1e-3, memory, logits), params)


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_the_distance_is_zero_where_nothing_moved_and_grows(distance: Distance) -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    method = DarkReplay(alpha=1.0, beta=0.0, distance=distance)
    method.after_task(Task("t0", table(0), objective), params)
    values = []
    for size in (0.0, 0.01, 0.1):
        generator = torch.Generator().manual_seed(1)
        moved = {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in params.items()}
        term = term_of(method, objective, moved)
        assert term is not None
        values.append(float(term))
    assert abs(values[0]) < 1e-4 and values[0] < values[1] < values[2]


def test_with_all_tokens_stored_it_is_the_full_divergence() -> None:
    """k = vocabulary: KL over k + 1 outcomes is KL over the vocabulary; a smaller k never exceeds it (data processing)."""
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    moved = noisy(params, seed=4)
    then, now = (torch.log_softmax(objective.logits(table(0), which)[0], -1) for which in (params, moved))
    full = float(F.kl_div(now, then, reduction="batchmean", log_target=True))
    found = []
    for k in (CONFIG.vocabulary, 16, 4):
        method = DarkReplay(alpha=1.0, beta=0.0, k=k)
        method.after_task(Task("t0", table(0), objective), params)
        term = term_of(method, objective, moved)
        assert term is not None
        found.append(float(term))
    assert found[0] == pytest.approx(full, rel=1e-2)
    assert full * 1.01 > found[1] > found[2] > 0.0


def test_labels_count_with_beta() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    method = DarkReplay(alpha=0.0, beta=0.25)
    method.after_task(Task("t0", table(0), objective), params)
    term = term_of(method, objective, params)
    expected = F.cross_entropy(objective.logits(table(0), params)[0], labels_of(table(0)))
    assert term is not None and float(term) == pytest.approx(0.25 * float(expected), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"distance": "mse"}, {"alpha": 1.0, "beta": 0.0}], ids=["kl", "mse", "logits only"])
def test_dark_replay_keeps_an_old_task(settings: dict[str, Any]) -> None:
    model, method = tiny_model(), DarkReplay(**settings)
    params, naive = tiny_params(model), tiny_params(model)
    for number in range(2):
        learn(model, number, naive, [])
        learn(model, number, params, [method])
    assert loss_on(model, 0, params) < 0.2 < 2.0 < loss_on(model, 0, naive)
    assert loss_on(model, 1, params) < 0.3
    assert method.remove("d0") == 12 and len(method._stored[0]) == sum(example.n_supervised() for example in method.remembered())
