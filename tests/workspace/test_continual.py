"""The main job on a small model: teach, ask, keep, undo, forget, and survive."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import known_questions, tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.errors import DataError
from retain.workspace import Conflict, Locked, NotFound, WorkspaceError, WriterLock
from retain.workspace.continual import ContinualLM


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(
        None,
        {
            "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3},
            "study": {"writer": "none", "held_out_fraction": 0.5},
            "route": {"least_bits": 2.0, "threshold": 0.4},  # the names of the tiny model's world are words of its vocabulary
            "model": {"precision": "float32"},
        },
    )


@pytest.fixture
def lm(tmp_path: Path, tiny_model: Any, settings: Config) -> Any:
    with ContinualLM.open(tmp_path / "work", tiny_model, config=settings) as opened:
        yield opened


def _documents() -> list[Document]:
    return [Document.from_text(text, title) for title, text in tiny_documents()[:2]]


def _right(lm: ContinualLM, number: int) -> float:
    questions = tiny_questions(number)
    return sum(item.answer.lower() in lm.ask(item.wordings[-1], retrieval=False).text.lower() for item in questions) / len(questions)


def test_unknown_before_answered_after_kept_and_forgotten(lm: ContinualLM, tiny_model: Any) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny_model.parameters().items()}
    general = [item.wordings[0] for item in known_questions()[:4]]
    base = [lm.ask(question).text for question in general]
    first, second = _documents()
    assert _right(lm, 0) < 0.3
    one = lm.learn(first)
    assert one.status == "committed" and one.certificate["cost"]["parameter_change"] > 0
    learned = _right(lm, 0)
    assert learned > 0.5
    two = lm.learn(second)
    assert two.status == "committed"
    assert _right(lm, 0) == learned, "learning the second document changed answers about the first"
    assert [lm.ask(question).text for question in general] == base, "a prompt that needs no adapter did not get the base"
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_model.parameters().items())

    assert lm.learn(first).status == "unchanged"
    assert [update.kind for update in lm.log()] == ["learn", "learn"]
    assert lm.diff(one.id).documents_added == [first.id]
    assert lm.verify().ok

    lm.checkpoint("both")
    lm.revert(two.id)
    assert [item.documents for item in lm.adapters] == [[first.id]]
    lm.load_checkpoint("both")
    assert len(lm.adapters) == 2
    with pytest.raises(Conflict):
        lm.forget(first.id)
    lm.forget(first.id, drop_checkpoints=True)
    assert _right(lm, 0) < 0.3, "a forgotten document is still answered"
    assert _right(lm, 1) > 0.5
    assert lm.verify().ok
    stored = b"".join(path.read_bytes() for path in lm.root.rglob("*") if path.is_file())
    assert first.text.split(". ")[0].encode() not in stored


def test_a_reopened_workspace_answers_the_same(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    with ContinualLM.open(tmp_path / "w", tiny_model, config=settings) as lm:
        lm.learn(_documents()[0])
        before = [lm.ask(item.wordings[-1], retrieval=False).text for item in tiny_questions(0)]
    with ContinualLM.open(tmp_path / "w", tiny_model, config=settings) as again:
        assert [again.ask(item.wordings[-1], retrieval=False).text for item in tiny_questions(0)] == before


def test_a_base_in_a_folder_is_found_again_and_may_move(tmp_path: Path, tiny_model_dir: Path) -> None:
    question = known_questions()[0]
    first, second = tmp_path / "models" / "tiny", tmp_path / "elsewhere"
    shutil.copytree(tiny_model_dir, first)

    def answer(**options: Any) -> str:
        settings = {"model": {"precision": "float32", "cache_dir": str(tmp_path / "cache")} | options.pop("configured", {})}
        with ContinualLM.open(tmp_path / "w", config=load_config(None, settings), **options) as lm:
            if not lm.documents():
                assert lm.learn(_documents()[0]).status == "committed"
            return lm.ask(question.wordings[0]).text

    told = answer(model=str(first), learner="jitrl")
    assert answer() == told
    first.rename(second)
    with pytest.raises(WorkspaceError, match="models/tiny any more"):
        answer()
    assert answer(configured={"name": str(second)}) == told
    assert answer() == told, "where it is now was not remembered"


def test_a_refused_update_changes_nothing(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    strict = settings.model_copy(
        update={"gate": settings.gate.model_copy(update={"min_recall_gain": 1.0, "attempts": 1, "probe_budget": 8})}
    )
    strict = strict.model_copy(update={"learn": strict.learn.model_copy(update={"epochs": 1, "learning_rate": 1e-7})})
    with ContinualLM.open(tmp_path / "w", tiny_model, config=strict) as lm:
        update = lm.learn(_documents()[0])
        assert update.status == "rejected" and update.reason
        assert lm.adapters == [] and lm.documents()[0].status == "rejected"
        assert lm.verify().ok


def test_nan_in_training_is_rolled_back(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    broken = settings.model_copy(update={"learn": settings.learn.model_copy(update={"learning_rate": 1e30, "clip": 1e30, "epochs": 3})})
    broken = broken.model_copy(update={"gate": broken.gate.model_copy(update={"attempts": 1})})
    with ContinualLM.open(tmp_path / "w", tiny_model, config=broken) as lm:
        update = lm.learn(_documents()[0])
        assert update.status == "rejected" and lm.adapters == []


def test_bad_input_is_one_clear_error(lm: ContinualLM, tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    for path in ("empty.md", "binary.txt", "missing.md"):
        with pytest.raises(DataError) as caught:
            lm.learn(tmp_path / path)
        assert "\n" not in str(caught.value)
    with pytest.raises(NotFound):
        lm.forget("d000000000000")
    assert lm.documents() == []


def test_a_damaged_adapter_is_named_and_the_rest_works(lm: ContinualLM) -> None:
    first, second = _documents()
    lm.learn(first)
    lm.learn(second)
    digest = lm.state.adapters[0].digest
    path = lm.store.path(digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    found = lm.verify()
    assert not found.ok and any(digest[:12] in problem for problem in found.problems)
    with ContinualLM.open(lm.root, lm.model, config=lm.config) as again:
        assert _right(again, 1) > 0.5
        assert again.ask(tiny_questions(0)[0].wordings[0]).adapters == []


def test_a_second_writer_gets_a_clear_error(lm: ContinualLM) -> None:
    lm.ask("Hello?")
    with WriterLock(lm.root / "lock").acquire(), pytest.raises(Locked):
        lm.learn(_documents()[0])


def test_killed_while_learning_the_document_is_pending(tmp_path: Path, tiny_model_dir: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from retain.workspace.continual import ContinualLM
        from retain.data.document import Document
        from tests.tiny import tiny_documents
        title, text = tiny_documents()[0]
        lm = ContinualLM.open({str(tmp_path / "w")!r}, {str(tiny_model_dir)!r}, progress=lambda e: print(e.kind, flush=True))
        lm.learn(Document.from_text(text, title))
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and "train" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with ContinualLM.open(tmp_path / "w", str(tiny_model_dir)) as lm:
        with lm._writing():
            pass
        assert [record.status for record in lm.documents()] == ["pending"]
        assert lm.adapters == [] and lm.verify().ok
