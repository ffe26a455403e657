"""Made-up results of both kinds of experiments, small and with every key."""

from __future__ import annotations

import math
from typing import Any


def matrix(tasks: int, keep: float, shift: float = 0.0) -> list[list[float]]:
    """R of a method that keeps the share `keep` of a score with every further task."""
    return [
        [round(0.1 + 0.01 * task if row <= task else 0.9 * keep ** (row - 1 - task) - shift, 4) for task in range(tasks)]
        for row in range(tasks + 1)
    ]  # fmt: skip


def method(tasks: int, keep: float, seeds: int, joint: bool) -> dict[str, Any]:
    """Seeds of one method."""
    losses = [[2.0 / (1 + step / 5) for step in range(40)] for _ in range(tasks)]
    return {
        "seeds": {
            str(seed): {
                "matrix": matrix(tasks, keep, 0.02 * seed), "joint": [0.95] * tasks if joint else None, "losses": losses,
                "steps": 40 * tasks, "seconds": 1.5 + seed, "parameters": 1234, "memory_bytes": 5_000_000,
            }
            for seed in range(seeds)
        }
    }  # fmt: skip


def sequence(tasks: int = 3, seeds: int = 3) -> dict[str, Any]:
    """A sequence with two methods; of one a value was not measured."""
    methods = {"naive": method(tasks, 0.6, seeds, False), "ewc": method(tasks, 0.9, seeds, True)}
    methods["ewc"]["seeds"]["0"]["matrix"][0][tasks - 1] = math.nan
    names = [f"task {number}" for number in range(1, tasks + 1)]
    return {
        "kind": "sequence",
        "stream": "permuted-digits",
        "tasks": names,
        "score": "accuracy",
        "methods": methods,
        "warnings": ["a spike"],
    }


def forgetting() -> dict[str, Any]:
    """Two tasks with curvature and bounds."""
    eigenvalues = [40.0, 9.0, 2.0, 0.5, -0.2, -1.5]
    spectrum = {
        "eigenvalues": eigenvalues, "residuals": [1e-5] * 4 + [0.1, 0.3], "converged": [True] * 4 + [False] * 2, "trace": 61.5,
        "trace_error": 2.5, "parameters": 1234, "density": {"grid": [-2.0, -1.0, 0.0, 1.0, 2.0], "values": [1e-9, 0.01, 1.0, 0.1, 0.0]},
    }  # fmt: skip
    path = {"points": [0.0, 0.5, 1.0], "loss": [0.1, 0.4, 1.2], "quadratic": [0.1, 0.35, 1.1]}
    bound = [
        {"label": label, "space": "factors", "displacement": moved, "gradient_term": 0.01, "lambda_max": 40.0,
         "bound": 20 * moved**2 + 0.01, "second_order": 1.0 * moved, "measured": 1.1 * moved, "path": path}
        for label, moved in (("naive", 1.0), ("ewc", 0.5), ("replay", 0.7))
    ]  # fmt: skip
    return {
        "kind": "forgetting", "tasks": ["A", "B"], "score": "accuracy", "methods": {"naive": method(2, 0.5, 1, True)},
        "loss_matrix": [[2.3, 2.3], [0.1, 2.2], [1.4, 0.1]], "curvature": {"after A": spectrum, "after B": {**spectrum, "density": None}},
        "bound": bound, "warnings": [],
    }  # fmt: skip
