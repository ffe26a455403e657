"""What the Python API gives back: updates, answers, verification, differences; all with ``to_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retain.workspace.records import UpdateRecord

EVENTS = "worker.jsonl"
"""File of a workspace that the learning process writes its progress to, with titles of documents; its older half has the ending .old."""


class _Plain:
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Event:
    """Progress of a long operation. ``kind``: read, study, train, check, commit or note; ``fields``: loss, tokens_per_second ..."""

    kind: str
    message: str = ""
    done: int = 0
    total: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Update(_Plain):
    """One change of what is known. ``status``: committed, rejected, reverted, or unchanged (a document that was known already)."""

    id: str
    sequence: int
    kind: str
    status: str
    documents: list[str]
    created_at: str
    certificate: dict[str, Any]
    reason: str = ""

    @classmethod
    def of(cls, record: UpdateRecord) -> Update:
        """From the ledger's row."""
        reason = str(record.certificate.get("gate", {}).get("reason", "") or record.certificate.get("reason", ""))
        return cls(
            record.id, record.sequence, record.kind, record.status, list(record.documents), record.created_at, record.certificate, reason
        )  # fmt: skip


@dataclass(frozen=True)
class Source(_Plain):
    """A passage that an answer was given from."""

    document: str
    title: str
    text: str
    score: float


@dataclass(frozen=True)
class Answer(_Plain):
    """An answer, the passages in its context, and the names of the adapters that were active (none: the untouched base answered)."""

    text: str
    sources: list[Source]
    adapters: list[str]
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Verification(_Plain):
    """Whether every stored byte is whole and what was learned is still known."""

    ok: bool
    checked: int
    problems: list[str]
    probes: dict[str, Any]


@dataclass(frozen=True)
class Diff(_Plain):
    """What an update changed."""

    adapters_added: list[str]
    adapters_removed: list[str]
    documents_added: list[str]
    documents_removed: list[str]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class AdapterInfo(_Plain):
    """One adapter of the current state, or what a learner without adapters keeps (rank 0). ``bytes_per_document`` is None for one that
    belongs to no document; ``serves``: how many documents questions are routed to it for, 0 while it is disabled."""

    name: str
    digest: str
    domain: str
    documents: list[str]
    rank: int
    sites: list[str]
    parameters: int
    bytes: int
    enabled: bool = True
    bytes_per_document: int | None = None
    learner: str = "lora"
    serves: int = 0
