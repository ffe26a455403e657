"""`python -m benchmarks` and docs/measure.md know every program there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import __main__ as programs

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"whisper_encoder", "avalanche_arm"}  # run by, or beside, others


def found() -> set[str]:
    """Modules with arguments and an end to run to."""
    paths = [path for path in (ROOT / "benchmarks").rglob("*.py") if path.stem not in {*PARTS, "__main__"}]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_every_program_runs_by_its_name() -> None:
    assert set(programs.ALL.values()) == found()


def test_every_program_is_in_the_table() -> None:
    table = re.findall(
        r"^\|.*`python -m (benchmarks[\w.]+).*`.*\|$", (ROOT / "docs" / "measure.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(table) == found()


def test_options_go_to_the_program_and_unknown_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "kills", "ingest", "--out", "x.json"])
    assert programs.main() == 0
    assert asked == [["benchmarks.kills", "--out", "x.json"], ["benchmarks.ingest", "--out", "x.json"]]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "kils"])
    assert programs.main() == 2 and len(asked) == 2
