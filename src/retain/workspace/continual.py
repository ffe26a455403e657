"""``ContinualLM``: open a workspace, teach it documents, ask, look back, undo, forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from retain.config import Config, load_config
from retain.data.document import Document, Message, QuestionAnswer
from retain.learners.ace.playbook import Playbook
from retain.learners.base import Aid
from retain.learners.registry import DEFAULT, check_learner
from retain.lm.generation import Processor, Sampling, generate, stream
from retain.lm.model import LanguageModel
from retain.workspace import playbooks, transaction
from retain.workspace.asking import adapter_named, prepare
from retain.workspace.consolidation import Consolidation
from retain.workspace.errors import Conflict, NotFound, WorkspaceError
from retain.workspace.knowledge import Knowledge, processors_of, stored_document
from retain.workspace.learning import Learnable, Learning, with_learner
from retain.workspace.ledger import Ledger
from retain.workspace.lock import WriterLock
from retain.workspace.records import ActiveAdapter, Checkpoint, DocumentRecord, State, to_json
from retain.workspace.reports import EVENTS, AdapterInfo, Answer, Diff, Event, Update, Verification
from retain.workspace.store import Store


class ContinualLM:
    """A language model that learns documents one after another, in a workspace on disk.

    ::

        lm = ContinualLM.open("work")
        update = lm.learn("handbook.md", domain="work", importance=0.8)
        answer = lm.ask("Who signs off travel?")
        lm.forget(update.documents[0])
    """

    def __init__(
        self, root: Path, config: Config, model: str | LanguageModel | None, progress: Callable[[Event], None] | None, create: bool
    ) -> None:
        if not create and not (root / "ledger.db").exists():
            raise NotFound("workspace", str(root))
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.config = root, config
        self.store = Store(root)
        self.ledger = Ledger.open(root / "ledger.db", self.store, create=create, seed=config.learn.seed)
        self._progress = progress
        self._wanted = model
        self._knowledge: Knowledge | None = None
        self._learning = Learning(self.ledger, self.store, config, lambda: self.knowledge, self._tell)

    @classmethod
    def open(
        cls,
        workspace: str | Path,
        model: str | LanguageModel | None = None,
        learner: str | None = None,
        *,
        config: Config | None = None,
        create: bool = True,
        progress: Callable[[Event], None] | None = None,
    ) -> ContinualLM:
        """Open (or create) a workspace: a directory, or a name, which is a directory below the current one.

        ``model``: name, directory, GGUF file or hub name of the base, or a loaded :class:`LanguageModel`; it is loaded on first use.
        ``learner``: the way of learning, instead of the configured one. Raises WorkspaceError, ConfigError, LearnerError.
        """
        root = Path(workspace).expanduser()
        settings = config or load_config(root if root.is_dir() else None)
        settings = with_learner(settings, learner)
        check_learner(settings.learn.learner)
        return cls(root, settings, model, progress, create)

    def __enter__(self) -> ContinualLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the workspace's files."""
        self.ledger.close()

    # --- the model -----------------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> LanguageModel:
        """The base model, loaded on first use and checked to be the one that this workspace was made with."""
        return self.knowledge.model

    @property
    def knowledge(self) -> Knowledge:
        """Routing and answering of this workspace."""
        if self._knowledge is None:
            model, place = self._wanted, ""
            if not isinstance(model, LanguageModel):
                from retain.lm.loading import load_model

                settings, name = self.config.model, model or self._base()
                model = load_model(
                    name, device=settings.device, precision=settings.precision, cache_dir=settings.cache_dir, threads=settings.threads
                )
                place = str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else ""
            self.ledger.bind_base(model.name, model.fingerprint, place)
            self._knowledge = Knowledge(model, self.ledger, self.store, self.config)
        return self._knowledge

    def _base(self) -> str:
        """The base that this workspace was made with, where it was last found; the configured one for a new workspace and when it moved."""
        base, configured = self.ledger.meta().get("base") or {}, self.config.model.name
        known: str = base.get("place") or base.get("name") or configured
        if not base.get("place") or Path(known).exists():
            return known
        if Path(configured).expanduser().exists():
            return configured
        raise WorkspaceError(f"the base model is not at {known} any more: `retain config set model.name PATH` says where it is now")

    def model_info(self) -> dict[str, Any]:
        """Facts about the base model."""
        from retain.lm.loading import model_info

        return model_info(self.model)

    @property
    def state(self) -> State:
        """The current state: adapters in use and what they were learned from."""
        return self.ledger.state()

    # --- learning ------------------------------------------------------------------------------------------------------------------

    def learn(
        self,
        what: Learnable | Iterable[Learnable],
        *,
        domain: str | None = None,
        importance: float | None = None,
        title: str | None = None,
        questions: Sequence[tuple[str, str]] | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Learn a path, folder, text or Documents; one :class:`Update` per document (a single one when there is one document).

        A string that names no existing path is taken as the text itself when it has a line break or ends like a sentence.
        ``questions``: (question, answer) pairs of your own about the document; a share of those that the text answers is held out, the
        others are trained on. Raises DataError for input that cannot be read, WorkspaceError when another process writes.
        """
        many = [what] if isinstance(what, (str, Path, Document)) else list(what)
        updates = self.learn_all(many, domain=domain, importance=importance, title=title, questions=questions, dry_run=dry_run)
        return updates[0] if len(updates) == 1 else updates

    def learn_all(
        self,
        what: Iterable[Learnable],
        *,
        domain: str | None = None,
        importance: float | None = None,
        title: str | None = None,
        questions: Sequence[Any] | None = None,
        dry_run: bool = False,
    ) -> list[Update]:
        """Learn everything given, in order. Every document is durably queued before the first one is learned."""
        domain = self.config.learn.domain if domain is None else domain
        importance = self.config.learn.importance if importance is None else importance
        learning = self._learning
        documents = [document for item in what for document in learning.read(item, domain, importance, title)]
        if questions:
            pairs = tuple(_pair(question) for question in questions)
            documents = [replace(document, pairs=(*document.pairs, *pairs)) for document in documents]
        if dry_run:
            return [learning.plan(document) for document in documents]
        with self._writing():
            known = [learning.queue(document) for document in documents]
            return [update or self._learn(document) for document, update in zip(documents, known, strict=True)]

    def learn_pending(self, *, dry_run: bool = False) -> list[Update]:
        """Learn the documents that were queued but not finished, for instance after an interruption."""
        with self._writing():
            waiting = self.ledger.documents("pending")
            documents = [self._stored(record) for record in waiting]
            if dry_run:
                return [self._learning.plan(document) for document in documents]
            return [self._learn(document) for document in documents]

    def _learn(self, document: Document) -> Update:
        update = self._learning.learn(document)
        if update.status == "committed" and self.config.learn.learner == DEFAULT:
            self._consolidation().run_when_due(document.domain)
        return update

    def consolidate(self, domain: str | None = None) -> Update | None:
        """Let the documents of a domain share one adapter that takes the place of theirs; None when there are not two adapters to join.

        The adapter is trained on all their study sets, from their shared adapter where there is one, and refused (status rejected,
        nothing changes) when their probes or the control set would lose more than the gate allows. Without ``domain``: the domain with
        the most adapters. ``revert`` brings the separate adapters back. Raises NotFound for a domain without documents.
        """
        with self._writing():
            return self._consolidation().run(domain)

    def _consolidation(self) -> Consolidation:
        return Consolidation(self.knowledge, self._learning.general_examples, self._tell)

    # --- asking --------------------------------------------------------------------------------------------------------------------

    def ask(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        history: Sequence[Any] = (),
        retrieval: bool | None = None,
        adapters: Sequence[str] | None = None,
        learner: str | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question with the adapters of the documents that it speaks of; a question about none gets the untouched base.

        ``retrieval``: put passages of those documents into the context (default from the configuration); ``adapters``: use exactly
        these by name instead of routing; ``learner``: with what this learner made alone. Raises LearnerError, NotFound.
        """
        if learner is not None:
            check_learner(learner)
        started = time.perf_counter()
        knowledge, state, settings = self.knowledge, self.state, self.config.generate
        sampling = Sampling(
            max_tokens or settings.max_tokens,
            settings.temperature if temperature is None else temperature,
            settings.top_p,
            self.config.learn.seed,
        )
        turns = [_message(turn) for turn in history]
        asked = prepare(
            knowledge, state, question, sampling, history=turns, retrieval=retrieval, adapters=adapters, learner=learner
        )  # fmt: skip
        injection, processors = knowledge.injection(asked.decision, state), processors_of([Aid(guide=asked.guide)])
        if on_token is None:
            text = generate(self.model, [asked.prompt], sampling, injection, processors)[0]
            count = len(self.model.tokenizer(text, add_special_tokens=False).input_ids)
        else:
            text, count = self._streamed(asked.prompt, sampling, injection, processors, on_token)
        names = [item.name for item in asked.decision.adapters]
        return Answer(text.strip(), asked.sources, names, time.perf_counter() - started, count)

    def _streamed(
        self, prompt: Sequence[int], sampling: Sampling, injection: Any, processors: Sequence[Processor], on_token: Callable[[str], None]
    ) -> tuple[str, int]:
        ids: list[int] = []
        shown = ""
        for _, token in stream(self.model, [prompt], sampling, injection, processors):
            ids.append(token)
            text = self.model.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # an unfinished character
                on_token(text[len(shown) :])
                shown = text
        return shown, len(ids)

    # --- history -------------------------------------------------------------------------------------------------------------------

    def log(self) -> list[Update]:
        """All updates, oldest first."""
        return sorted((Update.of(record) for record in self.ledger.updates()), key=lambda update: update.sequence)

    def show(self, update: str) -> Update:
        """One update by its id or an unambiguous beginning of it."""
        return Update.of(self.ledger.update(update))

    def diff(self, update: str) -> Diff:
        """What an update changed: adapters, documents, and the size of the change."""
        record = self.ledger.update(update)
        before, after = self._states(record.before, record.after)
        old, new = {item.name: item for item in before.adapters}, {item.name: item for item in after.adapters}
        added = [item for name, item in new.items() if name not in old or old[name].digest != item.digest]
        removed = [item for name, item in old.items() if name not in new or new[name].digest != item.digest]
        parameters: dict[str, Any] = {}
        for item in added:
            tensors, _ = self.store.get_tensors(item.digest)
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

    def documents(self) -> list[DocumentRecord]:
        """Documents in the order of their arrival, with their status."""
        return self.ledger.documents()

    def revert(self, update: str) -> Update:
        """Undo one update: what it added is taken out, what it removed is put back; later updates stay."""
        with self._writing():
            record = self.ledger.update(update)
            if record.expired:
                raise Conflict(f"update {record.id} cannot be reverted: a document it held was forgotten")
            before, after = self._states(record.before, record.after)
            state = self.state
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
            undone = state.with_adapters([*kept, *back], {name: before.retention[name] for name in names if name in before.retention})
            if undone == state:
                raise Conflict(f"update {record.id} left nothing in the current state that could be undone")
            return self._move(undone, "revert", reverts=record.id)

    def forget(self, document: str, *, drop_checkpoints: bool = False) -> Update:
        """Remove a document and everything that was learned from it, for good: text, passages, probes, adapters, history states.

        ``document``: its id or the beginning of it, its title, or the name of its file, where only one document has that.
        A shared adapter is trained anew, from nothing, on the study sets of its other documents, and so is what learners built on it.
        Raises NotFound, Conflict, TrainingError, LearnerError.
        """
        with self._writing():
            record = self.ledger.named_document(document)
            if record.status == "forgotten":
                raise Conflict(f"{record.id} is forgotten already")
            touched = [item.name for item in self.state.adapters if record.id in item.documents]
            state = self.state
            changes: list[dict[str, Any]] = []
            if any(item.learner != DEFAULT and record.id in item.documents for item in state.adapters):
                state, changes = self._learning.without(state, record.id)
            state = state.with_adapters([item for item in state.adapters if item.documents != (record.id,)])
            if record.id in state.documents():
                state, retrained = self._consolidation().without(state, record.id)
                changes = [*changes, *retrained]
            after = self.store.put(state.to_bytes())
            facts = {"removed_adapters": touched, "retrained": changes}
            certificate = transaction.seal({"documents": [{"id": record.id}], **facts})
            playbooks.forget(self.ledger, record.id)
            made = self.ledger.forget_document(record.id, self.ledger.head(), after, certificate, drop_checkpoints)
            self.store.collect(self.ledger.referenced_digests(), grace=0)
            for name in (EVENTS, Path(EVENTS).with_suffix(".old")):
                (self.root / name).unlink(missing_ok=True)
            return Update.of(made)

    def verify(self) -> Verification:
        """Check every stored byte against its hash, the ledger's integrity, and a sample of the probes against their recorded scores."""
        referenced = self.ledger.referenced_digests()
        problems = [f"object {(item.path.parent.name + item.path.name)[:12]}: {item.problem}" for item in self.store.verify(referenced)]
        problems += [f"ledger: {problem}" for problem in self.ledger.check()]
        for record in self.ledger.updates():
            content = dict(record.certificate)
            if "hash" in content:
                stated = content.pop("hash")
                from retain.workspace.store import digest_of

                if digest_of(to_json(content).encode()) != stated:
                    problems.append(f"update {record.id}: its certificate was changed")
        probes: dict[str, Any] = {}
        stored = self.ledger.sample_probes(self.config.gate.probe_budget, self.config.learn.seed)
        if stored and not problems:
            from retain.evaluation.probes import Probe

            state = self.state
            asked = [Probe(item.document, item.question, item.answer) for item in stored]
            scores = self.knowledge.recalls(asked, [self.knowledge.decide(probe.question, state) for probe in asked], state)
            was, now = sum(bool(item.baseline) for item in stored), sum(scores)
            probes = {"asked": len(stored), "right_when_learned": was, "right_now": now}
            if was and (was - now) / was > self.config.gate.max_forgetting:
                problems.append(f"probes: {was} were answered when learned, {now} are now")
        return Verification(not problems, len(referenced), problems, probes)

    # --- adapters ------------------------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> list[AdapterInfo]:
        """The adapters of the current state."""
        return [self._info(item) for item in self.state.adapters]

    def merge(self, names: Sequence[str], method: str = "ties", into: str = "merged") -> Update:
        """Merge adapters into one that serves all their documents; refused when their probes would lose more than the gate allows."""
        from retain.adapters.merging import merge

        with self._writing():
            chosen = [adapter_named(self.state, name) for name in names]
            if len(chosen) < 2:
                raise WorkspaceError("merging needs at least two adapters")
            merged = merge(method, [self.knowledge.adapter(item.digest) for item in chosen]).half()
            documents = tuple(dict.fromkeys(document for item in chosen for document in item.documents))
            rest = [item for item in self.state.adapters if item not in chosen]
            if into in {item.name for item in rest}:
                raise Conflict(f"there is an adapter named {into} already")
            state = self.state.with_adapters([*rest, ActiveAdapter(into, self.knowledge.keep(merged), 1.0, documents)])
            return self._gated(state, "merge", list(documents), {"method": method, "merged": list(names), "into": into})

    def _gated(self, state: State, kind: Any, documents: list[str], facts: dict[str, Any]) -> Update:
        old = self.ledger.sample_probes(self.config.gate.probe_budget, self.config.learn.seed)
        kept = transaction.check_kept(self.knowledge, self.state, state, {}, old, None, None)
        lost, limit = kept["forgetting"] or 0.0, self.config.gate.max_forgetting
        reason = f"{lost:.1%} of the known answers would be lost, the limit is {limit:.1%}" if lost > limit else ""
        gate = {"limits": self.config.gate.model_dump(mode="json"), "verdict": "refused" if reason else "passed", "reason": reason}
        certificate = transaction.seal({"documents": [{"id": key} for key in documents], **facts, "kept": kept, "gate": gate})
        if reason:
            return Update.of(self.ledger.reject_update(kind, [], reason, certificate))
        after = self.store.put(state.to_bytes())
        return Update.of(self.ledger.commit_update(kind, self.ledger.head(), after, certificate=certificate))

    def export_adapter(self, name: str, directory: str | Path) -> Path:
        """Write an adapter in peft's on-disk format; the study skill it was trained on is merged in, so that it stands alone."""
        from retain.adapters.merging import merge
        from retain.adapters.peft_format import export_peft

        item = adapter_named(self.state, name)
        adapter, skill = self.knowledge.adapter(item.digest), self.knowledge.skill(self.state)
        target = Path(directory)
        export_peft(merge("concatenate", [skill, adapter]) if skill and item.documents else adapter, target, self.model.name)
        return target

    def import_adapter(self, directory: str | Path, name: str) -> Update:
        """Add an adapter in peft's format; it is used when asked for by name."""
        from retain.adapters.peft_format import import_peft
        from retain.workspace.errors import check_name

        with self._writing():
            check_name(name)
            if name in {item.name for item in self.state.adapters}:
                raise Conflict(f"there is an adapter named {name} already")
            adapter = import_peft(Path(directory), self.model)
            item = ActiveAdapter(name, self.knowledge.keep(adapter), 1.0, ())
            return self._move(replace(self.state, adapters=(*self.state.adapters, item)), "import")

    def enable(self, name: str) -> Update:
        """Use an adapter again that was disabled."""
        return self._weigh(name, 1.0)

    def disable(self, name: str) -> Update:
        """Keep an adapter without using it."""
        return self._weigh(name, 0.0)

    def _weigh(self, name: str, weight: float) -> Update:
        with self._writing():
            chosen = adapter_named(self.state, name)
            items = tuple(replace(item, weight=weight) if item == chosen else item for item in self.state.adapters)
            return self._move(replace(self.state, adapters=items), "enable")

    # --- the playbook of the learner ace -------------------------------------------------------------------------------------------------

    def playbook(self, name: str | None = None) -> Playbook:
        """The playbook in use, or a saved one by name. Raises WorkspaceError, NotFound."""
        return playbooks.present(self.store, self.state) if name is None else playbooks.saved(self.ledger, name)

    def save_playbook(self, name: str) -> None:
        """Keep the present playbook under a name."""
        with self._writing():
            playbooks.save(self.ledger, name, self.playbook())

    def load_playbook(self, name: str) -> Update:
        """Use a saved playbook; itself an update that can be reverted."""
        with self._writing():
            return self._move(playbooks.loaded(self.knowledge, self.state, playbooks.saved(self.ledger, name)), "import")

    # --- checkpoints ---------------------------------------------------------------------------------------------------------------

    def checkpoint(self, name: str) -> Checkpoint:
        """Name the current state."""
        return self.ledger.save_checkpoint(name)

    def checkpoints(self) -> list[Checkpoint]:
        """All named states."""
        return self.ledger.list_checkpoints()

    def load_checkpoint(self, name: str) -> Update:
        """Return to a named state, exactly; itself an update that can be reverted."""
        with self._writing():
            return self._move(self.ledger.state(self.ledger.load_checkpoint(name).state), "revert")

    # --- inside --------------------------------------------------------------------------------------------------------------------

    def _move(self, state: State, kind: Any, reverts: str = "") -> Update:
        """Commit a state; documents that come back are indexed again, those that go leave the index (their text stays, rejected)."""
        current = self.state
        now, then = current.documents(), state.documents()
        after = self.store.put(state.to_bytes())
        back, gone = sorted(then - now), sorted(now - then)
        pieces = [piece for key in back for piece in transaction.document_chunks(self.model, self._stored(self.ledger.document(key)))]
        certificate = transaction.seal({"documents": [{"id": key} for key in (*back, *gone)], "reason": reverts and f"reverts {reverts}"})
        with self.ledger.transaction():
            record = self.ledger.commit_update(
                kind,
                self.ledger.head(),
                after,
                documents=back or gone,
                chunks=pieces,
                certificate=certificate,
                mark="committed" if back or not gone else "rejected",
                reason="" if back or not gone else "reverted",
                reverts=reverts,
            )
            if back and gone:
                record = self.ledger.commit_update(
                    kind, after, after, documents=gone, certificate=certificate, mark="rejected", reason="reverted"
                )
        return Update.of(record)

    def _states(self, before: str, after: str) -> tuple[State, State]:
        return (self.ledger.state(before) if before else State()), (self.ledger.state(after) if after else State())

    def _stored(self, record: DocumentRecord) -> Document:
        return stored_document(self.store, record)

    def _info(self, item: ActiveAdapter) -> AdapterInfo:
        from retain.adapters import AdapterSpec

        tensors, metadata = self.store.get_tensors(item.digest)
        spec = AdapterSpec.from_json(metadata["spec"]) if "spec" in metadata else AdapterSpec("memory", "", (), 0, 0.0)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) or self.store.path(item.digest).stat().st_size
        domains = {self.ledger.document(key).domain for key in item.documents}
        return AdapterInfo(
            item.name,
            item.digest,
            ", ".join(sorted(domains)),
            list(item.documents),
            spec.rank,
            list(spec.sites),
            sum(tensor.numel() for tensor in tensors.values()),
            size,
            bool(item.weight),
            round(size / len(item.documents)) if item.documents else None,
            item.learner,
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the workspace's writer lock; documents that an earlier process left half-learned are pending again."""
        lock = WriterLock(self.root / "lock")
        lock.acquire(timeout=2.0)
        try:
            self.ledger.recover(lock)
            yield
        finally:
            lock.release()

    def _tell(self, event: Event) -> None:
        if self._progress is not None:
            self._progress(event)


def _pair(question: Any) -> QuestionAnswer:
    return QuestionAnswer(*question) if isinstance(question, tuple) else QuestionAnswer(question.question, question.answer)


def _message(turn: Any) -> Message:
    return turn if isinstance(turn, Message) else Message(turn["role"], turn["content"]) if isinstance(turn, dict) else Message(*turn)


__all__ = ["ContinualLM"]
