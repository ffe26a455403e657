"""Text files: encodings, and telling text from binary rubbish."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path

from retain.data.document import first_line
from retain.data.errors import DataError, Note

Tell = Callable[[Note], None]

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_RUBBISH = re.compile("[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")  # control characters that no text holds; bell, form feed and escape may occur
_TITLE = re.compile(r"^ {0,3}#[ \t]+(\S.*)$", re.MULTILINE)


def read_text(path: Path, tell: Tell) -> str:
    """The text of a file: UTF-8, UTF-16 or UTF-32 with a byte order mark, else Windows-1252 with a note.

    Raises:
        DataError: the file cannot be read, is empty, or is not text.
    """
    return decode(read_bytes(path), path, tell)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; DataError when it cannot be read or is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path, fix="check that it exists and may be read") from error
    if not data.strip():
        raise DataError("the file is empty", path=path)
    return data


def decode(data: bytes, path: Path, tell: Tell) -> str:
    """The text that bytes stand for; see `read_text`."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                what = f"marked as {encoding.upper()} but broken at byte {error.start}"
                raise DataError(what, path=path, fix="save it as UTF-8") from error
            break
    else:
        text = _decode_unmarked(data, path, tell)
    if looks_binary(text):
        raise DataError("binary data, not text", path=path, fix="if it is text, save it as UTF-8")
    if not text.strip():
        raise DataError("the file is empty", path=path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode_unmarked(data: bytes, path: Path, tell: Tell) -> str:
    if b"\x00" in data[:65536]:
        raise DataError("binary data, not text", path=path, fix="if it is UTF-16 text, save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"not text in a known encoding (byte {position} is not UTF-8)", path=path, fix="save it as UTF-8") from error
    if not looks_binary(text):
        tell(Note(str(path), f"not UTF-8 (byte {position}); read as Windows-1252"))
    return text


def looks_binary(text: str) -> bool:
    """Whether a decoded text holds more control characters than any text does (1 in 200)."""
    sample = text[:100_000]
    return "\x00" in sample or len(_RUBBISH.findall(sample)) > len(sample) / 200


def title_of(text: str, path: Path) -> str:
    """The first Markdown heading of a text, or the file's name, or (for a file without a name) the first line."""
    heading = _TITLE.search(text[:5000])
    return heading[1].strip().rstrip("#").strip() if heading else path.name or first_line(text)
