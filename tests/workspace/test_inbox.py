"""The queue of arrivals: acknowledged once and for good, leased, tried again, given up; also when its processes are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.workspace.conftest import Learn

from retain.workspace import Conflict, Ledger, NotFound, Store
from retain.workspace.inbox import MOST_ATTEMPTS, Arrival, GroupCommit, QueueFull


def texts(*words: str, **more: object) -> list[Arrival]:
    return [Arrival(word.encode(), **more) for word in words]  # type: ignore[arg-type]


def taken(ledger: Ledger, limit: int = 10, owner: str = "w", seconds: float = 60.0) -> list[str]:
    return [leased.arrival.body.decode() for leased in ledger.lease(owner, seconds, limit)]


def test_the_same_content_is_one_arrival(ledger: Ledger) -> None:
    (first, new), (second, _) = ledger.receive(texts("one", "two"))
    assert new and first != second
    assert ledger.receive(texts("one", source="elsewhere")) == [(first, False)] and ledger.waiting() == 2
    files = [Arrival(b"one", "file", name) for name in ("a.md", "b.md", "a.html")]
    assert len({file.id for file in files} | {first}) == 3, "a file is read by its ending"
    assert ledger.arrival(first).status == "pending"
    with pytest.raises(NotFound):
        ledger.arrival("a0")


def test_the_most_important_first_then_the_oldest(ledger: Ledger) -> None:
    ledger.receive([*texts("a", "b"), *texts("urgent", importance=0.9), *texts("c")])
    assert taken(ledger, 2) == ["urgent", "a"] and taken(ledger, 9) == ["b", "c"] and taken(ledger) == []
    assert ledger.waiting() == 4


def test_what_is_finished_leaves_no_content(ledger: Ledger, learn: Learn) -> None:
    ((key, _),) = ledger.receive(texts("a secret sentence"))
    ledger.lease("w", 60)
    learn("d1")
    ledger.finish(key, "w", ["d1"])
    assert ledger.arrival(key).documents == ("d1",) and ledger.arrival_counts() == {"done": 1} and ledger.waiting() == 0
    ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"a secret sentence" not in ledger.path.read_bytes()
    assert ledger.receive(texts("a secret sentence")) == [(key, False)]
    ledger.forget_document("d1", ledger.head(), ledger.store.put(ledger.state().with_adapters([]).to_bytes()))
    assert ledger.receive(texts("a secret sentence")) == [(key, True)], "forgotten documents can be learned again"
    assert taken(ledger) == ["a secret sentence"]


def test_a_lease_that_ended_is_somebody_elses(ledger: Ledger) -> None:
    ((key, _),) = ledger.receive(texts("one"))
    assert taken(ledger, seconds=-1, owner="dead") == ["one"]
    assert taken(ledger, owner="next") == ["one"] and ledger.arrival(key).attempts == 1
    for change in (lambda: ledger.finish(key, "dead", []), lambda: ledger.extend(key, "dead", 5), lambda: ledger.fail(key, "dead", "no")):
        with pytest.raises(Conflict):
            change()
    ledger.extend(key, "next", 60)
    assert ledger.owners() == ["next"]
    ledger.end_leases("next")
    assert taken(ledger, owner="third") == ["one"]


def test_tried_again_later_and_given_up_with_the_reason(ledger: Ledger) -> None:
    ((key, _),) = ledger.receive(texts("one"))
    for attempt in range(MOST_ATTEMPTS):
        assert taken(ledger) == ["one"]
        ledger.retry(key, "w", "out of memory", delay=30.0 if attempt == 0 else -1.0)
        if attempt == 0:
            assert taken(ledger) == [], "it was to wait"
            ledger._connection.execute("UPDATE inbox SET not_before = 0")
    found = ledger.arrival(key)
    assert (found.status, found.attempts) == ("failed", 3) and found.reason == "given up after 3 attempts: out of memory"
    assert taken(ledger) == []
    assert ledger.receive(texts("one")) == [(key, True)] and taken(ledger) == ["one"]
    ledger.fail(key, "w", "no text in it")
    assert ledger.arrival(key).reason == "no text in it"
    ledger.release(key)
    assert taken(ledger) == ["one"]
    ledger.hold(key, "w", "looks planted")
    assert ledger.arrival_counts() == {"held": 1} and taken(ledger) == []
    ledger.release(key)
    with pytest.raises(Conflict):
        ledger.release(key)
    ledger.drop(key)
    assert ledger.arrivals() == []


def test_a_full_queue_takes_nothing_of_a_group(ledger: Ledger) -> None:
    ledger.receive(texts("one"), room=1)
    with pytest.raises(QueueFull):
        ledger.receive(texts("two", "three"), room=1)
    assert [record.status for record in ledger.arrivals()] == ["pending"]
    assert ledger.receive(texts("one", "two"), room=1)[0][1] is False
    group = GroupCommit(ledger, depth=4)
    results = [group.hand_in(texts(*words)) for words in (("a", "b"), ("c",), ("one",))]
    assert [new for _, new in results[0].result(9)] == [True, True] and results[2].result(9)[0][1] is False
    with pytest.raises(QueueFull):
        results[1].result(9)
    group.close()
    assert ledger.waiting() == 4


def test_many_threads_share_commits(ledger: Ledger) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement.startswith("COMMIT")

    ledger._connection.set_trace_callback(count)
    group, acknowledged = GroupCommit(ledger), []

    def send(number: int) -> None:
        futures = [group.hand_in(texts(f"{number} {item}")) for item in range(100)]
        acknowledged.extend(future.result(30)[0][0] for future in futures)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    group.close()
    assert len(set(acknowledged)) == 800 == ledger.waiting() and commits < 200, commits


SENDER = """
import sys
from pathlib import Path
from retain.workspace import Ledger, Store
from retain.workspace.inbox import Arrival, GroupCommit
store = Store(Path(sys.argv[1]))
ledger = Ledger.open(store.root / "ledger.db", store)
group = GroupCommit(ledger)
for first in range(0, 100_000, 5):
    for key, _ in group.hand_in([Arrival(f"{sys.argv[2]} {n}".encode()) for n in range(first, first + 5)]).result():
        print(key, flush=True)
"""
WORKER = """
import sys
from pathlib import Path
from retain.workspace import Ledger, Store
store = Store(Path(sys.argv[1]))
ledger = Ledger.open(store.root / "ledger.db", store)
while True:
    for leased in ledger.lease(sys.argv[2], 60, 3):
        ledger.add_document({"id": "d" + leased.id[1:13]}, store.put(leased.arrival.body))
        ledger.finish(leased.id, sys.argv[2], ["d" + leased.id[1:13]])
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Sender and worker are killed and started anew; everything acknowledged is there, either waiting or as one document."""
    root, draw, acknowledged = tmp_path / "work", random.Random(0), set()
    Ledger.open(root / "ledger.db", Store(root)).close()
    for kill in range(4):
        commands: Sequence[tuple[str, str]] = ((SENDER, f"s{kill}"), (WORKER, f"w{kill}"))
        sender, worker = (
            subprocess.Popen([sys.executable, "-c", code, str(root), name], stdout=subprocess.PIPE, text=True, env=os.environ)
            for code, name in commands
        )
        assert sender.stdout is not None
        lines = [sender.stdout.readline()]
        time.sleep(draw.uniform(0.05, 0.6))
        for process in (sender, worker):
            process.send_signal(signal.SIGKILL)
        lines += sender.communicate()[0].splitlines()
        worker.communicate()
        acknowledged |= {line.strip() for line in lines if len(line.strip()) == 25}
    store = Store(root)
    with Ledger.open(root / "ledger.db", store) as ledger:
        for owner in ledger.owners():
            ledger.end_leases(owner)
        assert len(acknowledged) > 50
        done = 0
        for key in acknowledged:
            record = ledger.arrival(key)
            assert record.status in ("pending", "done") and record.attempts <= 4
            if record.status == "done":
                done += 1
                assert ledger.document(record.documents[0]).status == "pending"
        assert done > 0 and not ledger.check()
        assert len(ledger.documents()) - done in range(5), "a document without a finished arrival is the one in work at a kill"
