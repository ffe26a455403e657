"""The adapters of a state as things to look at and to work on: figures, merging, files in peft's format, weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from retain.adapters import Adapter, AdapterSpec
from retain.adapters.adapter import LORA_A, LORA_B
from retain.lm.model import LanguageModel
from retain.workspace import transaction
from retain.workspace.asking import Wanted, adapter_named, named_adapters
from retain.workspace.errors import Conflict, WorkspaceError, check_name
from retain.workspace.knowledge import Knowledge
from retain.workspace.ledger import Ledger
from retain.workspace.records import ActiveAdapter, State, UpdateKind
from retain.workspace.reports import AdapterInfo, Update
from retain.workspace.store import Store


def info(ledger: Ledger, store: Store, item: ActiveAdapter) -> AdapterInfo:
    """The figures of one adapter, read from its file; no model is needed."""
    tensors, metadata = store.get_tensors(item.digest)
    spec = AdapterSpec.from_json(metadata["spec"]) if "spec" in metadata else AdapterSpec("memory", "", (), 0, 0.0)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) or store.path(item.digest).stat().st_size
    return AdapterInfo(
        item.name,
        item.digest,
        ", ".join(sorted({ledger.document(key).domain for key in item.documents})),
        list(item.documents),
        spec.rank,
        list(spec.sites),
        sum(tensor.numel() for tensor in tensors.values()),
        size,
        bool(item.weight),
        round(size / len(item.documents)) if item.documents else None,
        item.learner,
        len(item.documents) if item.weight else 0,
    )


def change(model: LanguageModel, adapter: Adapter) -> float:
    """||s B A|| / ||W||: the Frobenius norm of what an adapter adds to the weights of its sites, as a share of theirs.

    Raises AdapterError for an adapter that adds no linear map."""
    adapter.check(model)
    weights, added, whole = model.parameters(), 0.0, 0.0
    for site in adapter.spec.sites:
        if adapter.spec.kind != "lora":
            adapter.delta(site)  # says why it has none
        a, b = adapter.tensors[site + LORA_A].double(), adapter.tensors[site + LORA_B].double()
        added += adapter.spec.scale**2 * float(((b.t() @ b) * (a @ a.t())).sum())  # the trace of (B A)' (B A), without forming B A
        whole += float(weights[f"{site}.weight"].double().square().sum())
    return math.sqrt(max(added, 0.0) / whole)


def merge(knowledge: Knowledge, state: State, names: Wanted, method: str, into: str, options: Mapping[str, Any]) -> Update:
    """Put one adapter in the place of several, unless the gate refuses. Raises WorkspaceError, Conflict, NotFound, AdapterError."""
    from retain.adapters import merging

    check_name(into)
    chosen = named_adapters(state, names)
    if len(chosen) < 2:
        raise WorkspaceError("merging needs at least two adapters")
    items = [item for item, _ in chosen]
    weights = [weight for _, weight in chosen]
    rest = [item for item in state.adapters if item not in items]
    if into in {item.name for item in rest}:
        raise Conflict(f"there is an adapter named {into} already")
    merged = merging.merge(method, [knowledge.adapter(item.digest) for item in items], weights, **options).half()
    documents = tuple(dict.fromkeys(document for item in items for document in item.documents))
    after = state.with_adapters([*rest, ActiveAdapter(into, knowledge.keep(merged), 1.0, documents)])
    facts = {"method": method, "merged": [item.name for item in items], "weights": weights, "options": dict(options), "into": into}
    return _gated(knowledge, state, after, "merge", documents, facts)


def _gated(
    knowledge: Knowledge, before: State, after: State, kind: UpdateKind, documents: tuple[str, ...], facts: Mapping[str, Any]
) -> Update:
    """Commit a state when the known answers stay, or record that it was refused."""
    ledger, config = knowledge.ledger, knowledge.config
    old = ledger.sample_probes(config.gate.probe_budget, config.learn.seed)
    kept = transaction.check_kept(knowledge, before, after, {}, old, None, None)
    lost, limit = kept["forgetting"] or 0.0, config.gate.max_forgetting
    reason = f"{lost:.1%} of the known answers would be lost, the limit is {limit:.1%}" if lost > limit else ""
    gate = {"limits": config.gate.model_dump(mode="json"), "verdict": "refused" if reason else "passed", "reason": reason}
    certificate = transaction.seal({"documents": [{"id": key} for key in documents], **facts, "kept": kept, "gate": gate})
    if reason:
        return Update.of(ledger.reject_update(kind, [], reason, certificate))
    return Update.of(ledger.commit_update(kind, ledger.head(), knowledge.store.put(after.to_bytes()), certificate=certificate))


def export(knowledge: Knowledge, state: State, name: str, directory: Path) -> Path:
    """Write an adapter in peft's on-disk format, with the study skill that it was trained on merged in; ``directory``."""
    from retain.adapters.merging import merge
    from retain.adapters.peft_format import export_peft

    item = adapter_named(state, name)
    adapter, skill = knowledge.adapter(item.digest), knowledge.skill(state)
    export_peft(merge("concatenate", [skill, adapter]) if skill and item.documents else adapter, directory, knowledge.model.name)
    return directory


def imported(knowledge: Knowledge, state: State, directory: Path, name: str) -> State:
    """The state with an adapter in peft's format beside the others. Raises InvalidName, Conflict, AdapterError."""
    from retain.adapters.peft_format import import_peft

    check_name(name)
    if name in {item.name for item in state.adapters}:
        raise Conflict(f"there is an adapter named {name} already")
    item = ActiveAdapter(name, knowledge.keep(import_peft(directory, knowledge.model)), 1.0, ())
    return replace(state, adapters=(*state.adapters, item))


def weighed(state: State, name: str, weight: float) -> State:
    """The state with another weight of one adapter. Raises NotFound."""
    chosen = adapter_named(state, name)
    return replace(state, adapters=tuple(replace(item, weight=weight) if item == chosen else item for item in state.adapters))
