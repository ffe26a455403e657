"""Sentences: a rule-based splitter that knows abbreviations, decimals, initials, lists, headings and fenced code.

It only finds positions; it never changes or loses a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+\S")
_UNDERLINE = re.compile(r" {0,3}(=+|-{3,}|~{3,}|\^{3,})[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+•–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])[ \t]+\S")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s)|[。！？]+[”」』）]*")
_STRONG = re.compile(r"[!?。！？]")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]$")


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Never end a sentence; a name or number follows.
_TITLES = _words(
    """mr mrs ms dr prof rev hon st mt gen col maj capt lt sgt cmdr adm gov sen rep pres fr sr messrs mme mlle hr fig figs eq eqs sec ch
    vol vols no nos nr art par pp p ed eds vs cf e.g i.e eg ie viz ca approx al dept est ext incl tab ref
    refs bzw z.b d.h u.a ggf bspw"""
)
# May end a sentence: they do when a word that usually begins one follows.
_ENDINGS = _words(
    """inc ltd co corp bros jr etc a.m p.m u.s u.k jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thur thurs fri
    sat sun ph.d m.d b.a m.a b.c a.d usw usf min max ave blvd rd gmbh"""
)
_OPENERS = _words(
    """the a an this that these those it he she they we you i there here in on at by for from with as if when while after before since
    but and or so yet however although because its his her their our your my what who where why how not no one two some many most all
    each every both another such once then thus therefore meanwhile moreover finally first second next let"""
)


class Span(NamedTuple):
    """A stretch `text[start:end]` without blanks around it; `heading` is the heading's words when it is one, else None."""

    start: int
    end: int
    heading: str | None = None


def sentences(text: str) -> list[str]:
    """The sentences of a text in order. Headings, list items, table rows and fenced code blocks are one sentence each.

    Every character that is not blank is in exactly one of them.
    """
    return [text[span.start : span.end] for span in sentence_spans(text)]


def sentence_spans(text: str) -> Iterator[Span]:
    """The sentences of a text as positions; takes time linear in the length of the text."""
    for block, splittable in _blocks(text):
        if splittable:
            yield from _split(text, block.start, block.end)
        else:
            yield block


def _blocks(text: str) -> Iterator[tuple[Span, bool]]:
    """Paragraphs (to be split further) and headings, table rows and fenced code (to be left whole)."""
    start = end = -1  # the paragraph being gathered
    fence = ""
    underline = False
    lines = _lines(text)
    for index, (first, last) in enumerate(lines):
        if underline:
            underline = False
            continue
        line = text[first:last]
        opened = _FENCE.match(line)
        if fence:  # inside fenced code: gather up to the closing fence
            end = last
            if opened and opened[1].startswith(fence) and not line[opened.end() :].strip():
                yield from _trimmed(text, start, end, False)
                start, fence = -1, ""
            continue
        following = text[slice(*lines[index + 1])] if index + 1 < len(lines) else ""
        heading = _heading(line, following, gathered=start >= 0)
        alone = heading is not None or line.lstrip().startswith("|")
        if start >= 0 and (alone or opened or not line.strip() or _ITEM.match(line)):
            yield from _trimmed(text, start, end, True)
            start = -1
        if heading is not None and not _HEADING.match(line):
            underline, last = True, lines[index + 1][1]
        if alone:
            yield from _trimmed(text, first, last, False, heading)
        elif line.strip():
            start, end = (first if start < 0 else start), last
            fence = opened[1] if opened else ""
    if start >= 0:
        yield from _trimmed(text, start, end, not fence)


def _heading(line: str, following: str, gathered: bool) -> str | None:
    """The words of a heading line ("# Words", or words above an underline), or None."""
    if _HEADING.match(line):
        return line.strip().strip("#").strip()
    underlined = not gathered and len(line) <= 120 and any(map(str.isalnum, line)) and _UNDERLINE.match(following)
    return line.strip() if underlined and not _ITEM.match(line) else None


def _lines(text: str) -> list[tuple[int, int]]:
    bounds = []
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        bounds.append((start, end))
        start = end + 1
    return bounds


def _trimmed(text: str, start: int, end: int, splittable: bool, heading: str | None = None) -> Iterator[tuple[Span, bool]]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield Span(start, end, heading), splittable


def _split(text: str, start: int, end: int) -> Iterator[Span]:
    first = start
    for match in _END.finditer(text, start, end):
        if match.end() < end and _ends_sentence(text, first, match, end):
            for span, _ in _trimmed(text, first, match.end(), True):
                yield span
            first = match.end()
    for span, _ in _trimmed(text, first, end, True):
        yield span


def _ends_sentence(text: str, first: int, match: re.Match[str], end: int) -> bool:
    """Whether the punctuation at `match` closes the sentence that began at `first`."""
    rest = text[match.end() : min(end, match.end() + 60)].lstrip().lstrip("\"'“‘«(*_[")
    follower = re.match(r"[\w'’]+", rest)
    opener = follower[0] if follower else ""
    if opener and opener[0].islower() and not _STRONG.match(match[0][-1:]):
        return False
    if _STRONG.search(match[0]):
        return not (opener and opener[0].islower() and match[0][0] in "!?")
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    before = text[max(first, match.start() - 40) : match.start()].split()
    word = before[-1].lstrip("\"'“‘«(*_[") if before else ""
    begins = opener.lower() in _OPENERS
    if word.lower() in _TITLES:
        return word.lower() in ("no", "al", "sec", "art") and begins and not opener.isdigit()
    if word.lower() in _ENDINGS or _ACRONYM.fullmatch(word):
        return begins or not opener
    if len(word) == 1 and word.isalpha():  # an initial ("J. Smith"), or the mark of a list item ("a. first")
        return word == "I" or (begins and len(before) > 1 and not before[-2][:1].isupper())
    return not (word.isdigit() and len(before) == 1 and match.start() - first <= 3)  # "3. Third item" keeps its number
