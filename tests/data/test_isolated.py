"""Files that are read in a process of their own: the same documents, and bounds that hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.data import DataError
from retain.data.errors import Note
from retain.data.readers import read_path
from retain.data.readers.isolated import read_isolated


def test_the_same_as_reading_it_here(tmp_path: Path) -> None:
    file, notes = tmp_path / "notes.md", list[Note]()
    file.write_bytes("# Tram\n\nThe caf\xe9 opened in 1911.".encode("latin-1"))
    (here,) = read_path(file, domain="work", importance=0.9, on_note=lambda note: None)
    (there,) = read_isolated(file.read_bytes(), "notes.md", domain="work", importance=0.9, on_note=notes.append)
    assert (there.id, there.text, there.title, there.domain, there.importance) == (here.id, here.text, "Tram", "work", 0.9)
    assert there.source == "notes.md" and notes and notes[0].where == "notes.md", "the repaired encoding is told, with the file's name"


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        (b"", "a.md", "a.md: the file is empty"),
        (b"%PDF-1.4 broken", "b.pdf", "b.pdf: not a readable PDF"),
        (b'{"text": "fine, this is text"}\n{"text": 3}\n', "../c.jsonl", "../c.jsonl, line 2, field 'text'"),
    ],
)
def test_mistakes_are_told_with_the_name_that_was_sent(body: bytes, name: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        read_isolated(body, name)
    assert str(raised.value).startswith(said) and "retain-read" not in str(raised.value)


def test_time_and_memory_are_bounded() -> None:
    with pytest.raises(DataError, match="longer than"):
        read_isolated(b"some text", "a.md", seconds=0.01)
    with pytest.raises(DataError, match="needs more memory"):
        read_isolated(b"many words " * 8_000_000, "a.md", memory=120 << 20)
