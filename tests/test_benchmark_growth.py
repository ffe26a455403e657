"""The growth benchmark runs as a whole, on a workspace that is really filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import growth
from benchmarks.growth_fill import fill, invented
from benchmarks.growth_plot import ROWS

from retain.workspace.continual import ContinualLM


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, object]:
    out = tmp_path_factory.mktemp("growth") / "growth.json"
    growth.main(["--counts", "5,1", "--model", str(tiny_model_dir), "--repeats", "1", "--out", str(out)])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return dict(json.loads(out.read_text()))


def test_every_cost_is_measured_at_every_count(record: dict) -> None:
    assert record["counts"] == [1, 5]
    shown = {name for panels in ROWS.values() for name in panels} - {"disk", "memory"}
    assert shown <= record["times"].keys()
    for arm, row in record["times"].items():
        assert all(row["median_ms"][count] > 0 < row["median_cpu_ms"][count] for count in ("1", "5")), arm
        assert row["ratio"] == pytest.approx(row["median_ms"]["5"] / row["median_ms"]["1"], rel=0.02), arm
    assert record["times"]["learn"]["median_ms"]["1"] > record["times"]["learn_training"]["median_ms"]["1"]


def test_the_workspaces_differ_in_their_documents_only(record: dict) -> None:
    one, five = record["facts"]["1"], record["facts"]["5"]
    assert (one["documents"], five["documents"]) == (1, 5)
    assert five["chunks"] > one["chunks"] and five["probes"] > one["probes"] > 0
    assert five["bytes"]["adapters"] == pytest.approx(5 * one["bytes"]["adapters"], rel=0.01)
    assert one["answered_with"] == five["answered_with"] == [True]
    assert one["answer_tokens"] == five["answer_tokens"]
    assert set(one["learned"] + five["learned"]) == {"committed"}
    for peaks in record["peak_bytes"].values():
        assert 10e6 < peaks["model"] <= peaks["open"] <= peaks["answer"] <= peaks["every_document_asked"] <= peaks["update"]


def test_invented_documents_are_distinct_and_whole(tmp_path: Path, tiny_model: object) -> None:
    many = [invented(number) for number in range(300)]
    assert len({item.subject for item in many}) == len({item.document.id for item in many}) == 300
    assert all(item.subject in item.document.text and item.founder in item.document.text for item in many)
    with ContinualLM.open(tmp_path / "work", tiny_model, config=growth.settings()) as lm:  # type: ignore[arg-type]
        fill(lm, 2)
        fill(lm, 4)
        assert [item.documents for item in lm.state.adapters] == [(item.document.id,) for item in many[:4]]
        assert lm.verify().ok
        assert lm.ask(f"Who founded the {many[2].subject}?", max_tokens=2).adapters == [many[2].document.id]
        lm.forget(many[2].document.id)
        assert lm.ask(f"Who founded the {many[2].subject}?", max_tokens=2).adapters == [] and lm.verify().ok
