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
from retain.evaluation.probes import Tell
from retain.evaluation.qa import Item, load_items
from retain.learners.ace.playbook import Playbook
from retain.learners.checks import check_names, check_ready
from retain.learners.registry import DEFAULT, check_learner
from retain.lm.generation import Sampling
from retain.lm.model import LanguageModel
from retain.workspace import bank, base, history, playbooks, transaction
from retain.workspace.asking import Wanted, adapter_named, answer, prepare
from retain.workspace.consolidation import Consolidation, due
from retain.workspace.errors import Conflict, NotFound
from retain.workspace.knowledge import Knowledge, stored_document
from retain.workspace.learning import Learnable, Learning, with_learner
from retain.workspace.ledger import Ledger
from retain.workspace.lock import WriterLock
from retain.workspace.records import Checkpoint, DocumentRecord, State, UpdateKind
from retain.workspace.reports import EVENTS, AdapterInfo, Answer, Diff, Event, Update, Verification
from retain.workspace.scoring import score
from retain.workspace.store import Store
from retain.workspace.updates import FORGETTING

GIVE_WAY = 0.3  # seconds without the writer lock before something long that can wait; who wants the lock looks more often


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
        self._wanted, self._place = model, ""
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
        if learner is not None:
            check_learner(learner)
        settings = with_learner(settings, learner)
        check_names(settings)
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
        """The base model, loaded on first use and checked to be the one that what was learned belongs to."""
        return self.knowledge.model

    @property
    def knowledge(self) -> Knowledge:
        """Routing and answering of this workspace."""
        if self._knowledge is None:
            model = self._wanted
            if not isinstance(model, LanguageModel):
                from retain.lm.loading import load_model

                settings, name = self.config.model, model or base.name_of(self.ledger, self.config)
                model = load_model(
                    name, device=settings.device, precision=settings.precision, cache_dir=settings.cache_dir, threads=settings.threads
                )
                self._place = base.file_of(name)
            base.check_base(self.ledger, model, self._place)
            self._knowledge = Knowledge(model, self.ledger, self.store, self.config)
        return self._knowledge

    def _bind(self) -> None:
        base.bind(self.ledger, self.model, self._place)

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
        consolidate: bool = True,
        since: str | None = None,
    ) -> list[Update]:
        """Learn everything given, in order. Every document is durably queued before the first one is learned.

        ``consolidate``: after each document, where that is due; without it, :meth:`consolidate_when_due` does it later. ``since``: when
        the documents were sent; those that were learned after it, and reverted or forgotten again, stay so."""
        domain = self.config.learn.domain if domain is None else domain
        importance = self.config.learn.importance if importance is None else importance
        learning = self._learning
        documents = [document for item in what for document in learning.read(item, domain, importance, title)]
        if questions:
            pairs = tuple(_pair(question) for question in questions)
            documents = [replace(document, pairs=(*document.pairs, *pairs)) for document in documents]
        if not documents:
            return []
        check_ready(self.model, self.config)
        if dry_run:
            return [learning.plan(document) for document in documents]
        with self._writing():
            self._bind()
            known = [learning.queue(document, since) for document in documents]
            return [update or self._learn(document, consolidate) for document, update in zip(documents, known, strict=True)]

    def learn_pending(self, *, dry_run: bool = False) -> list[Update]:
        """Learn the documents that were queued but not finished, for instance after an interruption."""
        with self._writing():
            waiting = self.ledger.documents("pending")
            documents = [self._stored(record) for record in waiting]
            if documents:
                check_ready(self.model, self.config)
            if dry_run:
                return [self._learning.plan(document) for document in documents]
            if documents:
                self._bind()
            return [self._learn(document) for document in documents]

    def _learn(self, document: Document, consolidate: bool = True) -> Update:
        update = self._learning.learn(document)
        if consolidate and update.status == "committed":
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

    def consolidate_when_due(self) -> list[Update]:
        """Consolidate the domains with ``learn.consolidate_after`` adapters of single documents, one after another; who waits for the right
        to write comes before each. Trouble is told, not raised. Raises Locked."""
        updates = []
        for domain in due(self.ledger, self.config):
            time.sleep(GIVE_WAY)
            with self._writing():
                updates.append(self._consolidation().run_when_due(domain))
        return [update for update in updates if update is not None]

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
        adapters: Wanted | None = None,
        learner: str | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question with the adapters of the documents that it speaks of; a question about none gets the untouched base.

        ``retrieval``: put passages of those documents into the context (default from the configuration); ``adapters``: use exactly
        these instead of routing, by name (``["rules"]``), or with weights as a mapping (``{"rules": 1, "law": 0.5}``) or as pairs;
        ``learner``: with what this learner made alone. Raises LearnerError, NotFound, WorkspaceError.
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
        text, count = answer(knowledge, state, asked, on_token)
        names = [item.name for item in asked.decision.adapters]
        return Answer(text.strip(), asked.sources, names, time.perf_counter() - started, count)

    def evaluate(
        self,
        items: str | Path | Iterable[Item | tuple[str, str]],
        *,
        retrieval: bool | None = None,
        adapters: Wanted | None = None,
        learner: str | None = None,
        in_context: bool = False,
        seed: int = 0,
        tell: Tell | None = None,
    ) -> dict[str, Any]:
        """Ask questions with known answers and grade what is answered, greedily and in at most 24 tokens.

        ``items``: a file as :func:`retain.evaluation.load_items` reads it, such items, or (question, answer) pairs. ``retrieval``,
        ``adapters``, ``learner``: as in :meth:`ask`; ``adapters=[]`` is the base alone. ``in_context``: show each item's own passage
        instead of those that were learned. ``seed``: of the intervals; ``tell(done, total, tokens)`` is called as it goes on.
        Returns what :func:`retain.evaluation.grade_answers` does, shares with intervals and every item with its answer, and "routed",
        how many questions were answered by what was learned. Raises DataError, LearnerError, NotFound, WorkspaceError.
        """
        if learner is not None:
            check_learner(learner)
        if isinstance(items, str | Path):
            items = load_items(items, limit=None)
        asked = [item if isinstance(item, Item) else Item(item[0], (item[1],)) for item in items]
        return score(
            self.knowledge, self.state, asked, retrieval=retrieval, adapters=adapters, learner=learner, in_context=in_context, seed=seed,
            tell=tell,
        )  # fmt: skip

    # --- history -------------------------------------------------------------------------------------------------------------------

    def log(self) -> list[Update]:
        """All updates, oldest first."""
        return sorted((Update.of(record) for record in self.ledger.updates()), key=lambda update: update.sequence)

    def show(self, update: str) -> Update:
        """One update by its id or an unambiguous beginning of it."""
        return Update.of(self.ledger.update(update))

    def diff(self, update: str) -> Diff:
        """What an update changed: adapters, documents, and the size of the change."""
        return history.difference(self.ledger, self.store, self.ledger.update(update))

    def documents(self) -> list[DocumentRecord]:
        """Documents in the order of their arrival, with their status."""
        return self.ledger.documents()

    def revert(self, update: str) -> Update:
        """Undo one update: what it added is taken out, what it removed is put back; later updates stay."""
        with self._writing():
            record = self.ledger.update(update)
            return self._move(history.undone(self.ledger, record), "revert", reverts=record.id)

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
            self._clear_forgotten()
            return Update.of(made)

    def verify(self) -> Verification:
        """Check every stored byte against its hash, the ledger's integrity, and a sample of the probes against their recorded scores."""
        return history.verify(self.ledger, self.store, self.config, lambda: self.knowledge)

    def collect(self) -> int:
        """Remove what is on the disk and belongs to nothing, such as candidates that were refused; how many objects that were.

        What is younger than an hour stays. Nothing that the history, a checkpoint or a document needs is touched."""
        with self._writing():
            return len(self.store.collect(self.ledger.referenced_digests()))

    # --- adapters ------------------------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> list[AdapterInfo]:
        """The adapters of the current state."""
        return [bank.info(self.ledger, self.store, item) for item in self.state.adapters]

    def adapter_change(self, name: str) -> float:
        """Norm of what an adapter adds to the weights of its sites, as a share of theirs; it loads the model. Raises NotFound, AdapterError
        for an adapter that is not low-rank."""
        return bank.change(self.model, self.knowledge.adapter(adapter_named(self.state, name).digest))

    def merge(self, names: Wanted, method: str = "ties", into: str = "merged", **options: Any) -> Update:
        """Merge adapters into one that serves all their documents; refused when their probes would lose more than the gate allows.

        ``names``: with weights or without, as ``adapters`` of :meth:`ask`. ``options``: those of the method, see
        :mod:`retain.adapters.merging`: ``density`` (ties, dare), ``rank`` (all but concatenate), ``scale`` (ties), ``seed`` (dare).
        Raises AdapterError, Conflict, NotFound, WorkspaceError."""
        with self._writing():
            return bank.merge(self.knowledge, self.state, names, method, into, options)

    def export_adapter(self, name: str, directory: str | Path) -> Path:
        """Write an adapter in peft's on-disk format; the study skill it was trained on is merged in, so that it stands alone."""
        return bank.export(self.knowledge, self.state, name, Path(directory))

    def import_adapter(self, directory: str | Path, name: str) -> Update:
        """Add an adapter in peft's format; it is used when asked for by name."""
        with self._writing():
            after = bank.imported(self.knowledge, self.state, Path(directory), name)
            self._bind()
            return self._move(after, "import")

    def enable(self, name: str) -> Update:
        """Use an adapter again that was disabled."""
        with self._writing():
            return self._move(bank.weighed(self.state, name, 1.0), "enable")

    def disable(self, name: str) -> Update:
        """Keep an adapter without using it."""
        with self._writing():
            return self._move(bank.weighed(self.state, name, 0.0), "enable")

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
        """Name the current state; a name in use moves. Raises Conflict for a name like those of automatic checkpoints, "auto-100"."""
        if Checkpoint(name, "", "").automatic:
            raise Conflict(f"{name} could be an automatic checkpoint, which is removed by itself: take another name")
        return self.ledger.save_checkpoint(name)

    def checkpoints(self) -> list[Checkpoint]:
        """All named states."""
        return self.ledger.list_checkpoints()

    def load_checkpoint(self, name: str) -> Update:
        """Return to a named state, exactly; itself an update that can be reverted."""
        with self._writing():
            return self._move(self.ledger.state(self.ledger.load_checkpoint(name).state), "revert")

    # --- inside --------------------------------------------------------------------------------------------------------------------

    def _move(self, state: State, kind: UpdateKind, reverts: str = "") -> Update:
        return history.move(self.ledger, self.store, lambda: self.model, state, kind, reverts)

    def _stored(self, record: DocumentRecord) -> Document:
        return stored_document(self.store, record)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the workspace's writer lock; documents that an earlier process left half-learned are pending again, and what it was
        forgetting is gone."""
        lock = WriterLock(self.root / "lock")
        lock.acquire(timeout=2.0)
        try:
            self.ledger.recover(lock)
            self._clear_forgotten()
            yield
        finally:
            lock.release()

    def _clear_forgotten(self) -> None:
        """Remove what a forgotten document left outside of the ledger."""
        if self.ledger.meta().get(FORGETTING):
            self.store.collect(self.ledger.referenced_digests(), grace=0)
            for name in (EVENTS, Path(EVENTS).with_suffix(".old")):
                (self.root / name).unlink(missing_ok=True)
            self.ledger.set_meta(FORGETTING, None)

    def _tell(self, event: Event) -> None:
        if self._progress is not None:
            self._progress(event)


def _pair(question: Any) -> QuestionAnswer:
    return QuestionAnswer(*question) if isinstance(question, tuple) else QuestionAnswer(question.question, question.answer)


def _message(turn: Any) -> Message:
    return turn if isinstance(turn, Message) else Message(turn["role"], turn["content"]) if isinstance(turn, dict) else Message(*turn)


__all__ = ["ContinualLM"]
