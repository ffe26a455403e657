"""A stand-in for ContinualLM with the same methods and no model, for tests of what the command line shows and returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retain.data import Document
from retain.workspace import Ledger, Store
from retain.workspace.errors import Conflict, NotFound
from retain.workspace.records import Checkpoint, DocumentRecord

WHEN = "2026-03-01T10:00:00.000+00:00"


class Plain:
    """Gives a dataclass `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@dataclasses.dataclass
class Event:
    kind: str
    message: str = ""
    done: int = 0
    total: int = 0
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Update(Plain):
    id: str
    sequence: int
    kind: str
    status: str
    documents: list[str]
    created_at: str
    certificate: dict[str, Any]
    reason: str = ""


@dataclasses.dataclass
class Source(Plain):
    document: str
    title: str
    text: str
    score: float


@dataclasses.dataclass
class Answer(Plain):
    text: str
    sources: list[Source]
    adapters: list[str]
    seconds: float
    tokens: int


@dataclasses.dataclass
class Verification(Plain):
    ok: bool
    checked: int
    problems: list[str]
    probes: dict[str, Any]


@dataclasses.dataclass
class Diff(Plain):
    adapters_added: list[str]
    adapters_removed: list[str]
    documents_added: list[str]
    documents_removed: list[str]
    parameters: dict[str, Any]


@dataclasses.dataclass
class AdapterInfo(Plain):
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
    serves: int = 1


def certificate(document: str, title: str, number: int, verdict: str = "passed") -> dict[str, Any]:
    """A certificate with every key of the contract."""
    return {
        "documents": [{"id": document, "title": title}],
        "model": "smollm2-135m-instruct",
        "fingerprint": "d0925e1cba6e71417f1ed5ce",
        "learner": "lora",
        "settings": {"rank": 8, "layers": "last-quarter", "learning_rate": 1e-3},
        "cost": {"seconds": 41.2, "tokens": 12_345, "steps": 160, "parameters": 1_216_000, "bytes": 2_432_000},
        "learned": {"recall_before": 0.04, "recall_after": 0.92, "probes": 25},
        "kept": {
            "old_recall_before": 0.9 if number > 1 else None,
            "old_recall_after": 0.89 if number > 1 else None,
            "forgetting": 0.0111 if number > 1 else None,
            "control_perplexity_before": 18.71,
            "control_perplexity_after": 18.74,
            "perplexity_rise": 0.0016,
            "control_accuracy_before": 0.5,
            "control_accuracy_after": 0.5,
            "kl": 0.0031,
        },
        "gate": {"limits": {"max_forgetting": 0.05, "max_perplexity_rise": 0.01}, "verdict": verdict, "attempts": 1, "reason": ""},
        "machine": {"cores": 2},
        "versions": {"retain": "0.1.0"},
        "created_at": WHEN,
        "hash": "5f" * 32,
    }


def _scores() -> dict[str, Any]:
    """What a consolidation kept."""
    return {
        "learned": {"probes": 12, "recall_when_learned": 0.92, "recall_before": 0.92, "recall_after": 0.9, "forgetting": 0.02},
        "kept": {"forgetting": 0.02, "control_perplexity_before": 18.71, "control_perplexity_after": 18.71, "perplexity_rise": 0.0},
        "gate": {"limits": {"max_forgetting": 0.05, "max_perplexity_rise": 0.01}, "verdict": "passed", "attempts": 1, "reason": ""},
    }


class World:
    """What outlives one command: the workspace's content, and a record of how it was opened and called."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.records: dict[str, DocumentRecord] = {}
        self.adapters: dict[str, AdapterInfo] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.opened: list[dict[str, Any]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0
        self.fail: BaseException | None = None
        self.reject = ""
        self.problems: list[str] = []

    def open(self, workspace: Path, *, progress: Callable[[Any], None], **options: Any) -> ContinualLM:
        self.opened.append({"workspace": workspace, **options})
        return ContinualLM(self, progress, workspace)


class ContinualLM:
    """The methods of the contract over a World."""

    def __init__(self, world: World, progress: Callable[[Any], None], workspace: Path) -> None:
        self.world, self.progress, self.root = world, progress, workspace
        self.ledger = Ledger.open(workspace / "ledger.db", Store(workspace))  # what is handed in needs no model

    def learn_all(self, paths: list[Any], **options: Any) -> list[Update]:
        self.world.calls.append(("learn_all", {"paths": paths, **options}))
        made = []
        for path in paths:
            document = (
                path
                if isinstance(path, Document)
                else Document.from_text(path.read_text(), options.get("title"), str(path), domain=options.get("domain") or "general")
            )
            made.append(self._learn(document, bool(options.get("dry_run"))))
        return made

    def learn_pending(self, **options: Any) -> list[Update]:
        self.world.calls.append(("learn_pending", options))
        waiting = [record for record in self.world.records.values() if record.status == "pending"]
        return [self._learn(Document.from_text(record.title, record.title), False) for record in waiting]

    def _learn(self, document: Document, dry_run: bool) -> Update:
        tell, world = self.progress, self.world
        if dry_run:
            plan = {"items": {"question": 12, "cloze": 7}, "probes": 3, "examples": 22, "tokens": 4_321}
            entry = {"id": document.id, "title": document.title}
            return Update("", 0, "learn", "dry-run", [document.id], "", {"documents": [entry], "plan": plan})
        tell(Event("read", document.title))
        tell(Event("note", "repaired the encoding"))
        for done in (1, 80, 160):
            tell(Event("train", document.title, done, 160, {"loss": 2.0 / done, "tokens_per_second": 87.0}))
        if world.fail is not None:
            raise world.fail
        tell(Event("check", f"asking what {document.title} taught"))
        known = world.records.get(document.id)
        number = len(world.updates) + 1
        if known is not None and known.status == "committed":
            reason = f"already learned as {known.title} in update {known.update}"
            return Update(known.update, number, "learn", "unchanged", [known.id], WHEN, {}, reason)
        status = "rejected" if world.reject else "committed"
        certified = certificate(document.id, document.title, number, "rejected" if world.reject else "passed")
        update = Update(f"u{number:08x}", number, "learn", status, [document.id], WHEN, certified, world.reject)
        world.updates.append(update)
        facts = (document.id, document.title, document.source, document.domain, document.importance, document.kind, "b" * 64)
        world.records[document.id] = DocumentRecord(
            *facts,
            len(document.text),
            120,
            status,
            world.reject,
            0,
            b"sig",
            WHEN,
            update.id,  # type: ignore[arg-type]
        )
        tell(Event("commit", f"{document.title} [learned]"))
        sites = [f"model.layers.{layer}.self_attn.q_proj" for layer in (22, 23)]
        name = f"a{number}"
        world.adapters[name] = AdapterInfo(name, "ab" * 32, document.domain, [document.id], 8, sites, 1_216_000, 2_432_000, True, 2_432_000)
        return update

    def ask(self, question: str, **options: Any) -> Answer:
        self.world.calls.append(("ask", {"question": question, **options}))
        if self.world.fail is not None:
            raise self.world.fail
        if options.get("on_token"):
            for piece in (" The ", "[head] ", "of travel."):
                options["on_token"](piece)
        sources = [] if options.get("retrieval") is False else [Source("d1", "Travel policy", "The head of travel approves.", 0.83)]
        return Answer(" The [head] of travel.", sources, ["a1"], 1.42, 6)

    def log(self) -> list[Update]:
        return list(self.world.updates)

    def show(self, id: str) -> Update:
        for update in self.world.updates:
            if update.id.startswith(id):
                return update
        raise NotFound("update", id, [update.id for update in self.world.updates])

    def diff(self, id: str) -> Diff:
        update = self.show(id)
        return Diff(["a1"], [], list(update.documents), [], {"norm": 1.25})

    def revert(self, id: str) -> Update:
        self.show(id).status = "reverted"
        return self._record("revert")

    def forget(self, document_id: str, **options: Any) -> Update:
        self.world.calls.append(("forget", {"document": document_id, **options}))
        found = [key for key in self.world.records if key.startswith(document_id)]
        if len(found) != 1:
            raise NotFound("document", document_id, list(self.world.records))
        if self.world.checkpoints and not options.get("drop_checkpoints"):
            raise Conflict(f"{found[0]} is also in the checkpoints {', '.join(self.world.checkpoints)}")
        del self.world.records[found[0]]
        return self._record("forget")

    def verify(self) -> Verification:
        return Verification(not self.world.problems, 12, self.world.problems, {"recall": 0.91})

    def documents(self) -> list[DocumentRecord]:
        return list(self.world.records.values())

    @property
    def adapters(self) -> list[AdapterInfo]:
        return list(self.world.adapters.values())

    def adapter_change(self, name: str) -> float:
        return 0.0123 if name in self.world.adapters else 0.0

    def merge(self, names: list[Any], method: str = "ties", into: str = "", **options: Any) -> Update:
        self.world.calls.append(("merge", {"names": names, "method": method, "into": into, **options}))
        return self._record("merge")

    def consolidate(self, domain: str | None = None) -> Update | None:
        world = self.world
        world.calls.append(("consolidate", {"domain": domain}))
        joined = [adapter for adapter in world.adapters.values() if domain in (None, adapter.domain)]
        if len(joined) < 2:
            return None
        size, documents = sum(adapter.bytes for adapter in joined), [key for adapter in joined for key in adapter.documents]
        update = self._record("consolidate")
        update.documents = documents
        facts = {"domain": joined[0].domain, "into": "shared", "documents": len(documents), "single": len(joined), "grown": False}
        facts |= {"adapters_before": len(joined), "adapters_after": 1, "bytes_before": size, "bytes_after": joined[0].bytes}
        sizes = (("before", size), ("after", joined[0].bytes))
        facts |= {f"bytes_per_document_{when}": round(value / len(documents)) for when, value in sizes}
        update.certificate = {"documents": [{"id": key} for key in documents], "consolidated": facts, **_scores()}
        if world.reject:
            update.status = "rejected"
            update.reason = world.reject
            return update
        for adapter in joined:
            del world.adapters[adapter.name]
        shared = dataclasses.replace(joined[0], name="shared", documents=documents, bytes_per_document=joined[0].bytes // len(documents))
        world.adapters["shared"] = shared
        return update

    def export_adapter(self, name: str, directory: Path) -> None:
        directory.mkdir(parents=True)

    def import_adapter(self, directory: Path, name: str) -> Update:
        self.world.calls.append(("import", {"directory": directory, "name": name}))
        return self._record("import")

    def enable(self, name: str) -> None:
        self.world.adapters[name].enabled = True

    def disable(self, name: str) -> None:
        self.world.adapters[name].enabled = False

    def checkpoint(self, name: str) -> Checkpoint:
        self.world.checkpoints[name] = Checkpoint(name, "cd" * 32, WHEN)
        return self.world.checkpoints[name]

    def checkpoints(self) -> list[Checkpoint]:
        return list(self.world.checkpoints.values())

    def load_checkpoint(self, name: str) -> Update:
        if name not in self.world.checkpoints:
            raise NotFound("checkpoint", name, self.world.checkpoints)
        return self._record("revert")

    def model_info(self) -> dict[str, Any]:
        return {"name": "smollm2-135m-instruct", "parameters": 134_515_008, "layers": 30, "fingerprint": "d0925e1c"}

    def close(self) -> None:
        self.ledger.close()
        self.world.closed += 1

    def _record(self, kind: str) -> Update:
        number = len(self.world.updates) + 1
        self.world.updates.append(Update(f"u{number:08x}", number, kind, "committed", [], WHEN, {}))
        return self.world.updates[-1]
