"""The figure of a pre-training."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from retain.evaluation.plots import to_svg
from retain.evaluation.plots.learning import learning_curve


def test_training_is_smoothed_and_validation_marked() -> None:
    training = [(1000 * step, 8.0 / step) for step in range(1, 121)]
    figure = learning_curve(training, [(60_000, 1.0), (120_000, 0.5)])
    (axes,) = figure.axes
    raw, smooth, points = axes.get_lines()
    assert len(raw.get_ydata()) == len(smooth.get_ydata()) == 120 and list(points.get_xdata()) == [60_000, 120_000]
    assert float(smooth.get_ydata()[-1]) == pytest.approx(sum(8.0 / step for step in (118, 119, 120)) / 3)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens learned", "loss (nats)")
    assert to_svg(figure) == to_svg(learning_curve(training, [(60_000, 1.0), (120_000, 0.5)]))
    assert len(learning_curve(training, theme="dark").axes[0].get_lines()) == 2
