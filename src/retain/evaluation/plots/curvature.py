"""Figures of the loss around a solution: its curvature, and what moving away from it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.evaluation.plots.style import ThemeName, legend, look, new_figure, note, settings, shorten, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DEPTH = 1e-7  # a density below this share of its maximum is noise of the estimate
_WIDE = 30.0  # from this ratio of the largest to the smallest value an axis is logarithmic


def eigenvalues(spectra: Mapping[str, Mapping[str, Any]], theme: ThemeName = "light") -> Figure:
    """Eigenvalues of the Hessian in falling order with their signs, for several checkpoints.

    spectra: checkpoint -> `eigenvalues`, and where known `converged` and `residuals`. Hollow marks did not converge; bars are residual
    norms ||H v - l v||, within which an eigenvalue of H lies for certain (Parlett 1998, theorem 4.5.1). Where values span several orders
    of magnitude the axis is logarithmic on both sides of a linear middle (shaded).
    """
    colors = theme_of(theme)
    with settings():
        from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

        figure, (axes,) = new_figure(theme, "Largest eigenvalues of the Hessian")
        everything, hollow, barred = [], False, False
        for index, (name, spectrum) in enumerate(spectra.items()):
            values = np.asarray(spectrum["eigenvalues"], dtype=np.float64)
            order = np.argsort(-values)
            sound = np.asarray(_or(spectrum.get("converged"), [True] * len(values)), dtype=bool)[order]
            errors = np.asarray(_or(spectrum.get("residuals"), [0.0] * len(values)), dtype=np.float64)[order]
            label = shorten(name, 40)
            values, ranks, style = values[order], np.arange(1, len(values) + 1), look(index, theme)
            everything.append(values)
            axes.plot(ranks, values, color=style.color, linestyle=style.line, linewidth=1.3, alpha=0.75, zorder=2)
            visible = np.isfinite(errors) & (errors > 0.02 * np.abs(values))
            if visible.any():
                barred = True
                axes.errorbar(ranks[visible], values[visible], yerr=errors[visible], fmt="none", ecolor=style.color, elinewidth=1.1,
                              capsize=2.5, zorder=2)  # fmt: skip
            axes.plot(
                ranks[sound], values[sound], style.marker, color=style.color, markersize=6, markeredgewidth=1.2, label=label, zorder=4
            )
            if not sound.all():
                hollow = True
                axes.plot(ranks[~sound], values[~sound], style.marker, color=style.color, markerfacecolor=colors.background, markersize=6,
                          markeredgewidth=1.2, label=None if sound.any() else label, zorder=4)  # fmt: skip
        known = np.concatenate(everything) if everything else np.zeros(0)
        sizes = np.abs(known[np.isfinite(known) & (known != 0)])
        if sizes.size and sizes.max() > _WIDE * sizes.min():
            middle = 10.0 ** math.floor(math.log10(max(float(sizes.min()), float(sizes.max()) * 1e-5)))
            if bool((known < 0).any()):
                axes.set_yscale("symlog", linthresh=middle, linscale=0.6)
                axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=middle))
                axes.axhspan(-middle, middle, color=colors.missing, zorder=0, linewidth=0)
            else:
                axes.set_yscale("log")
        if bool((known < 0).any()):
            axes.axhline(0, color=colors.muted, linewidth=0.9, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
        axes.set_xlabel("rank of the eigenvalue")
        axes.set_ylabel("eigenvalue λ of the loss's Hessian")
        remarks = (["hollow: not converged"] if hollow else []) + (["bars: residual norm"] if barred else [])
        if remarks:
            note(axes, "\n".join(remarks), theme)
        legend(figure, [axes], theme)
    return figure


def spectral_density(densities: Mapping[str, Mapping[str, Sequence[float]]], theme: ThemeName = "light") -> Figure:
    """Density of all eigenvalues on a logarithmic axis; densities: checkpoint -> `grid` and `values` (Ghorbani et al., 1901.10159)."""
    with settings():
        figure, (axes,) = new_figure(theme, "Spectral density of the Hessian")
        top = 0.0
        for index, (name, density) in enumerate(densities.items()):
            grid, values = (np.asarray(density[key], dtype=np.float64) for key in ("grid", "values"))
            style = look(index, theme)
            top = max(top, float(np.nanmax(values, initial=0.0)))
            shown = np.where(values > 0, values, np.nan)
            axes.plot(grid, shown, color=style.color, linestyle=style.line, linewidth=1.7, label=shorten(name, 40))
        axes.set_yscale("log")
        if top > 0:
            axes.set_ylim(top * _DEPTH, top * 3)
        axes.axvline(0, color=theme_of(theme).muted, linewidth=0.9, zorder=1)
        axes.set_xlabel("eigenvalue λ of the loss's Hessian")
        axes.set_ylabel("density (per unit of λ)")
        legend(figure, [axes], theme)
    return figure


def displacement_against_forgetting(
    points: Sequence[tuple[str, float, float]], measured: str = "rise of the loss on task A (nats)", theme: ThemeName = "light"
) -> Figure:
    """How far the parameters moved against what that cost; points: (label, displacement, forgetting), equal labels share a mark.

    Spearman's rank correlation is that of all points; the line is the power law of least squares in logarithms where everything is positive
    and spans a wide range, a straight line otherwise. Nothing is fitted to fewer than three points.
    """
    colors = theme_of(theme)
    usable = [(label, x, y) for label, x, y in points if math.isfinite(x) and math.isfinite(y)]
    labels = list(dict.fromkeys(label for label, _, _ in usable))
    x, y = (np.array([point[part] for point in usable], dtype=np.float64) for part in (1, 2))
    logarithmic = len(usable) > 1 and all(part.min() > 0 and part.max() > _WIDE * part.min() for part in (x, y))
    with settings():
        figure, (axes,) = new_figure(theme, "Displacement against forgetting")
        for index, label in enumerate(labels):
            style = look(index, theme)
            own = np.array([point[0] == label for point in usable])
            axes.plot(x[own], y[own], style.marker, color=style.color, markersize=7.5, markeredgecolor=colors.background,
                      markeredgewidth=0.7, linestyle="none", label=shorten(label, 40), zorder=4)  # fmt: skip
        remarks = [f"n = {len(usable)}"]
        if len(usable) >= 3 and np.ptp(x) > 0:
            change = np.log if logarithmic else np.asarray
            slope, start = np.polyfit(change(x), change(y), 1)
            ends = np.geomspace(x.min(), x.max(), 60) if logarithmic else np.linspace(x.min(), x.max(), 2)
            fitted = np.exp(start) * ends**slope if logarithmic else start + slope * ends
            axes.plot(ends, fitted, color=colors.muted, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
            remarks += [
                f"Spearman ρ = {rank_correlation(x, y):.2f}",
                f"fit: y ∝ x^{slope:.2f}" if logarithmic else f"fit: slope {slope:.3g}",
            ]
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("displacement of the parameters ‖Δθ‖")
        axes.set_ylabel(measured)
        note(axes, "\n".join(remarks), theme, x=0.015)
        legend(figure, [axes], theme)
    return figure


def loss_along_path(paths: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "nats", theme: ThemeName = "light") -> Figure:
    """The loss on the straight line from old to new parameters, measured and as the curvature at its beginning predicts it.

    paths: name -> `points` t in 0 .. 1, `loss`, and where known `quadratic`: L(0) + t g'd + t^2/2 d'Hd. One panel for each path.
    """
    colors, columns = theme_of(theme), min(3, max(1, len(paths)))
    rows = max(1, math.ceil(len(paths) / columns))
    width = 7.6 if columns == 1 else min(10.5, 3.7 * columns)
    title = "Loss on the way from the old to the new parameters"
    with settings():
        figure, panels = new_figure(theme, title, width, 1.2 + (3.0 if rows == 1 else 2.5 * rows), rows, columns)
        for number, axes in enumerate(panels):
            if number >= len(paths):
                axes.set_visible(False)
                continue
            name, path = list(paths.items())[number]
            measured, predicted = look(0, theme), look(1, theme)
            axes.plot(path["points"], path["loss"], color=measured.color, marker=measured.marker, markersize=4.5, linewidth=1.8,
                      label="measured", zorder=4)  # fmt: skip
            if path.get("quadratic") is not None:
                axes.plot(path["points"], path["quadratic"], color=predicted.color, linestyle=predicted.line, linewidth=1.8,
                          label="quadratic prediction", zorder=3)  # fmt: skip
            _frame(axes, path)
            if len(paths) > 1:
                axes.set_title(shorten(name, 34), loc="left", fontsize=9.5, color=colors.text)
            axes.set_xlim(-0.03, 1.03)
            if number + columns >= len(paths):
                axes.set_xlabel("position t on the path")
            if number % columns == 0:
                axes.set_ylabel(f"loss ({unit})" if unit else "loss")
        legend(figure, panels[: len(paths)], theme)
    return figure


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's correlation of ranks (1904), equal values sharing their mean rank; NaN where one side does not vary."""
    first, second = _ranks(np.asarray(x)), _ranks(np.asarray(y))
    first, second = first - first.mean(), second - second.mean()
    size = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > 0 else math.nan


def _ranks(values: Any) -> Any:
    """Ranks from 1; equal values share their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _frame(axes: Axes, path: Mapping[str, Sequence[float]]) -> None:
    """The measured loss decides the range; a prediction may leave it by as much again, so that neither becomes a flat line."""
    loss = np.asarray(path["loss"], dtype=np.float64)
    loss = loss[np.isfinite(loss)]
    if not loss.size:
        return
    low, high = float(loss.min()), float(loss.max())
    span = (high - low) or abs(high) or 1.0
    if path.get("quadratic") is not None:
        other = np.asarray(path["quadratic"], dtype=np.float64)
        other = np.clip(other[np.isfinite(other)], low - span, high + span)
        low, high = min([low, *other.tolist()]), max([high, *other.tolist()])
    axes.set_ylim(low - 0.06 * span, high + 0.08 * span)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
