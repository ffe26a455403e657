"""A process that learns without end and says what it has committed, to be killed at any moment. Run by test_kill.py."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from retain.workspace import ActiveAdapter, Chunk, Ledger, State, Store, WriterLock


def main(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = Store(root)
    with WriterLock(root / "lock").acquire(timeout=5) as lock, Ledger.open(root / "ledger.db", store) as ledger:
        ledger.recover(lock)
        for number in range(10_000):
            text = f"document {seed} {number} ".encode() + chance.randbytes(chance.randint(10, 60_000))
            key, _ = ledger.add_document({"id": f"d{seed}-{number}"}, store.put(text))
            print("added", key, flush=True)
            (document,) = ledger.claim(1)
            adapter = ActiveAdapter(document.id, store.put(chance.randbytes(30_000)), 1.0, (document.id,))
            after = store.put(State((*ledger.state().adapters[-20:], adapter)).to_bytes())
            chunks = [Chunk(document.id, 0, "", f"words of {document.id} {number}")]
            update = ledger.commit_update("learn", ledger.head(), after, documents=[document.id], chunks=chunks)
            print("committed", update.id, flush=True)
            if number % 7 == 3:
                store.collect(ledger.referenced_digests(), grace=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
