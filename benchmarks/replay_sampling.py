"""Weighted sampling without replacement: retain's sum tree against numpy.random.Generator.choice, on the same weights.

    python -m benchmarks.replay_sampling [--size 1000000] [--draws 32] [--out benchmarks/results/replay_sampling.json]

numpy's time is that of ``choice(size, draws, replace=False, p=weights)`` with ``weights`` already normalised; the tree's that of one
``sample``, and of one ``sample`` followed by new weights for the places drawn (what a replay buffer does). Medians, taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retain.lm.devices import machine_facts
from retain.retention.sumtree import SumTree


def measure(size: int, draws: int, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds."""
    generator = np.random.default_rng(0)
    weights = generator.random(size) ** 2
    tree = SumTree(size)
    tree.set(np.arange(size), weights)
    p = weights / weights.sum()

    def update() -> None:
        places = tree.sample(draws, generator)
        tree.set(places, weights[places])

    arms: dict[str, tuple[Callable[[], Any], int]] = {
        "numpy": (lambda: generator.choice(size, draws, replace=False, p=p), 1),
        "tree": (lambda: tree.sample(draws, generator), 20),
        "tree_and_update": (update, 20),
    }
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats + 2):  # the first two are warm-up
        for arm, (run, inner) in arms.items():
            started = time.perf_counter()
            for _ in range(inner):
                run()
            if repeat >= 2:
                times[arm].append((time.perf_counter() - started) / inner * 1e3)
    medians = {arm: statistics.median(values) for arm, values in times.items()}
    return {
        "size": size, "draws": draws, "repeats": repeats, "milliseconds": medians,
        "spread": {arm: [min(values), max(values)] for arm, values in times.items()},
        "numpy_over_tree": medians["numpy"] / medians["tree"], "numpy_over_tree_and_update": medians["numpy"] / medians["tree_and_update"],
    }  # fmt: skip


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/replay_sampling.json"))
    options = parser.parse_args()
    results = [measure(size, options.draws, options.repeats) for size in sorted({10_000, options.size})]
    for result in results:
        ms = result["milliseconds"]
        print(
            f"{result['draws']} of {result['size']:,}: numpy {ms['numpy']:.3f} ms, "
            f"tree {ms['tree']:.4f} ms ({result['numpy_over_tree']:.0f}x), "
            f"with update {ms['tree_and_update']:.4f} ms ({result['numpy_over_tree_and_update']:.0f}x)"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"benchmark": "replay_sampling", "machine": machine_facts(), "results": results}, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
