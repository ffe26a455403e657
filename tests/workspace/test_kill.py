"""kill -9 and power cuts at any moment: what was acknowledged is there once, and what was not is not half there (benchmarks/kills.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.kills import Victims, killed, noticed
from benchmarks.kills_check import Told, violations
from benchmarks.kills_victim import MODEL, Life, arrival_of, documents_of, settings, texts

from retain.workspace.continual import ContinualLM
from retain.workspace.worker import Worker


def test_killed_at_any_moment(tmp_path: Path) -> None:
    found = killed(tmp_path, 1, 16)
    assert found.violations == []
    assert found.kills == 16 and found.counts["power cuts"] == 8
    assert len(found.stages["at an operation"]) >= 5
    assert found.counts["updates learn"] >= 5


@pytest.mark.parametrize("fault", ["rename-without-fsync", "offset-apart"])
def test_a_fault_is_noticed(fault: str, tmp_path: Path) -> None:
    outcome = noticed(tmp_path, 3, fault)
    assert outcome["by"] == [{"rename-without-fsync": "object", "offset-apart": "lost"}[fault]], outcome


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that has learned two documents."""
    root = tmp_path_factory.mktemp("learned") / "work"
    with ContinualLM.open(root, MODEL, config=settings()) as lm:
        lm.ledger.receive([arrival_of(0), arrival_of(2)])
        worker = Worker(lm)
        while worker.once():
            pass
        assert len(lm.ledger.documents("committed")) == 2
    return root


@pytest.fixture
def template(learned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(learned, tmp_path / "template"))


def told(*numbers: int) -> Told:
    return Told({arrival_of(number).id: number for number in numbers})


def test_what_a_killed_forget_left_is_gone_before_anything_else_is_written(template: Path, tmp_path: Path) -> None:
    victims = Victims(tmp_path, template, 0, "")
    assert victims._run(Life(victims.root, victims.notes, 0, 1000, ("collect", 1), "forget"), 60.0) == -9
    stored = [path.read_bytes() for path in victims.root.rglob("objects/*/*")]
    with ContinualLM.open(victims.root, MODEL, config=settings()) as lm:
        (gone,) = [number for number in (0, 2) if lm.ledger.document(documents_of(number)[0]).status == "forgotten"]
        assert any(texts(gone)[0].encode() in content for content in stored), "it was killed too late"
        lm.learn(texts(4)[0])
    assert not any(texts(gone)[0].encode() in path.read_bytes() for path in victims.root.rglob("objects/*/*"))


def test_a_document_that_is_forgotten_before_its_arrival_is_finished_leaves_nothing(template: Path) -> None:
    with ContinualLM.open(template, MODEL, config=settings()) as lm:
        lm.ledger.receive([arrival_of(4)])
        (one,) = lm.ledger.lease("somebody", 60.0)
        lm.learn(texts(4)[0])
        lm.forget(documents_of(4)[0])
        lm.ledger.finish(one.id, "somebody", documents_of(4))
    found = violations(template, told(0, 2, 4), at_rest=True)
    assert found == []


def test_a_document_that_was_reverted_and_is_learned_again_has_its_probes_once(template: Path) -> None:
    with ContinualLM.open(template, MODEL, config=settings()) as lm:
        (update,) = [update for update in lm.log() if update.documents == documents_of(0)]
        before = lm.ledger.probes(documents_of(0)[0])
        lm.revert(update.id)
        lm.learn(texts(0)[0])
        assert len(before) == len(lm.ledger.probes(documents_of(0)[0])) > 0


@pytest.mark.parametrize("undo", ["revert", "forget"])
def test_what_is_undone_before_its_arrival_is_finished_is_not_learned_again(undo: str, template: Path) -> None:
    with ContinualLM.open(template, MODEL, config=settings()) as lm:
        ((key, _),) = lm.ledger.receive([arrival_of(4)])
        lm.ledger.lease("somebody", 60.0)
        update = lm.learn(texts(4)[0])
        lm.ledger.end_leases("somebody")  # killed before it could say so
        lm.revert(update.id) if undo == "revert" else lm.forget(update.documents[0])
        assert Worker(lm).once()
        assert lm.ledger.arrival(key).status == "done"
        assert lm.ledger.document(update.documents[0]).status == {"revert": "rejected", "forget": "forgotten"}[undo]
        if undo == "forget":
            assert lm.ledger.receive([arrival_of(4)]) == [(key, True)], "sent again, it is new"
            assert Worker(lm).once() and lm.ledger.document(update.documents[0]).status == "committed"
    if undo == "revert":
        assert violations(template, told(0, 2, 4), at_rest=True) == []
