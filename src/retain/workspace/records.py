"""The values that the ledger takes and gives: documents, chunks, updates, probes, checkpoints, events, and the state that HEAD names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

DocumentStatus = Literal["pending", "learning", "committed", "rejected", "failed", "forgotten"]
UpdateKind = Literal["learn", "revert", "forget", "consolidate", "import", "merge", "enable"]
UpdateStatus = Literal["committed", "rejected", "reverted"]

DOCUMENT_STATUSES: tuple[str, ...] = get_args(DocumentStatus)
UPDATE_KINDS: tuple[str, ...] = get_args(UpdateKind)


@dataclass(frozen=True)
class DocumentRecord:
    """A document as the ledger knows it; its text is the object `blob`."""

    id: str
    title: str
    source: str
    domain: str
    importance: float
    kind: str
    blob: str  # digest; empty once forgotten
    chars: int
    tokens: int
    status: DocumentStatus
    reason: str
    attempts: int  # tries that ended without a commit
    signature: bytes  # minhash
    added_at: str
    update: str  # the update that last decided about it; empty before


@dataclass(frozen=True)
class Chunk:
    """A piece of a document as it is searched."""

    document: str
    ordinal: int
    heading: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A chunk found by `search`; a higher score is better."""

    document: str
    chunk: int  # ordinal in the document
    score: float
    heading: str
    text: str


@dataclass(frozen=True)
class Probe:
    """A question that tells whether something is still known. `document` is empty for general knowledge; `id` is 0 before it is stored."""

    question: str
    answer: str
    document: str = ""
    baseline: float | None = None
    importance: float = 0.5
    held_out: bool = False
    id: int = 0


@dataclass(frozen=True)
class UpdateRecord:
    """One row of the history."""

    id: str
    sequence: int
    kind: UpdateKind
    parent: str  # the update that HEAD came from; empty for the first
    created_at: str
    documents: tuple[str, ...]
    before: str  # state digest; empty for the first
    after: str  # state digest; empty when rejected
    certificate: dict[str, Any]
    status: UpdateStatus
    expired: bool  # its state holds something forgotten since: it is no longer kept and cannot be returned to


@dataclass(frozen=True)
class Checkpoint:
    """A state with a name."""

    name: str
    state: str
    created_at: str

    @property
    def automatic(self) -> bool:
        """Whether nobody asked for it: "auto-" and the number of the update that it was made after."""
        return re.fullmatch(r"auto-\d+", self.name) is not None


@dataclass(frozen=True)
class Event:
    """One line of the learning history."""

    id: int
    at: str
    kind: str
    subject: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class ActiveAdapter:
    """An adapter in use, or what a learner without adapters keeps: its object, its weight, the documents it was learned from, and the
    learner that made it."""

    name: str
    digest: str
    weight: float = 1.0
    documents: tuple[str, ...] = ()
    learner: str = "lora"


@dataclass(frozen=True)
class State:
    """Everything that answering and further learning depend on, as values and digests; stored as canonical JSON."""

    adapters: tuple[ActiveAdapter, ...] = ()
    router: Mapping[str, Any] = field(default_factory=dict)  # calibration: JSON values
    retention: Mapping[str, str] = field(default_factory=dict)  # adapter that goes on learning -> what its retention methods remember
    objects: Mapping[str, str] = field(default_factory=dict)  # any other object by name: the study skill

    def digests(self) -> set[str]:
        """The objects that this state needs."""
        return {adapter.digest for adapter in self.adapters} | set(self.retention.values()) | set(self.objects.values())

    def documents(self) -> set[str]:
        """The documents that its adapters were learned from."""
        return {document for adapter in self.adapters for document in adapter.documents}

    def with_adapters(self, adapters: Sequence[ActiveAdapter], retention: Mapping[str, str] | None = None) -> State:
        """This state with other adapters. What retention methods remember stays, or is ``retention`` by adapter, and goes with its
        adapter."""
        known, names = {**self.retention, **(retention or {})}, {item.name for item in adapters}
        return replace(self, adapters=tuple(adapters), retention={name: known[name] for name in known if name in names})

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal states have equal bytes."""
        return to_json(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """The inverse of `to_bytes`; `ValueError` when it is something else."""
        try:
            value = json.loads(data)
            adapters = tuple(ActiveAdapter(**{**item, "documents": tuple(item["documents"])}) for item in value["adapters"])
            return State(adapters, value["router"], value["retention"], value["objects"])
        except (UnicodeDecodeError, LookupError, TypeError) as error:
            raise ValueError(f"not a state: {error}") from error


def to_json(value: Any) -> str:
    """Canonical JSON. Numbers that JSON lacks become the strings "nan", "inf" and "-inf", so that a bad metric never costs an update."""
    return json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a numpy or torch number
        return _finite(value.item())
    return value
