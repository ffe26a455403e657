"""Metrics on matrices computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retain.evaluation import metrics

R = [
    [0.1, 0.2, 0.3],  # before any training
    [0.8, 0.3, 0.4],
    [0.9, 0.7, 0.2],
    [0.6, 0.8, 0.9],
]
ONE = [[0.1], [0.8]]
NEEDS_TWO = ["backward_transfer", "forward_transfer", "forgetting", "overall_forgetting_rate", "retention_area"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("average_accuracy", (0.6 + 0.8 + 0.9) / 3),
        ("average_anytime_accuracy", (0.8 + (0.9 + 0.7) / 2 + (0.6 + 0.8 + 0.9) / 3) / 3),
        ("learning_accuracy", (0.8 + 0.7 + 0.9) / 3),
        ("backward_transfer", ((0.6 - 0.8) + (0.8 - 0.7)) / 2),
        ("forward_transfer", ((0.3 - 0.2) + (0.2 - 0.3)) / 2),
        ("forgetting", ((0.9 - 0.6) + (0.7 - 0.8)) / 2),  # the best of task 1 came after task 2; the last row is not in the maximum
        ("overall_forgetting_rate", (0.8 + 0.7 - 0.6 - 0.8) / (0.8 + 0.7)),
        ("retention_area", ((1 + (0.9 + 0.8) / (0.8 + 0.7)) / 2 + ((0.9 + 0.8) / (0.8 + 0.7) + 0.6 / 0.8) / 2) / 2),
    ],
)
def test_formulas(name: str, expected: float) -> None:
    assert getattr(metrics, name)(R) == pytest.approx(expected, abs=1e-12)
    assert metrics.summarise(R)[name.removeprefix("overall_")] == getattr(metrics, name)(R)


def test_forgetting_rates_are_signed_and_named() -> None:
    assert metrics.forgetting_rates(R) == pytest.approx([0.25, -1 / 7])
    assert [metrics.describe_rate(rate) for rate in (0.1, -0.1, 0.0, math.nan)] == ["forgetting", "improvement", "unchanged", "undefined"]
    assert [metrics.gate(rate) for rate in (-0.2, 0.0, 0.0499, 0.05, 0.1499, 0.15, math.nan)] == [
        "target", "target", "target", "limit", "limit", "failed", "undefined",
    ]  # fmt: skip
    better = metrics.summarise([[0, 0], [0.5, 0], [0.6, 0.5]])
    assert better["forgetting_rate"] == pytest.approx(-0.2) and better["verdict"] == "improvement" and better["gate"] == "target"


def test_what_was_never_learned_cannot_be_forgotten() -> None:
    assert math.isnan(metrics.forgetting_rate(0.0, 0.0))
    nothing = np.zeros((4, 3))
    assert all(math.isnan(rate) for rate in metrics.forgetting_rates(nothing))
    assert math.isnan(metrics.overall_forgetting_rate(nothing)) and math.isnan(metrics.retention_area(nothing))
    partly = [[0, 0, 0], [0, 0, 0], [0, 0.8, 0], [0, 0.4, 1]]
    assert metrics.overall_forgetting_rate(partly) == pytest.approx(0.5)
    assert math.isnan(metrics.forgetting_rates(partly)[0]) and metrics.forgetting_rates(partly)[1] == pytest.approx(0.5)


def test_intransigence_needs_a_joint_model() -> None:
    assert metrics.intransigence(R, [0.9, 0.9, 0.9]) == pytest.approx((0.1 + 0.2 + 0.0) / 3)
    assert math.isnan(metrics.intransigence(R, None)) and math.isnan(metrics.summarise(R)["intransigence"])
    with pytest.raises(ValueError, match="2 joint scores for 3 tasks"):
        metrics.intransigence(R, [0.9, 0.9])


@pytest.mark.parametrize("name", NEEDS_TWO)
def test_one_task_leaves_them_undefined(name: str) -> None:
    assert math.isnan(getattr(metrics, name)(ONE))


def test_one_task_has_the_other_metrics() -> None:
    found = metrics.summarise(ONE)
    assert found["average_accuracy"] == found["average_anytime_accuracy"] == found["learning_accuracy"] == 0.8
    assert found["gate"] == found["verdict"] == "undefined"
    assert found["forgetting_rates"] == [] and found["retention_curve"] == [1.0] and found["matrix"] == ONE


def test_only_metrics_that_need_what_was_not_measured_are_undefined() -> None:
    partial = np.array(R)
    partial[0] = math.nan
    partial[np.triu_indices(3, 1)[0] + 1, np.triu_indices(3, 1)[1]] = math.nan  # tasks before their turn
    found = metrics.summarise(partial)
    full = metrics.summarise(R)
    assert math.isnan(found["forward_transfer"]) and math.isnan(found["forgetting"])  # task 2 after task 1 is in its maximum
    same = ["average_accuracy", "average_anytime_accuracy", "backward_transfer", "learning_accuracy", "forgetting_rate", "retention_area"]
    assert all(found[name] == full[name] for name in same)


@pytest.mark.parametrize("wrong", [[], [0.5], [[0.5]], [[0.1, 0.2], [0.3, 0.4]], [[0.1], [math.inf]], [[], []]])
def test_other_shapes_are_refused(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="accuracy matrix"):
        metrics.summarise(wrong)


def test_bootstrap_intervals() -> None:
    values = [True] * 30 + [False] * 70
    found = metrics.bootstrap(values, seed=1)
    assert found == metrics.bootstrap(values, seed=1) and found != metrics.bootstrap(values, seed=2)
    assert found.mean == pytest.approx(0.3) and found.n == 100
    error = math.sqrt(0.3 * 0.7 / 100)
    assert found.low == pytest.approx(0.3 - 1.96 * error, abs=0.015) and found.high == pytest.approx(0.3 + 1.96 * error, abs=0.015)
    narrow = metrics.bootstrap(values, seed=1, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_bootstrap_in_blocks_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BLOCK", 300)
    found = metrics.bootstrap(list(range(100)), seed=0, resamples=1000)
    assert found.low == pytest.approx(49.5 - 1.96 * 2.887, abs=0.7) and found.high == pytest.approx(49.5 + 1.96 * 2.887, abs=0.7)


def test_bootstrap_of_too_little_is_undefined() -> None:
    nothing, one, holed = metrics.bootstrap([], 0), metrics.bootstrap([0.5], 0), metrics.bootstrap([0.5, math.nan, 1], 0)
    assert math.isnan(nothing.mean) and math.isnan(holed.mean) and one.mean == 0.5
    assert all(math.isnan(found.low) and math.isnan(found.high) for found in (nothing, one, holed))
    with pytest.raises(ValueError, match="level"):
        metrics.bootstrap([1.0, 2.0], 0, level=95)


def test_the_values_of_avalanche_on_the_same_matrix() -> None:
    """avalanche-lib 0.6.0's Forgetting, BWT and ForwardTransfer, averaged over tasks; its forgetting is minus backward transfer."""
    values = np.random.default_rng(0).random((6, 5))
    assert metrics.backward_transfer(values) == pytest.approx(0.2357800010092019, rel=1e-12)
    assert metrics.forward_transfer(values) == pytest.approx(0.3096447354861303, rel=1e-12)
