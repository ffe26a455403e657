"""What arrives is learned, each thing once, and whatever goes wrong says so."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions

from retain.config import load_config
from retain.data.fetch import Fetched, Unreachable
from retain.retention.replay import Replay
from retain.training.loop import TrainingError
from retain.workspace import WriterLock
from retain.workspace import worker as module
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.reports import EVENTS
from retain.workspace.worker import Worker

SETTINGS = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3, "learner": "jitrl"},
    "study": {"writer": "none"}, "route": {"least_bits": 2.0, "threshold": 0.4}, "model": {"precision": "float32"}, "gate": {"attempts": 1},
}  # fmt: skip


@pytest.fixture
def lm(tmp_path: Path, tiny_model: Any) -> Any:
    with ContinualLM.open(tmp_path / "work", tiny_model, config=load_config(None, SETTINGS)) as made:
        yield made


def text(number: int, **more: Any) -> Arrival:
    title, body = tiny_documents()[number]
    return Arrival(body.encode(), name=title, **more)


def test_what_arrives_is_learned_once(lm: ContinualLM) -> None:
    (first, _), (second, _), (broken, _), (empty, _) = lm.ledger.receive(
        [
            text(0), Arrival(text(1).body, "file", "second.md", "handbook/second.md", importance=0.9),
            Arrival(b"%PDF-1.4", "file", "a.pdf"), Arrival(b"  \n"),
        ]
    )  # fmt: skip
    told: list[str] = []
    worker = Worker(lm, lambda event: told.append(event.message))
    while worker.once():
        pass
    found = {key: lm.ledger.arrival(key) for key in (first, second, broken, empty)}
    assert [found[key].status for key in (first, second, broken, empty)] == ["done", "done", "failed", "failed"]
    assert "not a readable PDF" in found[broken].reason and found[empty].reason and len(told) == 2
    learned = lm.documents()
    assert [record.status for record in learned] == ["committed"] * 2
    assert [record.id for record in learned] == [*found[second].documents, *found[first].documents], "the important one came first"
    assert (learned[0].source, learned[0].importance) == ("handbook/second.md", 0.9)
    question = tiny_questions(0)[0]
    assert question.answer.lower() in lm.ask(question.wordings[-1]).text.lower()
    updates = len(lm.log())
    lm.ledger.receive([Arrival(text(0).body, "file", "again.md")])  # the same text in a file
    assert worker.once() and len(lm.log()) == updates and lm.ledger.arrival_counts() == {"done": 3, "failed": 2}


def test_failing_is_tried_again_and_waiting_is_not_failing(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ((key, _),) = lm.ledger.receive([text(0)])
    worker = Worker(lm)
    monkeypatch.setattr(module, "WAIT", -1.0)
    monkeypatch.setattr(module, "BUSY", -1.0)
    with WriterLock(lm.root / "lock").acquire():
        assert worker.once()
    assert (lm.ledger.arrival(key).status, lm.ledger.arrival(key).attempts) == ("pending", 0)
    learn = lm.learn_all

    def fail(*_: Any, **__: Any) -> Any:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(lm, "learn_all", fail)
    assert worker.once() and lm.ledger.arrival(key).reason == "the loss is not finite" and lm.ledger.arrival(key).attempts == 1
    monkeypatch.setattr(lm, "learn_all", learn)
    assert worker.once() and lm.ledger.arrival(key).status == "done"
    lm.ledger.receive([text(1)])
    monkeypatch.setattr(lm, "learn_all", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        worker.once()
    assert lm.ledger.arrival_counts() == {"done": 1, "pending": 1}


def test_an_error_that_nobody_expects_ends_the_process_and_not_the_queue(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (bad, _), (good, _) = lm.ledger.receive([text(0, importance=0.9), text(1)])
    learn = lm.learn_all

    def fail(documents: Any, **more: Any) -> Any:
        if documents[0].title == text(0).name:
            raise RuntimeError("an unexpected\n shape")
        return learn(documents, **more)

    monkeypatch.setattr(lm, "learn_all", fail)
    with pytest.raises(RuntimeError, match="unexpected"):
        Worker(lm).once()
    found = lm.ledger.arrival(bad)
    assert (found.status, found.attempts, found.reason) == ("pending", 1, "an unexpected shape")
    assert Worker(lm).once() and lm.ledger.arrival(good).status == "done", "the one that ends processes is in the way of others"
    assert not Worker(lm).once(), "it is tried again later"


@pytest.mark.parametrize("wrong", ["base", "settings"])
def test_what_allows_no_learning_is_no_arrivals_fault(wrong: str, tmp_path: Path, tiny_model: Any) -> None:
    model = str(tmp_path / "nowhere") if wrong == "base" else tiny_model
    settings = SETTINGS if wrong == "base" else {**SETTINGS, "learn": {**SETTINGS["learn"], "learner": "lora", "targets": ["nowhere"]}}
    with ContinualLM.open(tmp_path / "work", model, config=load_config(None, settings)) as lm:
        ((key, _),) = lm.ledger.receive([text(0)])
        for _ in range(4):
            with pytest.raises(Exception, match="nowhere"):
                Worker(lm).once()
        assert (lm.ledger.arrival(key).status, lm.ledger.arrival(key).attempts) == ("pending", 0)


def test_what_is_new_is_trained_beside_what_was_learned_before(tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One adapter for a domain: every batch of the second arrival has examples of the first, whose answers stay; without, they go."""
    drawn: list[list[str]] = []
    sample = Replay.replay

    def replay(self: Replay, n: int) -> list[Any]:
        found = sample(self, n)
        drawn.append([example.document for example in found])
        return found

    monkeypatch.setattr(Replay, "replay", replay)
    kept = {}
    for fraction in (0.5, 0.0):
        sections = {
            "learn": {**SETTINGS["learn"], "learner": "lora", "adapter_per": "domain"},
            "study": {"writer": "none", "held_out_fraction": 0.5}, "gate": {"attempts": 1, "max_forgetting": 1.0},
            "retention": {"replay": {"fraction": fraction}},
        }  # fmt: skip
        with ContinualLM.open(tmp_path / str(fraction), tiny_model, config=load_config(None, {**SETTINGS, **sections})) as lm:
            (first, _), (second, _) = lm.ledger.receive([text(1, domain="law", importance=0.9), text(0, domain="law")])
            worker = Worker(lm)
            assert worker.once() and not any(drawn), "there is nothing to replay yet"
            drawn.clear()
            assert worker.once() and not worker.once()
            assert [lm.ledger.arrival(key).status for key in (first, second)] == ["done"] * 2
            assert [len(item.documents) for item in lm.state.adapters] == [2]
            (earlier,) = lm.ledger.arrival(first).documents
            assert all(set(batch) == ({earlier} if fraction else set()) for batch in drawn) and len(drawn) > 20
            drawn.clear()
            asked = tiny_questions(1)
            answers = [lm.ask(item.wordings[-1], retrieval=False).text.lower() for item in asked]
            kept[fraction] = sum(item.answer.lower() in answer for item, answer in zip(asked, answers, strict=True)) / len(asked)
    assert kept[0.5] >= 0.75 and kept[0.0] <= kept[0.5] - 0.5, kept


def test_forgetting_takes_the_arrival_along(lm: ContinualLM) -> None:
    arrival = text(0)
    ((key, _),) = lm.ledger.receive([Arrival(arrival.body, "file", f"{arrival.name}.md", f"/home/me/{arrival.name}.md")])
    (lm.root / EVENTS).write_text(arrival.name)
    assert Worker(lm).once()
    lm.forget(lm.ledger.arrival(key).documents[0])
    found = lm.ledger.arrival(key)
    assert (found.name, found.source, found.status) == ("", "", "done")
    stored = b"".join(path.read_bytes() for path in lm.root.rglob("*") if path.is_file())
    assert arrival.name.encode() not in stored, "the title of a forgotten document is still there"


def test_it_works_until_it_is_stopped(lm: ContinualLM) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=Worker(lm).run, args=(stop, 0.01))
    thread.start()
    ((key, _),) = lm.ledger.receive([text(2)])
    for _ in range(600):
        if lm.ledger.arrival(key).status == "done":
            break
        stop.wait(0.1)
    stop.set()
    thread.join(30)
    assert lm.ledger.arrival(key).status == "done" and not thread.is_alive()


def test_web_addresses(lm: ContinualLM, tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    title, body = tiny_documents()[0]
    address = Arrival(b"https://example.org/page", "url", "https://example.org/page", "https://example.org/page")
    ((key, _),) = lm.ledger.receive([address])
    assert Worker(lm, fetcher=lambda url: pytest.fail("nothing may be fetched")).once()
    assert lm.ledger.arrival(key).status == "failed" and "serve.fetch true" in lm.ledger.arrival(key).reason
    monkeypatch.setattr(module, "WAIT", -1.0)
    answers: list[Any] = [
        Unreachable("the server answers 503"),
        Fetched(
            f"<html><body><article><h1>{title}</h1><p>{body}</p></article></body></html>".encode(),
            "page.html",
            "https://example.org/en/page",
        ),
    ]

    def fetcher(url: str) -> Fetched:
        assert url == "https://example.org/page"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with ContinualLM.open(tmp_path / "other", tiny_model, config=load_config(None, {**SETTINGS, "serve": {"fetch": True}})) as other:
        ((key, _),) = other.ledger.receive([address])
        worker = Worker(other, fetcher=fetcher)
        assert worker.once() and other.ledger.arrival(key).status == "pending", "a server that is busy is asked again"
        assert worker.once() and other.ledger.arrival(key).status == "done", other.ledger.arrival(key)
        assert [record.source for record in other.documents()] == ["https://example.org/en/page"]
        ((local, _),) = other.ledger.receive([Arrival(b"http://127.0.0.1:9/x", "url")])
        assert Worker(other).once() and other.ledger.arrival(local).status == "failed"
        assert "private network" in other.ledger.arrival(local).reason
