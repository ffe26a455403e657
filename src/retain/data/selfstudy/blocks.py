"""The parts of a document: sentences of prose, headings, list items, table rows and "Key: value" pairs."""

import re
from dataclasses import dataclass

from retain.data.sentences import sentences

_PAIR = re.compile(r"(?:[-*•]\s+)?\**([A-Za-zÀ-ÿ][\w /'’&()-]{0,38}?)\**\s*:\**\s+(\S.*)")
_BULLET = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)]|[a-z]\))\s+(.*)")
_VERBAL = re.compile(r"\b(is|are|was|were|has|have|had|must|may|will|can|should|there|we|they|it|you)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A sentence, list item, table row or pair. `source` is its text in the document, `cells` are (key, value) pairs where it has them."""

    source: str
    kind: str = "prose"
    heading: str = ""
    cells: tuple[tuple[str, str], ...] = ()
    row: str = ""


def plain(text: str) -> str:
    """The text without Markdown emphasis, code marks and link targets."""
    text = re.sub(r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1", text)
    return re.sub(r"(\*\*|__|`)", "", text).strip()


def as_pair(text: str) -> tuple[str, str] | None:
    """The key and value of "Key: value", when it is one rather than a sentence with a colon."""
    match = _PAIR.fullmatch(text.strip())
    if match is None:
        return None
    key, value = match[1].strip(), plain(match[2]).rstrip(".").strip()
    if len(key.split()) > 4 or _VERBAL.search(key) or not value or len(value.split()) > 25:
        return None
    if re.match(r"//", value) or (_VERBAL.search(value) and len(value.split()) > 8):
        return None
    return key, value


def _table(lines: list[str], heading: str) -> list[Block]:
    rows = [[plain(cell) for cell in line.strip().strip("|").split("|")] for line in lines]
    header, body = (
        rows[0],
        [(line, row) for line, row in zip(lines[1:], rows[1:], strict=True) if not all(re.fullmatch(r":?-*:?", c.strip()) for c in row)],
    )
    blocks = []
    for line, row in body:
        cells = tuple(
            (key.strip(), value.strip()) for key, value in list(zip(header, row, strict=False))[1:] if key.strip() and value.strip()
        )
        if cells and row[0].strip():
            blocks.append(Block(line.strip(), "row", heading, cells, row[0].strip()))
    return blocks


def _paragraph(lines: list[str], heading: str) -> list[Block]:
    blocks = []
    for sentence in sentences(" ".join(line.strip() for line in lines)):
        pair = as_pair(sentence)
        blocks.append(Block(sentence, "pair" if pair else "prose", heading, (pair,) if pair else ()))
    return blocks


def blocks(text: str) -> list[Block]:
    """Every sentence, list item, row and pair of a document, in order, each with the heading that it stands under."""
    found: list[Block] = []
    heading = ""
    waiting: list[str] = []
    table: list[str] = []

    def flush() -> None:
        if table:
            found.extend(_table(list(table), heading))
            table.clear()
        if waiting:
            found.extend(_paragraph(list(waiting), heading))
            waiting.clear()

    lines = [*text.splitlines(), ""]
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("|") and stripped.count("|") >= 3:
            if waiting:
                flush()
            table.append(line)
            continue
        if not stripped or re.fullmatch(r"[-=*_]{3,}", stripped):
            flush()
            continue
        title = re.fullmatch(r"#{1,6}\s+(.+?)\s*#*", stripped)
        alone = (number == 0 or not lines[number - 1].strip()) and not lines[number + 1].strip() if number + 1 < len(lines) else False
        if title or (
            alone
            and len(stripped.split()) <= 7
            and not re.search(r"[.!?:;,]$", stripped)
            and stripped[:1].isupper()
            and not as_pair(stripped)
        ):
            flush()
            heading = plain(title[1] if title else stripped)
            continue
        pair, bullet = as_pair(stripped), _BULLET.fullmatch(line)
        if pair and (bullet or not waiting):
            flush()
            if re.search(r"[.!?]\s+[A-Z][\w ]{0,20}: ", stripped) or len(sentences(stripped)) > 1:
                found.extend(_paragraph([stripped], heading))
            else:
                found.append(Block(stripped, "pair", heading, (pair,)))
        elif bullet and bullet[1].strip():
            flush()
            found.extend(Block(plain(s), "item", heading) for s in sentences(bullet[1]))
        else:
            waiting.append(line)
    flush()
    return found
