"""What is left of a first task after a second has been learned: backbones and ways of protection of `retain train`.

    python -m benchmarks.multitask_forgetting [--seeds 3] [--bbc DIR --encoder DIR] [--out benchmarks/results/multitask-forgetting.json]

Table: scikit-learn's digits and a perceptron; is the digit below 5, then, on the same images, is it even. 70 % of the records to learn
from, the rest to measure; the last weights are taken. Text, where both directories are given (see benchmarks/multitask.py): the topic of
news, then whether the first hundred words hold a number written in figures more often than the median; one seed. Every way has the same
steps; olora learns adapters in place of the network's weights, so its control is `naive lora`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.lm.devices import machine_facts
from retain.multitask import parse_experiment, train

Records = list[dict[str, Any]]
LORA = {"method": "lora", "rank": 8, "alpha": 16}
WORDS, TEXTS = 40, 320  # words of a text that are read, and texts


def ways(strength: float) -> dict[str, dict[str, Any]]:
    """Sections of each way, and whether it learns adapters (`peft`)."""
    retention = {
        "ewc": {"methods": ["ewc"], "ewc": {"lambda": strength}},
        "l2": {"methods": ["l2"]},
        "replay": {"methods": ["replay"], "replay": {"strategy": "balanced"}},
        "derpp": {"methods": ["derpp"]},
        "agem": {"methods": ["agem"]},
    }
    return {
        "naive": {},
        **{name: {"retention": section} for name, section in retention.items()},
        "distill": {"distill": {"weight": 3.0}},
        "nested": {"nested": {"groups": {"slow": {"part": "layers", "every": 8}}}},
        "naive lora": {"peft": LORA},
        "olora": {"peft": LORA, "retention": {"methods": ["olora"]}},
    }


def digits(seed: int) -> Records:
    """Both labels of every image, shuffled."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = [
        {**{f"c{place}": float(value) for place, value in enumerate(values)}, "low": "yes" if label < 5 else "no", "even": str(label % 2)}
        for values, label in zip(data.data, data.target.tolist(), strict=True)
    ]
    random.Random(seed).shuffle(rows)
    return rows[:1000]


def news(folder: Path) -> Records:
    """Texts with their topic, and whether they have more figures than half of all."""
    rows = []
    for file in sorted(folder.glob("*/*.txt")):
        words = file.read_text(encoding="utf-8", errors="replace").split()[:WORDS]
        figures = sum(any(letter.isdigit() for letter in word) for word in words)
        rows.append({"text": " ".join(words), "topic": file.parent.name, "figures": figures})
    random.Random(0).shuffle(rows)
    rows = list({row["text"]: row for row in rows}.values())[:TEXTS]
    middle = statistics.median_low([row["figures"] for row in rows])
    return [{**row, "figures": "many" if row["figures"] > middle else "few"} for row in rows]


def learn(
    records: Records, backbone: Mapping[str, Any], labels: Sequence[str], training: Mapping[str, Any], way: Mapping[str, Any], seed: int
) -> dict[str, float]:
    """Accuracy of the first task before and after the second is learned, of the second, and CPU seconds."""
    cut = round(0.7 * len(records))
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", records[:cut]), ("validation", records[cut:])):
            (Path(folder) / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
        sections = {name: value for name, value in way.items() if name != "peft"}
        config = {
            "seed": seed, "backbone": {**backbone, "peft": way.get("peft")},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "tasks": {label: {"kind": "classification", "label": label} for label in labels},
            "sampling": {"phases": [[label] for label in labels]},
            "training": {"metric": "loss", "evaluate_every": 100_000, **training}, **sections,
        }  # fmt: skip
        started = time.process_time()
        _, first, last = train(parse_experiment(config, folder), Path(folder) / "run")["matrix"]
    a, b = labels
    return {
        "before": first[a]["accuracy"], "after": last[a]["accuracy"], "second": last[b]["accuracy"],
        "loss_before": first[a]["loss"], "loss_after": last[a]["loss"], "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def measure(
    records: Sequence[Records], backbone: Mapping[str, Any], labels: Sequence[str], training: Mapping[str, Any], strength: float
) -> dict[str, list[dict[str, float]]]:
    """Every way on each of these sets of records, the number of which is the seed."""
    found = {}
    for name, way in ways(strength).items():
        found[name] = [learn(rows, backbone, labels, training, way, seed) for seed, rows in enumerate(records)]
        mean = {key: statistics.fmean(run[key] for run in found[name]) for key in found[name][0]}
        print(
            f"{backbone['kind']:11} {name:11} first {mean['before']:.3f} -> {mean['after']:.3f}  second {mean['second']:.3f}  "
            f"loss of the first {mean['loss_before']:.3f} -> {mean['loss_after']:.3f}  {mean['cpu_seconds']:.1f} s",
            flush=True,
        )
    return found


def save(found: Mapping[str, Any], out: Path) -> None:
    """What was found so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what was asked for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bbc", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask-forgetting.json"))
    options = parser.parse_args()
    table = {"kind": "sequential", "hidden": [64], "dropout": 0.0}
    found: dict[str, Any] = {"machine": machine_facts(), "seeds": options.seeds}
    sets = [digits(seed) for seed in range(options.seeds)]
    found["table"] = measure(sets, table, ("low", "even"), {"epochs": 12, "batch": 16, "learning_rate": 0.01}, 3000.0)
    save(found, options.out)
    if options.bbc is not None and options.encoder is not None:
        text = {"kind": "text", "model": str(options.encoder.absolute()), "max_length": 64}
        training = {"epochs": 2, "batch": 16, "learning_rate": 3e-4}
        found["text"] = measure([news(options.bbc)], text, ("topic", "figures"), training, 3000.0)
    save(found, options.out)


if __name__ == "__main__":
    main()
