"""What a state knows: which adapters a prompt gets, and how questions are answered with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import Tensor

from retain.adapters import Adapter, AdapterInjection, AdapterSpec, inject
from retain.adapters.routing import Match, Surprise, content_words, match, route, telling
from retain.config import Config
from retain.data.document import Document
from retain.evaluation.probes import Probe, answer_questions, recall
from retain.learners.base import Aid, Guide, Memory, Passage, guided
from retain.learners.registry import injects, learner_named
from retain.lm.generation import Processor
from retain.lm.model import LanguageModel
from retain.workspace.errors import Damaged, NotFound, WorkspaceError
from retain.workspace.ledger import Ledger
from retain.workspace.records import ActiveAdapter, Chunk, DocumentRecord, Hit, State, to_json
from retain.workspace.store import Store

log = logging.getLogger(__name__)

ROWS = 48  # questions answered at a time
TOGETHER = 8  # different adapters in one batch
KEPT = 32  # adapters in memory; the one used longest ago goes first
COMPILED = 4  # injections that stay compiled


@dataclass(frozen=True)
class Decision:
    """The adapters (and what learners without adapters keep) and documents that a prompt gets; both empty when the base answers alone."""

    adapters: tuple[ActiveAdapter, ...] = ()
    documents: tuple[str, ...] = ()
    matches: tuple[Match, ...] = ()

    def beside_passages(self, weight: float) -> Decision:
        """The same with passages in the prompt: the adapters count ``weight`` as much, and are left out at 0."""
        return replace(
            self,
            adapters=tuple(
                replace(item, weight=item.weight * weight) if injects(item.learner) else item
                for item in self.adapters if weight or not injects(item.learner)
            ),
        )  # fmt: skip

    @property
    def injected(self) -> tuple[ActiveAdapter, ...]:
        """Those that are adapters."""
        return tuple(item for item in self.adapters if injects(item.learner))

    @property
    def helping(self) -> tuple[ActiveAdapter, ...]:
        """Those that help while an answer is written."""
        return tuple(item for item in self.adapters if not injects(item.learner))

    @property
    def key(self) -> tuple[str, ...]:
        """What the forward pass depends on."""
        return tuple(adapter.digest for adapter in self.adapters)


class Knowledge:
    """Routing and answering over the ledger's index, with the adapters used last kept in memory by digest (a switch is a look-up)."""

    def __init__(self, model: LanguageModel, ledger: Ledger, store: Store, config: Config) -> None:
        self.model, self.ledger, self.store, self.config = model, ledger, store, config
        self.surprise = Surprise(model.tokenizer)
        self.fresh: dict[str, tuple[Passage, ...]] = {}  # passages of documents that the index does not have yet
        self._adapters: dict[str, Adapter | Memory] = {}  # the one used last is the last
        self._compiled: list[tuple[list[tuple[Adapter, float]], AdapterInjection | None]] = []  # likewise
        self._sound: set[str] = set()  # digests that were read and checked; routing to them needs no second look

    def adapter(self, digest: str) -> Adapter:
        """An adapter by digest, checked against the model when it is read; the ``KEPT`` used last stay in memory."""
        found = self.memory(digest)
        if not isinstance(found, Adapter):
            raise WorkspaceError(f"object {digest[:12]} is no adapter: it helps while an answer is written")
        return found

    def memory(self, digest: str) -> Adapter | Memory:
        """What a learner made, by digest: an adapter, or what it keeps instead of one. Raises NotFound, Damaged."""
        found = self._adapters.pop(digest, None) or self._read(digest)
        self._hold(digest, found)
        return found

    def _read(self, digest: str) -> Adapter | Memory:
        self._sound.discard(digest)
        tensors, metadata = self.store.get_tensors(digest)
        tensors = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        if "spec" not in metadata:
            return Memory(tensors, json.loads(metadata["facts"]))
        adapter = Adapter(tensors, AdapterSpec.from_json(metadata["spec"]))
        adapter.check(self.model)
        return adapter

    def _hold(self, digest: str, found: Adapter | Memory) -> None:
        self._adapters[digest] = found
        self._sound.add(digest)
        while len(self._adapters) > KEPT:
            self._adapters.pop(next(iter(self._adapters)), None)

    def whole(self, item: ActiveAdapter) -> bool:
        """Whether an adapter can be used; a damaged one is put aside and told, and everything else goes on working."""
        try:
            if item.digest not in self._sound:
                self.memory(item.digest)
        except (Damaged, NotFound) as error:
            log.warning("adapter %s is not used: %s", item.name, error)
            if isinstance(error, Damaged) and item.digest in self.store:
                self.store.quarantine(item.digest)
            return False
        return True

    def keep(self, made: Adapter | Memory) -> str:
        """Store what a learner made durably; its object's digest."""
        facts = {"spec": made.spec.to_json()} if isinstance(made, Adapter) else {"facts": to_json(made.facts)}
        digest = self.store.put_tensors(made.tensors, facts)
        self._hold(digest, made)
        return digest

    def skill(self, state: State) -> Adapter | None:
        """The study skill that the state's adapters were trained on."""
        digest = state.objects.get("skill")
        return self.adapter(digest) if digest else None

    def decide(self, prompt: str, state: State, extra: Mapping[str, str] | None = None, learner: str | None = None) -> Decision:
        """Route a prompt. ``extra``: documents (id -> text) that are not in the index yet, to be considered as if they were; ``learner``:
        leave out what other learners made."""
        words = telling(prompt, self.surprise).values()  # the others score nothing, but occur nearly everywhere and cost most to rank
        hits = self.ledger.search(" ".join(form for form, _ in words), k=24)
        texts: dict[str, str] = {}
        for document in dict.fromkeys(hit.document for hit in hits):
            if len(texts) < 6:
                texts[document] = document_text(self.ledger, document)
        texts.update(extra or {})
        rules = self.config.route
        chosen = route(
            match(prompt, texts, self.surprise),
            threshold=rules.threshold,
            margin=rules.margin,
            most=rules.max_adapters,
            least_bits=rules.least_bits,
            topic_bits=rules.topic_bits,
            topic_threshold=rules.topic_threshold,
        )
        wanted = set(chosen.documents)
        owners = [
            item for item in state.adapters
            if item.weight and learner in (None, item.learner) and not wanted.isdisjoint(item.documents) and self.whole(item)
        ]  # fmt: skip
        served = {document for adapter in owners for document in adapter.documents}
        return Decision(tuple(owners), tuple(key for key in chosen.documents if key in served), chosen.matches)

    def active(self, decision: Decision, state: State) -> tuple[tuple[Adapter, float], ...]:
        """The decided adapters with their weights, the study skill first; empty for the base."""
        skill = self.skill(state) if decision.documents else None  # an imported adapter was not trained on the skill
        return (*(((skill, 1.0),) if skill else ()), *((self.adapter(item.digest), item.weight) for item in decision.injected))

    def injection(self, decision: Decision, state: State) -> AdapterInjection | None:
        """The decided adapters with the study skill under them; None for the base."""
        active = list(self.active(decision, state))
        # what was compiled stays with the adapters used last: going back to them costs no more than a look
        for place, (compiled, injection) in enumerate(self._compiled):
            if len(compiled) == len(active) and all(a is b and v == w for (a, v), (b, w) in zip(compiled, active, strict=True)):
                self._compiled.append(self._compiled.pop(place))
                return injection
        injection = inject(active, self.model.dtype, self.model.device)
        self._compiled = [*self._compiled, (active, injection)][-COMPILED:]
        return injection

    def answers(
        self, questions: Sequence[str], decisions: Sequence[Decision], state: State, contexts: Sequence[str | None] | None = None
    ) -> list[str]:
        """Answer many questions, each with its own adapters: in batches in which rows use different adapters, or with passages in the
        prompts in one batch for all questions about the same passages, which then run once."""
        if contexts:
            weight = self.config.generate.weight_beside_passages
            decisions = [
                decision.beside_passages(weight) if context else decision for decision, context in zip(decisions, contexts, strict=True)
            ]
        aids = [self.aid(question, decision) for question, decision in zip(questions, decisions, strict=True)]
        if any(aid.context for aid in aids):
            contexts = [(contexts[number] if contexts else None) or aid.context for number, aid in enumerate(aids)]
        order = sorted(range(len(questions)), key=lambda number: (decisions[number].key, (contexts and contexts[number]) or ""))
        texts = [""] * len(questions)
        for batch in _batches(order, decisions, contexts):
            found = answer_questions(
                self.model, [questions[n] for n in batch], self._by_row([decisions[n] for n in batch], state),
                [contexts[n] for n in batch] if contexts else None, batch=len(batch), processors=processors_of([aids[n] for n in batch]),
            )  # fmt: skip
            for number, text in zip(batch, found, strict=True):
                texts[number] = text
        return texts

    def recalls(self, probes: Sequence[Probe], decisions: Sequence[Decision], state: State) -> list[bool]:
        """Which probes are answered right without the document in the context."""
        return recall(self.answers([probe.question for probe in probes], decisions, state), probes)

    def _by_row(self, decisions: Sequence[Decision], state: State) -> AdapterInjection | None:
        if len({(decision.key, bool(decision.documents)) for decision in decisions}) == 1:
            return self.injection(decisions[0], state)
        skill = self.skill(state)
        weights: dict[str, list[float]] = {}
        for row, decision in enumerate(decisions):
            for item in decision.injected:
                weights.setdefault(item.digest, [0.0] * len(decisions))[row] = item.weight
        active: list[tuple[Adapter, float | Sequence[float]]] = [(self.adapter(digest), row) for digest, row in weights.items()]
        if skill and any(decision.documents for decision in decisions):
            active.insert(0, (skill, [1.0 if decision.documents else 0.0 for decision in decisions]))
        return inject(active, self.model.dtype, self.model.device)

    def aid(self, question: str, decision: Decision) -> Aid:
        """How what learners without adapters keep helps with a question: the first text for the prompt, all guides one after another."""
        context: str | None = None
        guides: list[Guide] = []
        for name in dict.fromkeys(item.learner for item in decision.helping):
            items = [item for item in decision.helping if item.learner == name]
            memories = [kept for item in items if isinstance(kept := self.memory(item.digest), Memory)]
            documents = [key for key in decision.documents if any(key in item.documents for item in items)]
            found = learner_named(name).aid(self.model, question, memories, self.passages(question, documents), self.config)
            context = context or found.context
            guides += [found.guide] if found.guide else []
        return Aid(context, guides[0] if len(guides) == 1 else _one_after_another(guides) if guides else None)

    def passages(self, question: str, documents: Sequence[str]) -> list[Passage]:
        """The passages of documents, those that the question speaks of first."""
        indexed = [key for key in documents if key not in self.fresh or self.ledger.chunks(key)]
        hits = self.ledger.search(question, k=64, documents=indexed) if indexed else []
        found = [Passage(hit.document, hit.heading, hit.text) for hit in hits]
        words = set(content_words(question))
        new = [passage for key in documents if key not in indexed for passage in self.fresh[key]]
        found += sorted(new, key=lambda passage: -len(words & set(content_words(f"{passage.heading} {passage.text}"))))
        rest = [passage for key in indexed for passage in passages_of(self.ledger.chunks(key))]
        return list(dict.fromkeys([*found, *rest]))

    def context(self, prompt: str, decision: Decision) -> tuple[str | None, list[Hit]]:
        """Passages of the routed documents for the prompt's context, those that the prompt speaks of before others, in reading order.

        The documents share the room of ``generate.context_tokens``; what one leaves is there for the next."""
        budget = self.config.generate.context_tokens
        chosen: list[Hit] = []
        for number, document in enumerate(decision.documents):
            room = budget // (len(decision.documents) - number)
            found = {hit.chunk: hit for hit in self.ledger.search(prompt, k=64, documents=[document])}
            for chunk in self.ledger.chunks(document):
                found.setdefault(chunk.ordinal, Hit(chunk.document, chunk.ordinal, 0.0, chunk.heading, chunk.text))
            for hit in found.values():
                size = len(self.model.tokenizer(hit.text, add_special_tokens=False).input_ids)
                if size <= room:
                    chosen.append(hit)
                    room, budget = room - size, budget - size
        place = {document: number for number, document in enumerate(decision.documents)}
        chosen.sort(key=lambda hit: (place[hit.document], hit.chunk))
        parts = [
            f"{self.ledger.document(document).title}\n\n" + "\n".join(hit.text for hit in hits)
            for document, hits in groupby(chosen, lambda hit: hit.document)
        ]
        return "\n\n".join(parts) or None, chosen


def processors_of(aids: Sequence[Aid]) -> list[Processor]:
    """The processors of a batch in which row n is helped by aid n."""
    guides = {row: aid.guide for row, aid in enumerate(aids) if aid.guide}
    return [guided(guides)] if guides else []


def _one_after_another(guides: Sequence[Guide]) -> Guide:
    def guide(hidden: Tensor, logits: Tensor, last: int | None) -> Tensor:
        for each in guides:
            logits = each(hidden, logits, last)
        return logits

    return guide


def passages_of(pieces: Sequence[Chunk]) -> tuple[Passage, ...]:
    """Chunks as learners see them."""
    return tuple(Passage(piece.document, piece.heading, piece.text) for piece in pieces)


def stored_document(store: Store, record: DocumentRecord) -> Document:
    """A document as it was queued."""
    return Document.from_dict(json.loads(store.get(record.blob)))


def document_text(ledger: Ledger, document: str) -> str:
    """Title and indexed text of a document."""
    return "\n".join([ledger.document(document).title, *(f"{chunk.heading}\n{chunk.text}" for chunk in ledger.chunks(document))])


def _batches(order: Sequence[int], decisions: Sequence[Decision], contexts: Sequence[str | None] | None) -> list[list[int]]:
    batches: list[list[int]] = []
    used: set[str] = set()
    for number in order:
        needed = set(decisions[number].key)
        other = bool(contexts and batches) and _asked(number, decisions, contexts) != _asked(batches[-1][-1], decisions, contexts)
        if not batches or other or len(batches[-1]) >= ROWS or len(used | needed) > TOGETHER:
            batches.append([])
            used = set()
        batches[-1].append(number)
        used |= needed
    return batches


def _asked(number: int, decisions: Sequence[Decision], contexts: Sequence[str | None] | None) -> tuple[Any, ...]:
    """What questions that share a pass over their passages have in common."""
    return decisions[number].key, bool(decisions[number].documents), contexts and contexts[number]


def stored_probes(data: bytes) -> list[tuple[str, str]]:
    """Questions and answers of a stored study set's probes."""
    return [(item["prompt"], item["completion"]) for item in json.loads(data)["probes"] if item["prompt"]]
