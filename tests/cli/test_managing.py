"""Adapters, checkpoints, models, the configuration, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retain.lm import embedded


def test_adapters(run: Any, world: Any, document: Path, tmp_path: Path) -> None:
    assert "no adapter yet" in run("adapters", "list").stdout
    run("learn", document)
    text = run("adapters", "list").stdout
    assert "a1" in text and "1.2 M" in text and "2.4 MB" in text
    text = run("adapters", "show", "a1").stdout
    assert "Travel policy" in text and "2: q_proj in layers 22 to 23" in text
    assert json.loads(run("adapters", "show", "a1", "--json").stdout)["rank"] == 8
    result = run("adapters", "show", "a2")
    assert result.exit_code == 2 and "did you mean a1?" in result.stderr
    assert run("adapters", "disable", "a1").exit_code == 0 and not world.adapters["a1"].enabled
    assert run("adapters", "enable", "a1").exit_code == 0 and world.adapters["a1"].enabled
    assert run("adapters", "merge", "a1", "b", "--into", "c", "--method", "linear").exit_code == 0
    assert world.calls[-1] == ("merge", {"names": ["a1", "b"], "method": "linear", "into": "c"})
    run("adapters", "merge", "a1=2", "b", "--into", "c", "--density", "0.3", "--rank", "4")
    assert world.calls[-1] == ("merge", {"names": [("a1", 2.0), "b"], "method": "ties", "into": "c", "density": 0.3, "rank": 4})
    assert run("adapters", "merge", "a1=two", "b", "--into", "c").exit_code == 2
    assert "serves" in run("adapters", "show", "a1").stdout and "1.23 %" in run("adapters", "show", "a1", "--change").stdout
    assert json.loads(run("adapters", "show", "a1", "--change", "--json").stdout)["change"] == 0.0123
    assert "change" not in json.loads(run("adapters", "show", "a1", "--json").stdout)
    out = tmp_path / "out"
    assert json.loads(run("adapters", "export", "a1", out, "--json").stdout) == {"adapter": "a1", "directory": str(out)}
    assert run("adapters", "import", out).exit_code == 0 and world.calls[-1] == ("import", {"directory": out, "name": "out"})


def test_checkpoints(run: Any) -> None:
    assert "no checkpoint yet" in run("checkpoint", "list").stdout
    assert "retain checkpoint load before" in run("checkpoint", "save", "before").stdout
    assert "before" in run("checkpoint", "list").stdout
    assert json.loads(run("checkpoint", "list", "--json").stdout)[0]["name"] == "before"
    assert run("checkpoint", "load", "before").exit_code == 0
    result = run("checkpoint", "load", "befor")
    assert result.exit_code == 2 and "did you mean before?" in result.stderr


def test_model_info(run: Any, world: Any) -> None:
    text = run("model", "info").stdout
    assert "134.5 M" in text and "30" in text and not world.opened[0]["create"]
    assert json.loads(run("model", "info", "--json").stdout)["layers"] == 30


def test_model_pull_and_list(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    place = embedded.embedded_path()
    assert "not fetched: retain model pull" in run("model", "list").stdout

    def fetch(cache: Path | None, progress: Any) -> Path:
        progress("downloading")
        place.mkdir(parents=True)
        (place / "identity.json").write_text("{}")
        return place

    monkeypatch.setattr(embedded, "embedded_model_dir", fetch)
    result = run("model", "pull", "--json")
    assert json.loads(result.stdout) == {"model": embedded.NAME, "path": str(place)} and result.stderr == "downloading\n"
    first = json.loads(run("model", "list", "--json").stdout)[0]
    assert first["ready"] and first["bytes"] == 2


def test_a_model_that_is_not_to_be_had(run: Any) -> None:
    for command in (("model", "pull", "./nowhere"), ("model", "info", "--model", "./nowhere")):
        result = run(*command)
        assert result.exit_code == 2 and "./nowhere" in result.stderr and result.stderr.count("\n") == 1


def test_config_set_goes_to_the_workspace_or_the_user(run: Any, workspace: Path, tmp_path: Path) -> None:
    assert "every value is its default" not in run("config", "show", "--changed").stdout
    result = run("config", "set", "learn.rank", "24")
    assert result.exit_code == 0 and "learn.rank = 24" in result.stdout
    assert "rank: 24" in (workspace / "config.yaml").read_text()
    assert run("config", "set", "learn.rank", "12", "--user").exit_code == 0
    assert "rank: 12" in (tmp_path / "user.yaml").read_text()
    shown = json.loads(run("config", "show", "learn.rank", "--json").stdout)["learn.rank"]
    assert shown["value"] == 24 and shown["source"] == str(workspace / "config.yaml")
    assert "which wins" in run("config", "set", "learn.rank", "8", "--user").stderr


def test_config_show(run: Any) -> None:
    text = run("config", "show").stdout
    assert "learn.rank" in text and "gate.max_forgetting" in text and "environment" in text
    section = run("config", "show", "gate").stdout
    assert "gate.attempts" in section and "learn.rank" not in section
    assert "integer" in run("config", "show", "learn.rank").stdout


def test_a_wrong_value_is_not_written(run: Any, workspace: Path) -> None:
    result = run("config", "set", "learn.rank", "many")
    assert result.exit_code == 2 and "learn.rank" in result.stderr
    assert not (workspace / "config.yaml").exists()


def test_config_validate(run: Any, workspace: Path, tmp_path: Path) -> None:
    assert run("config", "validate").exit_code == 0
    file = tmp_path / "mine.yaml"
    file.write_text("learn:\n  rank: 4\n")
    assert json.loads(run("config", "validate", file, "--json").stdout) == {"valid": True, "files": [str(file)], "kinds": ["workspace"]}
    file.write_text("learn:\n  rnk: 4\n")
    result = run("config", "validate", file)
    assert result.exit_code == 2 and "did you mean learn.rank?" in result.stderr


def test_doctor(run: Any, world: Any, document: Path) -> None:
    run("learn", document)
    report = json.loads(run("doctor", "--json").stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"processor", "cores", "vector instructions", "bfloat16", "precision", "memory", "accelerator", "model", "disk"} <= set(checks)
    assert "1 document learned" in checks["workspace"]["value"] and "torch" in checks["libraries"]["value"]
    assert (
        " on cpu" in checks["precision"]["value"] or " on cuda" in checks["precision"]["value"] or " on mps" in checks["precision"]["value"]
    )
    text = run("doctor").stdout
    assert "processor" in text and "everything works" in text


def test_doctor_tells_what_to_do(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workspace: Path) -> None:
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("RETAIN_MODEL__THREADS", "999")
    result = run("doctor")
    assert result.exit_code == 0 and "retain model pull" in result.stdout and "retain config set model.threads" in result.stdout
    (workspace / "config.yaml").write_text("nonsense: 1\n")
    result = run("doctor")
    assert result.exit_code == 3 and "nonsense: unknown key" in result.stdout and "python" in result.stdout
