"""The ledger file and the documents in it: settings, migrations, queue, probes, names."""

from __future__ import annotations

import dataclasses
import sqlite3
import string
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.workspace.conftest import Learn

from retain.workspace import (
    Conflict,
    Damaged,
    DiskFull,
    InvalidName,
    Ledger,
    NotFound,
    Probe,
    Store,
    TooNew,
    WorkspaceError,
    WriterLock,
    schema,
)
from retain.workspace import check_name as checked

LETTERS = string.ascii_letters + string.digits


def add(ledger: Ledger, key: str, **more: object) -> tuple[str, bool]:
    return ledger.add_document({"id": key, **more}, ledger.store.put(key.encode()), chars=len(key), tokens=3, signature=key.encode())


@given(st.sampled_from(LETTERS), st.text(LETTERS + "._-", max_size=63))
def test_valid_names(first: str, rest: str) -> None:
    assert checked(first + rest) == first + rest


@given(st.text(max_size=80))
def test_a_name_is_valid_or_refused_and_never_a_path(name: str) -> None:
    try:
        checked(name)
    except InvalidName:
        assert not (0 < len(name) <= 64 and name[0] in LETTERS and set(name) <= set(LETTERS + "._-"))
    else:
        assert Path(name).name == name
        assert name.isascii()
        assert len(name) <= 64


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\n", "a\0", "-a", " a", "ä", "a" * 65, "../a", "C:\\a"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName):
        checked(name)


def test_settings_are_the_durable_ones(ledger: Ledger) -> None:
    found = {name: ledger._rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")}
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    assert ledger.check() == []


def test_a_ledger_opened_again_is_equal(ledger: Ledger, store: Store, learn: Learn) -> None:
    learn("d1", "the first text")
    learn("d2", "the second text")
    add(ledger, "d3", title="Third", domain="law", importance=0.9)
    ledger.set_study("d3", store.put(b"study"))
    ledger.add_probes([Probe("who?", "me", "d1", 0.5, 0.7, True), Probe("two and two?", "four")])
    ledger.save_checkpoint("one")
    ledger.reject_update("learn", ["d3"], "spike", {"loss": 9.5})
    ledger.set_meta("note", {"a": [1, 2.5, None]})

    def everything(ledger: Ledger) -> list[object]:
        return [
            ledger.meta(),
            ledger.documents(),
            ledger.updates(),
            ledger.head(),
            ledger.state(),
            ledger.probes(),
            ledger.list_checkpoints(),
            ledger.events(),
            ledger.chunks("d1"),
            ledger.search("text"),
            ledger.study("d3"),
            ledger.referenced_digests(),
            ledger.sample_probes(2, 0),
            ledger.signatures(),
        ]

    before = everything(ledger)
    with Ledger.open(ledger.path, store, create=False) as other:  # a reader, while the first is open
        assert everything(other) == before
    ledger.close()
    with Ledger.open(ledger.path, store) as again:
        assert everything(again) == before


def test_opening_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFound):
        Ledger.open(store.root / "ledger.db", store, create=False)
    assert not store.root.exists()


def test_a_file_that_is_no_ledger_is_damaged_and_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(Damaged, match=r"ledger\.db.*Restore"):
        Ledger.open(path, store)


def test_an_older_ledger_is_migrated(ledger: Ledger, store: Store, learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    learn("d1")
    documents, head = ledger.documents(), ledger.head()
    ledger.close()
    second = ("ALTER TABLE meta ADD COLUMN extra TEXT NOT NULL DEFAULT 'x'", "CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT")
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, second])
    with Ledger.open(ledger.path, store) as newer:
        assert newer.meta()["format"] == len(schema.MIGRATIONS)
        assert newer._rows("SELECT DISTINCT extra FROM meta") == [("x",)]
        assert (newer.documents(), newer.head()) == (documents, head)
    monkeypatch.undo()
    with pytest.raises(TooNew, match="update retain"):
        Ledger.open(ledger.path, store)


def test_a_migration_that_fails_changes_nothing(ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(ledger, "d1")
    ledger.close()
    monkeypatch.setattr(
        schema, "MIGRATIONS", [*schema.MIGRATIONS, ("CREATE TABLE more (id INTEGER) STRICT", "SELECT nonsense FROM nowhere")]
    )
    with pytest.raises(WorkspaceError):
        Ledger.open(ledger.path, store)
    monkeypatch.undo()
    with Ledger.open(ledger.path, store) as same:
        assert [document.id for document in same.documents()] == ["d1"]
        assert same._rows("SELECT name FROM sqlite_master WHERE name = 'more'") == []


def test_the_base_model_is_bound_once(ledger: Ledger) -> None:
    ledger.bind_base("tiny", "f" * 64)
    ledger.bind_base("tiny", "f" * 64)
    assert ledger.meta()["base"] == {"name": "tiny", "fingerprint": "f" * 64}
    for place in ("/models/tiny", "/elsewhere/tiny", ""):
        ledger.bind_base("tiny", "f" * 64, place)
    assert ledger.meta()["base"] == {"name": "tiny", "fingerprint": "f" * 64, "place": "/elsewhere/tiny"}
    with pytest.raises(Conflict, match="tiny"):
        ledger.bind_base("other", "e" * 64)


def test_adding_again_changes_nothing(ledger: Ledger) -> None:
    assert add(ledger, "d1", title="One", importance=1) == ("d1", True)
    assert add(ledger, "d1", title="Other") == ("d1", False)
    assert [document.title for document in ledger.documents()] == ["One"]
    record = ledger.document("d1")
    assert (record.status, record.domain, record.kind, record.importance, record.tokens) == ("pending", "general", "text", 1.0, 3)


def test_a_document_needs_a_stored_text_and_a_valid_id(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="object"):
        ledger.add_document({"id": "d1"}, "0" * 64)
    with pytest.raises(InvalidName):
        add(ledger, "../d1")
    with pytest.raises(WorkspaceError):
        add(ledger, "d1", importance=1.5)
    assert ledger.documents() == []


def test_looking_up_by_prefix(ledger: Ledger) -> None:
    for key in ("dabc1", "dabd2", "dxyz3"):
        add(ledger, key)
    assert ledger.document("dx").id == "dxyz3"
    for ambiguous in ("dab", "d"):
        with pytest.raises(NotFound, match="dabc1"):
            ledger.document(ambiguous)
    with pytest.raises(NotFound, match="did you mean dxyz3"):
        ledger.document("dxyz4")
    for missing in ("", "%", "d_", "*", "d'"):
        with pytest.raises(NotFound):
            ledger.document(missing)


def test_looking_up_by_name(ledger: Ledger) -> None:
    for key, title, source in (("d1", "Travel", "/a/travel.md"), ("d2", "Pumps", "/a/pumps.md"), ("d3", "Pumps", "/b/travel.md")):
        add(ledger, key, title=title, source=source)
    for name, key in (("d2", "d2"), ("Travel", "d1"), ("pumps.md", "d2"), ("/b/travel.md", "d3")):
        assert ledger.named_document(name).id == key
    for name, near in (("Pumps", ["d2", "d3"]), ("travel.md", ["d1", "d3"]), ("Travle", ["Travel"])):
        with pytest.raises(NotFound) as raised:
            ledger.named_document(name)
        assert set(near) <= set(raised.value.near)


def test_the_queue(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(4):
        add(ledger, f"d{number}")
    assert [document.id for document in ledger.claim(3)] == ["d0", "d1", "d2"]
    ledger.set_status(["d0"], "failed", "not finite")
    ledger.set_status(["d1"], "pending")
    assert ledger.counts() == {"pending": 2, "learning": 1, "committed": 0, "rejected": 0, "failed": 1, "forgotten": 0}
    assert (ledger.document("d0").reason, ledger.document("d0").attempts, ledger.document("d1").attempts) == ("not finite", 1, 0)
    lock = WriterLock(tmp_path / "lock")
    with pytest.raises(WorkspaceError, match="lock"):
        ledger.recover(lock)
    with lock.acquire():
        assert ledger.recover(lock) == ["d2"]
        assert ledger.recover(lock) == []
    assert (ledger.document("d2").status, ledger.document("d2").attempts) == ("pending", 1)
    assert [document.id for document in ledger.documents("pending")] == ["d1", "d2", "d3"]


def test_committed_documents_leave_the_queue_by_updates_only(ledger: Ledger, learn: Learn) -> None:
    learn("d1")
    with pytest.raises(Conflict, match="revert or forget"):
        ledger.set_status(["d1"], "pending")
    add(ledger, "d2")
    with pytest.raises(ValueError, match="commit_update"):
        ledger.set_status(["d2"], "committed")


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match="stop"), ledger.transaction():
        add(ledger, "d1")
        raise RuntimeError("stop")
    with ledger.transaction():
        add(ledger, "d2")
        with pytest.raises(RuntimeError), ledger.transaction():
            add(ledger, "d3")
            with ledger.transaction():
                add(ledger, "d4")
            raise RuntimeError
        add(ledger, "d5")
    assert [document.id for document in ledger.documents()] == ["d2", "d5"]


def test_a_full_disk_loses_nothing_in_the_ledger(ledger: Ledger) -> None:
    ledger._connection.execute(f"PRAGMA max_page_count = {ledger._rows('PRAGMA page_count')[0][0] + 4}")
    acknowledged = []
    with pytest.raises(DiskFull):
        for number in range(1000):
            acknowledged.append(add(ledger, f"d{number}", title="long " * 200)[0])
    assert acknowledged
    assert [document.id for document in ledger.documents()] == acknowledged
    assert ledger.check() == []
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    add(ledger, "last")
    assert len(ledger.documents()) == len(acknowledged) + 1


def test_many_threads_share_one_ledger(ledger: Ledger) -> None:
    def work(name: str) -> None:
        for number in range(10):
            add(ledger, f"{name}{number}")
            ledger.search("anything")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.documents("pending")) == 40


def test_another_process_that_writes_for_long_is_named_as_the_reason(ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(WorkspaceError, match="another process"):
        add(ledger, "d1")
    assert ledger.documents() == []  # reading goes on
    other.execute("ROLLBACK")
    add(ledger, "d1")


def test_study_sets(ledger: Ledger, store: Store) -> None:
    add(ledger, "d1")
    assert ledger.study("d1") is None
    for content in (b"one", b"two"):
        digest = store.put(content)
        ledger.set_study("d1", digest)
        assert ledger.study("d1") == digest
        assert digest in ledger.referenced_digests()
    with pytest.raises(NotFound):
        ledger.set_study("d1", "0" * 64)


def test_probes_are_kept_with_their_baseline(ledger: Ledger) -> None:
    add(ledger, "d1")
    given = [Probe("q1", "a1", "d1", None, 0.9, True), Probe("q2", "a2", "d1"), Probe("general?", "yes")]
    ids = ledger.add_probes(given)
    assert ledger.probes() == [dataclasses.replace(probe, id=key) for probe, key in zip(given, ids, strict=True)]
    assert [probe.question for probe in ledger.probes("")] == ["general?"]
    ledger.set_baselines({ids[0]: 0.25})
    assert [probe.baseline for probe in ledger.probes("d1")] == [0.25, None]
    with pytest.raises(NotFound):
        ledger.add_probes([Probe("q", "a", "d9")])


@pytest.mark.parametrize("scan", [4096, 0])  # looking at all, and by rejection
def test_probes_are_drawn_within_the_budget_and_by_importance(
    ledger: Ledger, learn: Learn, scan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retain.workspace.documents._SCAN", scan)
    learn("d1")
    learn("d2")
    add(ledger, "d3")  # pending: nothing is known of it yet
    weights = {"d1": 0.9, "d2": 0.1, "d3": 1.0}
    ledger.add_probes([Probe(f"{key} {n}?", "a", key, None, weights[key], n % 2 == 0) for n in range(20) for key in weights])
    general = ledger.add_probes([Probe("general?", "yes", importance=0.5)])
    count: Counter[str] = Counter()
    for seed in range(300):
        drawn = ledger.sample_probes(4, seed)
        assert len({probe.id for probe in drawn}) == 4
        assert drawn == ledger.sample_probes(4, seed)
        count.update(probe.document for probe in drawn)
    assert count["d3"] == 0
    assert 6 < count["d1"] / count["d2"] < 11  # 9, less what drawing without replacement takes
    assert count[""] > 0
    assert {probe.document for probe in ledger.sample_probes(100, 1)} == {"d1", "d2", ""}
    assert len(ledger.sample_probes(100, 1)) == 41
    assert [probe.id for probe in ledger.sample_probes(100, 1, exclude=["d1", "d2"])] == general
    assert all(probe.held_out for probe in ledger.sample_probes(10, 1, held_out=True))
    assert ledger.sample_probes(0, 1) == []
