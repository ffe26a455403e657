"""Task streams from files: SQuAD passages with their questions, and lists of probe questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.data.document import Document, QuestionAnswer, well_formed
from retain.data.errors import DataError, did_you_mean

_FIELDS = ("question", "answer", "reworded", "aliases", "document")


@dataclass(frozen=True, slots=True)
class Question:
    """A question to ask a model.

    Attributes:
        question: as it is asked.
        answer: the expected answer.
        reworded: the same question in other words, or None.
        aliases: other answers that count as right.
        document: name or id of the document that holds the answer, or "".
    """

    question: str
    answer: str
    reworded: str | None = None
    aliases: tuple[str, ...] = ()
    document: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers, the expected one first."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with questions about it; `questions[i].document` is the passage's id."""

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]

    def to_document(self, source: str, *, domain: str = "general", importance: float = 0.5) -> Document:
        """The passage as a document with its questions and answers as pairs."""
        pairs = [QuestionAnswer(question.question, question.answer) for question in self.questions]
        return Document.from_text(self.text, self.title, source, domain=domain, importance=importance, pairs=pairs)


def load_squad(path: str | Path, limit: int | None = None) -> list[Passage]:
    """The passages of a SQuAD v1.1 (or 2.0) file with their questions; questions without an answer are left out.

    Args:
        path: a JSON file of the form {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.
        limit: at most this many passages. Default: all.

    Raises:
        DataError: the file cannot be read, is no JSON, or has another form.
    """
    try:
        value = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=path) from error
    return squad_passages(value, path)[:limit]


def is_squad(value: Any) -> bool:
    """Whether a JSON value has the outer form of a SQuAD file."""
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def squad_passages(value: Any, path: str | Path) -> list[Passage]:
    """The passages of a parsed SQuAD file; see `load_squad`."""
    if not is_squad(value):
        raise DataError("not a SQuAD file: 'data' with 'paragraphs' is missing", path=path)
    passages: list[Passage] = []
    field = "data"
    try:
        for i, article in enumerate(value["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                field = f"data[{i}].paragraphs[{j}]"
                passages.append(_passage(article.get("title") or "", paragraph))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not of SQuAD's form: {type(error).__name__} {error}", path=path, field=field) from error
    except DataError as error:
        raise DataError(error.what, path=path, field=field) from error
    return passages


def _passage(title: str, paragraph: Mapping[str, Any]) -> Passage:
    text = well_formed(paragraph["context"]).strip()
    identity = Document.from_text(text, title).id
    questions = []
    for item in paragraph["qas"]:
        answers = list(dict.fromkeys(answer["text"].strip() for answer in item.get("answers", ()) if answer["text"].strip()))
        if answers and item["question"].strip():
            questions.append(Question(item["question"].strip(), answers[0], aliases=tuple(answers[1:]), document=identity))
    return Passage(identity, title.replace("_", " "), text, tuple(questions))


def load_questions(path: str | Path) -> list[Question]:
    """The questions of a file with one JSON object a line: question, answer, and optionally reworded, aliases, document.

    Raises:
        DataError: with the line's number, for a line that is no JSON object or has a missing, unknown or wrong field; or no line.
    """
    questions = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", path=path, line=number) from error
        questions.append(_question(record, path, number))
    if not questions:
        raise DataError("holds no questions", path=path)
    return questions


def _question(record: Any, path: str | Path, line: int) -> Question:
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {type(record).__name__}", path=path, line=line)
    for name in record:
        hint = did_you_mean(name, _FIELDS)
        if name not in _FIELDS and hint:  # other fields, such as "source" or "level", are the user's own
            raise DataError("unknown field", path=path, line=line, field=name, fix=hint)
    for name in ("question", "answer"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError("missing, empty or not text", path=path, line=line, field=name)
    for name in ("reworded", "document"):
        if not isinstance(record.get(name) or "", str):
            raise DataError("not text", path=path, line=line, field=name)
    aliases = record.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise DataError("not a list of texts", path=path, line=line, field="aliases", fix='for example "aliases": ["nine", "9"]')
    named = {name: well_formed(record.get(name) or "").strip() for name in ("question", "answer", "reworded", "document")}
    others = tuple(well_formed(alias).strip() for alias in aliases if alias.strip())
    return Question(named["question"], named["answer"], named["reworded"] or None, others, named["document"])


def _read(path: str | Path) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", path=path, fix="save it as UTF-8") from error
    if not text.strip():
        raise DataError("the file is empty", path=path)
    return text
