"""Chunks: a text of any length in pieces that fit a window, cut between sentences, with nothing lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from retain.data.errors import DataError
from retain.data.sentences import sentence_spans

_LINE = re.compile(r"\S(?:[^\n]*\S)?")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text: `text` equals `whole[start:end]`; `heading` is the Markdown heading it stands under, or ""."""

    text: str
    start: int
    end: int
    heading: str = ""


class _Unit(NamedTuple):
    """A stretch that is not divided further; `cost` is its tokens, `gap` those of the white space before it."""

    start: int
    end: int
    cost: int
    gap: int
    heading: str | None


def chunks(text: str, count_tokens: Callable[[str], int], max_tokens: int, overlap: int = 0) -> list[Chunk]:
    """Cut a text into chunks of at most `max_tokens` tokens, between sentences where possible.

    A sentence that is too long is cut between lines, then between words, and a word that is too long between characters. Only a
    single character of more than `max_tokens` tokens makes a chunk above the limit. A heading stays with what follows it. With
    overlap 0 every character that is not blank is in exactly one chunk. Takes time linear in the length of the text.

    Args:
        text: text of any length; blank text has no chunks.
        count_tokens: number of tokens of a string.
        max_tokens: largest size of a chunk, in tokens.
        overlap: the sentences at the end of a chunk, up to this many tokens, are repeated at the beginning of the next.

    Raises:
        DataError: max_tokens is below 1, or the overlap is negative or more than half of max_tokens.
    """
    if max_tokens < 1:
        raise DataError(f"chunks need room for at least 1 token, not {max_tokens}", field="max_tokens")
    if not 0 <= overlap <= max_tokens // 2:
        raise DataError(f"an overlap of {overlap} tokens does not fit chunks of {max_tokens}", field="overlap", fix="0 to half a chunk")
    builder = _Builder(text, count_tokens, max_tokens, overlap)
    for unit in _units(text, count_tokens, max_tokens):
        builder.add(unit)
    return builder.finish()


def _units(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[_Unit]:
    """Sentences, or parts of them, each of at most `max_tokens` tokens."""
    gaps: dict[str, int] = {"": 0}
    previous = 0
    for span in sentence_spans(text):
        for start, end, cost in _fitting(text, span.start, span.end, count_tokens, max_tokens, (_LINE, _WORD)):
            white = text[previous:start]
            if white not in gaps:
                gaps[white] = count_tokens(white)
            yield _Unit(start, end, cost, gaps[white], span.heading)
            previous = end


def _fitting(
    text: str, start: int, end: int, count_tokens: Callable[[str], int], limit: int, levels: tuple[re.Pattern[str], ...]
) -> Iterator[tuple[int, int, int]]:
    """`text[start:end]` whole if it fits, else its lines, their words, their characters: (start, end, tokens)."""
    cost = count_tokens(text[start:end])
    if cost <= limit or end - start == 1:
        yield start, end, cost
    elif levels:
        parts = [match.span() for match in levels[0].finditer(text, start, end)]
        if len(parts) == 1:
            yield from _fitting(text, start, end, count_tokens, limit, levels[1:])
            return
        for first, last in parts:
            yield from _fitting(text, first, last, count_tokens, limit, levels[1:])
    else:
        middle = (start + end) // 2
        yield from _fitting(text, start, middle, count_tokens, limit, ())
        yield from _fitting(text, middle, end, count_tokens, limit, ())


class _Builder:
    """Gathers units into chunks. `units[fresh:]` are new, those before are repeated from the last chunk."""

    def __init__(self, text: str, count_tokens: Callable[[str], int], max_tokens: int, overlap: int) -> None:
        self.text, self.count_tokens, self.max_tokens, self.overlap = text, count_tokens, max_tokens, overlap
        self.units: list[_Unit] = []
        self.fresh = 0
        self.cost = 0
        self.heading = ""
        self.done: list[Chunk] = []

    def add(self, unit: _Unit) -> None:
        """Take a unit in; close the chunk before it when it does not fit or begins a new section."""
        new_section = unit.heading is not None and self.cost >= self.max_tokens // 2
        while len(self.units) > self.fresh and (new_section or self.cost + unit.gap + unit.cost > self.max_tokens):
            self._close()
            new_section = False
        while self.units and self.fresh and self.cost + unit.gap + unit.cost > self.max_tokens:  # less overlap, so that it fits
            self._drop_first()
        self._append(unit)

    def finish(self) -> list[Chunk]:
        """Close what is open and return all chunks."""
        while len(self.units) > self.fresh:
            self._close()
        return self.done

    def _append(self, unit: _Unit) -> None:
        self.cost += unit.cost + (unit.gap if self.units else 0)
        self.units.append(unit)

    def _drop_first(self) -> None:
        first = self.units.pop(0)
        self.fresh -= 1
        self.cost -= first.cost + (self.units[0].gap if self.units else 0)

    def _close(self) -> None:
        """Make a chunk of the units; what does not fit after all, and headings at its end, wait for the next."""
        waiting: list[_Unit] = []
        if any(unit.heading is None for unit in self.units[self.fresh :]):
            while self.units[-1].heading is not None:
                waiting.append(self.units.pop())
        piece = self._piece()
        while len(self.units) > 1 and self.count_tokens(piece) > self.max_tokens:
            if self.fresh:
                self._drop_first()
            else:
                waiting.append(self.units.pop())
            piece = self._piece()
        start = self.units[0].start
        self.heading = next((unit.heading for unit in self.units[:1] if unit.heading is not None), self.heading)
        self.done.append(Chunk(piece, start, self.units[-1].end, self.heading))
        self._begin_next(list(reversed(waiting)))

    def _piece(self) -> str:
        return self.text[self.units[0].start : self.units[-1].end]

    def _begin_next(self, waiting: list[_Unit]) -> None:
        """Start the next chunk with the repeated and the waiting units."""
        for unit in self.units[self.fresh :]:
            self.heading = unit.heading if unit.heading is not None else self.heading
        repeated: list[_Unit] = []
        room = self.overlap
        while self.overlap and len(repeated) < len(self.units) - 1 and self.units[-1 - len(repeated)].cost <= room:
            repeated.insert(0, self.units[-1 - len(repeated)])
            room -= repeated[0].cost + repeated[0].gap
        self.units, self.cost, self.fresh = [], 0, 0
        for unit in repeated:
            self._append(unit)
        self.fresh = len(self.units)
        for unit in waiting:
            self._append(unit)
