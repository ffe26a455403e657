"""The ledger: one SQLite file that says what is known, where it came from, and how to undo it.

`Ledger` is everything below in one object: `Database` (connection, transactions, meta, events), `Inbox` (what arrived and is not read
yet), `Documents` (status, probes, study sets), `Index` (search) and `Updates` (history, HEAD, checkpoints).
"""

from __future__ import annotations

from retain.workspace.inbox import Inbox
from retain.workspace.updates import Updates


class Ledger(Updates, Inbox):
    """The ledger of a workspace.

        store = Store(folder)
        ledger = Ledger.open(folder / "ledger.db", store)
        with WriterLock(folder / "lock").acquire() as lock:
            ledger.recover(lock)
            ledger.add_document({"id": "d0123456789ab", "title": "Notes"}, store.put(text))

    Reading needs no lock, also while another process writes.
    """
