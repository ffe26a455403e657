"""Clean-up: repair text, and leave out what is not worth learning, never silently."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from retain.data.document import Document, Message, QuestionAnswer, content_id, well_formed
from retain.data.duplicates import NearDuplicateIndex
from retain.data.errors import Note

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INNER_SPACES = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_BOILERPLATE = re.compile(
    r"""(?ix) ^\W* (?:
        (?:we|this\s+(?:web)?site)\s+uses?\s+cookies\b.{0,120} | (?:accept|reject|allow)\s+(?:all\s+)?cookies | (?:cookie|privacy)\s+
        (?:policy|settings|preferences) | skip\s+to\s+(?:main\s+)?(?:content|navigation) | all\s+rights\s+reserved | terms\s+(?:of\s+
        (?:use|service)|and\s+conditions) | back\s+to\s+top | share\s+(?:this|on)\s+(?:\w+\s*){1,3} | (?:subscribe\s+to|sign\s+up\s+for)\s+
        (?:our|the)\s+newsletter | click\s+here\s+to\s+\w+ | read\s+more | advertisement | (?:log|sign)\s+in | page\s+\d+\s+of\s+\d+
        | (?:please\s+)?enable\s+javascript\b.{0,80} | (?:©|\(c\)|copyright)\s.{0,80}all\s+rights\s+reserved
    ) \W*$"""
)


def clean(text: str, *, keep_layout: bool = False) -> tuple[str, list[Note]]:
    """Repair a text: broken Unicode (ftfy), NFC, invisible control characters, white space.

    Args:
        text: any text.
        keep_layout: True for source code: only control characters, line ends and NFC are touched.

    Returns:
        The repaired text and one note for each kind of change (nothing about mere white space). Cleaning a clean text changes nothing.
    """
    text = well_formed(text).replace("\r\n", "\n").replace("\r", "\n")
    repaired, removed = False, 0
    for _ in range(8):  # one repair may uncover another; nearly all texts settle in the first round
        before = text
        if not keep_layout:
            text = _repair(text)
            repaired = repaired or _letters(text) != _letters(before)
        text, count = _CONTROL.subn("", text)
        removed += count
        text = unicodedata.normalize("NFC", text)
        text = (text if keep_layout else _tidy(text)).strip("\n")
        if text == before:
            break
    notes = [Note("", "repaired broken Unicode")] if repaired else []
    return text, notes + ([Note("", f"removed {removed} control characters")] if removed else [])


def _repair(text: str) -> str:
    import ftfy

    return ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False, fix_character_width=False, normalization="NFC")


def _letters(text: str) -> str:
    """What a repair of the Unicode would change: everything but white space and control characters."""
    return "".join(_CONTROL.sub("", unicodedata.normalize("NFC", text)).split())


def _tidy(text: str) -> str:
    """One space between words, no trailing spaces, at most one blank line; indentation and fenced code stay."""
    lines: list[str] = []
    fenced = False
    for line in _SPACES.sub(" ", text).split("\n"):
        line = line.rstrip()
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            line = _INNER_SPACES.sub(" ", line)
        if line or fenced or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class QualityRules:
    """When a text is not worth learning. The defaults let short facts and lists through, and stop rubbish.

    Attributes:
        min_letters: fewest letters and digits a text may have.
        min_letter_share: least share of letters and digits among its visible characters.
        max_repeated_lines: greatest share of lines that occurred before (of 10 lines and more of at least two words).
        min_distinct_phrases: least share of distinct five-word phrases (texts of 50 words and more).
        min_compressed_share: least size after zlib, relative to before (texts of 1,000 characters and more).
        max_replacement_share: greatest share of U+FFFD, the mark of text that was decoded wrongly.
    """

    min_letters: int = 10
    min_letter_share: float = 0.4
    max_repeated_lines: float = 0.6
    min_distinct_phrases: float = 0.3
    min_compressed_share: float = 0.03
    max_replacement_share: float = 0.01


def quality_problem(text: str, rules: QualityRules | None = None) -> str | None:
    """Why a text is not worth learning, in words for the user, or None when it is."""
    rules = rules or QualityRules()
    visible = "".join(text.split())
    letters = sum(character.isalnum() or unicodedata.category(character)[0] == "M" for character in visible)
    if letters < rules.min_letters:
        return f"too short: {letters} letters, at least {rules.min_letters} are needed"
    replaced = visible.count("\ufffd") / len(visible)
    if replaced > rules.max_replacement_share:
        return f"decoded wrongly: {replaced:.0%} of the characters are replacement characters"
    if letters / len(visible) < rules.min_letter_share:
        return f"mostly symbols: {letters / len(visible):.0%} of the characters are letters or digits"
    return _repetition_problem(text, rules)


def _repetition_problem(text: str, rules: QualityRules) -> str | None:
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 1]
    repeated = sum(count - 1 for count in Counter(lines).values()) / max(len(lines), 1)
    if len(lines) >= 10 and repeated > rules.max_repeated_lines:
        return f"repeated lines: {repeated:.0%} of the lines occurred before"
    words = text.split()
    if len(words) >= 50:
        phrases = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
        distinct = len(set(phrases)) / len(phrases)
        if distinct < rules.min_distinct_phrases:
            return f"repetitive: only {distinct:.0%} of its five-word phrases are distinct"
    data = text.encode("utf-8", "replace")
    if len(text) >= 1000 and len(zlib.compress(data)) / len(data) < rules.min_compressed_share:
        return "repetitive: the same characters over and over"
    return None


def remove_boilerplate(text: str) -> tuple[str, list[Note]]:
    """Take out whole lines that belong to a web page or printout, not to its content; one note for each ("line 3")."""
    kept: list[str] = []
    notes: list[Note] = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= 200 and _BOILERPLATE.match(line):
            notes.append(Note(f"line {number}", f"boilerplate: {line.strip()!r}"))
        else:
            kept.append(line)
    return "\n".join(kept), notes


class Dropped(NamedTuple):
    """Something left out: `where` it was ("notes.md" or "notes.md line 3"), and the `reason`."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What clean-up kept, what it dropped and why, and what it repaired."""

    kept: tuple[Document, ...]
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[Note, ...] = ()


def clean_documents(
    documents: Iterable[Document], *, rules: QualityRules | None = None, known: NearDuplicateIndex | None = None
) -> CleanReport:
    """Repair documents and leave out the worthless and the duplicate ones.

    Args:
        documents: what was read. Source code, pairs and conversations skip the filters made for prose.
        rules: limits of the quality filter.
        known: documents learned before; kept documents are added to it. Default: an empty index, so that duplicates within
            `documents` are found.

    Returns:
        A report in which every document is either kept or dropped with a reason. A repaired document has a new id.
    """
    index = known if known is not None else NearDuplicateIndex()
    kept: list[Document] = []
    dropped: list[Dropped] = []
    notes: list[Note] = []
    for document in documents:
        cleaned, reason, changes = _clean_document(document, rules or QualityRules())
        notes += [change for change in changes if isinstance(change, Note)]
        dropped += [change for change in changes if isinstance(change, Dropped)]
        if cleaned is not None:
            reason = _duplicate_reason(cleaned, index)
        if cleaned is None or reason:
            dropped.append(Dropped(document.source, reason))
        else:
            index.add(cleaned.id, _comparable(cleaned))
            kept.append(cleaned)
    return CleanReport(tuple(kept), tuple(dropped), tuple(notes))


def _clean_document(document: Document, rules: QualityRules) -> tuple[Document | None, str, list[Note | Dropped]]:
    """The repaired document, or None and the reason; and what was repaired in it or taken out of it."""
    text, told = clean(document.text, keep_layout=document.kind == "code")
    changes: list[Note | Dropped] = [Note(document.source, note.what) for note in told]
    if document.kind == "text":
        text, removed = remove_boilerplate(text)
        changes += [Dropped(f"{document.source} {note.where}", note.what) for note in removed]
    problem = quality_problem(text, rules) if document.kind == "text" else ("" if text.strip() else "empty after clean-up")
    if problem:
        return None, problem, changes
    pairs = tuple(QuestionAnswer(clean(pair.question)[0] or pair.question, clean(pair.answer)[0] or pair.answer) for pair in document.pairs)
    messages = tuple(Message(message.role, clean(message.content)[0]) for message in document.messages)
    if (text, pairs, messages) == (document.text, document.pairs, document.messages):
        return document, "", changes
    identity = content_id(text, pairs, messages)
    return replace(document, id=identity, text=text, pairs=pairs, messages=messages), "", changes


def _duplicate_reason(document: Document, index: NearDuplicateIndex) -> str:
    """Why the document is a duplicate, or "". What carries pairs or turns must be equal: a near-duplicate may hold new ones."""
    match = index.find(_comparable(document))
    if match is None:
        return ""
    if match.exact:
        return f"same content as {match.id}"
    if document.pairs or document.messages:
        return ""
    return f"near-duplicate of {match.id} ({match.similarity:.0%} of its phrases)"


def _comparable(document: Document) -> str:
    """All the content of a document as one text."""
    pairs = () if document.kind == "pairs" else document.pairs
    return "\n".join([document.text, *(f"{pair.question}\n{pair.answer}" for pair in pairs)])
