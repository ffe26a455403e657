"""The figures of a report, from the results of a run: which there are, what they say, and how each is drawn in a theme."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.evaluation import metrics, plots
from retain.evaluation.plots import ThemeName
from retain.evaluation.report.tables import MEASURES, Method, short, task_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRICES = 12  # methods whose matrix is drawn
PATHS = 9  # paths that are drawn
_COMPARED = ("average_accuracy", "forgetting", "retention_area")


@dataclass(frozen=True)
class Drawing:
    """A figure: `name` of its files, what it shows (`caption`, in HTML below it), the same for those who cannot see it (`alt`)."""

    name: str
    caption: str
    alt: str
    draw: Callable[[ThemeName], Figure]
    narrow: bool = False


def drawings(results: Mapping[str, Any], methods: Sequence[Method]) -> list[Drawing]:
    """Every figure that the results have something for."""
    score = str(results.get("score") or "accuracy")
    return [
        *_of_methods(methods, score),
        *_matrices(results, methods, score),
        *_losses(results, methods),
        *_curvature(results),
        *_moves(results),
    ]


def _of_methods(methods: Sequence[Method], score: str) -> list[Drawing]:
    made = []
    by_name = {method.name: method.matrices for method in methods}
    most = max((method.matrices[0].shape[1] for method in methods), default=0)
    measures = {measure.key: f"{measure.name.format(score=score)} {measure.better}" for measure in MEASURES}
    if len(methods) > 1 and most > 1:
        values = {measures[key]: {method.name: method.values(key) for method in methods} for key in _COMPARED}
        means = _list(f"{method.name} {_mean(method, 'average_accuracy')} and {_mean(method, 'forgetting')}" for method in methods)
        made.append(Drawing(
            "methods",
            "Methods side by side: mean over seeds, its 95 % interval, and every single seed. ↑ higher is better, ↓ lower is better.",
            f"Dot plot of methods. Average {score} and forgetting: {means}.", lambda theme: plots.method_comparison(values, theme),
        ))  # fmt: skip
    if most > 1:
        names = [f"task {number}" for number in range(1, most + 1)]
        ends = _list(f"{method.name} {_mean(method, 'average_accuracy')}" for method in methods)
        made.append(Drawing(
            "accuracy", f"Mean {score} on the tasks learned so far, after each task.",
            f"Line chart of the mean {score} on the tasks learned so far. After the last task: {ends}.",
            lambda theme: plots.accuracy_over_sequence(by_name, names, score, theme),
        ))  # fmt: skip
    if most > 2:
        areas = _list(f"{method.name} {_mean(method, 'retention_area')}" for method in methods)
        made.append(Drawing(
            "retention", "The share of what was learned that is left after so many further tasks; 1 means that nothing was lost.",
            f"Line chart of the share of learned {score} that is kept. Area under the curve: {areas}.",
            lambda theme: plots.retention_curve(by_name, score, theme),
        ))  # fmt: skip
    return made


def _matrices(results: Mapping[str, Any], methods: Sequence[Method], score: str) -> list[Drawing]:
    made: list[Drawing] = []
    for method in methods[:MATRICES]:
        matrix = np.mean(method.matrices, axis=0)
        made.append(_matrix(_unused(f"matrix-{_slug(method.name)}", made), matrix, results, score, method.name, len(method.seeds)))
    extra = results.get("loss_matrix")
    for name, values in (extra if isinstance(extra, Mapping) else {"": extra} if extra is not None else {}).items():
        try:
            matrix = metrics.accuracy_matrix(values)
        except (ValueError, TypeError):
            continue
        made.append(_matrix(_unused(f"loss-matrix-{_slug(name)}" if name else "loss-matrix", made), matrix, results, "loss", name, 1))
    return made


def _matrix(name: str, matrix: Any, results: Mapping[str, Any], score: str, of: str, seeds: int) -> Drawing:
    tasks = task_names(results, matrix.shape[1])
    title = f"{score.capitalize()}, {plots.style.shorten(of)}" if of else score.capitalize()
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    kept = _list(
        f"{task} {float(learned):.2f} then {float(last):.2f}"
        for task, learned, last in zip(tasks, np.diagonal(matrix[1:]), matrix[-1], strict=True)
    )
    return Drawing(
        name, f"{f'{of}: {score}' if of else score.capitalize()} on every task (columns) after learning every task (rows){over}; "
        "framed: the task just learned.",
        f"Heat map of {score}{f' of {of}' if of else ''}. When learned, then at the end: {kept}.",
        lambda theme: plots.matrix_heatmap(matrix, tasks, score, title, theme), narrow=matrix.shape[1] <= 6,
    )  # fmt: skip


def _losses(results: Mapping[str, Any], methods: Sequence[Method]) -> list[Drawing]:
    losses = {method.name: method.losses for method in methods if method.losses}
    if not losses:
        return []
    tasks = task_names(results, max(len(seed) for seeds in losses.values() for seed in seeds))
    ends = _list(f"{name} {short(seeds[0][-1][-1])}" for name, seeds in losses.items() if seeds[0] and seeds[0][-1])
    return [Drawing(
        "losses", "Training loss over the steps, running mean over a fortieth of a task, mean over seeds. Dotted: the next task begins.",
        f"Line chart of the training loss over {len(tasks)} tasks. At the last step of the first seed: {ends}.",
        lambda theme: plots.loss_curves(losses, tasks, theme=theme),
    )]  # fmt: skip


def _curvature(results: Mapping[str, Any]) -> list[Drawing]:
    made = []
    curvature = results.get("curvature") or {}
    if spectra := {name: part for name, part in curvature.items() if part.get("eigenvalues")}:
        largest = _list(f"{name} {short(max(part['eigenvalues']))}" for name, part in spectra.items())
        made.append(Drawing(
            "eigenvalues", "Eigenvalues of the Hessian of the loss, signed, in falling order. Hollow marks did not converge.",
            f"Eigenvalues of the Hessian by rank. Largest: {largest}.", lambda theme: plots.eigenvalues(spectra, theme),
        ))  # fmt: skip
    if densities := {name: part["density"] for name, part in curvature.items() if part.get("density")}:
        made.append(Drawing(
            "density", "Density of the Hessian's eigenvalues on a logarithmic axis.",
            f"Line chart of the density of the Hessian's eigenvalues for {_list(densities)}.",
            lambda theme: plots.spectral_density(densities, theme),
        ))  # fmt: skip
    return made


def _moves(results: Mapping[str, Any]) -> list[Drawing]:
    made = []
    bound = [part for part in results.get("bound") or () if part.get("displacement") is not None and part.get("measured") is not None]
    spaces = list(dict.fromkeys(str(part.get("space") or "") for part in bound))
    for space in spaces:  # lengths in one space say nothing about lengths in another
        points = [
            (str(part.get("label", "move")), float(part["displacement"]), float(part["measured"]))
            for part in bound
            if str(part.get("space") or "") == space
        ]
        rho = plots.rank_correlation([x for _, x, _ in points], [y for _, _, y in points])
        said = "" if math.isnan(rho) or len(points) < 3 else f" Spearman's rank correlation {rho:.2f}."
        where = f" In the space of the {'products B A' if space == 'product' else space}." if space else ""
        made.append(Drawing(
            f"displacement-{space}" if len(spaces) > 1 else "displacement",
            f"How far the parameters moved, and how much the loss on what was known rose.{where}",
            f"Scatter plot of {len(points)} moves: displacement against rise of the loss.{said}",
            functools.partial(plots.displacement_against_forgetting, points, "measured rise of the loss (nats)"),
        ))  # fmt: skip
    paths: dict[str, Any] = {}
    for part in results.get("bound") or ():
        if (path := part.get("path")) and len(paths) < PATHS:
            name = f"{part.get('label', 'move')} ({part['space']})" if part.get("space") else str(part.get("label", "move"))
            paths[name if name not in paths else f"{name} {len(paths) + 1}"] = path
    if paths:
        made.append(Drawing(
            "paths", "The loss on the straight line from the old to the new parameters: measured, and as gradient and curvature at its "
            "beginning predict it. Where the lines part, the quadratic picture ends.",
            f"Line charts of the loss along {len(paths)} paths, measured against the quadratic prediction: {_list(paths)}.",
            lambda theme: plots.loss_along_path(paths, theme=theme),
        ))  # fmt: skip
    return made


def _mean(method: Method, key: str) -> str:
    mean = metrics.seed_interval(method.values(key)).mean
    return "undefined" if math.isnan(mean) else f"{mean:.3f}"


def _list(parts: Any) -> str:
    return ", ".join(parts)


def _slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "method"


def _unused(name: str, made: Sequence[Drawing]) -> str:
    taken = {drawing.name for drawing in made}
    return name if name not in taken else next(f"{name}-{number}" for number in range(2, len(made) + 3) if f"{name}-{number}" not in taken)
