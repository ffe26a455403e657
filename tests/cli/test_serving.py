"""`retain ingest`, `retain work`: what is handed in waits, is held, is released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retain.cli.main import app
from retain.workspace import Ledger, Store
from retain.workspace.inbox import Arrival
from retain.workspace.worker import Worker

PAGE = "https://example.org/page"


def retain(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), prog_name="retain")


def test_files_folders_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.md", "b.txt", "c.bin", ".hidden.md"):
        (tmp_path / "in" / name).write_text(f"The text of {name}.")
    work = str(tmp_path / "work")
    done = retain("ingest", str(tmp_path / "in"), "-w", work, "--json")
    assert done.exit_code == 0 and [item["new"] for item in json.loads(done.stdout)] == [True, True], done.stdout
    again = retain("ingest", str(tmp_path / "in" / "a.md"), "-w", work)
    assert "0 documents wait" in again.stdout and "1 known already" in again.stdout
    missing = retain("ingest", str(tmp_path / "none"), "-w", work)
    assert missing.exit_code == 2 and "does not exist" in missing.stderr


def test_web_addresses_need_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = str(tmp_path / "work")
    refused = retain("ingest", PAGE, "-w", work)
    assert refused.exit_code == 2 and "serve.fetch true" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    monkeypatch.setenv("RETAIN_SERVE__FETCH", "true")
    assert retain("ingest", PAGE, "-w", work).exit_code == 0
    with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
        assert [(item.kind, item.source) for item in ledger.arrivals()] == [("url", PAGE)]
    wrong = retain("ingest", "http://user:secret@example.org/", "-w", work)
    assert wrong.exit_code == 2 and "neither user" in wrong.stderr and "secret" not in wrong.stderr


def test_the_queue_says_what_became_of_each(tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    assert retain("queue", "-w", work).exit_code == 2, "there is no workspace yet"
    with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
        taken = ledger.receive([Arrival(b"%d" % number, name=f"Text {number}", source="mail") for number in range(3)])
        ledger.lease("w", 60)
        ledger.hold(taken[0][0], "w", "held: looks odd")
    done = retain("queue", "-w", work)
    assert done.exit_code == 0 and all(part in done.stdout for part in ("Text 2", "mail", "pending", "held: looks odd", taken[0][0]))
    assert "2 documents waiting" in done.stderr
    held = json.loads(retain("queue", "-w", work, "--status", "held", "--json").stdout)
    assert [(item["name"], item["status"]) for item in held] == [("Text 0", "held")]
    assert len(json.loads(retain("queue", "-w", work, "-n", "2", "--json").stdout)) == 2
    assert "nothing is failed" in retain("queue", "-w", work, "--status", "failed").stdout
    wrong = retain("queue", "-w", work, "--status", "lost")
    assert wrong.exit_code == 2 and "none of pending, learning" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--log", "everything"), "serve.log"), (("--host", "0.0.0.0"), "token file"), (("--token-file", "none"), "cannot be read")],
)
def test_serve_says_what_is_wrong_before_anything_is_made(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = retain("serve", "-w", str(tmp_path / "work"), *words)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "work").exists()


def test_a_quiet_learner_names_no_document(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service runs it: its terminal is the service's log."""

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("zorvexamulet")

    said = {}
    for words in ((), ("--quiet",)):
        with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
            ledger.receive([Arrival(b"%PDF-nonsense", "file", "zorvexamulet.pdf")])
        monkeypatch.setenv("RETAIN_MODEL__NAME", str(tiny_model_dir))
        done = retain("work", "--once", "-w", str(tmp_path / "work"), *words)
        assert done.exit_code == 0 and "1 failed" in done.stdout, done.output
        said[words] = done.stderr
    assert "zorvexamulet" in said[()] and "zorvexamulet" not in said["--quiet",]
    monkeypatch.setattr(Worker, "once", broken)
    with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
        ledger.receive([Arrival(b"A text.")])
    done = retain("work", "--once", "--quiet", "-w", str(tmp_path / "work"))
    assert done.exit_code == 2 and "KeyError at cli/serving.py:" in done.stderr and "zorvexamulet" not in done.output


def test_only_what_is_held_or_failed_is_released(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
        ((key, _),) = ledger.receive([Arrival(b"A text.")])
    done = retain("work", "--once", "--release", key, "-w", str(tmp_path / "work"))
    assert done.exit_code == 2 and "only one that is held or failed" in done.stderr
    with Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work")) as ledger:
        ledger.lease("w", 60)
        ledger.fail(key, "w", "no text")
        ledger.release(key)
        (leased,) = ledger.lease("w", 60)
        assert not leased.released, "what failed was never looked at: it is still checked"
        ledger.hold(key, "w", "held: looks odd")
        ledger.release(key)
        (leased,) = ledger.lease("w", 60)
        assert leased.released
