"""Replay: what is stored, what is drawn, and that it keeps old knowledge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tests.retention.tiny import learn, loss_on, objective_of, ragged, table, through_disk, tiny_model, tiny_params

from retain.data.examples import Example
from retain.retention import Replay, ReplayBuffer, RetentionError, Task
from retain.retention.buffer import Strategy
from retain.retention.positions import example_losses, key_of

STRATEGIES = get_args(Strategy)


def numbered(count: int, start: int = 0, document: str = "d", importance: float = 0.5) -> list[Example]:
    """Different examples."""
    numbers = range(start, start + count)
    return [Example((number % 40, number // 40, number % 7), (False, True, True), document, importance=importance) for number in numbers]


def test_reservoir_is_uniform_over_everything_offered() -> None:
    """Each of 200 examples, offered in five tasks, is stored with probability 20/200; first and last alike."""
    rounds, counts = 1500, np.zeros(200)
    examples = numbered(200)
    place = {key_of(example): number for number, example in enumerate(examples)}
    for seed in range(rounds):
        buffer = ReplayBuffer(20, "reservoir", seed)
        for task in range(5):
            buffer.add(examples[task * 40 : task * 40 + 40], f"t{task}")
        for item in buffer.items:
            counts[place[key_of(item)]] += 1
    expected = rounds * 20 / 200
    statistic = float(((counts - expected) ** 2 / (expected * 0.9)).sum())
    assert abs(statistic - 200) < 4 * np.sqrt(400)
    by_task = counts.reshape(5, 40).sum(1) / counts.sum()
    assert np.abs(by_task - 0.2).max() < 0.01  # a buffer that loses `seen` gives the latest task far more


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_capacity_duplicates_and_seen(strategy: Strategy) -> None:
    buffer = ReplayBuffer(50, strategy)
    examples = numbered(30)
    assert buffer.add(examples, "t0") == 30 and buffer.seen == 30
    assert buffer.add(examples, "t0") == 30 and len(buffer) == 30 and buffer.seen == 30  # the same epoch again adds nothing
    buffer.add(numbered(100, start=30), "t1")
    assert len(buffer) == 50 and buffer.seen == 130 and len({key_of(item) for item in buffer.items}) == 50


def test_balanced_gives_every_document_as_many_places(tmp_path: Path) -> None:
    buffer = ReplayBuffer(30, "balanced", seed=1)
    for number, size in enumerate((400, 20, 100)):
        buffer.add(numbered(size, start=1000 * number, document=f"d{number}"), f"t{number}")
    count = [sum(item.document == f"d{number}" for item in buffer.items) for number in range(3)]
    assert count == [10, 10, 10] and buffer.seen == 520
    again = ReplayBuffer(30, "balanced")
    again.load_state_dict(through_disk(buffer.state_dict(), tmp_path / "state"))
    for one in (buffer, again):
        one.add(numbered(200, start=5000, document="d3"), "t3")
    assert again.items == buffer.items  # goes on in the same way
    count = [sum(item.document == f"d{number}" for item in buffer.items) for number in range(4)]
    assert sum(count) == 30 and max(count) - min(count) <= 1


def test_a_balanced_document_is_sampled_evenly() -> None:
    """Within one document the rule is the reservoir's: early and late examples stay with the same probability."""
    counts = np.zeros(100)
    for seed in range(1000):
        buffer = ReplayBuffer(10, "balanced", seed)
        examples = numbered(100)
        buffer.add(examples, "t")
        counts += [example in buffer for example in examples]
    assert abs(counts[:50].sum() / counts.sum() - 0.5) < 0.02


def test_a_teachers_labels_are_stored_too(tmp_path: Path) -> None:
    taught = [replace(example, soft=(((3, 0.25), (4, 0.25)), ((5, 0.5),))) for example in numbered(3)]
    buffer, again = ReplayBuffer(10), ReplayBuffer(10)
    buffer.add([*taught, *numbered(2, start=3)], "t0")
    again.load_state_dict(through_disk(buffer.state_dict(), tmp_path / "state"))
    assert again.items == buffer.items and sum(bool(item.soft) for item in again.items) == 3


def test_a_rejected_example_is_not_remembered() -> None:
    buffer = ReplayBuffer(1, "reservoir", seed=0)
    buffer.add(numbered(30), "t0")
    rejected = next(example for example in numbered(30) if example not in buffer)
    seen = buffer.seen
    for _ in range(400):
        buffer.add([rejected], "t1")
        if rejected in buffer:
            break
    assert rejected in buffer and buffer.seen > seen


def test_the_rubric() -> None:
    buffer = ReplayBuffer(100, "hybrid")
    old = numbered(8)
    buffer.add(old, "old", losses=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 5.0, 6.0])
    marked = numbered(1, start=50, importance=1.0)
    buffer.add(marked, "new", losses=[0.1])
    alike = [replace(old[0], tokens=(*old[0].tokens, 1), supervised=(False, True, True, True))]
    buffer.add(alike, "new")
    scores = dict(zip((key_of(item) for item in buffer.items), buffer.scores().tolist(), strict=True))
    assert scores[key_of(marked[0])] == 1.0
    assert scores[key_of(old[6])] == scores[key_of(old[7])] == 0.8
    assert set(scores.values()) <= {1.0, 0.8, 0.7, 0.5, 0.3} and 0.7 in scores.values()
    assert scores[key_of(alike[0])] == 0.5  # of the latest task
    buffer.add(numbered(1, start=90), "newest")
    assert dict(zip((key_of(item) for item in buffer.items), buffer.scores().tolist(), strict=True))[key_of(alike[0])] == 0.3


def test_important_examples_are_drawn_and_kept_in_proportion() -> None:
    buffer = ReplayBuffer(200, "importance", seed=1)
    buffer.add(numbered(100) + numbered(100, start=100, importance=1.0), "t0")
    buffer.add(numbered(1, start=500), "t1")  # so that the first task is no longer recent
    drawn = [item.importance for _ in range(600) for item in buffer.sample(1)]
    assert abs(np.mean(np.array(drawn) == 1.0) - 100 / 130.5) < 0.06
    share = []
    for seed in range(30):
        small = ReplayBuffer(20, "importance", seed)
        mixed = [example for pair in zip(numbered(200), numbered(200, start=200, importance=1.0), strict=True) for example in pair]
        small.add(mixed, "t0")
        share.append(np.mean([item.importance == 1.0 for item in small.items]))
    assert 0.58 < float(np.mean(share)) < 0.74  # 1.0 against 0.5: two thirds


def test_diversity_keeps_a_broader_selection_than_chance() -> None:
    """A stream of many near-copies of one text and a few others: the others stay."""
    copies = [Example((1, 2, 3, 4, 5, 6, 7, number % 40), (False,) + (True,) * 7) for number in range(40)]
    others = ragged(12, seed=3)
    stream = [*copies[:20], *others[:6], *copies[20:], *others[6:]]
    kept = {}
    for strategy in ("reservoir", "diversity"):
        counts = []
        for seed in range(10):
            buffer = ReplayBuffer(16, strategy, seed)
            buffer.add(stream, "t0")
            counts.append(sum(item in others for item in buffer.items))
        kept[strategy] = float(np.mean(counts))
    assert kept["diversity"] > 10 and kept["reservoir"] < 6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_document_is_taken_out(strategy: Strategy) -> None:
    buffer = ReplayBuffer(40, strategy)
    buffer.add(numbered(30, document="keep"), "t0")
    buffer.add(numbered(20, start=100, document="forget"), "t1")
    there = sum(item.document == "forget" for item in buffer.items)
    assert there and buffer.remove("forget") == there and buffer.remove("forget") == 0
    assert all(item.document == "keep" for item in buffer.items)
    drawn = buffer.sample(1000)
    assert len(drawn) == len(buffer) and all(item.document == "keep" for item in drawn)
    buffer.add(numbered(60, start=200), "t2")
    assert len(buffer) == 40


def test_new_data_is_never_replayed_to_itself() -> None:
    model = tiny_model()
    params = tiny_params(model)
    replay = Replay()
    objective = objective_of(model, params)
    replay.before_task(Task("t0", table(0), objective), params)
    assert replay.replay(8) == []  # nothing before a first task has been kept
    replay.after_task(Task("t0", table(0), objective), params)
    replay.after_task(Task("t1", table(1), objective), params)
    replay.before_task(Task("t0", table(0), objective), params)  # a second visit
    for _ in range(20):
        assert all(example.document == "d1" for example in replay.replay(8))
    shared = Task("t2", [*table(1)[:6], *table(2)], objective)  # a new task that repeats stored examples
    replay.before_task(shared, params)
    keys = {key_of(example) for example in shared.examples}
    assert all(key_of(example) not in keys for _ in range(20) for example in replay.replay(8))
    replay.after_task(shared, params)
    assert len(replay.replay(1000)) == 36


def test_half_of_a_step_is_replayed() -> None:
    model = tiny_model()
    params = tiny_params(model)
    half, quarter = Replay(), Replay(fraction=0.25)
    for method in (half, quarter):
        method.after_task(Task("t0", ragged(40), objective_of(model, params)), params)
    assert len(half.replay(12)) == 12 and len(quarter.replay(12)) == 4
    with pytest.raises(RetentionError, match="fraction"):
        Replay(fraction=1.0)


def test_losses_per_example_are_those_of_each_alone() -> None:
    model = tiny_model()
    params = tiny_params(model)
    objective = objective_of(model, params)
    found = example_losses(objective, ragged(9), params, batch_tokens=40)
    alone = [float(objective.loss([example], params)) for example in ragged(9)]
    assert np.allclose(found.numpy(), alone, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replay_keeps_an_old_task(strategy: Strategy) -> None:
    model = tiny_model()
    params = tiny_params(model)
    replay = Replay(strategy=strategy)
    learn(model, 0, params, [replay])
    before = loss_on(model, 0, params)
    learn(model, 1, params, [replay])
    assert loss_on(model, 0, params) < before + 0.1 and loss_on(model, 1, params) < 0.3
    replay.refresh(objective_of(model, params), replay.remembered(), params)
    naive = tiny_params(model)
    learn(model, 0, naive, [])
    learn(model, 1, naive, [])
    assert loss_on(model, 0, naive) > 2.0
