"""A workspace to work on, and the shortest way to learn something in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retain.workspace import ActiveAdapter, Chunk, Ledger, State, Store, UpdateRecord

Learn = Callable[..., UpdateRecord]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


@pytest.fixture
def ledger(store: Store) -> Iterator[Ledger]:
    with Ledger.open(store.root / "ledger.db", store) as ledger:
        yield ledger


@pytest.fixture
def learn(ledger: Ledger, store: Store) -> Learn:
    """Learn one document: its text becomes its only chunk, and an adapter for it joins the state."""

    def learn(key: str, text: str = "some text") -> UpdateRecord:
        ledger.add_document({"id": key, "title": f"Title of {key}", "source": f"/home/me/{key}.txt"}, store.put(text.encode()))
        state = ledger.state()
        adapter = ActiveAdapter(key, store.put(f"adapter {key} {text}".encode()), 1.0, (key,))
        after = store.put(State((*state.adapters, adapter), router={"threshold": 0.5}).to_bytes())
        return ledger.commit_update("learn", ledger.head(), after, documents=[key], chunks=[Chunk(key, 0, "Heading", text)])

    return learn
