"""The figure of a pre-training or a distillation: loss over what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retain.evaluation.plots.style import ThemeName, legend, look, new_figure, settings, theme_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 40  # the loss is averaged over about this part of what was logged


def learning_curve(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]] = (), theme: ThemeName = "light"
) -> Figure:
    """Loss in nats over tokens learned: `training` as a running mean with the raw values faintly behind it, `validation` as points."""
    tokens, losses = np.array([pair[0] for pair in training], float), np.array([pair[1] for pair in training], float)
    window = max(1, len(losses) // SMOOTHED)
    smooth = np.array([losses[max(0, end - window) : end].mean() for end in range(1, len(losses) + 1)])
    with settings():
        figure, (axes,) = new_figure(theme, "Loss")
        style, other = look(0, theme), look(1, theme)
        axes.plot(tokens, losses, color=style.color, linewidth=0.7, alpha=0.28, zorder=2)
        axes.plot(tokens, smooth, color=style.color, linewidth=1.7, zorder=3, label="training")
        if validation:
            axes.plot(
                [pair[0] for pair in validation], [pair[1] for pair in validation], color=other.color, linestyle=other.line,
                marker=other.marker, markersize=5, zorder=4, label="validation",
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens learned")
        axes.set_ylabel("loss (nats)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}")
        axes.title.set_color(theme_of(theme).text)
        legend(figure, [axes], theme)
    return figure
