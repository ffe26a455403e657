"""Durable files: what a power cut, a full disk and a failing disk leave behind.

The operations are recorded, and for every moment the files are rebuilt as a power cut at that moment may leave them: without what was not
synced (benchmarks/power_cut.py).
"""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest
from benchmarks.power_cut import Recorder, rebuild

from retain.workspace import ActiveAdapter, DiskFull, DurabilityLost, FileSystem, Ledger, State, Store, write_file


def losses(files: Recorder, tmp_path: Path) -> int:
    """Store objects, cut the power at every moment, in several ways; how often was something acknowledged lost, or something half there?"""
    store = Store(tmp_path / "workspace", files)
    for number in range(5):
        digest = store.put(f"object {number} ".encode() * 200)
        files.log.append(("acknowledged", digest))
        if number % 2:
            assert store.put(store.get(digest)) == digest
    lost = 0
    for moment in range(len(files.log) + 1):
        log = files.log[:moment]
        acknowledged = [entry[1] for entry in log if entry[0] == "acknowledged"]
        for seed in range(4):
            target = tmp_path / f"cut-{moment}-{seed}"
            rebuild([entry for entry in log if entry[0] != "acknowledged"], store.root, target, random.Random(seed))
            lost += bool(Store(target).verify(expected=acknowledged))
    return lost


def test_nothing_acknowledged_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    assert losses(Recorder(), tmp_path) == 0


@pytest.mark.parametrize("fault", ["sync", "syncdir"])
def test_the_power_cut_test_finds_a_missing_fsync(fault: str, tmp_path: Path) -> None:
    assert losses(Recorder(left_out=fault), tmp_path) > 0


def test_what_a_dead_process_left_is_made_durable_before_it_is_acknowledged(tmp_path: Path) -> None:
    class Dying(Recorder):
        def sync_directory(self, path: Path) -> None:
            if self.log[-1][0] == "rename":
                raise KeyboardInterrupt
            super().sync_directory(path)

    dying, living = Dying(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "workspace", dying).put(b"content")
    living.log = dying.log
    digest = Store(tmp_path / "workspace", living).put(b"content")
    for seed in range(8):
        rebuild(living.log, tmp_path / "workspace", tmp_path / f"cut-{seed}", random.Random(seed))
        assert Store(tmp_path / f"cut-{seed}").get(digest) == b"content"


def test_quarantine_is_durable_in_both_folders(tmp_path: Path) -> None:
    files = Recorder()
    store = Store(tmp_path / "workspace", files)
    digest = store.put(b"content")
    target = store.quarantine(digest)
    assert files.log[-3:] == [("rename", store.path(digest), target), ("syncdir", target.parent), ("syncdir", store.path(digest).parent)]


def test_what_was_collected_does_not_come_back_in_a_power_cut(tmp_path: Path) -> None:
    files = Recorder()
    store = Store(tmp_path / "workspace", files)
    kept, forgotten = store.put(b"kept"), store.put(b"forgotten")
    assert store.collect({kept}, grace=0) == [forgotten]
    for seed in range(8):
        rebuild(files.log, store.root, tmp_path / f"cut-{seed}", random.Random(seed))
        assert list(Store(tmp_path / f"cut-{seed}")) == [kept]


def test_after_a_power_cut_head_names_only_objects_that_are_there(tmp_path: Path) -> None:
    files = Recorder()
    store = Store(tmp_path / "workspace", files)
    with Ledger.open(store.root / "ledger.db", store) as ledger:
        for number in range(4):
            ledger.add_document({"id": f"d{number}"}, store.put(f"text {number}".encode()))
            adapter = ActiveAdapter(f"a{number}", store.put(f"adapter {number}".encode() * 50), documents=(f"d{number}",))
            after = store.put(State((*ledger.state().adapters, adapter)).to_bytes())
            ledger.commit_update("learn", ledger.head(), after, documents=[f"d{number}"])
            copies = {name: (store.root / name).read_bytes() for name in ("ledger.db", "ledger.db-wal")}  # all of it is synced by SQLite
            files.log.append(("ledger", copies, ledger.head()))
    heads = 0
    for moment in range(len(files.log) + 1):
        ledgers = [entry for entry in files.log[:moment] if entry[0] == "ledger"]
        if not ledgers:
            continue
        for seed in range(2):
            target = tmp_path / f"cut-{moment}-{seed}"
            rebuild([entry for entry in files.log[:moment] if entry[0] != "ledger"], store.root, target, random.Random(seed))
            for name, content in ledgers[-1][1].items():
                (target / name).write_bytes(content)
            cut = Store(target)
            with Ledger.open(target / "ledger.db", cut) as ledger:
                assert ledger.head() == ledgers[-1][2]
                assert cut.verify(expected=ledger.referenced_digests()) == []
                heads += 1
    assert heads > 20


class Small(FileSystem):
    """A disk with room for some bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 500, 999, 1000, 1001, 1999])
def test_a_full_disk_loses_nothing(room: int, tmp_path: Path) -> None:
    files = Small(room)
    store = Store(tmp_path, files)
    contents = [bytes([number]) * 1000 for number in range(2)]
    stored = []
    with pytest.raises(DiskFull):
        for content in contents:
            stored.append(store.put(content))
    assert len(stored) == room // 1000
    assert store.verify(expected=stored) == []
    assert set(store) == set(stored)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(digest[2:] for digest in stored)
    files.room = 10_000
    assert [store.get(store.put(content)) for content in contents] == contents


def test_a_full_disk_noticed_by_fsync_is_no_catastrophe(tmp_path: Path) -> None:
    class Late(FileSystem):
        full = True

        def sync(self, descriptor: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().sync(descriptor)

    files = Late()
    write_file(tmp_path / "old", b"old")
    with pytest.raises(DiskFull):
        write_file(tmp_path / "old", b"new", files)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    files.full = False
    write_file(tmp_path / "old", b"new", files)
    assert (tmp_path / "old").read_bytes() == b"new"


@pytest.mark.parametrize("where", ["sync", "sync_directory"])
def test_a_failed_fsync_stops_everything(where: str, tmp_path: Path) -> None:
    files = FileSystem()
    store = Store(tmp_path, files)
    with Ledger.open(tmp_path / "ledger.db", store) as ledger:
        kept = store.put(b"before")

        def fail(_: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        setattr(files, where, fail)
        with pytest.raises(DurabilityLost):
            store.put(b"after")
        delattr(files, where)  # the disk seems well again: still nothing may be acknowledged
        with pytest.raises(DurabilityLost):
            store.put(b"later")
        with pytest.raises(DurabilityLost):
            ledger.add_document({"id": "d1"}, kept)
        assert store.get(kept) == b"before"
    assert not issubclass(DurabilityLost, Exception)


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old")
    with pytest.raises(DiskFull):
        write_file(tmp_path / "file", b"new content", Small(3))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
