"""kill -9 at any moment: what was acknowledged is there, and what was not is not half there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from retain.workspace import Ledger, Store, WriterLock

KILLS = 25


def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(20240)
    root = tmp_path / "workspace"
    root.mkdir()
    store = Store(root)
    acknowledged: set[str] = set()
    added: set[str] = set()
    interrupted = 0
    for kill in range(KILLS):
        command = [sys.executable, str(Path(__file__).with_name("writer.py")), str(root), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline() if kill % 5 else ""  # every fifth may also be killed while it starts
            time.sleep(chance.uniform(0.02, 0.3))
            process.kill()
            output, problems = process.communicate()
            assert problems == ""
        for line in (first + output).splitlines(keepends=True):
            if line.endswith("\n"):
                what, key = line.split()
                (added if what == "added" else acknowledged).add(key)
        with WriterLock(root / "lock").acquire(timeout=5) as lock, Ledger.open(root / "ledger.db", store) as ledger:
            updates = ledger.updates()
            assert acknowledged <= {update.id for update in updates}
            assert added <= {document.id for document in ledger.documents()}
            assert store.verify(expected=ledger.referenced_digests()) == []  # every object whole, none missing
            assert ledger.check() == []
            assert ledger.head() == (updates[0].after if updates else None)
            committed = ledger.documents("committed")
            assert {document.update for document in committed} == {update.id for update in updates}
            assert ledger.chunk_count() == len(committed)
            learning = [document.id for document in ledger.documents("learning")]
            assert len(learning) <= 1
            assert ledger.recover(lock) == learning
            interrupted += len(learning)
            assert [update.parent for update in updates] == [update.id for update in updates[1:]] + [""] * bool(updates)
            assert [update.before for update in updates] == [update.after for update in updates[1:]] + [""] * bool(updates)
    assert len(acknowledged) > KILLS
    assert interrupted > 0
