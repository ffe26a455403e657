"""report: what it prints and writes, registered on an app of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.evaluation.results import sequence
from typer.testing import CliRunner

from retain.cli.command import add
from retain.cli.report import report
from retain.evaluation.runs import Run

pytest.importorskip("matplotlib")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished run."""
    with Run.create(tmp_path / "digits", {"stream": "digits"}) as run:
        run.complete(sequence(2, 2))
    return tmp_path / "digits"


def run(*words: object) -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    add(app, report, "report")
    return CliRunner().invoke(app, ["report", *map(str, words)], prog_name="retain")


def test_report(made: Path) -> None:
    result = run(made)
    assert result.exit_code == 0, result.stderr
    assert "report.html: Learning a sequence of tasks: permuted-digits" in result.stdout and (made / "report.html").is_file()
    assert [line.split()[:3] for line in result.stdout.splitlines() if line.split()[:1] in (["naive"], ["ewc"])] == [
        ["naive", "2", "0.710"],  # the mean of 0.72 and 0.70
        ["ewc", "2", "0.845"],
    ]
    assert "results.csv" in result.stderr and "warning: a spike" in result.stderr


def test_report_for_programs(made: Path, tmp_path: Path) -> None:
    result = run(made, "--out", tmp_path / "elsewhere" / "page.html", "--json")
    found = json.loads(result.stdout)
    assert found["html"] == str(tmp_path / "elsewhere" / "page.html") and Path(found["html"]).is_file()
    assert found["metrics"]["naive"]["average_accuracy"] == pytest.approx(0.71) and found["metrics"]["naive"]["intransigence"] is None
    assert found["finished"] is True and found["warnings"] == ["a spike"] and all(Path(path).is_file() for path in found["plots"])


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    Run.create(tmp_path / "half", {}).close()
    result = run(tmp_path / "half")
    assert result.exit_code == 0 and "not finished" in result.stderr and (tmp_path / "half" / "report.html").is_file()


def test_what_is_no_run_is_told_in_one_line(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "this is not a run" in result.stderr


def test_help() -> None:
    text = run("--help").stdout
    assert all(word in text for word in ("RUN", "--out", "--json", "Examples", "retain report runs/digits"))
