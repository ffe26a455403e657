"""What is learned in which step, and how gradients of several tasks come together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.multitask.conftest import table, write

from retain.multitask import Experiment, assemble, train
from retain.multitask.config import SentinelConfig
from retain.multitask.conflicts import backward, project
from retain.multitask.sampling import one_pass, schedule_of
from retain.multitask.sentinel import Sentinel
from retain.training.loop import TrainingError

SIZES = {"a": [5] * 100, "b": [7] * 10, "c": [3] * 30}


def schedule(experiment: Any, sizes: dict[str, list[int]] = SIZES, **sections: Any) -> Any:
    sections["training"] = {"batch": 10, "epochs": 4, **sections.get("training", {})}
    config = experiment({"kind": "sequential"}, {name: {"kind": "regression"} for name in sizes}, **sections)
    return schedule_of(config, list(sizes), sizes, 0)


def test_proportional_takes_every_record_once_in_an_epoch(experiment: Any) -> None:
    made = schedule(experiment)
    assert made.steps == 4 * 14 and made.steps_per_epoch == 14
    seen = Counter((name, number) for step in range(made.steps) for name, numbers in made.batches(step) for number in numbers)
    assert all(seen[name, number] in (3, 4, 5) for name, lengths in SIZES.items() for number in range(len(lengths)))
    assert sum(seen.values()) == pytest.approx(4 * 140, abs=20)
    rest = [name for name in made.order if name != "a"]
    assert Counter(made.order) == pytest.approx({"a": 40, "b": 4, "c": 12}, abs=1) and rest.index("b") < 8


def test_round_robin_and_temperature(experiment: Any) -> None:
    assert schedule(experiment, sampling={"kind": "round-robin"}).order[:5] == ["a", "b", "c", "a", "b"]
    warm, hot = (schedule(experiment, sampling={"kind": "temperature", "temperature": value}) for value in (2.0, 1000.0))
    shares = [10**0.5, 1.0, 3**0.5]
    expected = {name: 56 * share / sum(shares) for name, share in zip("abc", shares, strict=True)}
    assert Counter(warm.order) == pytest.approx(expected, abs=1)
    assert Counter(hot.order) == pytest.approx(dict.fromkeys("abc", 56 / 3), abs=1)


def test_a_step_depends_on_nothing_but_its_number(experiment: Any) -> None:
    one, other = schedule(experiment), schedule(experiment)
    assert [one.batches(step) for step in range(one.steps)] == [other.batches(step) for step in range(other.steps)]
    assert one.batches(17) == other.batches(17)  # out of order
    assert schedule(experiment, seed=1).batches(0) != one.batches(0)


def test_batches_hold_records_of_like_lengths() -> None:
    lengths = [number % 50 for number in range(400)]
    batches = one_pass(lengths, 8, seed=0)
    assert sorted(number for batch in batches for number in batch) == list(range(400))
    spread = [max(lengths[number] for number in batch) - min(lengths[number] for number in batch) for batch in batches]
    assert max(spread) <= 2 and batches != one_pass(lengths, 8, seed=1)
    assert [lengths[batch[0]] for batch in batches] != sorted(lengths[batch[0]] for batch in batches)


def test_projection_of_conflicts() -> None:
    """(1, 0) and (-1, 1) conflict: each loses its part along the other. A third that conflicts with neither stays as it is."""
    first, second = [torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]
    (found,) = project([first, second], torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    (agreed,) = project([first, [torch.tensor([1.0, 1.0])]], torch.Generator().manual_seed(0))
    assert torch.equal(agreed, torch.tensor([2.0, 1.0]))
    assert float(found @ first[0]) > float((first[0] + second[0]) @ first[0])


@pytest.fixture
def made(tmp_path: Path, experiment: Any) -> Any:
    """``made(**sections)``: an experiment with two tasks on one table."""
    write(tmp_path / "t.jsonl", [{**row, "size": row.pop("c0")} for row in table("wine")])

    def make(**sections: Any) -> Experiment:
        tasks = {
            "kind": {"kind": "classification", "dropout": 0.0},
            "size": {"kind": "regression", "label": "size", "weight": 0.5, "dropout": 0.0},
        }
        return assemble(experiment({"kind": "sequential", "hidden": [8], "dropout": 0.0}, tasks, data={"train": ["t.jsonl"]}, **sections))

    return make


def gradients(experiment: Experiment, batches: list[tuple[str, list[int]]]) -> dict[str, torch.Tensor]:
    experiment.network.zero_grad()
    backward(experiment, batches, experiment.network.learning(), seed=0)
    return {name: value.grad.clone() for name, value in experiment.network.learning().items() if value.grad is not None}


def test_a_step_is_the_weighted_mean_of_its_batches(made: Any) -> None:
    given = made()
    batches = [("kind", [0, 1, 2]), ("size", [3, 4]), ("kind", [5])]
    found = gradients(given, batches)
    given.network.zero_grad()
    total = torch.zeros(())
    for name, numbers in batches:
        inputs, targets = given.batch(name, "train", numbers)
        task = given.task(name)
        total = total + task.config.weight * task.loss(given.network(name, inputs), targets) / 3
    total.backward()
    for name, value in given.network.learning().items():
        assert value.grad is not None and torch.allclose(found[name], value.grad, atol=1e-7), name


def test_a_batch_in_pieces_has_the_gradients_of_the_whole(made: Any) -> None:
    given = made()
    batches = [("kind", [0, 1, 2, 3, 4]), ("size", [3, 4])]
    whole = gradients(given, batches)
    values = [backward(given, batches, given.network.learning(), seed=0, pieces=pieces) for pieces in (1, 2, 4, 8)]
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-5)
    given.network.zero_grad()
    backward(given, batches, given.network.learning(), seed=0, pieces=2)
    for name, value in given.network.learning().items():
        assert value.grad is not None and torch.allclose(whole[name], value.grad, atol=1e-6), name


class Full:
    """A network on a device with room for so many records; ``passes``: how many were in each."""

    def __init__(self, network: Any, room: int, error: RuntimeError) -> None:
        self.room, self.error, self.passes = room, error, list[int]()
        self.forward = network.forward
        network.forward = self

    def __call__(self, task: str, inputs: dict[str, torch.Tensor]) -> Any:
        count = len(next(iter(inputs.values())))
        if torch.is_grad_enabled():
            self.passes.append(count)
            if count > self.room:
                raise self.error
        return self.forward(task, inputs)


CUDA, MPS = torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (MPS allocated: 8.86 GB)")


@pytest.mark.parametrize("error", [CUDA, MPS], ids=["cuda", "mps"])
def test_a_full_device_gets_smaller_batches_and_learns_the_same(error: RuntimeError, made: Any, tmp_path: Path) -> None:
    training = {"epochs": 1, "batch": 16}
    plain, full = made(training=training), made(training=training)
    device = Full(full.network, 5, error)
    told: list[str] = []
    train(plain, tmp_path / "plain")
    train(full, tmp_path / "full", tell=lambda event, fields: told.append(fields["message"]) if event == "note" else None)
    assert [line for line in told if "memory" in line] == [
        "out of memory: batches go through the network in 2 pieces of at most 8 records from here on",
        "out of memory: batches go through the network in 4 pieces of at most 4 records from here on",
    ]
    assert device.passes[:3] == [16, 8, 4] and max(device.passes[3:]) == 4
    for name, value in plain.network.learning().items():
        assert torch.allclose(value, full.network.learning()[name], atol=1e-4), name


def test_the_sentinel_sees_the_same_gradients_of_pieces(made: Any, tmp_path: Path) -> None:
    """The norms of 16 records, from one batch and from two halves of it."""
    seen = []
    for pieces in (1, 2):
        given = made(training={"batch": 16})
        sentinel = Sentinel(given, SentinelConfig(triggers=None), tmp_path)
        sentinel.begin(0, ["kind"], 0)
        with sentinel.watching():
            backward(given, [("kind", list(range(16)))], given.network.learning(), seed=0, looks=[sentinel.look], pieces=pieces)
        sentinel.judge()
        seen.append(sentinel.tensors())
    name = "latest/kind/gradient/values"
    assert seen[0][name].numel() >= 16 and float(seen[0][name].abs().max()) > 0
    assert torch.allclose(seen[0][name], seen[1][name], rtol=1e-4)


def test_a_record_without_room_and_other_errors_stop(made: Any, tmp_path: Path) -> None:
    given = made(training={"epochs": 1, "batch": 4})
    Full(given.network, 0, CUDA)
    with pytest.raises(TrainingError, match="no memory for a single record"):
        train(given, tmp_path / "none")
    given = made(training={"epochs": 1, "batch": 4})
    device = Full(given.network, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(given, tmp_path / "other")
    assert len(device.passes) == 1


def test_pcgrad_takes_part_in_training(made: Any) -> None:
    given = made(conflicts={"kind": "pcgrad"})
    assert given.schedules[0].accumulation == 2
    one, two = [("kind", [0, 1, 2])], [("size", [3, 4])]
    vectors = [gradients(given, part) for part in (one, two)]
    shared = [name for name in vectors[0] if name.startswith("backbone.")]
    for vector in vectors:  # a batch of the two has half of each
        for name in shared:
            vector[name] /= 2
    parts = [[torch.cat([vector[name].flatten() for name in sorted(shared)])] for vector in vectors]
    together = gradients(given, one + two)
    (expected,) = project(parts, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cat([together[name].flatten() for name in sorted(shared)]), expected, atol=1e-6)


def test_uncertainty_learns_its_weights(made: Any, tmp_path: Path) -> None:
    given = made(conflicts={"kind": "uncertainty"})
    task = given.task("size")
    with torch.no_grad():
        given.network.log_variances[1] = 1.5
    assert given.network.weighted(task, torch.tensor(2.0)).item() == pytest.approx(2.718281828**-1.5 * 0.5 * 2.0 + 0.75)
    results = train(
        made(conflicts={"kind": "uncertainty"}, training={"epochs": 10, "batch": 16, "head_learning_rate": 0.05}), tmp_path / "run"
    )
    from retain.multitask import Predictor

    learned = Predictor.load(tmp_path / "run").network.log_variances
    assert learned is not None and bool((learned.abs() > 0.05).all()) and results["tasks"]["kind"]["validation"]["accuracy"] > 0.8
