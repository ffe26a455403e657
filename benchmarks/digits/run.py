"""Task sequences on digits: retain's methods, and those of avalanche-lib on the same streams.

    python -m benchmarks.digits.run                                   # retain alone
    python -m benchmarks.digits.run --avalanche PYTHON                # beside avalanche-lib, which that Python has
    python -m benchmarks.digits.run --seeds 3 --streams split-digits --methods naive,der++

Five tasks, a perceptron 64-256-10, SGD at 0.1, 15 epochs, batches of 32, a memory of 200 examples; both start from the same weights and
take the same number of optimizer steps. Accuracy is the mean over tasks at the end, over seeds 0, 1, ...; seconds are CPU-seconds of
learning alone, without measuring, on one thread; the two libraries take turns, seed by seed. Where a strength had to be chosen (ewc's
lambda on both sides, der++'s weights), it was chosen on other seeds (100 and up). How to install avalanche-lib beside a CPU build of
torch: docs/measure.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from retain.evaluation.metrics import average_accuracy, seed_interval
from retain.evaluation.sequences import build_way, load_config, make_sequence, parts_of
from retain.lm.devices import machine_facts

ROOT = Path(__file__).parents[2]
METHODS = "naive,ewc,replay,der++,er+kl,agem,ogd,l2,packnet,progressive,joint"
COMPARED = ("naive", "ewc", "replay", "der++")
GOALS = {("permuted-digits", "der++"): 0.94, ("split-digits", "der++"): 0.95}
CHOSEN = {"split-digits": {"settings.derpp_alpha": 0.2, "settings.derpp_beta": 3.0}}  # the best of ten on seeds 100 to 105; else defaults
EWC_LAMBDA = 400.0  # avalanche-lib's; the best of 5, 15, 50, 150, 400 and 1000 on seeds 100 to 103


def retain_arm(stream: str, methods: Sequence[str], seed: int) -> dict[str, Any]:
    """All methods of retain from one seed: the accuracy matrix, CPU-seconds, steps."""
    config = load_config(stream, {"methods": ",".join(methods), **CHOSEN.get(stream, {})})
    sequence = make_sequence(config, seed)
    found = {}
    for name in methods:
        way = build_way(name, sequence, config.training.settings(seed), config.settings, seed)
        matrix, seconds, steps = [[way.score(task) for task in range(len(sequence.tasks))]], 0.0, 0
        for number in range(len(sequence.tasks)):
            started = time.process_time()
            steps += way.learn(number).steps
            seconds += time.process_time() - started
            matrix.append([way.score(task) for task in range(len(sequence.tasks))])
        found[name] = {
            "matrix": matrix, "seconds": seconds, "steps": steps, "parameters": way.values, "memory_bytes": way.memory_bytes,
            "knows_task": way.knows_task,
        }  # fmt: skip
        print(f"  {stream} seed {seed} {name}: {average_accuracy(matrix):.1%}, {1000 * seconds / steps:.2f} ms a step", flush=True)
    return found


def avalanche_arm(python: Path, stream: str, seed: int) -> dict[str, Any]:
    """avalanche-lib's strategies, in a process of the Python that has it."""
    command = [str(python), "-m", "benchmarks.digits.avalanche_arm", "--streams", stream, "--arms", ",".join(COMPARED)]
    command += ["--seeds", str(seed), "--ewc-lambda", str(EWC_LAMBDA)]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(command, env={**os.environ, **paths}, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"avalanche-lib did not run: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def row_of(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy with its interval, and the median seconds of a seed."""
    accuracies = [average_accuracy(row["matrix"]) for row in seeds.values()]
    interval = seed_interval(accuracies)
    first, seconds = next(iter(seeds.values())), statistics.median(row["seconds"] for row in seeds.values())
    facts = {key: value for key, value in first.items() if key not in ("matrix", "seconds")}
    return {
        "accuracy": interval.mean, "low": interval.low, "high": interval.high, "by_seed": accuracies, "seconds": seconds,
        "ms_per_step": 1000 * seconds / first["steps"], **facts, "matrices": [row["matrix"] for row in seeds.values()],
    }  # fmt: skip


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="permuted-digits,split-digits")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--avalanche", type=Path, metavar="PYTHON", help="a Python that has avalanche-lib 0.6.0")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "digits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"benchmark": "digits", "seeds": options.seeds, "machine": machine_facts(), "streams": {}}
    methods = ["+".join(parts_of(name)) for name in options.methods.split(",")]
    for stream in options.streams.split(","):
        found: dict[str, dict[str, Any]] = {}
        for seed in range(options.seeds):
            if options.avalanche:
                theirs = avalanche_arm(options.avalanche, stream, seed)
                record |= {"avalanche": theirs["version"], "avalanche_ewc_lambda": theirs["ewc_lambda"]}
                for name, row in theirs["streams"][stream].items():
                    found.setdefault(f"avalanche {name}", {}).update(row)
            for name, row in retain_arm(stream, methods, seed).items():
                found.setdefault(f"retain {name}", {})[str(seed)] = row
        rows = {name: row_of(seeds) for name, seeds in found.items()}
        for name in COMPARED:
            if {f"retain {name}", f"avalanche {name}"} <= rows.keys():
                pairs = [(found[f"avalanche {name}"][str(seed)], found[f"retain {name}"][str(seed)]) for seed in range(options.seeds)]
                rows[f"retain {name}"]["times_avalanche"] = statistics.median(a["seconds"] / r["seconds"] for a, r in pairs)
        record["streams"][stream] = rows
        print(f"\n{stream:24} {'accuracy':>9} {'95% interval':>15} {'CPU s':>6} {'ms/step':>8} {'x avalanche':>12}")
        for name, row in rows.items():
            times = f"{row['times_avalanche']:.1f}" if "times_avalanche" in row else ""
            interval = f"{row['low']:.1%} - {row['high']:.1%}"
            print(f"{name:24} {row['accuracy']:9.1%} {interval:>15} {row['seconds']:6.2f} {row['ms_per_step']:8.2f} {times:>12}")
    record["goals"] = [
        {"stream": stream, "method": name, "goal": goal, "reached": record["streams"][stream][f"retain {name}"]["accuracy"]}
        for (stream, name), goal in GOALS.items()
        if f"retain {name}" in record["streams"].get(stream, {})
    ]
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main()
