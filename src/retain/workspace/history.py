"""Moving between states and looking back: what an update changed, what undoing it leaves, committing a state, checking everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retain.config import Config
from retain.evaluation.probes import Probe
from retain.lm.model import LanguageModel
from retain.workspace import transaction
from retain.workspace.errors import Conflict
from retain.workspace.knowledge import Knowledge, stored_document
from retain.workspace.ledger import Ledger
from retain.workspace.records import State, UpdateKind, UpdateRecord, to_json
from retain.workspace.reports import Diff, Update, Verification
from retain.workspace.store import Store, digest_of


def difference(ledger: Ledger, store: Store, record: UpdateRecord) -> Diff:
    """What an update changed: adapters, documents, and the size of the change."""
    before, after = _states(ledger, record)
    old, new = {item.name: item for item in before.adapters}, {item.name: item for item in after.adapters}
    added = [item for name, item in new.items() if name not in old or old[name].digest != item.digest]
    removed = [item for name, item in old.items() if name not in new or new[name].digest != item.digest]
    parameters: dict[str, Any] = {}
    for item in added:
        tensors, _ = store.get_tensors(item.digest)
        norm = float(sum(tensor.float().square().sum() for tensor in tensors.values())) ** 0.5
        parameters[item.name] = {"tensors": len(tensors), "values": sum(t.numel() for t in tensors.values()), "norm": round(norm, 4)}
    documents_before, documents_after = before.documents(), after.documents()
    return Diff(
        [item.name for item in added],
        [item.name for item in removed],
        sorted(documents_after - documents_before),
        sorted(documents_before - documents_after),
        parameters,
    )


def undone(ledger: Ledger, record: UpdateRecord) -> State:
    """The present state without one update: what it added is out, what it removed is back. Raises Conflict."""
    if record.expired:
        raise Conflict(f"update {record.id} cannot be reverted: a document it held was forgotten")
    before, after = _states(ledger, record)
    state = ledger.state()
    gone = {item.digest for item in after.adapters} - {item.digest for item in before.adapters}
    back = [item for item in before.adapters if item.digest not in {kept.digest for kept in after.adapters}]
    names = {item.name for item in back}
    went_on = [item.name for item in state.adapters if item.name in names and item.digest not in gone]
    if went_on:
        raise Conflict(f"adapter {went_on[0]} learned more since: revert the later updates before {record.id} first")
    kept = [item for item in state.adapters if item.digest not in gone]
    served = {document: item.name for item in kept for document in item.documents}
    moved = [served[document] for item in back for document in item.documents if document in served]
    if moved:
        raise Conflict(f"its documents are in the adapter {moved[0]} now: revert the update that made it before {record.id}")
    left = state.with_adapters([*kept, *back], {name: before.retention[name] for name in names if name in before.retention})
    if left == state:
        raise Conflict(f"update {record.id} left nothing in the current state that could be undone")
    return left


def move(
    ledger: Ledger, store: Store, model: Callable[[], LanguageModel], state: State, kind: UpdateKind, reverts: str = ""
) -> Update:  # fmt: skip
    """Commit a state; documents that come back are indexed again, those that go leave the index (their text stays, rejected)."""
    now, then = ledger.state().documents(), state.documents()
    after = store.put(state.to_bytes())
    back, gone = sorted(then - now), sorted(now - then)
    pieces = [piece for key in back for piece in transaction.document_chunks(model(), stored_document(store, ledger.document(key)))]
    certificate = transaction.seal({"documents": [{"id": key} for key in (*back, *gone)], "reason": reverts and f"reverts {reverts}"})
    with ledger.transaction():
        record = ledger.commit_update(
            kind,
            ledger.head(),
            after,
            documents=back or gone,
            chunks=pieces,
            certificate=certificate,
            mark="committed" if back or not gone else "rejected",
            reason="" if back or not gone else "reverted",
            reverts=reverts,
        )
        if back and gone:
            record = ledger.commit_update(kind, after, after, documents=gone, certificate=certificate, mark="rejected", reason="reverted")
    return Update.of(record)


def verify(ledger: Ledger, store: Store, config: Config, knowledge: Callable[[], Knowledge]) -> Verification:
    """Check every stored byte against its hash, the ledger's integrity, and a sample of the probes against their recorded scores.

    ``knowledge`` is asked for only when there are probes and all bytes are well."""
    referenced = ledger.referenced_digests()
    problems = [f"object {(item.path.parent.name + item.path.name)[:12]}: {item.problem}" for item in store.verify(referenced)]
    problems += [f"ledger: {problem}" for problem in ledger.check()]
    for record in ledger.updates():
        content = dict(record.certificate)
        if "hash" in content and content.pop("hash") != digest_of(to_json(content).encode()):
            problems.append(f"update {record.id}: its certificate was changed")
    probes: dict[str, Any] = {}
    stored = ledger.sample_probes(config.gate.probe_budget, config.learn.seed)
    if stored and not problems:
        known, state = knowledge(), ledger.state()
        asked = [Probe(item.document, item.question, item.answer) for item in stored]
        scores = known.recalls(asked, [known.decide(probe.question, state) for probe in asked], state)
        was, now = sum(bool(item.baseline) for item in stored), sum(scores)
        probes = {"asked": len(stored), "right_when_learned": was, "right_now": now}
        if was and (was - now) / was > config.gate.max_forgetting:
            problems.append(f"probes: {was} were answered when learned, {now} are now")
    return Verification(not problems, len(referenced), problems, probes)


def _states(ledger: Ledger, record: UpdateRecord) -> tuple[State, State]:
    """The states before and after an update; empty ones where there was none."""
    before, after = (ledger.state(digest) if digest else State() for digest in (record.before, record.after))
    return before, after
