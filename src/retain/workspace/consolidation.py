"""Consolidation: documents of a domain leave adapters of their own for one that they share, checked like everything that is learned.

One adapter is trained on the study sets of all the documents together, and takes the place of theirs when it answers their probes as they
did, within the limits of the gate. A shared adapter goes on growing: the next consolidation starts from it. Forgetting a document of a
shared adapter trains the adapter anew for the others, in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retain.adapters import Adapter
from retain.config import Config
from retain.data.examples import Example
from retain.evaluation.probes import Probe
from retain.learners.lora import Candidate, sites_of
from retain.learners.registry import DEFAULT
from retain.learners.study import StudySet, study_examples
from retain.training.loop import TrainingError
from retain.workspace.errors import NotFound, WorkspaceError
from retain.workspace.knowledge import Knowledge, stored_document
from retain.workspace.ledger import Ledger
from retain.workspace.records import ActiveAdapter, State
from retain.workspace.records import Probe as StoredProbe
from retain.workspace.reports import Event, Update
from retain.workspace.transaction import (
    ATTEMPTS,
    Tell,
    certify,
    check_kept,
    cost_of,
    refusal_of,
    shared_name,
    train_candidate,
    with_candidate,
)

PLAIN, STRONGER = ATTEMPTS[:2]


@dataclass(frozen=True)
class Shared:
    """A checked adapter of several documents: the state with it, what it answers, and why the gate refuses it (empty: it passed).

    Without a ``candidate`` its training failed, and the state is the one before."""

    state: State
    candidate: Candidate | None
    attempts: int
    refusal: str
    documents: list[dict[str, Any]] = field(default_factory=list)
    learned: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def recall(self) -> float:
        """Share of the asked probes that it answers; -1 without a candidate."""
        return float(self.learned.get("recall_after", -1.0))


@dataclass(frozen=True)
class Consolidation:
    """Makes shared adapters in a workspace, whose writer lock the caller holds. ``general``: examples of general text, for the KL term;
    ``tell`` is told of progress."""

    knowledge: Knowledge
    general: Callable[[], Sequence[Example]]
    tell: Tell

    def run(self, domain: str | None = None) -> Update | None:
        """Join all adapters of a domain (None: of the one with the most) into one; None when there are not two of them.

        Raises NotFound for a domain without documents."""
        domains = sorted({record.domain for record in self.knowledge.ledger.documents()})
        groups = _groups(self.knowledge.ledger)
        if domain is None:
            domain = max(sorted(groups), key=lambda name: len(groups[name]), default="")
        elif domain not in domains:
            raise NotFound("domain", domain, domains)
        return self._join(domain, groups.get(domain, []))

    def run_when_due(self, domain: str) -> Update | None:
        """Join the adapters of a domain that serve one document each with its smallest shared one, when that is :func:`due`. Trouble is
        told, not raised: the document that was learned just now stays learned."""
        if domain not in due(self.knowledge.ledger, self.knowledge.config):
            return None
        adapters = sorted(_groups(self.knowledge.ledger)[domain], key=lambda item: len(item.documents))
        own = _own(adapters)
        try:
            return self._join(domain, adapters[: len(own) + 1])
        except WorkspaceError as error:
            self.tell(Event("note", f"the adapters of {domain} stay as they are: {error}"))
            return None

    def without(self, state: State, document: str) -> tuple[State, list[dict[str, Any]]]:
        """The state with a document's shared adapters trained anew for their other documents, from nothing, as well as the attempts allow,
        and for each the documents and what it answers. Raises TrainingError."""
        changes = []
        for item in [item for item in state.adapters if document in item.documents and item.learner == DEFAULT]:
            others = tuple(key for key in item.documents if key != document)
            rest = state.with_adapters([other for other in state.adapters if other is not item])
            keeps_name = len(others) > 1 or self.knowledge.config.learn.adapter_per == "domain"
            place = replace(item, name=item.name if keeps_name else others[0], documents=others)
            made = self._share(state, rest, place, item.name, leave_out=[document])
            if made.candidate is None:
                raise TrainingError(made.refusal)
            state = made.state
            changes.append({"adapter": place.name, "documents": list(others), "learned": made.learned})
        return state, changes

    def _join(self, domain: str, items: Sequence[ActiveAdapter]) -> Update | None:
        """One transaction; a second one, for the adapters of single documents by themselves, when a shared adapter can take no more."""
        whole = [item for item in items if self.knowledge.whole(item)]
        if len(whole) < 2:
            return None
        update = self._attempt(domain, whole)
        own = _own(whole)
        if update.status == "rejected" and 2 <= len(own) < len(whole):
            self.tell(Event("note", f"{domain}: the shared adapter stays as it is; the others are joined by themselves"))
            update = self._attempt(domain, own)
        return update

    def _attempt(self, domain: str, items: Sequence[ActiveAdapter]) -> Update:
        started, knowledge, ledger = time.perf_counter(), self.knowledge, self.knowledge.ledger
        head, state = ledger.head(), ledger.state()
        rest = state.with_adapters([item for item in state.adapters if item not in items])
        documents = tuple(dict.fromkeys(key for item in items for key in item.documents))
        grown = max((item for item in items if len(item.documents) > 1), key=lambda item: len(item.documents), default=None)
        name = grown.name if grown else shared_name(domain, {item.name for item in rest.adapters})
        start = knowledge.adapter(grown.digest) if grown else None
        if start and start.spec.sites != sites_of(knowledge.model, knowledge.config.learn):
            start = None  # other layers are configured now
        made = self._share(state, rest, ActiveAdapter(name, "", 1.0, documents), domain, start)
        facts: dict[str, Any] = {"domain": domain, "into": name, "documents": len(documents), "grown": start is not None}
        facts |= {"single": sum(len(item.documents) == 1 for item in items), "adapters_before": len(items), "adapters_after": 1}
        sizes = {"before": sum(knowledge.adapter(item.digest).byte_count for item in items)}
        if made.candidate is not None:
            sizes["after"] = made.candidate.adapter.byte_count
        for when, size in sizes.items():
            facts |= {f"bytes_{when}": size, f"bytes_per_document_{when}": round(size / len(documents))}
        entries = made.documents or [{"id": key} for key in documents]
        certificate = certify(
            knowledge, entries, knowledge.config, started, cost_of(made.candidate) if made.candidate else {}, made.learned, made.kept,
            made.refusal, made.attempts, consolidated=facts,
        )  # fmt: skip
        if made.refusal:
            record = ledger.reject_update("consolidate", documents, made.refusal, certificate)
            self.tell(Event("note", f"the adapters of {domain} stay as they are: {made.refusal}"))
        else:
            after = knowledge.store.put(made.state.to_bytes())
            record = ledger.commit_update("consolidate", head, after, documents=documents, certificate=certificate, mark=None)
            self.tell(Event("commit", f"{len(items)} adapters of {domain} are one ({record.id})"))
        return Update.of(record)

    def _share(
        self, state: State, rest: State, place: ActiveAdapter, title: str, start: Adapter | None = None,
        leave_out: Collection[str] = (),
    ) -> Shared:  # fmt: skip
        """Train one adapter for the documents of ``place``, which joins ``rest`` in the state, and check it against ``state``.

        An attempt that lost answers is followed by one that goes on from it; any other refusal by one with stronger protection. Gives the
        first that passes, else the one with the most right answers. Probes of ``leave_out`` are not asked.
        """
        ledger, budget = self.knowledge.ledger, self.knowledge.config.gate.probe_budget
        self.tell(Event("study", f"reading the study sets of {len(place.documents)} documents of {title}"))
        examples = [example for key in place.documents for example in self._examples(key, state)]
        seed, everything = self.knowledge.config.learn.seed, {"", *(record.id for record in ledger.documents())}
        sample = ledger.sample_probes(budget, seed, exclude=everything - set(place.documents))
        others = ledger.sample_probes(budget, seed, exclude={*place.documents, *leave_out})
        before = self._scores(sample, state)
        config = self.knowledge.config
        best, attempt, goes_on = Shared(state, None, 0, ""), PLAIN, start
        for number in range(1, config.gate.attempts + 1):
            try:
                candidate = train_candidate(
                    self.knowledge, place.name, title, examples, config, attempt, rest, self.general, self.tell, goes_on
                )  # fmt: skip
            except TrainingError as error:
                best = best if best.candidate else Shared(state, None, number, str(error))
                attempt, goes_on = STRONGER, start
                continue
            self.tell(Event("check", f"asking what the documents of {title} taught and what was known before"))
            after = with_candidate(self.knowledge, rest, place, candidate)
            made = self._checked(state, after, candidate, sample, before, others, number)
            if not made.refusal:
                return made
            self.tell(Event("note", f"attempt {number} of {config.gate.attempts}: {made.refusal}"))
            best = made if made.recall >= best.recall else best
            lost = made.learned["forgetting"] > config.gate.max_forgetting
            attempt, goes_on = (PLAIN, candidate.adapter) if lost else (STRONGER, start)
        return best

    def _checked(
        self, state: State, after: State, candidate: Candidate, sample: Sequence[StoredProbe], before: Sequence[bool],
        others: Sequence[StoredProbe], number: int,
    ) -> Shared:  # fmt: skip
        now = self._scores(sample, after)
        then = [bool(probe.baseline) for probe in sample]
        lost = forgetting(sum(then), sum(before), sum(now))
        asked = max(len(sample), 1)
        learned = {"probes": len(sample), "recall_when_learned": sum(then) / asked, "recall_before": sum(before) / asked}
        learned |= {"recall_after": sum(now) / asked, "forgetting": lost}
        kept = check_kept(self.knowledge, state, after, {}, others, candidate.adapter, self.knowledge.skill(state))
        kept["forgetting"] = lost if kept["forgetting"] is None else max(lost, kept["forgetting"])
        owners = [probe.document for probe in sample]
        documents = [
            {"id": key, "probes": owners.count(key), "right_before": _of(key, owners, before), "right_after": _of(key, owners, now)}
            for key in after.adapters[-1].documents
        ]
        return Shared(after, candidate, number, refusal_of(self.knowledge.config, kept), documents, learned, kept)

    def _scores(self, sample: Sequence[StoredProbe], state: State) -> list[bool]:
        probes = [Probe(item.document, item.question, item.answer) for item in sample]
        return self.knowledge.recalls(probes, [self.knowledge.decide(probe.question, state) for probe in probes], state)

    def _examples(self, document: str, state: State) -> list[Example]:
        """The training examples of a stored document's study set."""
        knowledge = self.knowledge
        digest = knowledge.ledger.study(document)
        if digest is None:
            raise WorkspaceError(f"{document} has no study set; learn it again first")
        study = StudySet.from_json(knowledge.store.get(digest))
        learned = stored_document(knowledge.store, knowledge.ledger.document(document))
        return study_examples(knowledge.model, learned, study, knowledge.skill(state), knowledge.config.study.distillation)


def due(ledger: Ledger, config: Config) -> list[str]:
    """The domains with ``learn.consolidate_after`` adapters that serve one document each; after a refusal, with as many more."""
    after = config.learn.consolidate_after
    if not after or config.learn.learner != DEFAULT:
        return []
    counts = {domain: len(_own(items)) for domain, items in _groups(ledger).items()}
    return [domain for domain, count in sorted(counts.items()) if count >= after and count >= after + _refused(ledger, domain)]


def _groups(ledger: Ledger) -> dict[str, list[ActiveAdapter]]:
    """The adapters in use that were learned, by the domain of their documents; those that span domains are left out."""
    domain_of = {record.id: record.domain for record in ledger.documents()}
    groups: dict[str, list[ActiveAdapter]] = {}
    for item in ledger.state().adapters:
        domains = {domain_of[key] for key in item.documents}
        if item.weight and item.learner == DEFAULT and len(domains) == 1:
            groups.setdefault(domains.pop(), []).append(item)
    return groups


def _own(items: Sequence[ActiveAdapter]) -> list[ActiveAdapter]:
    """The adapters that serve one document each."""
    return [item for item in items if len(item.documents) == 1]


def _refused(ledger: Ledger, domain: str) -> int:
    """How many adapters of single documents the last consolidation of a domain had when it was refused; 0 when it was not."""
    for record in ledger.updates():
        facts = record.certificate.get("consolidated", {})
        if record.kind == "consolidate" and facts.get("domain") == domain:
            return int(facts["single"]) if record.status == "rejected" else 0
    return 0


def forgetting(then: int, before: int, after: int) -> float:
    """Share of the right answers that is lost: those ``then``, when the documents were learned, ``before``, and ``after`` consolidating.

    A loss counts against the better of ``then`` and ``before``, so that small losses do not add up over many consolidations. Below zero
    is improvement.
    """
    reference = max(then, before) if after < before else before
    return (reference - after) / reference if reference else 0.0


def _of(document: str, owners: Sequence[str], right: Sequence[bool]) -> int:
    """How many of a document's probes are right."""
    return sum(score for owner, score in zip(owners, right, strict=True) if owner == document)
