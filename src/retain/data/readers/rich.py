"""Formatted files: HTML, PDF and Word documents become text with Markdown headings."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retain.data.errors import DataError, Note
from retain.data.readers.plain import Tell, decode, read_bytes

_HYPHEN = re.compile(r"(\w*[a-zà-ÿ])-\n([a-zà-ÿ]\w*)")
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
_MAX_UNPACKED = 512 * 2**20  # bytes; a Word file that unpacks to more is not read


def read_html(path: Path, tell: Tell) -> tuple[str, str]:
    """Title and main content of a web page: trafilatura, or all of its text where that finds nothing.

    Raises:
        DataError: the file cannot be read, is not text, or holds no text.
    """
    import lxml.etree
    import lxml.html
    import trafilatura

    data = read_bytes(path)
    declared = _CHARSET.search(data[:4096])
    try:
        markup = data.decode(declared[1].decode("ascii")) if declared else decode(data, path, tell)
    except (LookupError, UnicodeDecodeError):
        markup = decode(data, path, tell)
    try:
        parser = lxml.html.HTMLParser(encoding="utf-8")
        root = lxml.html.document_fromstring(markup.encode("utf-8", "replace"), parser=parser)
    except (lxml.etree.LxmlError, ValueError) as error:
        raise DataError(f"not a web page: {error}", path=path) from error
    title = " ".join((root.findtext(".//title") or root.findtext(".//h1") or "").split())
    page = lxml.html.tostring(root, encoding="unicode")
    text = trafilatura.extract(page, output_format="markdown", include_comments=False, favor_recall=True) or ""
    if not text:
        for element in root.xpath("//script | //style | //noscript | //template | //head"):
            element.drop_tree()
        blocks = (" ".join(block.split()) for block in root.itertext())
        text = "\n\n".join(block for block in blocks if block)
    if not text.strip():
        raise DataError("the page holds no text", path=path, fix="if a script fills the page, save it from the browser")
    return title or path.name, text


def read_pdf(path: Path, tell: Tell) -> tuple[str, str]:
    """Title and text of a PDF file, pages in order; words divided at line ends are joined. Unreadable pages are told and left out.

    Raises:
        DataError: the file is damaged, locked with a password, or has no text in it (a scan).
    """
    import pypdf

    read_bytes(path)
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    pages: list[str] = []
    title = ""
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("locked with a password", path=path, fix="save a copy without the password")
        title = str((reader.metadata.title if reader.metadata else "") or "").strip()
        for number in range(len(reader.pages)):
            try:
                pages.append(reader.pages[number].extract_text().strip())
            except Exception as error:  # pypdf lets errors of many kinds through; a page must not cost the whole file
                tell(Note(f"{path}, page {number + 1}", f"cannot be read ({type(error).__name__}: {error}), left out"))
    except DataError:
        raise
    except Exception as error:  # on damaged files
        what = f"not a readable PDF file: {error or type(error).__name__}"
        raise DataError(what, path=path, fix="open it and save it again") from error
    text = "\n\n".join(page for page in pages if page)
    if not text.strip():
        raise DataError(f"no text in {len(pages)} pages", path=path, fix="it may be a scan: run text recognition (OCR) first")
    empty = [str(number) for number, page in enumerate(pages, 1) if not page]
    if empty:
        tell(Note(str(path), f"no text on {len(empty)} of {len(pages)} pages (first: {empty[0]})"))
    return title or path.name, _joined_words(text)


def _joined_words(text: str) -> str:
    """Join words divided at line ends ("exam-", "ple"), except where the text has the hyphen elsewhere within a line."""
    written = set(re.findall(r"\w+-\w+", text))
    return _HYPHEN.sub(lambda match: f"{match[1]}-{match[2]}" if f"{match[1]}-{match[2]}" in written else match[1] + match[2], text)


def read_docx(path: Path, tell: Tell) -> tuple[str, str]:
    """Title and text of a Word document: headings as Markdown, lists with dashes, tables as rows.

    Raises:
        DataError: the file is damaged, not a .docx file, unreasonably large when unpacked, or holds no text.
    """
    import docx

    data = read_bytes(path)
    if not zipfile.is_zipfile(path):
        old = data.startswith(b"\xd0\xcf\x11\xe0")
        raise DataError("an old Word file" if old else "not a Word document", path=path, fix="open it and save it as .docx")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_UNPACKED:
            raise DataError(f"unpacks to {size / 2**20:,.0f} MiB, more than {_MAX_UNPACKED / 2**20:,.0f} MiB", path=path)
        document = docx.Document(str(path))
    except DataError:
        raise
    except Exception as error:  # python-docx raises errors of many kinds on damaged packages
        what = f"not a readable Word document: {error or type(error).__name__}"
        raise DataError(what, path=path, fix="open it and save it again") from error
    text = "\n\n".join(_blocks(document))
    if not text.strip():
        raise DataError("the document holds no text", path=path)
    return (document.core_properties.title or "").strip() or path.name, text


def _blocks(document: Any) -> Iterator[str]:
    from docx.table import Table

    for item in document.iter_inner_content():
        if isinstance(item, Table):
            rows = [" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in item.rows]
            yield "\n".join(f"| {row} |" for row in rows)
            continue
        words, style = item.text.strip(), (item.style.name or "") if item.style is not None else ""
        level = re.fullmatch(r"Heading ([1-6])", style)
        mark = "#" * int(level[1]) + " " if level else "# " if style == "Title" else "- " if style.startswith("List") else ""
        if words:
            yield mark + words
