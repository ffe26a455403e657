"""Documents: what a user gives retain to learn. A document is a value; its id is the hash of its content."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retain.data.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
KINDS = ("text", "code", "pairs", "dialogue", "task")
DOMAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question (or prompt) and the answer (or completion) that belongs to it."""

    question: str
    answer: str

    def __post_init__(self) -> None:
        _require_text(self.question, "question")
        _require_text(self.answer, "answer")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of "system", "user", "assistant", "tool"."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"unknown role {self.role!r}", field="role", fix=did_you_mean(str(self.role), ROLES) or f"roles are {ROLES}")
        if not isinstance(self.content, str):
            raise DataError(f"expected text, found {type(self.content).__name__}", field="content")


@dataclass(frozen=True, slots=True)
class Document:
    """Something to learn, with where it came from.

    Attributes:
        id: "d" and 12 hexadecimal digits of SHA-256 of the content; equal content has an equal id.
        title: a short name for people.
        text: the whole text; for pairs and dialogues a readable rendering of them.
        source: the path or address it came from ("notes.jsonl:12" names a line).
        domain: a name of letters, digits, ".", "_", "-", at most 64 characters.
        importance: from 0 (may be forgotten first) to 1 (marked by the user).
        kind: "text", "code", "pairs", "dialogue", or "task": the description of what a model is to do.
        pairs: questions and answers given with the document.
        messages: the turns, when the document is a conversation.

    Raises:
        DataError: a field has the wrong type or is out of range.
    """

    id: str
    title: str
    text: str
    source: str
    domain: str = "general"
    importance: float = 0.5
    kind: str = "text"
    pairs: tuple[QuestionAnswer, ...] = ()
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        _require_text(self.id, "id")
        _require_text(self.text, "text")
        check_metadata(self.domain, self.importance)
        if self.kind not in KINDS:
            raise DataError(f"unknown kind {self.kind!r}", field="kind", fix=did_you_mean(str(self.kind), KINDS) or f"kinds are {KINDS}")
        object.__setattr__(self, "importance", float(self.importance))
        object.__setattr__(self, "pairs", tuple(self.pairs))
        object.__setattr__(self, "messages", tuple(self.messages))

    @classmethod
    def from_text(
        cls,
        text: str,
        title: str | None = None,
        source: str = "text",
        *,
        domain: str = "general",
        importance: float = 0.5,
        kind: str = "text",
        pairs: Sequence[QuestionAnswer] = (),
        messages: Sequence[Message] = (),
    ) -> Document:
        """Make a document and its id. `title` defaults to the first line. Unpaired surrogates become U+FFFD.

        Raises:
            DataError: the text is empty, or the metadata is invalid.
        """
        text = well_formed(text)
        _require_text(text, "text")
        return cls(
            id=content_id(text, pairs, messages),
            title=well_formed(title).strip() if title and title.strip() else first_line(text),
            text=text,
            source=source,
            domain=domain,
            importance=importance,
            kind=kind,
            pairs=tuple(pairs),
            messages=tuple(messages),
        )

    def to_dict(self) -> dict[str, Any]:
        """The document as plain JSON values; `from_dict` reads it back to an equal document."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Document:
        """Read what `to_dict` wrote.

        Raises:
            DataError: a field is missing, unknown or invalid.
        """
        fields = dict(values)
        for name in fields:
            if name not in cls.__dataclass_fields__:
                raise DataError("unknown field of a document", field=name, fix=did_you_mean(name, cls.__dataclass_fields__))
        for name in ("id", "title", "text", "source"):
            if name not in fields:
                raise DataError("a document lacks this field", field=name)
        try:
            fields["pairs"] = tuple(QuestionAnswer(**pair) for pair in fields.get("pairs", ()))
            fields["messages"] = tuple(Message(**message) for message in fields.get("messages", ()))
        except TypeError as error:
            raise DataError(f"a pair or message of a document is malformed: {error}") from error
        return cls(**fields)


def check_metadata(domain: str, importance: float) -> None:
    """Raise DataError unless `domain` is a valid name and `importance` lies in [0, 1]."""
    if not isinstance(domain, str) or not DOMAIN_NAME.fullmatch(domain):
        rule = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 64 characters"
        raise DataError(f"{domain!r} is not a domain name", field="domain", fix=rule)
    number = isinstance(importance, (int, float)) and not isinstance(importance, bool)
    if not number or not 0.0 <= importance <= 1.0:
        raise DataError(f"importance {importance!r} is not a number from 0 to 1", field="importance")


def normalise(text: str) -> str:
    """The form of a text that identity is decided on: NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def content_id(text: str, pairs: Sequence[QuestionAnswer] = (), messages: Sequence[Message] = ()) -> str:
    """The id of a document with this content."""
    parts = [normalise(text)]
    parts += [part for pair in pairs for part in ("pair", normalise(pair.question), normalise(pair.answer))]
    parts += [part for message in messages for part in (message.role, normalise(message.content))]
    return "d" + hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def first_line(text: str, limit: int = 80) -> str:
    """The first line that is not blank, without Markdown heading marks, shortened to `limit` characters."""
    line = next((line for line in text.splitlines() if line.strip(" \t#=-*")), text).strip().lstrip("#").strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def well_formed(text: str) -> str:
    """The text with unpaired surrogates (which no file or database can hold) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _require_text(value: object, field: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"expected text, found {type(value).__name__}", field=field)
    if not value.strip():
        raise DataError("the text is empty", field=field)
