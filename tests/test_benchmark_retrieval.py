"""The retrieval benchmark runs without the libraries that it compares with, and its questions have answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from benchmarks import retrieval


def test_it_runs_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    out = tmp_path / "retrieval.json"
    monkeypatch.setattr(sys, "argv", ["retrieval", "--chunks", "1500", "--queries", "30", "--out", str(out)])
    retrieval.main()
    result = json.loads(out.read_text())["results"][0]
    assert result["chunks"] == 1500 and result["queries"] == 30
    assert result["milliseconds"]["retain"]["cpu"]["median"] > 0
    assert result["quality"]["retain"]["top_3"] > 0.7, "the passages that answer are not found"
    if importlib.util.find_spec("rank_bm25") is None:
        told = capsys.readouterr().out.splitlines()
        assert "rank_bm25 is not installed: pip install --target FOLDER rank_bm25 bm25s, and --packages FOLDER" in told


def test_stems_are_those_of_the_index() -> None:
    cut = retrieval.stems(["Ferries running", "the ferry RUNS"])
    assert cut("Ferries running") == ["ferri", "run"] == cut("ferry runs")
