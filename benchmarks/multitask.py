"""Training from YAML beside plain scikit-learn, on the same records; and tasks learned together beside each alone.

    python -m benchmarks.multitask [--only tables,anomalies,attacks,genes,news,reuters,names,together]
        [--seeds 3] [--data DIR] [--precision float32] [--out FILE]

All but the first two need ``--data``: a folder for real records (:mod:`benchmarks.real_data` fetches them). What was measured is laid
over what is in FILE, so that parts can be measured one at a time. Unless a part has a usual split, 60 % of the records are learned from,
20 % choose the best step and thresholds, 20 % are measured, split anew for each seed; the baselines learn from the same 60 %.
``--precision bfloat16`` is for the text models, on processors that have instructions for it.

- ``tables``: scikit-learn's digits and breast cancer, beside logistic regression and histogram gradient boosting.
- ``anomalies``: malignant cases, never learned from, beside IsolationForest.
- ``attacks``: kddcup, shuttle and page-blocks of KEEL: rare records as anomalies (IsolationForest) and as a class (regression, boosting).
- ``genes``: yeast, any of 14 functions, beside one-vs-rest regression and boosting; thresholds of all tuned on the same records.
- ``news``: BBC's topics from 300 texts (90 words each) with MiniLM-L6, beside logistic regression on TF-IDF of words and pairs of words.
- ``reuters``: Reuters R8 in its usual split, all 4,937 + 548 training and 2,189 test texts, beside the same.
- ``names``: CoNLL-2003 in its usual split, beside logistic regression on shapes of words and their neighbours, left to right, and,
  where sklearn-crfsuite is installed, a conditional random field on the same features.
- ``together``: names and phrases (chunks: NP, VP, PP) of 240 sentences of CoNLL-2003, each alone and both on one encoder, with fusion and
  pcgrad.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import multitask_baselines as plain
from benchmarks import real_data
from retain.lm.devices import machine_facts
from retain.multitask import parse_experiment, train

Records = list[dict[str, Any]]
Arms = dict[str, list[dict[str, Any]]]
SPLITS = ("train", "validation", "test")
WORDS = 90  # of a news text that everybody sees, its first
NEWS = {"train": 300, "validation": 100, "test": 500}
ATTACKS = ("kddcup-rootkit-imap_vs_back", "kddcup-buffer_overflow_vs_back", "kddcup-land_vs_satan", "shuttle-2_vs_5", "page-blocks0")


class Bench(NamedTuple):
    """What a part is told: ``data`` is the folder of real records."""

    seeds: int
    data: Path
    precision: str


def table_records(name: str) -> tuple[Records, list[str]]:
    """A table of scikit-learn and its columns."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    columns = [f"c{number}" for number in range(data.data.shape[1])]
    named = [str(data.target_names[label]) for label in data.target]
    return [
        {**dict(zip(columns, map(float, values), strict=True)), "label": label} for values, label in zip(data.data, named, strict=True)
    ], columns


def split(records: Sequence[dict[str, Any]], sizes: Sequence[float], seed: int) -> list[Records]:
    """Shuffled parts of these shares."""
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    first, parts = 0, []
    for size in sizes:
        parts.append(shuffled[first : first + round(size * len(records))])
        first += len(parts[-1])
    return parts


def learn_all(
    parts: Sequence[Records], backbone: Mapping[str, Any], tasks: Mapping[str, Any], training: Mapping[str, Any], seed: int, **sections: Any
) -> dict[str, Any]:
    """One training of several tasks on these parts: their test metrics, processor seconds, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        for name, records in zip(SPLITS, parts, strict=True):
            (Path(folder) / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        data = {name: f"{name}.jsonl" for name in SPLITS}
        config = {"seed": seed, "backbone": dict(backbone), "data": data, "tasks": dict(tasks), "training": dict(training), **sections}
        started = time.process_time()
        results = train(parse_experiment(config, folder), Path(folder) / "run")
        return {
            "tasks": {name: found["test"] for name, found in results["tasks"].items()},
            "cpu_seconds": time.process_time() - started,
            "seconds": results["seconds"],
            **results["parameters"],
            "best_step": results["best_step"],
        }


def learn(
    parts: Sequence[Records], backbone: Mapping[str, Any], task: Mapping[str, Any], training: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """One training of one task."""
    found = learn_all(parts, backbone, {"t": dict(task)}, training, seed)
    return {**found.pop("tasks")["t"], **found}


def put(arms: Arms, **found: dict[str, Any]) -> None:
    """Add a run of each arm."""
    for name, values in found.items():
        arms.setdefault(name.replace("_", " "), []).append(values)


def tables(bench: Bench) -> dict[str, Arms]:
    """Accuracy on scikit-learn's tables."""
    found: dict[str, Arms] = {}
    training = {"epochs": 40, "batch": 32, "learning_rate": 3e-3, "head_learning_rate": 3e-3, "metric": "loss"}
    for name in ("digits", "breast_cancer"):
        records, columns = table_records(name)
        for seed in range(bench.seeds):
            parts = split(records, (0.6, 0.2, 0.2), seed)
            arms = found.setdefault(name, {})
            put(arms, retain=learn(parts, {"kind": "sequential"}, {"kind": "classification"}, training, seed))
            put(arms, **plain.classes(parts, columns, [], seed))
    return found


def anomalies(bench: Bench) -> dict[str, Arms]:
    """AUROC of malignant cases among benign ones."""
    records, columns = table_records("breast_cancer")
    task = {"kind": "anomaly", "label": "label", "normal": ["benign"]}
    arms: Arms = {}
    for seed in range(bench.seeds):
        parts = split(records, (0.6, 0.2, 0.2), seed)
        training = {"epochs": 60, "batch": 32, "metric": "t.likelihood"}
        put(arms, retain=learn(parts, {"kind": "sequential"}, task, training, seed))
        put(arms, isolation_forest=plain.forest(parts, columns, [], "benign", seed))
    return {"breast_cancer": arms}


def attacks(bench: Bench) -> dict[str, Any]:
    """Rare records: found as unlike the others, and learned as a class."""
    found: dict[str, Any] = {}
    for name in ATTACKS:
        records, numbers = real_data.keel(bench.data, name)
        categories = [column for column in records[0] if column != "label" and column not in numbers]
        backbone = {"kind": "sequential", "numeric": numbers, "categorical": categories}
        unusual: Arms = {}
        known: Arms = {}
        for seed in range(bench.seeds):
            parts = split(records, (0.6, 0.2, 0.2), seed)
            if any(sum(row["label"] == "positive" for row in part) < 2 for part in parts):
                continue  # too few to measure by
            training = {"epochs": 30, "batch": 64}
            task = {"kind": "anomaly", "label": "label", "normal": ["negative"]}
            put(unusual, retain=learn(parts, backbone, task, {**training, "metric": "t.likelihood"}, seed))
            put(unusual, isolation_forest=plain.forest(parts, numbers, categories, "negative", seed))
            task = {"kind": "classification", "label": "label", "positive": "positive"}
            put(known, retain=learn(parts, backbone, task, {**training, "metric": "t.average_precision"}, seed))
            put(known, **plain.classes(parts, numbers, categories, seed, positive="positive"))
        found[name] = {"unusual": unusual, "known": known}
    return found


def genes(bench: Bench) -> dict[str, Arms]:
    """Any of 14 functions of a gene."""
    records, columns, labels = real_data.yeast(bench.data)
    arms: Arms = {}
    task = {"kind": "multilabel", "columns": labels}
    for seed in range(bench.seeds):
        parts = split(records, (0.6, 0.2, 0.2), seed)
        training = {"epochs": 30, "batch": 32, "learning_rate": 1e-3, "metric": "t.average_precision"}
        put(arms, retain=learn(parts, {"kind": "sequential", "dropout": 0.3}, task, training, seed))
        put(arms, **plain.labels(parts, columns, labels, seed))
    return {"yeast": arms}


def encoder(data: Path, length: int) -> dict[str, Any]:
    """MiniLM-L6, all weights."""
    return {"kind": "text", "model": str(real_data.minilm(data)), "max_length": length}


def news(bench: Bench) -> dict[str, Any]:
    """Topics of few texts."""
    records = [{**row, "text": " ".join(row["text"].split()[:WORDS])} for row in real_data.bbc(bench.data)]
    records = list({row["text"]: row for row in records}.values())
    training = {"epochs": 3, "batch": 16, "evaluate_every": 38, "precision": bench.precision}
    arms: Arms = {}
    for seed in range(bench.seeds):
        parts = split(records, [size / len(records) for size in NEWS.values()], seed)
        body = encoder(bench.data, 128)
        frozen = {**body, "freeze": {"all": True}}
        put(arms, head_alone=learn(parts, frozen, {"kind": "classification"}, {**training, "head_learning_rate": 2e-2}, seed))
        put(arms, all_weights=learn(parts, body, {"kind": "classification"}, training, seed))
        put(arms, tf_idf=plain.words(parts))
    return {"sizes": NEWS, "words": WORDS, "bbc": arms}


def reuters(bench: Bench) -> dict[str, Any]:
    """Topics in the usual split; the seed draws the validation records and the head."""
    records, tested = real_data.topics(bench.data, "reuters-r8")
    arms: Arms = {}
    for seed in range(bench.seeds):
        parts = [*split(records, (0.9, 0.1), seed), tested]
        training = {"epochs": 1, "batch": 16, "learning_rate": 1e-4, "metric": "loss", "precision": bench.precision}
        put(arms, retain=learn(parts, encoder(bench.data, 128), {"kind": "classification"}, training, seed))
        put(arms, tf_idf=plain.words(parts))
    return {"reuters-r8": arms}


def names(bench: Bench) -> dict[str, Any]:
    """Named entities in the usual split."""
    parts = [real_data.conll(bench.data)[name] for name in SPLITS]
    task = {"kind": "ner", "words": "words", "tags": "tags"}
    arms: Arms = {}
    for seed in range(bench.seeds):
        training = {"epochs": 2, "batch": 16, "learning_rate": 3e-4, "precision": bench.precision}
        put(arms, retain=learn(parts, encoder(bench.data, 128), task, training, seed))
        put(arms, **plain.tags(parts, seed))
    return {"conll2003": arms}


def together(bench: Bench) -> dict[str, Any]:
    """Names and phrases of the same sentences: each alone, and both, with as many batches of each."""
    sets = real_data.conll(bench.data)
    both = {name: {"kind": "ner", "words": "words", "tags": column} for name, column in (("names", "tags"), ("phrases", "chunks"))}
    settings: dict[str, tuple[list[str], dict[str, Any]]] = {
        "names alone": (["names"], {}),
        "phrases alone": (["phrases"], {}),
        "both": (["names", "phrases"], {}),
        "both, fusion": (["names", "phrases"], {"fusion": {"kind": "attention"}}),
        "both, pcgrad": (["names", "phrases"], {"conflicts": {"kind": "pcgrad"}}),
    }
    arms: Arms = {}
    for seed in range(bench.seeds):
        parts = [split(sets[name], (size / len(sets[name]),), seed)[0] for name, size in zip(SPLITS, (240, 100, 400), strict=True)]
        for part in parts:
            for row in part:
                row["chunks"] = [tag if tag[2:] in ("NP", "VP", "PP") else "O" for tag in row["chunks"]]  # the others are rare
        for name, (chosen, sections) in settings.items():
            training = {"epochs": 6, "batch": 16, "learning_rate": 3e-4, "evaluate_every": 10_000, "precision": bench.precision}
            tasks = {task: both[task] for task in chosen}
            put(arms, **{name: learn_all(parts, encoder(bench.data, 128), tasks, training, seed, **sections)})
            print(name, seed, {task: round(found["f1"], 4) for task, found in arms[name][-1]["tasks"].items()}, flush=True)
    return {"conll2003": arms}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "tables": tables, "anomalies": anomalies, "attacks": attacks, "genes": genes, "news": news, "reuters": reuters, "names": names,
    "together": together,
}  # fmt: skip
SHOWN = ("accuracy", "macro_f1", "micro_f1", "auroc", "average_precision", "f1")


def show(found: Any, path: str = "") -> None:
    """A line for each arm and metric: mean, least and most."""
    for name, value in found.items() if isinstance(found, dict) else ():
        if not (isinstance(value, list) and value):
            show(value, f"{path} {name}")
            continue
        runs = [run.get("tasks", {"": run}) for run in value]
        for task in runs[0]:
            for metric in SHOWN:
                values = [run[task][metric] for run in runs if run[task].get(metric) is not None]
                if values:
                    spread = f"{statistics.fmean(values):.4f} ({min(values):.4f} - {max(values):.4f})"
                    print(f"{f'{path} {name} {task}':62} {metric:18} {spread}", flush=True)


def main() -> None:
    """Run what was asked for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask.json"))
    options = parser.parse_args()
    own = ("tables", "anomalies")  # these need no data
    wanted = [name for name in options.only.split(",") if name] or [name for name in PARTS if options.data or name in own]
    for name in wanted:
        if name not in PARTS or (options.data is None and name not in own):
            parser.error(f"{name}: needs --data" if name in PARTS else f"there is no part {name}; there is {', '.join(PARTS)}")
        bench = Bench(options.seeds, options.data, options.precision)
        started = time.process_time()
        found = PARTS[name](bench)
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        about = {"seeds": options.seeds, "precision": options.precision, "cpu_seconds": time.process_time() - started}
        kept |= {"machine": machine_facts(), name: {**about, "found": found}}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        show(found, name)


if __name__ == "__main__":
    main()
