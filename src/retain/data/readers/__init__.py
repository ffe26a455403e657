"""Readers: files and folders become documents.

`plain` reads text and source code, `rich` HTML, PDF and Word, `records` JSON lines and JSON; `paths` finds the reader for a file and
walks folders.
"""

from retain.data.readers.paths import CODE, RECORDS, RICH, TEXT, read_path
from retain.data.readers.records import read_records

__all__ = ["CODE", "RECORDS", "RICH", "TEXT", "read_path", "read_records"]
