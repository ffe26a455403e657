"""Searching the chunks of committed documents: BM25 by SQLite's FTS5, over words reduced to their stems."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from retain.workspace.documents import Documents
from retain.workspace.records import Chunk, Hit

_WORD = re.compile(r"\w+")
_WORDS = 64  # of a query; more say nothing new
POSTINGS = 2500
"""How many chunks a query may rank, about: it bounds the time of a query whatever the size of the index."""


class Index(Documents):
    """The part of the ledger that finds chunks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._frequency: dict[str, int] = {}
        self._frequency_at: tuple[int, int] = (-1, -1)

    def search(self, query: str, k: int = 5, documents: Collection[str] | None = None, postings: int = POSTINGS) -> list[Hit]:
        """The `k` chunks that match any word of `query` best, the best first. `query` is plain text: nothing in it is an operator.

        Words that occur nearly everywhere rank nothing but cost most: words are used from the rarest on until together they occur in
        `postings` chunks. With `documents`, only chunks of those.
        """
        words = self._rarest(query, postings)
        if not words or k < 1:
            return []
        chosen = "" if documents is None else f"AND chunks.document IN ({','.join('?' * len(documents))})"
        statement = f"""SELECT chunks.document, chunks.ordinal, -chunks_fts.rank, chunks.heading, chunks.text
            FROM chunks_fts JOIN chunks ON chunks.id = chunks_fts.rowid
            WHERE chunks_fts MATCH ? {chosen} ORDER BY chunks_fts.rank LIMIT ?"""
        return [Hit(*row) for row in self._rows(statement, (" OR ".join(map(_quoted, words)), *(documents or ()), k))]

    def chunks(self, document: str) -> list[Chunk]:
        """The chunks of a document in order."""
        return self._chunks("document = ?", (document,))

    def neighbours(self, document: str, ordinal: int, reach: int = 1) -> list[Chunk]:
        """A chunk and those up to `reach` before and after it, in order."""
        return self._chunks("document = ? AND ordinal BETWEEN ? AND ?", (document, ordinal - reach, ordinal + reach))

    def chunk_count(self) -> int:
        """How many chunks there are."""
        return int(self._rows("SELECT count(*) FROM chunks")[0][0])

    def document_frequency(self, terms: Iterable[str]) -> dict[str, int]:
        """In how many chunks each term occurs, as search sees it (stems, no case, no accents). With `chunk_count`, the facts for idf."""
        at = (int(self._rows("PRAGMA data_version")[0][0]), self._connection.total_changes)
        if at != self._frequency_at or len(self._frequency) > 20_000:  # somebody wrote, here or in another process
            self._frequency, self._frequency_at = {}, at
        known = self._frequency
        found = {}
        for term in terms:
            if (count := known.get(term)) is None:
                pieces = _WORD.findall(term)
                query = "SELECT count(*) FROM chunks_fts WHERE chunks_fts MATCH ?"
                count = int(self._rows(query, (_quoted(" ".join(pieces)),))[0][0]) if pieces else 0
                known[term] = count
            found[term] = count
        return found

    def _rarest(self, query: str, postings: int) -> list[str]:
        words = list(dict.fromkeys(_WORD.findall(query.lower())))[:_WORDS]
        frequency = sorted((count, word) for word, count in self.document_frequency(words).items() if count)
        chosen: list[str] = []
        for count, word in frequency:
            postings -= count
            if chosen and postings < 0:
                break
            chosen.append(word)
        return chosen

    def _chunks(self, condition: str, values: tuple[Any, ...]) -> list[Chunk]:
        rows = self._rows(f"SELECT document, ordinal, heading, text FROM chunks WHERE {condition} ORDER BY ordinal", values)
        return [Chunk(*row) for row in rows]

    def _remove_chunks(self, document: str) -> None:
        self._connection.execute("DELETE FROM chunks WHERE document = ?", (document,))

    def _add_chunk(self, chunk: Chunk) -> None:
        values = (chunk.document, chunk.ordinal, chunk.heading, chunk.text)
        self._connection.execute("INSERT INTO chunks(document, ordinal, heading, text) VALUES (?, ?, ?, ?)", values)


def _quoted(word: str) -> str:
    """A word as an FTS5 string: inside quotes nothing is an operator."""
    return '"' + word.replace('"', '""') + '"'
