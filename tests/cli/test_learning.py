"""`retain learn`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from retain.data import Document
from retain.workspace.records import DocumentRecord


def test_a_document(run: Any, world: Any, document: Path, workspace: Path) -> None:
    result = run("learn", document)
    assert result.exit_code == 0
    for expected in ("Travel policy", "learned", "4 % → 92 %", "18.71 → 18.74", "41 s", "u00000001"):
        assert expected in result.stdout
    assert "retain show u00000001" in result.stderr and "repaired the encoding" in result.stderr
    assert world.opened[0]["workspace"] == workspace and world.opened[0]["create"] and world.closed == 1


def test_progress_is_lines_without_a_terminal(run: Any, document: Path) -> None:
    lines = run("learn", document).stderr.splitlines()
    assert "training: Travel policy: 160/160, loss 0.013, 87 tokens/s" in lines
    assert "Travel policy [learned]" in lines and "asking what Travel policy taught" in lines
    assert not any("80/160" in line for line in lines), "a line for each step is too much"


def test_options_reach_the_api(run: Any, world: Any, document: Path, tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"question": "Who approves?", "answer": "the head"}\n')
    words = ["--domain", "hr", "--importance", "0.9", "--title", "T", "--learner", "lora", "--model", "m", "--questions", exam]
    assert run("learn", document, *words).exit_code == 0
    (_, call), opened = world.calls[0], world.opened[0]
    assert (call["domain"], call["importance"], call["title"], call["dry_run"]) == ("hr", 0.9, "T", False)
    assert call["questions"][0].question == "Who approves?"
    assert (opened["learner"], opened["model"]) == ("lora", "m")
    assert call["paths"] == [document]


def test_standard_input(run: Any, world: Any) -> None:
    assert run("learn", "-", "--title", "Memo", input="The gate opens at nine.\n").exit_code == 0
    (given,) = world.calls[0][1]["paths"]
    assert isinstance(given, Document) and (given.title, given.source) == ("Memo", "standard input")


def test_a_task_is_described(run: Any, world: Any, document: Path) -> None:
    assert run("learn", "--learner", "doc2lora", "--task", "answer questions about quantum computing").exit_code == 0
    (given,) = world.calls[0][1]["paths"]
    assert isinstance(given, Document) and given.kind == "task" and given.text == "answer questions about quantum computing"
    for words, said in (
        (["--task", "x y"], "only --learner doc2lora"),
        (["--task", " ", "--learner", "doc2lora"], "give a description"),
        ([document, "--task", "x y", "--learner", "doc2lora"], "neither PATH nor --pending"),
    ):
        wrong = run("learn", *words)
        assert wrong.exit_code == 2 and said in wrong.stderr and wrong.stderr.count("error:") == 1


def test_json_is_all_of_standard_output(run: Any, document: Path) -> None:
    result = run("learn", document, "--json")
    (update,) = json.loads(result.stdout)
    assert update["certificate"]["learned"]["recall_after"] == 0.92 and update["status"] == "committed"
    assert result.stderr == "repaired the encoding\n"


def test_a_known_document_is_told_and_no_error(run: Any, document: Path) -> None:
    run("learn", document)
    result = run("learn", document)
    assert result.exit_code == 0
    assert "= Travel policy: already learned as Travel policy in update u00000001" in result.stdout
    assert "recall" not in result.stdout and "undoes it" not in result.stderr


def test_many_documents_are_summed_up(run: Any, document: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# Other\nSomething else altogether.\n")
    run("learn", document)
    assert "1 unchanged, 1 learned" in run("learn", document, other).stdout


def test_a_rejected_document(run: Any, world: Any, document: Path) -> None:
    world.reject = "old knowledge fell by 9 %, more than the limit of 5 %"
    result = run("learn", document)
    assert result.exit_code == 3
    assert "rejected" in result.stdout and world.reject in result.stdout


def test_dry_run(run: Any, world: Any, document: Path) -> None:
    result = run("learn", document, "--dry-run")
    assert result.exit_code == 0 and "nothing was learned" in result.stderr and not world.updates
    assert all(word in result.stdout for word in ("Travel policy", "question 12, cloze 7", "22", "4,321"))
    assert "retain revert" not in result.stderr


def test_pending(run: Any, world: Any) -> None:
    assert "nothing is pending" in run("learn", "--pending").stdout
    facts: tuple[Any, ...] = ("d1", "Waiting", "a.md", "general", 0.5, "text", "b" * 64, 10, 3, "pending", "", 0, b"", "", "")
    world.records["d1"] = DocumentRecord(*facts)
    result = run("learn", "--pending")
    assert result.exit_code == 0 and "Waiting" in result.stdout
    assert world.opened[-1]["create"] is False


def test_interrupted(run: Any, world: Any, document: Path) -> None:
    world.fail = KeyboardInterrupt()
    result = run("learn", document)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: the document stays pending; run retain learn --pending to go on"
    assert world.closed == 1


def test_interrupted_by_a_signal(document: Path, workspace: Path) -> None:
    environment = {**os.environ, "RETAIN_TEST_SLOW": "1"}
    command = [sys.executable, "-m", "tests.cli.driver", "learn", str(document)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("reading")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, rest = process.communicate(timeout=30)
    assert process.returncode == 130 and not output
    assert rest.splitlines()[-1] == "interrupted: the document stays pending; run retain learn --pending to go on"
