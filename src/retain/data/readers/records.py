"""Records: JSON lines and JSON files of texts, conversations, prompts with completions, Alpaca, ShareGPT, questions with a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retain.data.document import Document, Message, QuestionAnswer, check_metadata, well_formed
from retain.data.errors import DataError, did_you_mean
from retain.data.readers.plain import Tell, read_text
from retain.data.streams import is_squad, squad_passages

_KEYS = ("text", "messages", "conversations", "prompt", "completion", "instruction", "output", "questions")
_FORMS = "text | messages | conversations | prompt + completion | instruction + output | text + questions"
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def read_jsonl(path: Path, tell: Tell, *, domain: str, importance: float) -> list[Document]:
    """The documents of a file with one JSON object a line. Blank lines are skipped.

    Raises:
        DataError: with the line's number, for a line that is no JSON object, fits no known form, or has a wrong field.
    """
    lines = read_text(path, tell).split("\n")
    records = ((number, parse_json(line, path, number)) for number, line in enumerate(lines, 1) if line.strip())
    return read_records(records, path, domain=domain, importance=importance)


def read_json(path: Path, tell: Tell, *, domain: str, importance: float) -> list[Document] | None:
    """The documents of a JSON file: a SQuAD file, a record, or a list of records. None when it is other JSON.

    Raises:
        DataError: the file is no JSON; or its first record is of a known form and a later one is not (told with its position).
    """
    value = parse_json(read_text(path, tell), path, None)
    if is_squad(value):
        passages = squad_passages(value, path)
        return [passage.to_document(str(path), domain=domain, importance=importance) for passage in passages]
    records = value if isinstance(value, list) else [value]
    if not records or not isinstance(records[0], dict) or (_form(records[0]) is None and not _is_test_question(records[0])):
        return None
    return read_records(enumerate(records, 1), path, domain=domain, importance=importance, unit="record")


def parse_json(text: str, path: Path, line: int | None) -> Any:
    """Parse JSON; a DataError names the file, the line and the column of a mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        number = line if line is not None else error.lineno
        raise DataError(f"not JSON: {error.msg} at column {error.colno}", path=path, line=number) from error
    except (RecursionError, ValueError) as error:
        raise DataError("JSON nested too deeply, or a number too long", path=path, line=line) from error


def read_records(
    records: Iterable[tuple[int, Any]], path: str | Path, *, domain: str = "general", importance: float = 0.5, unit: str = "line"
) -> list[Document]:
    """Numbered records as documents: one for each text and each conversation, and one for all the prompts with completions.

    A record's own "title", "domain" and "importance" go before the arguments.

    Raises:
        DataError: a record fits no known form or has a wrong field; or there are none.
    """
    found: list[Document] = []
    pairs: dict[str, list[QuestionAnswer]] = {}
    highest: dict[str, float] = {}
    for number, record in records:
        reader = _Record(record, path, number, unit)
        field, weight = reader.metadata(domain, importance)
        form = reader.form()
        if form == "pair":
            pairs.setdefault(field, []).append(reader.pair())
            highest[field] = max(highest.get(field, 0.0), weight)
        else:
            found.append(reader.document(form, field, weight))
    found += [_pairs_document(items, path, name, highest[name]) for name, items in pairs.items()]
    if not found:
        raise DataError("holds no records", path=path)
    return found


def _pairs_document(pairs: list[QuestionAnswer], path: str | Path, domain: str, importance: float) -> Document:
    text = "\n\n".join(f"{pair.question}\n{pair.answer}" for pair in pairs)
    title = f"{Path(path).name} ({len(pairs)} pairs)"
    return Document.from_text(text, title, str(path), domain=domain, importance=importance, kind="pairs", pairs=pairs)


def _form(record: Mapping[str, Any]) -> str | None:
    if "messages" in record or "conversations" in record:
        return "dialogue"
    if any({asked, told} <= record.keys() for asked, told in _PAIRS):
        return "pair"
    return "text" if "text" in record else None


def _is_test_question(record: Mapping[str, Any]) -> bool:
    return {"question", "answer"} <= record.keys()


class _Record:
    """One record and where it stands, so that every error can say so."""

    def __init__(self, record: Any, path: str | Path, number: int, unit: str) -> None:
        self.record, self.path, self.number, self.unit = record, path, number, unit
        if not isinstance(record, dict):
            raise self.error(f"expected a JSON object, found {type(record).__name__}")

    def error(self, what: str, field: str = "", fix: str = "") -> DataError:
        """A DataError for this record."""
        if self.unit == "line":
            return DataError(what, path=self.path, line=self.number, field=field, fix=fix)
        return DataError(what, path=f"{self.path}, {self.unit} {self.number}", field=field, fix=fix)

    def form(self) -> str:
        """ "dialogue", "pair" or "text"."""
        form = _form(self.record)
        if form is None and _is_test_question(self.record):
            fix = "name the fields 'prompt' and 'completion' to have them learned"
            raise self.error("questions for testing, which must not be learned", fix=fix)
        if form is None:
            keys = [key for key in self.record if key not in _KEYS]
            guess = next((f"'{key}': {hint}" for key in keys if (hint := did_you_mean(key, _KEYS))), "")
            names = ", ".join(repr(key) for key in list(self.record)[:6]) or "none"
            raise self.error(f"a record of no known form; its fields are {names}", fix=guess or f"forms: {_FORMS}")
        return form

    def metadata(self, domain: str, importance: float) -> tuple[str, float]:
        """The record's own domain and importance, where it has them."""
        given = {name: value for name, value in self.record.items() if value is not None}
        own_domain, own_importance = given.get("domain", domain), given.get("importance", importance)
        try:
            check_metadata(own_domain, own_importance)
        except DataError as error:
            raise self.error(error.what, error.field, error.fix) from error
        return own_domain, own_importance

    def document(self, form: str, domain: str, importance: float) -> Document:
        """The record as a document of its own."""
        title = self.record.get("title")
        source = f"{self.path}:{self.number}"
        name = title if isinstance(title, str) and title.strip() else None
        if form == "text":
            text, pairs = self.text("text"), self.questions()
            return Document.from_text(text, name, source, domain=domain, importance=importance, pairs=pairs)
        messages = self.messages()
        text = "\n\n".join(f"{message.role}: {message.content}" for message in messages)
        first = next((message.content for message in messages if message.role == "user"), text)
        return Document.from_text(
            text, name or first[:80], source, domain=domain, importance=importance, kind="dialogue", messages=messages
        )

    def text(self, field: str) -> str:
        """A field that must be text and not blank."""
        return self.filled(self.record.get(field), field)

    def filled(self, value: Any, field: str) -> str:
        """`value` if it is text and not blank, else an error about `field`."""
        if not isinstance(value, str):
            raise self.error("missing" if value is None else f"expected text, found {type(value).__name__}", field)
        if not value.strip():
            raise self.error("empty", field)
        return well_formed(value)

    def pair(self) -> QuestionAnswer:
        """The record as prompt and completion."""
        if "instruction" in self.record and "output" in self.record:
            extra = self.record.get("input") or ""
            if not isinstance(extra, str):
                raise self.error(f"expected text, found {type(extra).__name__}", "input")
            question = self.text("instruction") + (f"\n\n{well_formed(extra)}" if extra.strip() else "")
            return QuestionAnswer(question, self.text("output"))
        return QuestionAnswer(self.text("prompt"), self.text("completion" if "completion" in self.record else "response"))

    def questions(self) -> list[QuestionAnswer]:
        """The questions given with a text."""
        value = self.record.get("questions", [])
        items = self.listed(value, "questions")
        found = []
        for i, item in items:
            question = self.filled(item.get("question"), f"questions[{i}].question")
            found.append(QuestionAnswer(question, self.filled(item.get("answer"), f"questions[{i}].answer")))
        return found

    def messages(self) -> list[Message]:
        """The turns of a conversation, OpenAI's form or ShareGPT's."""
        name = "messages" if "messages" in self.record else "conversations"
        turns = [self.message(item, f"{name}[{i}]") for i, item in self.listed(self.record[name], name)]
        if not any(turn.content.strip() for turn in turns):
            raise self.error("a conversation without words", name)
        return turns

    def message(self, item: Mapping[str, Any], field: str) -> Message:
        """One turn."""
        role_key, content_key = ("role", "content") if "role" in item else ("from", "value")
        role = item.get(role_key)
        if not isinstance(role, str) or role.lower() not in _ROLES:
            fix = did_you_mean(str(role), _ROLES) or "user, assistant, system or tool"
            raise self.error(f"unknown role {role!r}", f"{field}.{role_key}", fix)
        content = item.get(content_key)
        if isinstance(content, list):  # OpenAI's content parts
            content = "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)) or None
        if content is None and item.get("tool_calls"):
            content = json.dumps(item["tool_calls"], ensure_ascii=False)
        if not isinstance(content, str):
            problem = "missing" if content is None else f"expected text, found {type(content).__name__}"
            raise self.error(problem, f"{field}.{content_key}")
        return Message(_ROLES[role.lower()], well_formed(content))

    def listed(self, value: Any, field: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The numbered objects of a list."""
        if not isinstance(value, list):
            raise self.error(f"expected a list, found {type(value).__name__}", field)
        for number, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.error(f"expected an object, found {type(item).__name__}", f"{field}[{number}]")
            yield number, item
