"""Networks on tables go through the same loop and the same retention methods as adapters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from retain.data.errors import DataError
from retain.data.tables import TableStream, load_table_stream
from retain.retention import EWC, DarkReplay, Replay, Retention, Task
from retain.retention.fisher import fisher_by_loop, fisher_information
from retain.training.loop import TrainingSettings, train
from retain.training.network import NetworkObjective, module_forward, perceptron, perceptron_forward, perceptron_squares

SETTINGS = TrainingSettings(
    learning_rate=0.1, epochs=8, batch_examples=32, warmup=0.0, final_rate=1.0, clip=math.inf, optimizer="sgd", spike=1e9
)


def accuracy(stream: TableStream, number: int, params: dict[str, torch.Tensor]) -> float:
    rows = stream.tasks[number].test
    return float((perceptron_forward(params, stream.features[rows]).argmax(1) == stream.labels[rows]).float().mean())


def sequence(stream: TableStream, methods: list[Retention]) -> list[float]:
    params = perceptron((64, 128, 10), 0)
    objective = NetworkObjective(perceptron_forward, stream.features)
    for item in stream.tasks:
        task = Task(item.name, item.examples, objective)
        train(task, params, SETTINGS, methods)
        for method in methods:
            method.after_task(task, params)
    return [accuracy(stream, number, params) for number in range(len(stream.tasks))]


@pytest.mark.parametrize("name", ["permuted-digits", "split-digits"])
def test_streams_are_what_they_say(name: str) -> None:
    stream = load_table_stream(name, 3)
    assert stream.classes == 10 and len(stream.tasks) == 5
    for task in stream.tasks:
        trained = {example.tokens[0] for example in task.examples}
        assert trained.isdisjoint(task.test.tolist())
        assert all(int(stream.labels[example.tokens[0]]) == example.tokens[1] for example in task.examples)
    again = load_table_stream(name, 3)
    assert torch.equal(again.features, stream.features) and again.tasks[2].examples == stream.tasks[2].examples
    assert not torch.equal(load_table_stream(name, 4).tasks[1].test, stream.tasks[1].test)


def test_permuted_digits_are_the_same_images_in_another_order() -> None:
    stream = load_table_stream("permuted-digits", 0)
    rows = len(stream.features) // 5
    first, second = stream.features[:rows], stream.features[rows : 2 * rows]
    assert not torch.equal(first, second) and torch.equal(first.sort(1).values, second.sort(1).values)
    # the same image is in the test set of every task, or of none
    assert torch.equal(stream.tasks[0].test, stream.tasks[3].test - 3 * rows)


def test_split_digits_have_two_classes_each() -> None:
    stream = load_table_stream("split-digits", 0)
    assert sorted(label for task in stream.tasks for label in task.classes) == list(range(10))


def test_an_unknown_stream_is_named_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean 'split-digits'"):
        load_table_stream("split-digit", 0)


def test_replay_keeps_what_naive_training_forgets() -> None:
    stream = load_table_stream("split-digits", 0)
    naive = sequence(stream, [])
    replayed = sequence(stream, [Replay(200, "balanced")])
    dark = sequence(stream, [DarkReplay(beta=1.0, k=10, distance="mse", capacity=200, strategy="balanced")])
    assert max(naive[:4]) < 0.1 and naive[4] > 0.9
    assert sum(replayed) / 5 > 0.85 and sum(dark) / 5 > 0.85


@pytest.mark.parametrize("squares", [None, perceptron_squares], ids=["any network", "perceptron"])
@pytest.mark.parametrize("labels", ["empirical", "sampled"])
def test_fisher_information_of_a_network_is_its_definition(labels: str, squares: Any) -> None:
    stream = load_table_stream("split-digits", 0)
    params, objective = perceptron((64, 16, 12, 10), 1), NetworkObjective(perceptron_forward, stream.features, squares=squares)
    examples = stream.tasks[0].examples[:300]
    fast = fisher_information(objective, examples, params, labels=labels, generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    slow = fisher_by_loop(objective, examples, params, labels=labels, generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    assert all(torch.allclose(fast.diagonal[name], slow.diagonal[name], rtol=1e-4, atol=1e-9) for name in params)


def test_any_module_learns_through_its_parameters() -> None:
    stream = load_table_stream("split-digits", 0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    params = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    forward = module_forward(module)
    report = train(Task("t", stream.tasks[0].examples, NetworkObjective(forward, stream.features)), params, SETTINGS, [EWC()])
    assert report.losses[-1] < 0.3 * report.losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()), "the module was written to"


def test_one_pass_for_everybody_is_the_same_as_one_for_each() -> None:
    stream = load_table_stream("split-digits", 0)
    params, objective = perceptron((64, 16, 10), 1), NetworkObjective(perceptron_forward, stream.features)
    new, replayed, asked = (list(task.examples[:7]) for task in stream.tasks[:3])
    (first, second), (none, logits) = objective.losses(new, replayed, [[], asked], params)
    assert none is None and second is not None and logits is not None
    assert torch.allclose(first, objective.loss(new, params)) and torch.allclose(second, objective.loss(replayed, params))
    assert torch.allclose(logits, objective.logits(asked, params)[0], atol=1e-6)
