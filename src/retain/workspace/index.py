"""Searching the chunks of committed documents: BM25 by SQLite's FTS5, over words reduced to their stems."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from retain.workspace.documents import Documents
from retain.workspace.records import Chunk, Hit

_WORD = re.compile(r"\w+")
_WORDS = 64  # of a query; more say nothing new
POSTINGS = 8000
"""How many occurrences of its words in chunks a query may look at, about: it bounds the time of a query whatever the size of the index."""
RANKED = 200
"""How many chunks a query ranks, about, which is what takes most of its time; more, up to a quarter of its postings, to find enough."""


class Index(Documents):
    """The part of the ledger that finds chunks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._frequency: dict[str, int] = {}
        self._frequency_at: tuple[int, int] = (-1, -1)

    def search(self, query: str, k: int = 5, documents: Collection[str] | None = None, postings: int = POSTINGS) -> list[Hit]:
        """The `k` chunks that match any word of `query` best, the best first. `query` is plain text: nothing in it is an operator.

        Words that occur nearly everywhere rank nothing but cost most: words are used from the rarest on until together they occur in
        `postings` chunks. The chunks that have the rarest of them, about `RANKED`, are ranked by all of them (BM25), the rarest counting
        twice. With `documents`, only chunks of those, ranked by all words.
        """
        frequency = self._frequencies(query)
        words = _rarest(frequency, postings)
        if not words or k < 1:
            return []
        wanted, condition = _any(words), ""
        if documents is not None:
            own = f"SELECT id FROM chunks WHERE document IN ({','.join(f'?{n}' for n in range(3, 3 + len(documents)))})"
            condition = f"AND rowid BETWEEN (SELECT min(id) FROM ({own})) AND (SELECT max(id) FROM ({own})) AND +rowid IN ({own})"
        elif len(deciding := _rarest(frequency, RANKED, k, postings // 4)) < len(words):
            wanted = f"({_any(deciding)}) AND ({wanted})"
        statement = f"""SELECT chunks.document, chunks.ordinal, -best.score, chunks.heading, chunks.text FROM (
                SELECT rowid AS id, bm25(chunks_fts) AS score FROM chunks_fts WHERE chunks_fts MATCH ?1 {condition} ORDER BY score LIMIT ?2
            ) AS best JOIN chunks ON chunks.id = best.id ORDER BY best.score"""
        return [Hit(*row) for row in self._rows(statement, (wanted, k, *(documents or ())))]

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
        known, wanted = self._frequency, list(dict.fromkeys(terms))
        new = [term for term in wanted if term not in known]
        for first in range(0, len(new), _WORDS):
            known.update(self._counted(new[first : first + _WORDS]))
        return {term: known[term] for term in wanted}

    def _counted(self, terms: list[str]) -> dict[str, int]:
        """In how many chunks terms occur; one statement for all costs less than one for each."""
        phrases = {term: phrase for term in terms if (phrase := " ".join(_WORD.findall(term)))}
        counts = ", ".join(["(SELECT count(*) FROM chunks_fts WHERE chunks_fts MATCH ?)"] * len(phrases))
        found = self._rows(f"SELECT {counts}", [_quoted(phrase) for phrase in phrases.values()])[0] if phrases else ()
        return dict.fromkeys(terms, 0) | dict(zip(phrases, found, strict=True))

    def _frequencies(self, query: str) -> list[tuple[int, str]]:
        """The words of a query that occur, each with the number of chunks that have it, the rarest first."""
        words = list(dict.fromkeys(_WORD.findall(query.lower())))[:_WORDS]
        return sorted((count, word) for word, count in self.document_frequency(words).items() if count)

    def _chunks(self, condition: str, values: tuple[Any, ...]) -> list[Chunk]:
        rows = self._rows(f"SELECT document, ordinal, heading, text FROM chunks WHERE {condition} ORDER BY ordinal", values)
        return [Chunk(*row) for row in rows]

    def _remove_chunks(self, document: str) -> None:
        self._connection.execute("DELETE FROM chunks WHERE document = ?", (document,))

    def _add_chunk(self, chunk: Chunk) -> None:
        values = (chunk.document, chunk.ordinal, chunk.heading, chunk.text)
        self._connection.execute("INSERT INTO chunks(document, ordinal, heading, text) VALUES (?, ?, ?, ?)", values)


def _rarest(frequency: list[tuple[int, str]], most: int, least: int = 1, limit: int = 0) -> list[str]:
    """The rarest words, which together occur in at most `most` chunks, but always one; or in up to `limit` while they do so in fewer than
    `least`."""
    chosen: list[str] = []
    total = 0
    for count, word in frequency:
        if chosen and total + count > (most if total >= least else max(most, limit)):
            break
        chosen.append(word)
        total += count
    return chosen


def _any(words: list[str]) -> str:
    """An FTS5 expression for chunks that have any of the words."""
    return " OR ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word as an FTS5 string: inside quotes nothing is an operator."""
    return '"' + word.replace('"', '""') + '"'
