"""How well displacement, curvature and the path foretell forgetting: rank correlations over many runs of the forgetting experiment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retain.evaluation.forgetting.config import ForgettingConfig
from retain.evaluation.forgetting.curvature import TellProduct
from retain.evaluation.forgetting.experiment import run_forgetting
from retain.evaluation.plots import rank_correlation
from retain.evaluation.runs import Run
from retain.evaluation.sequences.experiment import Tell, TellStep
from retain.lm.model import LanguageModel

CELLS = "cells"  # folder of the runs below that of the study
PREDICTORS = {
    "displacement": "‖dw‖",
    "without_gradient": "½ λ ‖dw‖²",
    "bound": "g·dw + ½ λ ‖dw‖²",
    "second_order": "g·dw + ½ dw'H dw",
    "halfway": "rise of the loss halfway to w2",
}
TARGETS = {"measured": "rise of the loss", "forgetting_loss": "rise of the loss on the questions", "forgetting_score": "fall of the score"}
_RESAMPLES = 2000


def study_cells(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, by dotted key."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def cell_name(cell: Mapping[str, Any]) -> str:
    """A combination in few words."""
    names = {key: key.rpartition(".")[2].replace("learning_rate", "lr") for key in cell}
    return " ".join(f"{names[key]}={value:g}" if isinstance(value, float) else f"{names[key]}={value}" for key, value in cell.items())


def run_study(
    cells: Sequence[tuple[Mapping[str, Any], ForgettingConfig]], run: Run, model: LanguageModel, tell: Tell | None = None,
    tell_step: TellStep | None = None, tell_product: TellProduct | None = None, begin: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The experiment with the settings of every cell, each a run of its own in ``cells/`` of the run's directory, and what foretells
    forgetting in all of them. ``begin``: told name, number and count of the cells. Raises as :func:`run_forgetting`."""
    methods: dict[str, Any] = {}
    points: list[dict[str, Any]] = []
    warnings: list[str] = []
    tasks, score = [""], ""
    for number, (cell, config) in enumerate(cells):
        name = cell_name(cell)
        if begin:
            begin(name, number, len(cells))
        place = run.directory / CELLS / name.replace("=", "-").replace(" ", "_").replace("/", "-")
        with Run.create(place, config.model_dump(mode="json"), resume=True, seeds=range(config.seeds)) as inner:
            results = inner.results or run_forgetting(config, inner, model, tell, tell_step, tell_product)
        tasks, score = results["tasks"], results["score"]
        methods |= {f"{method}, {name}": found for method, found in results["methods"].items()}
        warnings += [f"{name}: {message}" for message in results["warnings"]]
        points += _points(results, cell, name)
        run.event("cell", name=name)
    for message in warnings:
        run.warn(message)
    spaces = {point["space"] for point in points}
    shown = "product" if "product" in spaces else "factors"  # where distances do not depend on the rank and how dW is split
    bounds = [point for point in points if point["space"] == shown]
    results = {
        "kind": "forgetting", "tasks": tasks, "score": score, "methods": methods, "bound": bounds,
        "study": {"cells": [dict(cell) for cell, _ in cells], "points": points, "correlations": correlations(points)}, "warnings": warnings,
    }  # fmt: skip
    run.complete(results)
    return results


def _points(results: Mapping[str, Any], cell: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A point for each method, seed and space: predictors and what was measured."""
    rows = {(row["method"], row["seed"]): row for row in results["moves"]}
    found = []
    for entry in results["bound"]:
        row = rows[entry["method"], entry["seed"]]
        path = entry.get("path")
        halfway = _at(path, 0.5) - path["loss"][0] if path else None
        said = {key: row[key] for key in ("forgetting_loss", "forgetting_score")}
        found.append({**entry, "label": f"{entry['label']}, {name}", "cell": dict(cell), "halfway": halfway, **said})
    return found


def _at(path: Mapping[str, Sequence[float]], place: float) -> float:
    """The loss at a place of the path, between the points on a straight line."""
    return float(np.interp(place, path["points"], path["loss"]))


def correlations(points: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Spearman's rank correlation of every predictor with every measure of forgetting, in each space, with its 95 % interval.

    The interval is a percentile bootstrap over runs (Efron 1979); draws in which one side does not vary are left out. Undefined numbers
    are NaN: with fewer than three runs there is nothing to correlate.
    """
    found = []
    for space in dict.fromkeys(point["space"] for point in points):
        own = [point for point in points if point["space"] == space]
        for target, predictor in itertools.product(TARGETS, PREDICTORS):
            pairs = [
                (point[predictor], point[target]) for point in own if point.get(predictor) is not None and point.get(target) is not None
            ]
            if pairs:
                rho, low, high = spearman([x for x, _ in pairs], [y for _, y in pairs], seed)
                found.append(
                    {"space": space, "predictor": predictor, "target": target, "rho": rho, "low": low, "high": high, "n": len(pairs)}
                )
    return found


def spearman(x: Sequence[float], y: Sequence[float], seed: int = 0, resamples: int = _RESAMPLES) -> tuple[float, float, float]:
    """Spearman's rank correlation with the ends of its bootstrap interval."""
    if len(x) < 3:
        return math.nan, math.nan, math.nan
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = [rank_correlation(first[chosen], second[chosen]) for chosen in generator.integers(0, len(first), (resamples, len(first)))]
    known = [value for value in draws if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return rank_correlation(first, second), float(low), float(high)
