"""What must hold of a workspace whose process was killed; each thing that does not is one line, which begins with its kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load

from benchmarks.kills_victim import MODEL, arrival_of, documents_of, settings, texts
from retain.workspace import Damaged, Ledger, NotFound, State, Store
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.knowledge import stored_document, stored_probes
from retain.workspace.transaction import document_chunks


@dataclass
class Told:
    """What the workspace acknowledged: arrivals (id -> number), documents forgotten, updates reverted, checkpoints."""

    arrivals: dict[str, int] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    reverted: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)

    def read(self, lines: str) -> None:
        """Add what a process wrote down; a line that was cut off was not acknowledged to anybody."""
        for line in lines.splitlines(keepends=True):
            if line.endswith("\n"):
                what, *words = line.split()
                if what == "arrival":
                    self.arrivals[words[1]] = int(words[0])
                else:
                    {"forgot": self.forgotten, "reverted": self.reverted, "checkpoint": self.checkpoints}[what].add(words[0])


def violations(root: Path, told: Told, at_rest: bool = False) -> list[str]:
    """Everything that is wrong. ``at_rest``: nothing waits any more, so every arrival has to be done."""
    try:
        with ContinualLM.open(root, MODEL, config=settings(), create=False) as lm:
            ledger, store = lm.ledger, lm.store
            found = [f"ledger: {problem}" for problem in ledger.check()]
            found += _settings(ledger)
            found += [_damage(error) for error in store.verify(ledger.referenced_digests())]
            found += _adapter_files(ledger, store)
            found += _arrivals(ledger, told, at_rest)
            found += _learned_twice(ledger)
            found += _acknowledged(ledger, told)
            found += _history(ledger)
            found += _weights(lm)
            found += _index(ledger, store)
            found += _left_behind(ledger, store, told, at_rest)
            return found
    except (Damaged, NotFound) as error:
        return [_damage(error) if isinstance(error, Damaged) else f"object: {error}"]


def _damage(error: Damaged) -> str:
    return f"object: {(error.path.parent.name + error.path.name)[:12]}: {error.problem}"


def _settings(ledger: Ledger) -> Iterator[str]:
    """SQLite is asked to make every commit durable by itself; a power cut is simulated for the objects alone."""
    (mode,), (full,) = ledger._rows("PRAGMA journal_mode")[0], ledger._rows("PRAGMA synchronous")[0]
    if (mode, full) != ("wal", 2):
        yield f"ledger: commits are not synced (journal_mode {mode}, synchronous {full})"


def _adapter_files(ledger: Ledger, store: Store) -> Iterator[str]:
    """Every adapter that a state of the history names is a safetensors file that its description belongs to."""
    named = {item.digest for digest in _states(ledger) for item in ledger.state(digest).adapters}
    for digest in sorted(named):
        tensors, metadata = store.get_tensors(digest)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if not shapes or "spec" not in metadata or json.loads(metadata["spec"])["base"] != MODEL.fingerprint:
            yield f"object: {digest[:12]} is no adapter of this model ({shapes})"


def _states(ledger: Ledger) -> set[str]:
    """The states that can be returned to."""
    head = ledger.head()
    return {update.after for update in ledger.updates() if update.after and not update.expired} | ({head} if head else set())


def _arrivals(ledger: Ledger, told: Told, at_rest: bool) -> Iterator[str]:
    """What was acknowledged waits with its content, or is done and its documents are decided on."""
    known = {row[0]: row[1:] for row in ledger._rows("SELECT id, status, reason, documents, body, kind, name FROM inbox")}
    status = {record.id: (record.status, record.reason) for record in ledger.documents()}
    for key, number in told.arrivals.items():
        if key not in known:
            yield f"lost: arrival {key} was acknowledged and is not known"
            continue
        state, reason, documents, body, kind, name = known[key]
        if state != "done":
            if Arrival(body, kind, name).id != key or body != arrival_of(number).body:
                yield f"lost: arrival {key} is {state} and its content is not what was sent"
            if state in ("failed", "held") and not reason:
                yield f"lost: arrival {key} is {state} without a reason"
            if at_rest:
                yield f"lost: arrival {key} is {state} at the end: {reason}"
            continue
        if set(json.loads(documents)) != set(documents_of(number)):
            yield f"lost: arrival {key} is done and became {documents}, not {documents_of(number)}"
        for document in documents_of(number):
            decided, why = status.get(document, ("not known", ""))
            if decided not in ("committed", "forgotten") and not (decided == "rejected" and why):
                yield f"lost: arrival {key} is done and its document {document} is {decided}"


def _learned_twice(ledger: Ledger) -> Iterator[str]:
    """No document is sent anew after it was learned, so each may be learned once."""
    rows = ledger._rows(
        """SELECT document, count(*) FROM updates JOIN update_documents ON update_id = id
            WHERE kind = 'learn' AND status <> 'rejected' GROUP BY document HAVING count(*) > 1"""
    )
    for document, count in rows:
        yield f"learned twice: {count} updates learned {document}"
    held = [document for item in ledger.state().adapters for document in item.documents]
    for document in sorted({document for document in held if held.count(document) > 1}):
        yield f"learned twice: {document} is in {held.count(document)} adapters in use"


def _acknowledged(ledger: Ledger, told: Told) -> Iterator[str]:
    """What was forgotten, reverted and named stays so."""
    forgotten = {record.id for record in ledger.documents("forgotten")}
    reverted = {update.id for update in ledger.updates() if update.status == "reverted"}
    for document in sorted(told.forgotten - forgotten):
        yield f"undone: {document} was forgotten and is {ledger.document(document).status}"
    for update in sorted(told.reverted - reverted):
        yield f"undone: {update} was reverted and is {ledger.update(update).status}"
    dropped = {event.subject for event in ledger.events(100_000) if event.kind == "checkpoint deleted"}
    for name in sorted(told.checkpoints - dropped - {checkpoint.name for checkpoint in ledger.list_checkpoints()}):
        yield f"undone: the checkpoint {name} is gone"


def _history(ledger: Ledger) -> Iterator[str]:
    """Each update goes on from the state that the one before it made, and changed what it says: replayed, they give the current state."""
    head, last, learned = "", "", set[str]()
    for update in sorted(ledger.updates(), key=lambda record: record.sequence):
        if (update.before, update.parent) != (head, last):
            yield f"history: {update.id} goes on from {update.before[:12]} of {update.parent}, not from {head[:12]} of {last}"
        if update.status == "rejected":
            if update.after:
                yield f"history: {update.id} was rejected and made a state"
            continue
        about = set(update.documents)
        before, head, last = head, update.after, update.id
        match update.kind:
            case "learn":
                learned |= about
            case "forget":
                learned -= about
            case "revert":
                learned ^= about
        if not update.expired or head == ledger.head():
            yield from _change(ledger, update.id, update.kind, about, before, head, learned)
    if (ledger.head() or "", ledger.head_update() or "") != (head, last):
        yield f"history: HEAD is {ledger.head()} of {ledger.head_update()}, the updates lead to {head} of {last}"
    committed = {record.id for record in ledger.documents("committed")}
    if committed != learned:
        yield f"history: committed are {sorted(committed - learned)} that the updates do not give, and not {sorted(learned - committed)}"


def _change(ledger: Ledger, update: str, kind: str, about: set[str], before: str, after: str, learned: set[str]) -> Iterator[str]:
    """One update's state has the adapters of the documents learned by then; learning one added one adapter, and touched no other."""
    new = ledger.state(after)
    if new.documents() != learned:
        yield f"history: {update} made a state of {len(new.documents())} documents, the updates give {len(learned)}"
    if kind == "learn" and (not before or before in ledger.store):
        old = set(ledger.state(before).adapters if before else State().adapters)
        added = set(new.adapters) - old
        if old - set(new.adapters) or [set(item.documents) for item in added] != [about]:
            yield f"history: {update} learned {sorted(about)} and changed {len(added)} and removed {len(old - set(new.adapters))} adapters"


def _weights(lm: ContinualLM) -> Iterator[str]:
    """What a fresh process would answer with is, tensor by tensor and bit by bit, in the files that the ledger's state names."""
    state = lm.state
    for item in state.adapters:
        path = lm.store.path(item.digest)
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != item.digest:
            yield f"weights: the file of adapter {item.name} is not the one that the ledger names"
            continue
        if not same_tensors(lm.knowledge.adapter(item.digest).tensors, load(data)):
            yield f"weights: adapter {item.name} answers with other tensors than its file has"
    for record in lm.ledger.documents("committed")[-3:]:
        decided = lm.knowledge.decide(stored_document(lm.store, record).text, state)
        own = [item for item in state.adapters if record.id in item.documents]
        if not set(own) & set(decided.adapters):
            yield f"weights: a question with the words of {record.id} is not answered by its adapter"


def same_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """The same names, types and bits."""
    return set(one) == set(other) and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def _index(ledger: Ledger, store: Store) -> Iterator[str]:
    """Committed documents, and no others, have passages that are found, and the probes of their study set."""
    indexed = 0
    for record in ledger.documents():
        chunks = ledger.chunks(record.id)
        indexed += len(chunks)
        if record.status != "committed":
            if chunks:
                yield f"index: {record.id} is {record.status} and has {len(chunks)} passages"
            continue
        document, digest = stored_document(store, record), ledger.study(record.id)
        if chunks != list(document_chunks(MODEL, document)):
            yield f"index: the passages of {record.id} are not those of its text"
        if not any(hit.document == record.id for hit in ledger.search(document.text, 24)):
            yield f"index: {record.id} is not found by its own words"
        probes = [(probe.question, probe.answer) for probe in ledger.probes(record.id)]
        if digest is None or sorted(probes) != sorted(stored_probes(store.get(digest))):
            yield f"index: {record.id} has {len(probes)} probes that are not those of its study set"
    if indexed != ledger.chunk_count():
        yield f"index: {ledger.chunk_count() - indexed} passages belong to no document"


def _left_behind(ledger: Ledger, store: Store, told: Told, at_rest: bool) -> Iterator[str]:
    """What is forgotten left nothing: at once where it was acknowledged, at the end in any case."""
    text_of = {
        key: text.encode() for number in told.arrivals.values() for key, text in zip(documents_of(number), texts(number), strict=True)
    }
    gone = {record.id for record in ledger.documents("forgotten") if at_rest or record.id in told.forgotten}
    words = {key: text_of[key] for key in sorted(gone & set(text_of))}
    bodies = [bytes(body) for (body,) in ledger._rows("SELECT body FROM inbox WHERE status = 'done' OR ?", (at_rest,))]
    objects = [store.path(digest).read_bytes() for digest in store] if words else []
    for key, text in words.items():
        if any(text in content for content in (*objects, *bodies)):
            yield f"forgotten: the text of {key} is still stored"
    for record in ledger.arrivals("done", 100_000):
        if record.documents and gone.issuperset(record.documents) and (record.name or record.source):
            yield f"forgotten: the inbox knows where {', '.join(record.documents)} came from"
