"""What a worker does between two arrivals: a checkpoint, adapters joined, the store cleared up; never in anybody's way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions
from tests.workspace.conftest import Learn

from retain.config import load_config
from retain.workspace import Conflict, Ledger, Store, WriterLock
from retain.workspace.consolidation import Consolidation
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.reports import Event
from retain.workspace.upkeep import CLEARED, DAY, WEEK
from retain.workspace.worker import Worker

QUICK = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 8, "learning_rate": 5e-3, "consolidate_after": 2},
    "gate": {"max_forgetting": 1.0, "attempts": 1}, "study": {"writer": "none"}, "route": {"least_bits": 2.0, "threshold": 0.4},
    "model": {"precision": "float32"},
}  # fmt: skip


def opened(place: Path, model: Any, progress: Any = None, **sections: dict[str, Any]) -> ContinualLM:
    settings = {name: {**QUICK.get(name, {}), **sections.get(name, {})} for name in {*QUICK, *sections}}
    return ContinualLM.open(place / "work", model, config=load_config(None, settings), progress=progress)


@pytest.fixture
def light(tmp_path: Path, tiny_model: Any) -> Iterator[ContinualLM]:
    """A workspace whose learner needs no training."""
    with opened(tmp_path, tiny_model, learn={"learner": "jitrl"}, serve={"checkpoint_after": 2, "checkpoints_kept": 2}) as lm:
        yield lm


def send(lm: ContinualLM, *numbers: int) -> list[str]:
    made = [Arrival(tiny_documents()[number][1].encode(), name=tiny_documents()[number][0], domain="law") for number in numbers]
    return [key for key, _ in lm.ledger.receive(made)]


def kinds(lm: ContinualLM) -> list[tuple[str, str]]:
    return [(update.kind, update.status) for update in lm.log()]


def test_adapters_are_joined_between_two_arrivals_while_others_answer(tmp_path: Path, tiny_model: Any) -> None:
    seen: list[tuple[dict[str, int], str]] = []
    question = tiny_questions(0)[0]

    def undo() -> None:
        with WriterLock(tmp_path / "work" / "lock").acquire(timeout=60):
            waited.append(len(seen))

    waited: list[int] = []
    waiting = threading.Thread(target=undo)

    def progress(event: Event) -> None:
        if event.kind == "check" and tiny_documents()[1][0] in event.message:
            waiting.start()
        if "study sets of 2" in event.message:
            with opened(tmp_path, tiny_model) as other:  # as the service does
                seen.append((other.ledger.arrival_counts(), other.ask(question.wordings[-1], retrieval=False).text))

    with opened(tmp_path, tiny_model, progress) as lm:
        send(lm, 0, 1, 2)
        worker = Worker(lm)
        while worker.once():
            pass
        assert kinds(lm) == [("learn", "committed")] * 2 + [("consolidate", "committed"), ("learn", "committed")]
        (counts, answer), *more = seen
        assert counts == {"done": 2, "pending": 1}, "what was learned is finished before, and nobody holds the next"
        assert question.answer.lower() in answer.lower() and not more
        assert waited == [0], "who waited to write while a document was learned waited for the consolidation too"
        assert sorted(len(item.documents) for item in lm.state.adapters) == [1, 2]


def test_what_was_due_when_a_worker_died_is_done_by_the_next(tmp_path: Path, tiny_model: Any) -> None:
    with opened(tmp_path, tiny_model) as lm:
        lm.learn_all([tmp_path / name for name in written(tmp_path, 0, 1)], domain="law", consolidate=False)
        assert kinds(lm) == [("learn", "committed")] * 2
        worker = Worker(lm)
        with WriterLock(lm.root / "lock").acquire():
            assert not worker.once() and kinds(lm) == [("learn", "committed")] * 2, "somebody else writes"
        assert not worker.once() and kinds(lm)[2:] == [("consolidate", "committed")]
        assert not worker.once() and len(lm.log()) == 3


def written(place: Path, *numbers: int) -> list[str]:
    for number in numbers:
        (place / f"{number}.md").write_text(tiny_documents()[number][1])
    return [f"{number}.md" for number in numbers]


def test_trouble_is_told_and_everything_goes_on(tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        tried.append(1)
        raise RuntimeError("out of\n memory")

    tried: list[int] = []
    told: list[str] = []
    monkeypatch.setattr(Consolidation, "_join", fail)
    with opened(tmp_path, tiny_model, learn={"epochs": 1}) as lm:
        keys = send(lm, 0, 1)
        worker = Worker(lm, lambda event: told.append(event.message))
        while worker.once():
            pass
        assert not worker.once() and len(tried) == 1, "it is not tried again while nothing changes"
        assert [message for message in told if "out of" in message] == ["adapters were not consolidated: out of memory"]
        assert [lm.ledger.arrival(key).status for key in keys] == ["done"] * 2
        send(lm, 2)
        assert worker.once() and len(tried) == 2 and kinds(lm) == [("learn", "committed")] * 3


def test_checkpoints_by_themselves(light: ContinualLM) -> None:
    lm, worker = light, Worker(light)
    names: list[list[str]] = []
    for number in range(6):
        send(lm, number)
        assert worker.once()
        if number == 0:
            lm.checkpoint("mine")
            lm.checkpoint("auto-mine")
        names.append([item.name for item in lm.checkpoints()])
    mine = ["auto-mine", "mine"]
    assert names[:4] == [mine, ["auto-000002", *mine], ["auto-000002", *mine], ["auto-000002", "auto-000004", *mine]]
    assert names[5] == ["auto-000004", "auto-000006", *mine], "the oldest of those made by themselves goes, and no other"
    with pytest.raises(Conflict, match="take another name"):
        lm.checkpoint("auto-7")
    documents = [record.id for record in lm.documents()]
    lm.load_checkpoint("auto-000004")
    assert {document for item in lm.state.adapters for document in item.documents} == set(documents[:4])
    lm.forget(documents[3])
    assert [item.name for item in lm.checkpoints()] == mine, "a checkpoint that nobody asked for is in the way of forgetting"
    with pytest.raises(Conflict, match="checkpoints auto-mine, mine"):
        lm.forget(documents[0])


def test_a_checkpoint_is_made_in_one_step(ledger: Ledger, learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.save_automatic_checkpoint(1, 1) is None, "nothing is learned yet"
    learn("d1")
    first = ledger.save_automatic_checkpoint(1, 1)
    assert first is not None and (first.name, first.state) == ("auto-000001", ledger.head())
    learn("d2")
    monkeypatch.setattr(ledger, "save_checkpoint", lambda name: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        ledger.save_automatic_checkpoint(1, 1)
    assert ledger.list_checkpoints() == [first], "the older one was removed although no newer one was made"
    monkeypatch.undo()
    second = ledger.save_automatic_checkpoint(1, 1)
    assert second is not None and ledger.list_checkpoints() == [second] and ledger.save_automatic_checkpoint(1, 1) is None


def put(store: Store, content: bytes, age: float) -> str:
    """An object that nothing needs."""
    digest = store.put(content)
    os.utime(store.path(digest), (time.time() - age,) * 2)
    return digest


def test_the_store_is_cleared_up_once_a_day_when_nothing_waits(light: ContinualLM) -> None:
    lm, worker, told = light, Worker(light), list[str]()
    send(lm, 0)
    assert worker.once()
    for path in (lm.root / "objects").glob("??/*"):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    left, young = put(lm.store, b"left behind", 2 * DAY), put(lm.store, b"a candidate", 10)
    lm.ledger.set_meta(CLEARED, time.time() - DAY - 1)
    worker = Worker(lm, lambda event: told.append(event.message))
    send(lm, 1)
    assert worker.once() and left in lm.store, "documents come first"
    assert not worker.once() and left not in lm.store and young in lm.store
    assert told[-1] == "objects removed from the store, since nothing needs them any more: 1"
    assert lm.verify().ok and len(lm.log()) == 2
    left = put(lm.store, b"left behind later", 2 * DAY)
    later = Worker(lm)
    lm.ledger.set_meta(CLEARED, 0.0)
    with WriterLock(lm.root / "lock").acquire():
        assert not later.once() and left in lm.store
    assert not later.once() and left not in lm.store, "it was not tried again after somebody else wrote"
    left = put(lm.store, b"left behind later still", 2 * DAY)
    assert not worker.once() and not Worker(lm).once() and left in lm.store, "once a day, whoever looks"
    lm.ledger.set_meta(CLEARED, time.time() - WEEK - 1)
    send(lm, 2)
    assert Worker(lm).once() and left not in lm.store, "where documents always wait it is done all the same, in the end"
