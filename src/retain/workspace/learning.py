"""Documents in, updates out: what is read and queued, and each document's transaction, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retain.config import Config
from retain.data.cleanup import clean_documents
from retain.data.document import Document
from retain.data.duplicates import NearDuplicateIndex, Signature
from retain.data.errors import DataError
from retain.data.examples import Example
from retain.data.readers import read_path
from retain.learners.base import Memory
from retain.learners.registry import DEFAULT, learner_named
from retain.learners.skills import shipped_skill
from retain.learners.study import StudySet, build_study, kinds, study_examples
from retain.workspace import transaction
from retain.workspace.errors import WorkspaceError
from retain.workspace.knowledge import Knowledge, stored_document
from retain.workspace.ledger import Ledger
from retain.workspace.records import Probe, State, to_json
from retain.workspace.reports import Event, Update
from retain.workspace.store import Store

Learnable = str | Path | Document


@dataclass
class Learning:
    """Learns documents in a workspace, whose writer lock the caller holds. ``knowledge`` loads the model when it is first called; ``tell``
    is told of progress."""

    ledger: Ledger
    store: Store
    config: Config
    knowledge: Callable[[], Knowledge]
    tell: transaction.Tell
    _general: list[Example] = field(default_factory=list)

    def read(self, item: Learnable, domain: str, importance: float, title: str | None) -> Iterator[Document]:
        """The documents of a path, a folder, a text or a Document, cleaned up; what is left out is told. Raises DataError."""
        if isinstance(item, Document):
            found: Iterable[Document] = [item]
        elif isinstance(item, str) and not Path(item).exists() and _is_text(item):
            found = [Document.from_text(item, title, domain=domain, importance=importance)]
        else:
            found = read_path(Path(item), domain=domain, importance=importance, on_note=lambda note: self.tell(Event("note", str(note))))
        report = clean_documents([replace(document, title=title) if title else document for document in found])
        for note in report.notes:
            self.tell(Event("note", str(note)))
        for dropped in report.dropped:
            self.tell(Event("note", f"left out {dropped.where}: {dropped.reason}"))
        if not report.kept and report.dropped:
            raise DataError(f"nothing to learn: {report.dropped[0].reason}", path=str(report.dropped[0].where))
        for document in report.kept:
            self.tell(Event("read", document.title))
            yield document

    def queue(self, document: Document, since: str | None = None) -> Update | None:
        """Store a document durably as pending; an update that changes nothing when it is known already to the configured learner, or was
        learned after ``since`` (as the ledger writes the time) and reverted or forgotten again."""
        signature, learner = Signature.of(document.text), self.config.learn.learner
        known = next((record for record in self.ledger.documents() if record.id == document.id), None)
        if known is not None and known.status == "committed":
            if any(document.id in item.documents and item.learner == learner for item in self.ledger.state().adapters):
                return self._unchanged(known.id, f"already learned as {known.title!r} in update {known.update}")
            return None
        if known is not None and since and self.ledger.learned_since(known.id, since):
            return self._unchanged(known.id, f"learned after it was sent, and {known.reason or known.status} since")
        if known is None and not document.pairs and not document.messages:
            twin = NearDuplicateIndex.restore(self.ledger.signatures().items()).find(signature)
            if twin is not None and self.ledger.document(twin.id).status == "committed":
                title = self.ledger.document(twin.id).title
                return self._unchanged(twin.id, f"{twin.similarity:.0%} the same as {title!r}, which is learned already")
        blob = self.store.put(to_json(document.to_dict()).encode())
        facts = {name: getattr(document, name) for name in ("id", "title", "source", "domain", "importance", "kind")}
        self.ledger.add_document(facts, blob, chars=len(document.text), signature=signature.to_bytes())
        if known is not None and known.status in ("rejected", "failed"):
            self.ledger.set_status([document.id], "pending")
        return None

    def learn(self, document: Document) -> Update:
        """One transaction. Whatever happens, the document ends committed, rejected with a reason, or still pending; one that is learned
        already, by another learner, stays committed."""
        knowledge = self.knowledge()
        again = self.ledger.document(document.id).status == "committed"

        def mark(status: Any, reason: str = "") -> None:
            if not again:
                self.ledger.set_status([document.id], status, reason)

        mark("learning")
        try:
            before = self.ledger.head()
            state = self._with_skill(self.ledger.state())
            budget = self.config.gate.probe_budget
            old = self.ledger.sample_probes(budget, self.config.learn.seed, exclude=[document.id]) if budget else []
            outcome = transaction.learn_document(knowledge, document, state, self.config, self.general_examples, old, self.tell)
            study = self.store.put(outcome.study.to_json())
            if outcome.refusal:
                if not again:
                    self.ledger.set_study(document.id, study)
                record = self.ledger.reject_update("learn", [document.id], outcome.refusal, outcome.certificate)
                self.tell(Event("note", f"{document.title}: rejected, {outcome.refusal}; nothing was changed"))
                return Update.of(record)
            after = self.store.put(outcome.state.to_bytes())
            probes = [
                Probe(probe.question, probe.answer, document.id, float(score), document.importance, True)
                for probe, score in zip(outcome.probes, outcome.scores, strict=True)
            ]
            with self.ledger.transaction():
                record = self.ledger.commit_update(
                    "learn", before, after, documents=[document.id], chunks=outcome.chunks, certificate=outcome.certificate
                )
                self.ledger.remove_probes(document.id)  # of an earlier time, which another learner or a revert left
                self.ledger.add_probes(probes)
                self.ledger.set_study(document.id, study)
        except KeyboardInterrupt:
            mark("pending", "interrupted")
            raise
        except WorkspaceError:
            raise  # the ledger itself is in trouble: the document is found half-learned and pending again at the next opening
        except Exception as error:
            mark("failed", " ".join(str(error).split())[:300])
            raise
        finally:
            knowledge.fresh = {}
        self.tell(Event("commit", f"{document.title} is learned ({record.id})"))
        return Update.of(record)

    def without(self, state: State, document: str) -> tuple[State, list[dict[str, Any]]]:
        """The state without what other learners than the default one made of a document: what was built on it is learned anew, in
        order; a shared memory loses what came from it. Raises TrainingError, LearnerError."""
        knowledge, changes = self.knowledge(), []
        for item in [item for item in state.adapters if item.learner != DEFAULT and document in item.documents]:
            learner = learner_named(item.learner)
            place = [other.name for other in state.adapters].index(item.name)
            if learner.form == "shared":
                memory = knowledge.memory(item.digest)
                assert isinstance(memory, Memory)
                left, others = learner.without(memory, document), tuple(key for key in item.documents if key != document)
                kept = [replace(item, digest=knowledge.keep(left), documents=others)] if left is not None and others else []
                state = state.with_adapters([*state.adapters[:place], *kept, *state.adapters[place + 1 :]])
                continue
            later = [other for other in state.adapters[place + 1 :] if other.learner == item.learner] if learner.form == "chain" else []
            state = state.with_adapters([other for other in state.adapters if other is not item and other not in later])
            for other in later:
                state = self._anew(state, other.documents[0], item.learner)
                changes.append({"adapter": other.name, "documents": list(other.documents)})
        return state, changes

    def _anew(self, state: State, document: str, learner: str) -> State:
        """A stored document learned again, without a gate."""
        knowledge = self.knowledge()
        stored, digest = stored_document(self.store, self.ledger.document(document)), self.ledger.study(document)
        if digest is None:
            raise WorkspaceError(f"{document} has no study set; learn it again first")
        study = StudySet.from_json(self.store.get(digest))
        config = with_learner(self.config, learner)
        skill, pieces = knowledge.skill(state), transaction.document_chunks(knowledge.model, stored)
        examples = study_examples(knowledge.model, stored, study, skill, config.study.distillation)
        return transaction.learn_lesson(knowledge, stored, state, config, examples, study, pieces, self.tell).state

    def plan(self, document: Document) -> Update:
        """What learning a document would do."""
        rules_only = self.config.study.model_copy(update={"writer": "none"})  # a plan asks no model, and sends nothing away
        model = self.knowledge().model
        study = build_study(model, None, document, rules_only, self.config.learn.seed)
        examples = study_examples(model, document, study)
        tokens = sum(len(example.tokens) for example in examples)
        plan = {
            "items": kinds(study.train),
            "probes": len(study.probes),
            "examples": len(examples),
            "tokens": tokens * self.config.learn.epochs,
        }
        facts = {"documents": [{"id": document.id, "title": document.title}], "plan": plan}
        return Update("", 0, "learn", "dry-run", [document.id], "", facts, "")

    def general_examples(self) -> Sequence[Example]:
        """General text that the base wrote, made once."""
        if not self._general:
            self._general = transaction.general_examples(self.knowledge().model)
        return self._general

    def _with_skill(self, state: State) -> State:
        if "skill" in state.objects:
            return state
        skill = shipped_skill(self.knowledge().model)
        return state if skill is None else replace(state, objects={**state.objects, "skill": self.knowledge().keep(skill)})

    def _unchanged(self, document: str, reason: str) -> Update:
        return Update(self.ledger.document(document).update, 0, "learn", "unchanged", [document], "", {}, reason)


def with_learner(config: Config, learner: str | None) -> Config:
    """The configuration with another learner."""
    return config if learner is None else config.model_copy(update={"learn": config.learn.model_copy(update={"learner": learner})})


def _is_text(item: str) -> bool:
    """Whether a string is a text rather than the path of a file that is not there: it has a line break or ends a sentence."""
    stripped = item.strip()
    return "\n" in stripped or (" " in stripped and stripped[-1:] in ".!?")
