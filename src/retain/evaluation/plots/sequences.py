"""Figures of learning tasks one after another: matrix, accuracy, losses, what is kept, and methods side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from retain.evaluation import metrics
from retain.evaluation.plots.style import THEMES, ThemeName, legend, look, new_figure, note, settings, shorten, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWD = 6  # from more methods than these single seeds are left out and bands are fainter
PRINTED = 24  # up to so many tasks every value of a matrix is printed
SMOOTHED = 40  # a loss is averaged over about this part of a task's steps
_POINTS = 300  # points of a task's loss curve; more cannot be seen


def matrix_heatmap(matrix: ArrayLike, tasks: Sequence[str], score: str = "accuracy", title: str = "", theme: ThemeName = "light") -> Figure:
    """R[i, j] as colours with the values printed: a row for each moment (the first: before training), a column for each task.

    A frame marks R[j, j], each task when it was just learned; what was not measured has a dash. Shares have the scale 0 .. 1.
    """
    from matplotlib.patches import Rectangle

    values = metrics.accuracy_matrix(matrix)
    rows, columns = values.shape
    if len(tasks) != columns:
        raise ValueError(f"{len(tasks)} names of tasks for a matrix of {columns}")
    colors = theme_of(theme)
    known = values[np.isfinite(values)]
    shares = known.size == 0 or bool(known.min() >= 0 and known.max() <= 1)
    low, high = (0.0, 1.0) if shares else (float(known.min()), float(known.max()))
    high = high if high > low else low + 1
    names = [shorten(task, 18) for task in tasks]
    slanted = max(map(len, names)) * columns > 60
    cell = 0.62 if columns <= 8 else max(0.3, 5.0 / columns)
    width = min(11.0, max(4.6, 2.7 + max(cell, 0.5 if columns <= 12 else cell) * columns))
    height = min(11.0, 1.7 + (0.36 if columns <= 12 else 0.85 * cell) * rows + (0.7 if slanted else 0))
    with settings():
        import matplotlib

        figure, (axes,) = new_figure(theme, title or f"{score.capitalize()} on every task after every task", width, height)
        map_ = matplotlib.colormaps["cividis"].with_extremes(bad=colors.missing)
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(values), cmap=map_, vmin=low, vmax=high, edgecolors=colors.background, linewidth=1.2, antialiased=True
        )
        axes.invert_yaxis()
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(columns) + 0.5, names, rotation=35 if slanted else 0, ha="right" if slanted else "center",
                        rotation_mode="anchor" if slanted else "default")  # fmt: skip
        axes.set_yticks(np.arange(rows) + 0.5, ["before training", *names])
        axes.set_xlabel(f"{score} on")
        axes.set_ylabel("after learning")
        if columns <= PRINTED:
            _print_values(axes, values, map_, low, high, shares, min(9.0, 155 / columns * (width / 7.6)), colors.muted)
        for task in range(columns):
            axes.add_patch(Rectangle((task + 0.05, task + 1.05), 0.9, 0.9, fill=False, edgecolor="#d55e00", linewidth=1.6))
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.045, aspect=22)
        bar.set_label(score, color=colors.text, fontsize=9.5)
        bar.ax.tick_params(labelsize=9, labelcolor=colors.text, length=0)
        bar.outline.set_visible(False)
    return figure


def accuracy_over_sequence(
    methods: Mapping[str, Sequence[ArrayLike]], tasks: Sequence[str], score: str = "accuracy", theme: ThemeName = "light"
) -> Figure:
    """Mean score on the tasks learned so far, 1/i sum_{j <= i} R[i, j], over i; `methods` has a matrix for each seed.

    Lines are means over seeds, bands their 95 % Student-t intervals; faint lines are single seeds, where there are few methods.
    """
    curves = {
        name: np.array([[float(matrix[i, :i].mean()) for i in range(1, len(matrix))] for matrix in map(metrics.accuracy_matrix, matrices)])
        for name, matrices in methods.items()
    }
    with settings():
        figure, (axes,) = new_figure(theme, f"{score.capitalize()} on the tasks learned so far")
        ages = np.arange(1, len(tasks) + 1)
        _curves(axes, ages, curves, theme, shared=False)
        axes.set_xlabel("tasks learned")
        axes.set_ylabel(f"mean {score} so far")
        _whole_ticks(axes, ages)
        _say_bands(axes, curves, theme)
        legend(figure, [axes], theme)
    return figure


def retention_curve(methods: Mapping[str, Sequence[ArrayLike]], score: str = "accuracy", theme: ThemeName = "light") -> Figure:
    """What is left of a learned score over the number of tasks learned since (:func:`retain.evaluation.metrics.retention_curve`)."""
    curves = {name: np.array([metrics.retention_curve(matrix) for matrix in matrices]) for name, matrices in methods.items()}
    with settings():
        figure, (axes,) = new_figure(theme, "What is kept of what was learned")
        ages = np.arange(max((curve.shape[1] for curve in curves.values()), default=1))
        axes.axhline(1, color=theme_of(theme).muted, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        _curves(axes, ages, curves, theme, shared=True)
        axes.set_xlabel("age (tasks learned since)")
        axes.set_ylabel(f"share of the learned {score}")
        _whole_ticks(axes, ages)
        _say_bands(axes, curves, theme)
        legend(figure, [axes], theme)
    return figure


def loss_curves(
    methods: Mapping[str, Sequence[Sequence[Sequence[float]]]], tasks: Sequence[str], unit: str = "nats", theme: ThemeName = "light"
) -> Figure:
    """Training loss over the steps, task after task; `methods` has for each seed the losses of each task.

    A line is the mean over seeds of running means over about a fortieth of a task; the faint line behind it is not averaged over steps.
    Every task has the width of the longest run of it, so that boundaries stand at the same place for every method.
    """
    colors, count = theme_of(theme), max((len(seed) for seeds in methods.values() for seed in seeds), default=0)
    widths = [max([len(seed[task]) for seeds in methods.values() for seed in seeds if task < len(seed)] + [1]) for task in range(count)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    lowest, highest, thick = math.inf, -math.inf, 1.7 if len(methods) <= CROWD else 1.2
    with settings():
        figure, (axes,) = new_figure(theme, "Training loss")
        for index, (name, seeds) in enumerate(methods.items()):
            style = look(index, theme)
            for task in range(count):
                runs = [np.asarray(seed[task], dtype=np.float64) for seed in seeds if task < len(seed) and len(seed[task])]
                if not runs:
                    continue
                raw = np.mean([run[: min(map(len, runs))] for run in runs], axis=0)
                smooth = _running_mean(raw, max(1, len(raw) // SMOOTHED))
                steps = starts[task] + np.arange(1, len(raw) + 1)
                kept = np.unique(np.linspace(0, len(raw) - 1, min(len(raw), _POINTS)).round().astype(int))
                if len(methods) <= 3:
                    axes.plot(steps[kept], raw[kept], color=style.color, linewidth=0.7, alpha=0.28, zorder=2)
                axes.plot(steps[kept], smooth[kept], color=style.color, linestyle=style.line, linewidth=thick, zorder=3,
                          label=shorten(name, 40) if task == 0 else None)  # fmt: skip
                inside = smooth[np.isfinite(smooth) & (smooth > 0)]
                if inside.size:
                    lowest, highest = min(lowest, float(inside.min())), max(highest, float(inside.max()))
        if highest > 30 * lowest:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        for start in starts[1:-1]:
            axes.axvline(start + 0.5, color=colors.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        if 1 < count <= 12 and len(tasks) >= count:
            room = max(3, int(88 / count))
            for task in range(count):
                axes.annotate(shorten(tasks[task], room), ((starts[task] + starts[task + 1]) / 2, 1), xycoords=("data", "axes fraction"),
                              xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8, color=colors.muted)  # fmt: skip
        axes.set_xlim(0, max(1, starts[-1]) * 1.005)
        axes.set_xlabel("training step")
        axes.set_ylabel(f"loss ({unit})" if unit else "loss")
        legend(figure, [axes], theme)
    return figure


def method_comparison(values: Mapping[str, Mapping[str, Sequence[float]]], theme: ThemeName = "light") -> Figure:
    """Methods side by side: for each measure (a panel) the mean over seeds with its 95 % Student-t interval, and every single seed.

    values: measure -> method -> one value for each seed. NaN values are left out; a method without any has no mark.
    """
    methods = list(dict.fromkeys(method for panel in values.values() for method in panel))
    colors, columns = theme_of(theme), max(1, len(values))
    names = [shorten(method, 28) for method in methods]
    width = min(11.0, max(5.4, 0.085 * max(map(len, names), default=0) + 2.5 * columns))
    with settings():
        figure, panels = new_figure(theme, "Methods compared", width, 1.5 + 0.42 * max(2, len(methods)), columns=columns, sharey=True)
        widest = False
        for axes, (measure, row) in zip(panels, values.items(), strict=False):
            axes.set_xlabel(measure)
            shown: list[float] = []
            for index, method in enumerate(methods):
                style = look(index, theme)
                single = [value for value in row.get(method, ()) if math.isfinite(value)]
                if not single:
                    continue
                interval = metrics.seed_interval(single)
                if interval.n > 1:
                    half = interval.mean - interval.low
                    axes.errorbar(interval.mean, index, xerr=half, color=style.color, linewidth=1.8, capsize=4, capthick=1.5, zorder=3)
                    axes.plot(single, [index + 0.24] * len(single), "o", markersize=3.6, color=style.color, alpha=0.65,
                              markeredgewidth=0, zorder=2)  # fmt: skip
                axes.plot(interval.mean, index, style.marker, markersize=7.5, color=style.color, markeredgecolor=colors.background,
                          markeredgewidth=0.8, zorder=4)  # fmt: skip
                shown += single if interval.n < 2 else [*single, interval.low, interval.high]
                widest = widest or interval.n > 1
            if shown and min(shown) <= 0 <= max(shown):
                axes.axvline(0, color=colors.muted, linewidth=0.9, zorder=1)
            axes.grid(False, axis="y")
            axes.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(range(len(methods)), names)
        panels[0].set_ylim(len(methods) - 0.45, -0.55)
        for axes in panels[1:]:
            axes.tick_params(axis="y", length=0)
        if widest:
            key = "mark: mean over seeds · bar: 95 % interval of the mean · dots: single seeds"
            figure.supxlabel(key, fontsize=8.5, color=colors.muted, x=0.08 / width, ha="left")
    return figure


def _print_values(axes: Axes, values: Any, map_: Any, low: float, high: float, shares: bool, size: float, muted: str) -> None:
    """The value in every cell, in whichever of black and white can be read on it."""
    show: Callable[[float], str] = (lambda value: f"{value:.2f}") if shares else (lambda value: f"{value:.3g}")
    for (row, column), value in np.ndenumerate(values):
        text, color = "–", muted
        if math.isfinite(value):
            red, green, blue, _ = map_((value - low) / (high - low))
            text, color = show(value), "#101418" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=color)


def _curves(axes: Axes, x: Any, curves: Mapping[str, Any], theme: str, shared: bool) -> None:
    """A line for each method, with a band where there are several seeds. The frame follows the seeds, not bands that leave it."""
    everything = np.concatenate([curve.ravel() for curve in curves.values()]) if curves else np.zeros(0)
    everything = everything[np.isfinite(everything)]
    for index, (name, curve) in enumerate(curves.items()):
        style, at = look(index, theme), x[: curve.shape[1]]
        intervals = [metrics.seed_interval(column) for column in curve.T]
        if len(curve) > 1:
            for seed in curve if len(curves) <= CROWD else ():
                axes.plot(at, seed, color=style.color, linewidth=0.6, alpha=0.35, zorder=2)
            axes.fill_between(
                at,
                [i.low for i in intervals],
                [i.high for i in intervals],
                color=style.color,
                alpha=0.15 if len(curves) <= CROWD else 0.06,
                linewidth=0,
                zorder=1,
            )
        axes.plot(at, [i.mean for i in intervals], color=style.color, linestyle=style.line, marker=style.marker, markersize=5.5,
                  linewidth=1.9, label=shorten(name, 40), markeredgecolor=THEMES[theme].background, markeredgewidth=0.6,
                  zorder=4)  # fmt: skip
    if everything.size:
        low, high = float(everything.min()), float(everything.max())
        if low >= 0:
            axes.set_ylim(0, max(high * 1.08, 1.04 if shared or high > 0.6 else 0))
        else:
            axes.set_ylim(low - 0.12 * (high - low or 1), high + 0.12 * (high - low or 1))


def _say_bands(axes: Axes, curves: Mapping[str, Any], theme: str) -> None:
    seeds = {len(curve) for curve in curves.values()}
    if max(seeds, default=0) > 1:
        count = str(seeds.pop()) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        note(axes, f"band: 95 % interval of the mean over {count} seeds", theme, y=0.03, x=0.015)


def _whole_ticks(axes: Axes, values: Any) -> None:
    """Ticks at whole numbers, not too many."""
    step = max(1, math.ceil(len(values) / 16))
    axes.set_xticks(values[::step])
    axes.set_xlim(values[0] - 0.25, values[-1] + 0.25)


def _running_mean(values: Any, window: int) -> Any:
    """The mean of the last `window` values at each step, of fewer at the beginning; what is not finite counts for nothing."""
    finite = np.isfinite(values)
    totals = [np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite)]
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    sums, counts = (total[ends] - total[begins] for total in totals)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
