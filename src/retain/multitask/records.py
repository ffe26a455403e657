"""Records: rows of JSON lines, JSON, CSV and TSV files, read with types that are checked, and split so that no input is on both sides."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.data.errors import DataError, did_you_mean

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One record and where it stands. ``line`` counts from 1; for a JSON list, or for records without a file, it is the position."""

    values: Mapping[str, Any]
    path: str = ""
    line: int = 1

    def error(self, what: str, field: str = "", fix: str = "") -> DataError:
        """An error about this record."""
        return DataError(what, path=self.path, line=self.line, field=field, fix=fix)

    def missing(self, field: str) -> bool:
        """Whether there is nothing in a field: no key, null, an empty text, or NaN."""
        value = self.values.get(field)
        return value is None or value == "" or (isinstance(value, float) and math.isnan(value))

    def text(self, field: str) -> str:
        """The text of a field, which must be there."""
        value = self.values.get(field)
        if value is None:
            raise self.error("is missing", field)
        if not isinstance(value, str):
            raise self.error(f"must be a text, not {_kind(value)}", field)
        if not value.strip():
            raise self.error("is empty", field)
        return value

    def number(self, field: str) -> float | None:
        """The number in a field, also written as a text; None where nothing is there."""
        if self.missing(field):
            return None
        value = self.values[field]
        if isinstance(value, bool):
            return float(value)
        try:
            found = float(value) if isinstance(value, int | float | str) else math.inf
        except ValueError:
            found = math.inf
        if not math.isfinite(found):
            raise self.error(f"must be a number, not {_kind(value)}", field)
        return found

    def label(self, field: str) -> str | None:
        """One label; None where nothing is there."""
        return None if self.missing(field) else self._label(self.values[field], field)

    def labels(self, field: str, separator: str = ",") -> list[str] | None:
        """A list of labels, or a text of labels with separators; None where the field is not there. An empty list has no label."""
        value = self.values.get(field)
        if value is None:
            return None
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        if not isinstance(value, list | tuple):
            raise self.error(f"must be a list of labels, not {_kind(value)}", field)
        return [self._label(item, field) for item in value]

    def listed(self, field: str) -> list[Any]:
        """The list in a field, which must be there; in a CSV file it is written as JSON."""
        value = self.values.get(field)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise self.error("must be a list", field) from None
        if value is None:
            raise self.error("is missing", field)
        if not isinstance(value, list | tuple):
            raise self.error(f"must be a list, not {_kind(value)}", field)
        return list(value)

    def _label(self, value: Any, field: str) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if isinstance(value, str | int | float):
            return str(value).strip()
        raise self.error(f"must be a label (a text or a number), not {_kind(value)}", field)


def read_rows(path: Path) -> list[Row]:
    """The records of a file. Raises DataError with file and line for what cannot be read, and for a file without records."""
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"cannot tell how to read it: it must end with {', '.join(ENDINGS)}", path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start})", path=path) from None
    except OSError as error:
        near = did_you_mean(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError((error.strerror or "cannot be read").lower(), path=path, fix=near) from None
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = list(_table(text, path))
    elif path.suffix.lower() == ".json":
        rows = list(_list(text, path))
    else:
        rows = [Row(_object(line, path, number), str(path), number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise DataError("holds no records", path=path)
    return rows


def rows_of(records: Iterable[Mapping[str, Any] | str], column: str = "text") -> list[Row]:
    """Records that are in memory already; a text stands for a record with that text in ``column``."""
    found = []
    for number, record in enumerate(records, 1):
        values = {column: record} if isinstance(record, str) else record
        if not isinstance(values, Mapping):
            raise DataError(f"a record is a dictionary or a text, not {_kind(record)}", path="records", line=number)
        found.append(Row(values, "records", number))
    return found


def check_columns(rows: Sequence[Row], columns: Iterable[str]) -> None:
    """Raise DataError for a column that no row has."""
    known = dict.fromkeys(key for row in rows for key in row.values)
    for column in columns:
        if column not in known and rows:
            hint = did_you_mean(column, known) or f"there is {', '.join(list(known)[:12])}"
            raise DataError("there is no such column", path=rows[0].path, field=column, fix=hint)


def split_rows(rows: Sequence[Row], shares: Sequence[float], seed: int, ignored: Iterable[str] = ()) -> list[list[Row]]:
    """The rows in ``1 + len(shares)`` parts, the first of which has what the shares leave over, each in the order of the file.

    Rows that are the same but for the ``ignored`` columns (the labels) go to the same part, so that nothing measured was learned by
    heart. The parts depend on the seed and on the rows alone: tasks on the same file get the same parts.
    """
    left_out = set(ignored)
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        values = sorted((key, str(value)) for key, value in row.values.items() if key not in left_out)
        key = hashlib.blake2b(json.dumps([seed, values], ensure_ascii=False).encode(), digest_size=16).digest()
        groups.setdefault(key, []).append(number)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    ordered = [groups[key] for key in sorted(groups)]  # the order of hashes is random, and the seed is in them
    place = 0
    for part, share in enumerate(shares, 1):
        wanted = round(share * len(rows))
        while len(parts[part]) < wanted and place < len(ordered):
            parts[part] += ordered[place]
            place += 1
    parts[0] = [number for group in ordered[place:] for number in group]
    return [[rows[number] for number in sorted(part)] for part in parts]


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}", path=path, line=number) from None
    except (RecursionError, ValueError):
        raise DataError("JSON nested too deeply, or a number too long", path=path, line=number) from None
    if not isinstance(value, dict):
        raise DataError(f"must be an object with fields, not {_kind(value)}", path=path, line=number)
    return value


def _list(text: str, path: Path) -> Iterator[Row]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg}", path=path, line=error.lineno) from None
    if isinstance(found, dict) and isinstance(found.get("data"), list) and "paragraphs" in str(found["data"][:1]):
        found = list(_squad(found["data"], path))
    if not isinstance(found, list):
        raise DataError("must be a list of objects", path=path, fix="or end with .jsonl, one object a line")
    for number, value in enumerate(found, 1):
        if not isinstance(value, dict):
            raise DataError(f"must be an object with fields, not {_kind(value)}", path=path, line=number)
        yield Row(value, str(path), number)


def _squad(articles: list[Any], path: Path) -> Iterator[dict[str, Any]]:
    """The questions of a file in SQuAD's form: a record each, with ``id``, ``title``, ``context``, ``question`` and ``answers``."""
    for number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [{"text": answer["text"], "start": answer["answer_start"]} for answer in asked["answers"]]
                    about = {"title": article.get("title", ""), "context": paragraph["context"]}
                    yield {"id": str(asked.get("id", "")), **about, "question": asked["question"], "answers": answers}
        except (TypeError, KeyError, AttributeError) as error:
            what = f"article {number} is not as SQuAD has it: paragraphs, context and qas, question and answers, text and answer_start"
            raise DataError(f"{what} ({error})", path=path) from None


def _table(text: str, path: Path) -> Iterator[Row]:
    reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        head = next(reader, [])
        doubled = [name for number, name in enumerate(head) if name in head[:number]]
        if not head or doubled:
            raise DataError(f"the column {doubled[0]!r} is there twice" if doubled else "holds no records", path=path, line=1)
        for cells in reader:
            if len(cells) != len(head) and cells:
                raise DataError(f"has {len(cells)} cells, the first line {len(head)}", path=path, line=reader.line_num)
            if cells:
                yield Row(dict(zip(head, cells, strict=True)), str(path), reader.line_num)
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", path=path, line=reader.line_num) from None


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, str):
        return f"the text {value[:24]!r}"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
