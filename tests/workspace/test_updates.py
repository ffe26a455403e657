"""Updates: one transaction each, a history that can be undone, and forgetting that leaves nothing."""

from __future__ import annotations

import math
import re

import pytest
from tests.workspace.conftest import Learn

from retain.workspace import ActiveAdapter, Chunk, Conflict, Damaged, InvalidName, Ledger, NotFound, Probe, State, Store, WorkspaceError


def without(ledger: Ledger, key: str) -> str:
    """A stored state like the current one, without what was learned from a document."""
    adapters = tuple(adapter for adapter in ledger.state().adapters if key not in adapter.documents)
    return ledger.store.put(State(adapters, ledger.state().router).to_bytes())


def test_a_state_survives_as_canonical_json() -> None:
    state = State(
        (ActiveAdapter("a", "1" * 64, 0.5, ("d1", "d2")),), {"b": [1, None], "a": {"t": 0.1}}, {"ewc": "2" * 64}, {"optimizer": "3" * 64}
    )
    assert State.from_bytes(state.to_bytes()) == state
    same = State(state.adapters, {"a": {"t": 0.1}, "b": [1, None]}, state.retention, state.objects)
    assert same.to_bytes() == state.to_bytes()
    assert state.digests() == {"1" * 64, "2" * 64, "3" * 64}
    assert state.documents() == {"d1", "d2"}
    for wrong in (b"", b"[]", b"{}", b"\xff", b'{"adapters": [1], "router": {}, "retention": {}, "objects": {}}'):
        with pytest.raises(ValueError):
            State.from_bytes(wrong)


def test_committing_moves_head_and_everything_with_it(ledger: Ledger, learn: Learn) -> None:
    assert (ledger.head(), ledger.head_update(), ledger.state()) == (None, None, State())
    first = learn("d1", "apples and pears")
    second = learn("d2", "nuts")
    assert ledger.updates() == [second, first]
    assert (first.before, second.before) == ("", first.after)
    assert (first.parent, second.parent, ledger.head_update()) == ("", first.id, second.id)
    assert (first.sequence, second.sequence) == (1, 2)
    assert re.fullmatch(r"u[0-9a-f]{8}", first.id)
    assert ledger.head() == second.after
    assert ledger.state().documents() == {"d1", "d2"}
    assert (ledger.document("d1").status, ledger.document("d1").update) == ("committed", first.id)
    assert [hit.document for hit in ledger.search("apple")] == ["d1"]
    assert ledger.updates(document="d2") == [second]
    assert ledger.updates(limit=1) == [second]


def test_updates_are_found_by_prefix(ledger: Ledger, learn: Learn) -> None:
    first = learn("d1")
    assert ledger.update(first.id[:4]) == first
    with pytest.raises(NotFound, match=first.id):
        ledger.update(first.id[:-1] + "x")


@pytest.mark.parametrize("wrong", ["before", "after", "document", "chunk", "kind", "state", "forgotten"])
def test_a_commit_that_fails_changes_nothing(ledger: Ledger, store: Store, learn: Learn, wrong: str) -> None:
    learn("d1", "old text")
    learn("gone")
    ledger.forget_document("gone", ledger.head(), without(ledger, "gone"))
    ledger.add_document({"id": "d2"}, store.put(b"new text"))
    adapter = ActiveAdapter("a", "0" * 64 if wrong == "after" else store.put(b"adapter"), 1.0, ("d2",))
    after = store.put(b"no state" if wrong == "state" else State((adapter,)).to_bytes())
    documents = ["d2", *(["d9"] if wrong == "document" else []), *(["gone"] if wrong == "forgotten" else [])]
    chunks = [Chunk("d2", 0, "", "new text"), *([Chunk("d1", 0, "", "other")] if wrong == "chunk" else [])]
    snapshot = (ledger.head(), ledger.documents(), ledger.updates(), ledger.chunks("d1"), ledger.events())
    with pytest.raises((WorkspaceError, ValueError)):
        ledger.commit_update(
            "dream" if wrong == "kind" else "learn",  # type: ignore[arg-type]
            None if wrong == "before" else ledger.head(),
            after,
            documents=documents,
            chunks=chunks,
        )
    assert (ledger.head(), ledger.documents(), ledger.updates(), ledger.chunks("d1"), ledger.events()) == snapshot
    assert ledger.search("new") == []


def test_a_rejected_update_is_told_and_changes_no_state(ledger: Ledger, store: Store, learn: Learn) -> None:
    first = learn("d1")
    ledger.add_document({"id": "d2"}, store.put(b"bad"))
    ledger.claim(1)
    certificate = {"before": {"recall": 0.5}, "loss": math.inf, "scores": [math.nan, 1.0]}
    rejected = ledger.reject_update("learn", ["d2"], "a probe failed", certificate)
    assert (rejected.status, rejected.after, rejected.before) == ("rejected", "", first.after)
    assert rejected.certificate == {"before": {"recall": 0.5}, "loss": "inf", "scores": ["nan", 1.0]}
    document = ledger.document("d2")
    assert (document.status, document.reason, document.attempts, document.update) == ("rejected", "a probe failed", 1, rejected.id)
    assert (ledger.head(), ledger.head_update()) == (first.after, first.id)
    assert learn("d3").parent == first.id
    ledger.set_status(["d2"], "pending")
    assert ledger.document("d2").attempts == 1


def test_reverting(ledger: Ledger, learn: Learn) -> None:
    first = learn("d1", "apples")
    learn("d2", "pears")
    after = without(ledger, "d1")
    revert = ledger.commit_update(
        "revert", ledger.head(), after, documents=["d1"], mark="rejected", reason="reverted by hand", reverts=first.id
    )
    assert ledger.update(first.id).status == "reverted"
    assert (ledger.document("d1").status, ledger.document("d1").update) == ("rejected", revert.id)
    assert ledger.search("apples") == []
    assert [hit.document for hit in ledger.search("pears")] == ["d2"]
    with pytest.raises(Conflict, match="nothing to revert"):
        ledger.commit_update("revert", ledger.head(), after, reverts=first.id)
    assert ledger.head() == after
    assert first.after in ledger.referenced_digests()  # undone, not gone


def test_forgetting_leaves_nothing(ledger: Ledger, store: Store, learn: Learn) -> None:
    learn("d0", "something harmless and a zebra")
    secret = "xylographquartz"
    learn("d1", f"the {secret} text")
    learn("d2", "later text")
    ledger.add_probes([Probe(f"what about {secret}?", "a", "d1"), Probe("q", "a", "d2")])
    ledger.set_study("d1", store.put(f"study of {secret}".encode()))
    after = without(ledger, "d1")
    update = ledger.forget_document("d1", ledger.head(), after, {"why": "asked"})
    assert (update.kind, update.documents, update.certificate) == ("forget", ("d1",), {"why": "asked"})
    document = ledger.document("d1")
    assert (document.status, document.title, document.source, document.blob, document.signature) == ("forgotten", "", "", "", b"")
    assert (ledger.probes("d1"), ledger.study("d1"), ledger.chunks("d1"), ledger.search(secret)) == ([], None, [], [])
    assert "d1" not in ledger.signatures()
    assert [item.expired for item in ledger.updates()] == [False, True, True, False]
    store.collect(ledger.referenced_digests(), grace=0)
    assert store.verify(expected=ledger.referenced_digests()) == []
    for path in store.root.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert ledger.state().documents() == {"d0", "d2"}
    assert {hit.document for hit in ledger.search("text zebra")} == {"d0", "d2"}
    assert ledger.check() == []


def test_forgetting_must_be_done_by_the_new_state(ledger: Ledger, learn: Learn) -> None:
    learn("d1")
    with pytest.raises(Conflict, match="still has an adapter"):
        ledger.forget_document("d1", ledger.head(), ledger.head())
    assert ledger.document("d1").status == "committed"


def test_forgetting_does_not_overlook_checkpoints(ledger: Ledger, learn: Learn) -> None:
    learn("d1")
    ledger.save_checkpoint("clean")
    learn("d2")
    ledger.save_checkpoint("with-d2")
    after = without(ledger, "d2")
    with pytest.raises(Conflict, match="checkpoints with-d2: delete them too with --drop-checkpoints"):
        ledger.forget_document("d2", ledger.head(), after)
    assert len(ledger.list_checkpoints()) == 2
    ledger.forget_document("d2", ledger.head(), after, drop_checkpoints=True)
    assert [checkpoint.name for checkpoint in ledger.list_checkpoints()] == ["clean"]
    assert ledger.store.verify(expected=ledger.referenced_digests()) == []


def test_a_forgotten_document_can_be_learned_anew_and_forgotten_again(ledger: Ledger, store: Store, learn: Learn) -> None:
    learn("d1", "one")
    learn("d2", "two")
    for _ in range(2):
        ledger.forget_document("d1", ledger.head(), without(ledger, "d1"))
        store.collect(ledger.referenced_digests(), grace=0)
        assert ledger.add_document({"id": "d1", "title": "Again"}, store.put(b"one")) == ("d1", True)
        assert (ledger.document("d1").status, ledger.document("d1").title) == ("pending", "Again")
        learn("d1", "one")
        store.collect(ledger.referenced_digests(), grace=0)
        assert store.verify(expected=ledger.referenced_digests()) == []
    ledger.forget_document("d2", ledger.head(), without(ledger, "d2"))
    assert all("d2" not in ledger.state(update.after).documents() for update in ledger.updates() if update.after and not update.expired)
    assert ledger.state().documents() == {"d1"}
    store.collect(ledger.referenced_digests(), grace=0)
    assert store.verify(expected=ledger.referenced_digests()) == []


def test_checkpoints_without_the_document_are_no_obstacle_to_forgetting(ledger: Ledger, store: Store, learn: Learn) -> None:
    _, second, _ = learn("d1"), learn("d2"), learn("d3")
    after = without(ledger, "d2")
    ledger.commit_update("revert", ledger.head(), after, documents=["d2"], mark="rejected", reverts=second.id)
    ledger.save_checkpoint("undone")
    ledger.forget_document("d2", after, after)
    ledger.add_document({"id": "d2"}, store.put(b"again"))
    learn("d2")
    learn("d4")
    ledger.forget_document("d2", ledger.head(), without(ledger, "d2"))  # in its second life, "undone" is from before
    assert [checkpoint.name for checkpoint in ledger.list_checkpoints()] == ["undone"]


def test_forgetting_what_was_never_learned(ledger: Ledger, store: Store) -> None:
    ledger.add_document({"id": "d1"}, store.put(b"text"))
    ledger.forget_document("d1", None, None)
    assert ledger.head() is None
    assert ledger.document("d1").status == "forgotten"
    assert ledger.referenced_digests() == set()
    ledger.add_document({"id": "d2"}, store.put(b"text"))
    assert ledger.reject_update("learn", ["d2"], "no").before == ""


def test_checkpoints(ledger: Ledger, learn: Learn) -> None:
    with pytest.raises(Conflict, match="nothing has been learned"):
        ledger.save_checkpoint("empty")
    first = learn("d1")
    saved = ledger.save_checkpoint("before-holiday")
    assert saved.state == first.after
    second = learn("d2")
    assert ledger.load_checkpoint("before-holiday") == saved
    assert ledger.head() == second.after
    ledger.save_checkpoint("older", first.after)
    assert [checkpoint.name for checkpoint in ledger.list_checkpoints()] == ["before-holiday", "older"]
    with pytest.raises(NotFound, match="did you mean before-holiday"):
        ledger.load_checkpoint("before-holidays")
    for name in ("../x", "", "a b", ".hidden"):
        for use in (ledger.save_checkpoint, ledger.load_checkpoint):
            with pytest.raises(InvalidName):
                use(name)
    ledger.delete_checkpoint("older")
    with pytest.raises(NotFound):
        ledger.load_checkpoint("older")
    with pytest.raises(NotFound, match="object"):
        ledger.save_checkpoint("nowhere", "0" * 64)


def test_collecting_never_takes_what_is_referenced(ledger: Ledger, store: Store, learn: Learn) -> None:
    learn("d1")
    ledger.save_checkpoint("one")
    learn("d2")
    waste = store.put(b"a candidate that was rejected")
    needed = ledger.referenced_digests()
    assert store.collect(needed, grace=0) == [waste]
    assert set(store) == needed
    for update in ledger.updates():
        for digest in ledger.state(update.after).digests():
            store.get(digest)


def test_nothing_is_collected_when_head_cannot_be_read(ledger: Ledger, store: Store, learn: Learn) -> None:
    first, second = learn("d1"), learn("d2")
    store.quarantine(first.after)
    assert second.after in ledger.referenced_digests()  # a lost state of the past is no obstacle
    store.path(second.after).write_bytes(b"{}")
    with pytest.raises(Damaged):
        ledger.referenced_digests()
    store.quarantine(second.after)
    with pytest.raises(NotFound):
        ledger.referenced_digests()


def test_the_history_tells_what_happened(ledger: Ledger, learn: Learn) -> None:
    update = learn("d1")
    ledger.log_event("consolidation due", detail={"adapters": 9})
    assert [(event.kind, event.subject) for event in ledger.events()] == [
        ("consolidation due", ""),
        ("learn", update.id),
        ("committed", "d1"),
        ("added", "d1"),
    ]
    assert [event.kind for event in ledger.events(subject="d1")] == ["committed", "added"]
    assert ledger.events(limit=1)[0].detail == {"adapters": 9}
