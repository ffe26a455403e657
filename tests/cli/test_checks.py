"""Mistakes that are said where they are made: names in the configuration, models that are not there, addresses, too many columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.tiny import tiny_documents, tiny_questions
from typer.testing import CliRunner

from retain.cli.compare import comparison_table
from retain.cli.main import app
from retain.workspace import State


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learn.learner", "lorra", "learn.learner: unknown learner 'lorra': did you mean 'lora'?"),
        ("retention.methods", "kll", "retention.methods: there is no retention method 'kll': did you mean 'kl'?"),
        ("retention.replay.fraction", "1", "retention.replay.fraction: must be less than 1"),
        ("retention.kl.general_fraction", "1", "retention.kl.general_fraction: must be less than 1"),
        ("retention.ewc.form", "offline", "retention.ewc.form: must be 'anchors' or 'online'"),
    ],
)
def test_a_wrong_name_is_not_set(key: str, value: str, said: str, run: Any, workspace: Path) -> None:
    result = run("config", "set", key, value)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"{workspace / 'config.yaml'}: {said}" in result.stderr
    assert not (workspace / "config.yaml").exists()


def test_right_names_are_set_and_a_wrong_one_can_be_mended(run: Any, workspace: Path) -> None:
    assert run("config", "set", "learn.learner", "jitrl-full").exit_code == 0
    assert run("config", "set", "retention.methods", "kl,ewc").exit_code == 0
    assert run("config", "validate").exit_code == 0
    (workspace / "config.yaml").write_text("learn:\n  rank: 4\n  learner: lorra\nretention:\n  methods: [kll]\n")
    wrong = run("config", "validate")
    assert wrong.exit_code == 2 and f"{workspace / 'config.yaml'}:3: learn.learner: unknown learner 'lorra'" in wrong.stderr
    assert run("config", "set", "learn.learner", "ttt").exit_code == 0
    assert "config.yaml:5: retention.methods: there is no retention method 'kll'" in run("config", "validate").stderr
    assert run("config", "set", "retention.methods", "null").exit_code == 2
    assert run("config", "set", "retention.methods", "replay").exit_code == 0
    assert run("config", "validate").exit_code == 0


def test_validate_looks_at_the_environment(run: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_RETENTION__METHODS", "replya")
    result = run("config", "validate")
    assert result.exit_code == 2 and "environment: retention.methods: " in result.stderr and "did you mean 'replay'" in result.stderr
    assert "did you mean 'replay'" in run("doctor").stdout


def test_a_web_address_is_for_the_service(run: Any, world: Any) -> None:
    for address in ("https://example.com", "http://example.com/a?b=c"):
        result = run("learn", address)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and world.calls == []
        assert result.stderr.startswith(f"error: {address}: ") and f"retain ingest {address}" in result.stderr
        assert "serve.fetch true" in result.stderr


def test_nothing_to_consolidate_anywhere(run: Any) -> None:
    assert run("consolidate").stdout == "nothing to consolidate: no domain has two adapters to join\n"


def checks(run: Any) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)["checks"]}


def test_doctor_looks_for_the_model(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    Path(empty).mkdir()
    for name, said in (("/nonexist", "no such folder or file"), ("none.gguf", "no such"), (empty, "config.json is missing")):
        monkeypatch.setenv("RETAIN_MODEL__NAME", name)
        result = run("doctor")
        assert result.exit_code == 3 and f"{name}: there is no" in result.stdout and said in result.stdout
        assert "everything works" not in result.stdout
    monkeypatch.setenv("RETAIN_MODEL__NAME", "org/model")
    found = checks(run)["model"]
    assert (found["status"], found["value"]) == ("warn", "org/model, a name of the hub, which was not asked for it")
    (tmp_path / "empty" / "config.json").touch()
    monkeypatch.setenv("RETAIN_MODEL__NAME", empty)
    assert checks(run)["model"]["status"] == "ok"


def test_doctor_shows_the_base_of_the_workspace(
    run: Any, world: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "base" not in checks(run)
    lm = world.open(workspace, progress=print)
    lm.ledger.commit_update("import", None, lm.ledger.store.put(State().to_bytes()))
    lm.ledger.bind_base("tiny", "f" * 64, str(tmp_path / "tiny"))
    gone = checks(run)["base"]
    assert gone["status"] == "fail" and "tiny (ffffffffffff)" in gone["value"] and "not there any more" in gone["value"]
    (tmp_path / "tiny").mkdir()
    assert checks(run)["base"]["status"] == "ok"
    monkeypatch.setenv("RETAIN_MODEL__NAME", "org/model")
    other = checks(run)["base"]
    assert other["status"] == "warn" and "model.name is org/model, which is not used here" in other["advice"]


def test_learn_checks_the_model_before_it_queues(retain: Any, workspace: Path, document: Path) -> None:
    (workspace / "ledger.db").unlink()
    result = retain("learn", document, "--model", "/nonexist")
    assert result.returncode == 2 and "there is no model at /nonexist" in result.stderr and result.stderr.count("error:") == 1
    assert json.loads(retain("documents", "--json").stdout) == []


def test_the_table_of_a_comparison_fits() -> None:
    row = {
        "contains": 0.848, "low": 0.83, "high": 0.87, "exact": 0.712, "f1": 0.74, "log_likelihood": -1.03, "forgetting": 0.012,
        "control_lost": 0.025, "tokens": 1_234_567, "learn_seconds": 122.4, "answer_seconds": 0.1, "bytes_per_document": 6.5e6,
    }  # fmt: skip
    for width, gone in ((80, ("log-lik.", "stored", "control", "interval")), (100, ("log-lik.", "stored")), (120, ()), (160, ())):
        console = Console(width=width)
        with console.capture() as shown:
            console.print(comparison_table({"comparison": {"progressive+passages": row, "nothing": row}}, console))
        text = shown.get()
        assert max(map(len, text.splitlines())) <= width
        for column in ("right", "interval", "EM", "F1", "log-lik.", "forgotten", "control", "tokens", "learn", "answer", "stored"):
            assert (column in text) == (column not in gone), (width, column)
        assert any("progressive+passages" in line and "71.2%" in line and "1.2 M" in line for line in text.splitlines()), "a cell is folded"


def test_compare_says_first_what_cannot_be_learned(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "nowhere"))
    title, text = tiny_documents()[0]
    (tmp_path / "a.md").write_text(f"# {title}\n\n{text}\n")
    asked = tiny_questions(0)[0]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": asked.wordings[-1], "answer": asked.answer}))
    words = ["compare", "a.md", "--questions", "q.jsonl", "--learners", "jitrl,doc2lora", "--model", str(tiny_model_dir)]

    def compare(*more: str) -> Any:
        return CliRunner().invoke(app, [*words, *more], prog_name="retain")

    plan = compare("--dry-run", "--json")
    assert list(json.loads(plan.stdout)["cannot_learn"]) == ["doc2lora"] and "doc2lora cannot learn: no trained hypernetwork" in plan.stderr
    for name, value, said in (
        ("RETAIN_LEARN__TARGETS", "nope", "environment: learn.targets: no linear layer"),
        ("RETAIN_LEARN__LAYERS", "99", "environment: learn.layers: "),
        ("RETAIN_RETENTION__METHODS", "kll", "did you mean 'kl'?"),
    ):
        with monkeypatch.context() as wrong:
            wrong.setenv(name, value)
            for more in ((), ("--dry-run",)):
                result = compare(*more)
                assert result.exit_code == 2 and said in result.stderr and result.stderr.count("error:") == 1
    assert not (tmp_path / "runs").exists()
