"""The playbook of the learner ace in a workspace: the present one, and those saved by name in the ledger."""

from __future__ import annotations

import json

from retain.learners.ace.playbook import Playbook
from retain.learners.base import Memory
from retain.workspace.errors import NotFound, WorkspaceError, check_name
from retain.workspace.knowledge import Knowledge
from retain.workspace.ledger import Ledger
from retain.workspace.records import ActiveAdapter, State
from retain.workspace.store import Store

ACE = "ace"
_PREFIX = "playbook:"


def present(store: Store, state: State) -> Playbook:
    """The playbook in use. Raises WorkspaceError when there is none."""
    item = next((item for item in state.adapters if item.learner == ACE), None)
    if item is None:
        raise WorkspaceError("there is no playbook yet: retain learn FILE --learner ace makes one")
    return Playbook.from_value(json.loads(store.get_tensors(item.digest)[1]["facts"]))


def saved(ledger: Ledger, name: str) -> Playbook:
    """A saved playbook by name. Raises NotFound, with near names."""
    known = names(ledger)
    if name not in known:
        raise NotFound("playbook", name, known)
    return Playbook.from_value(ledger.meta()[_PREFIX + name])


def names(ledger: Ledger) -> list[str]:
    """The names of the saved playbooks."""
    return sorted(key.removeprefix(_PREFIX) for key, value in ledger.meta().items() if key.startswith(_PREFIX) and value is not None)


def save(ledger: Ledger, name: str, playbook: Playbook) -> None:
    """Keep a playbook under a name; one that is in use is replaced."""
    check_name(name)
    ledger.set_meta(_PREFIX + name, playbook.value())


def loaded(knowledge: Knowledge, state: State, playbook: Playbook) -> State:
    """The state with a playbook in place of the present one. Its documents must be known to the workspace."""
    known = {record.id for record in knowledge.ledger.documents() if record.status != "forgotten"}
    missing = sorted(playbook.documents - known)
    if missing:
        raise WorkspaceError(f"the playbook speaks of {missing[0]}, which this workspace does not have: learn it first")
    order = [record.id for record in knowledge.ledger.documents() if record.id in playbook.documents]
    item = ActiveAdapter(ACE, knowledge.keep(Memory(facts=playbook.value())), 1.0, tuple(order), ACE)
    return state.with_adapters([*(other for other in state.adapters if other.learner != ACE), item])


def forget(ledger: Ledger, document: str) -> None:
    """Take what came from a document out of every saved playbook; one that is empty then is gone."""
    for name in names(ledger):
        before = saved(ledger, name)
        if document in before.documents:
            rest = before.without(document)
            ledger.set_meta(_PREFIX + name, rest.value() if rest.bullets else None)
