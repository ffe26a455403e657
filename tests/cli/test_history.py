"""log, show, diff, revert, forget, verify, documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def learned(run: Any, document: Path, tmp_path: Path) -> list[str]:
    """Two documents were learned; the ids of their updates."""
    other = tmp_path / "other.md"
    other.write_text("# Other\nSomething else altogether.\n")
    run("learn", document)
    run("learn", other)
    return ["u00000001", "u00000002"]


def test_log(run: Any, learned: list[str]) -> None:
    lines = run("log").stdout.splitlines()
    rows = [line for line in lines if "u0000000" in line]
    assert ["u00000002" in rows[0], "u00000001" in rows[1]] == [True, True]
    assert "Travel policy" in rows[1] and "4 % → 92 %" in rows[0] and "1.1 %" in rows[0] and "–" in rows[1]
    assert run("log", "--limit", "1").stdout.count("u0000000") == 1
    assert [update["id"] for update in json.loads(run("log", "--json").stdout)] == learned[::-1]


def test_log_fits_a_narrow_terminal(run: Any, learned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("log").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(word in lines[1] for word in ("update", "recall", "forgetting", "perplexity"))


def test_nothing_learned(run: Any) -> None:
    assert run("log").stdout == "nothing learned yet: retain learn FILE\n"
    assert json.loads(run("log", "--json").stdout) == []
    assert "retain learn" in run("documents").stdout


def test_show(run: Any, learned: list[str]) -> None:
    text = run("show", "u00000002").stdout
    for expected in (
        "u00000002",
        "Other",
        "4 % → 92 %",
        "25 questions",
        "90 % → 89 %",
        "1.1 %",
        "18.71 → 18.74",
        "+0.16 %",
        "passed",
        "forgetting ≤ 5 %",
        "12,345 tokens",
        "2.4 MB",
        "smollm2",
        "5f5f5f",
        "0.0031",
    ):
        assert expected in text, expected
    assert json.loads(run("show", "u00000002", "--json").stdout)["certificate"]["hash"] == "5f" * 32


def test_an_unknown_update_is_named_with_the_nearest(run: Any, learned: list[str]) -> None:
    result = run("show", "u0000009")
    assert result.exit_code == 2 and "did you mean" in result.stderr and "u0000000" in result.stderr


def test_diff(run: Any, learned: list[str]) -> None:
    text = run("diff", "u00000001").stdout
    assert "+ adapter  a1" in text and "Travel policy" in text and "1.25" in text
    assert json.loads(run("diff", "u00000001", "--json").stdout)["adapters_added"] == ["a1"]


def test_revert(run: Any, learned: list[str]) -> None:
    result = run("revert", "u00000002")
    assert result.exit_code == 0 and "reverted u00000002: update u00000003" in result.stdout
    assert "reverted" in run("log").stdout


def test_forget(run: Any, world: Any, learned: list[str]) -> None:
    document = next(iter(world.records))
    assert run("forget", document[:6]).exit_code == 0
    assert document not in world.records
    assert run("forget", document).exit_code == 2


def test_forget_with_checkpoints(run: Any, world: Any, learned: list[str]) -> None:
    document = next(iter(world.records))
    run("checkpoint", "save", "before")
    result = run("forget", document)
    assert result.exit_code == 2 and "before" in result.stderr and document in world.records
    assert run("forget", document, "--drop-checkpoints").exit_code == 0
    assert world.calls[-1][1]["drop_checkpoints"] is True


def test_verify(run: Any, world: Any) -> None:
    result = run("verify")
    assert result.exit_code == 0 and "12 objects checked, all sound" in result.stdout and "91 %" in result.stdout
    world.problems.append("object 5f5f is damaged")
    result = run("verify")
    assert result.exit_code == 3 and "object 5f5f is damaged" in result.stdout
    assert json.loads(run("verify", "--json").stdout)["ok"] is False


def records_of(run: Any) -> list[Any]:
    return list(json.loads(run("documents", "--json").stdout))


def test_documents(run: Any, learned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("documents").stdout
    assert "Travel policy" in text and "committed" in text and "120 tokens" in text
    monkeypatch.setenv("COLUMNS", "400")
    assert records_of(run)[0]["source"] in run("documents").stdout, "where it came from"
    assert run("documents", "--status", "pending").stdout == "no document is pending\n"
    records = records_of(run)
    assert records[0]["title"] == "Travel policy" and "signature" not in records[0]
