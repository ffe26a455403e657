"""What a state knows: which adapters a prompt gets, and how questions are answered with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from retain.adapters import Adapter, AdapterInjection, AdapterSpec, inject
from retain.adapters.routing import Match, Surprise, match, route, telling
from retain.config import Config
from retain.data.document import Document
from retain.evaluation.probes import Probe, answer_questions, recall
from retain.lm.model import LanguageModel
from retain.workspace.errors import Damaged, NotFound
from retain.workspace.ledger import Ledger
from retain.workspace.records import ActiveAdapter, DocumentRecord, Hit, State
from retain.workspace.store import Store

log = logging.getLogger(__name__)

ROWS = 48  # questions answered at a time
TOGETHER = 8  # different adapters in one batch
KEPT = 32  # adapters in memory; the one used longest ago goes first
COMPILED = 4  # injections that stay compiled


@dataclass(frozen=True)
class Decision:
    """The adapters and documents that a prompt gets; both empty when the base answers alone."""

    adapters: tuple[ActiveAdapter, ...] = ()
    documents: tuple[str, ...] = ()
    matches: tuple[Match, ...] = ()

    def beside_passages(self, weight: float) -> Decision:
        """The same with passages in the prompt: the adapters count ``weight`` as much, and are left out at 0."""
        return replace(self, adapters=tuple(replace(item, weight=item.weight * weight) for item in self.adapters) if weight else ())

    @property
    def key(self) -> tuple[str, ...]:
        """What the forward pass depends on."""
        return tuple(adapter.digest for adapter in self.adapters)


class Knowledge:
    """Routing and answering over the ledger's index, with the adapters used last kept in memory by digest (a switch is a look-up)."""

    def __init__(self, model: LanguageModel, ledger: Ledger, store: Store, config: Config) -> None:
        self.model, self.ledger, self.store, self.config = model, ledger, store, config
        self.surprise = Surprise(model.tokenizer)
        self._adapters: dict[str, Adapter] = {}  # the one used last is the last
        self._compiled: list[tuple[list[tuple[Adapter, float]], AdapterInjection | None]] = []  # likewise
        self._sound: set[str] = set()  # digests that were read and checked; routing to them needs no second look

    def adapter(self, digest: str) -> Adapter:
        """An adapter by digest, checked against the model when it is read; the ``KEPT`` used last stay in memory."""
        adapter = self._adapters.pop(digest, None) or self._read(digest)
        self._hold(digest, adapter)
        return adapter

    def _read(self, digest: str) -> Adapter:
        self._sound.discard(digest)
        tensors, metadata = self.store.get_tensors(digest)
        adapter = Adapter({name: tensor.to(self.model.device) for name, tensor in tensors.items()}, AdapterSpec.from_json(metadata["spec"]))
        adapter.check(self.model)
        return adapter

    def _hold(self, digest: str, adapter: Adapter) -> None:
        self._adapters[digest] = adapter
        self._sound.add(digest)
        while len(self._adapters) > KEPT:
            self._adapters.pop(next(iter(self._adapters)), None)

    def whole(self, item: ActiveAdapter) -> bool:
        """Whether an adapter can be used; a damaged one is put aside and told, and everything else goes on working."""
        try:
            if item.digest not in self._sound:
                self.adapter(item.digest)
        except (Damaged, NotFound) as error:
            log.warning("adapter %s is not used: %s", item.name, error)
            if isinstance(error, Damaged) and item.digest in self.store:
                self.store.quarantine(item.digest)
            return False
        return True

    def keep(self, adapter: Adapter) -> str:
        """Store an adapter durably; its object's digest."""
        digest = self.store.put_tensors(adapter.tensors, {"spec": adapter.spec.to_json()})
        self._hold(digest, adapter)
        return digest

    def skill(self, state: State) -> Adapter | None:
        """The study skill that the state's adapters were trained on."""
        digest = state.objects.get("skill")
        return self.adapter(digest) if digest else None

    def decide(self, prompt: str, state: State, extra: Mapping[str, str] | None = None) -> Decision:
        """Route a prompt. ``extra``: documents (id -> text) that are not in the index yet, to be considered as if they were."""
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
        owners = [item for item in state.adapters if item.weight and not wanted.isdisjoint(item.documents) and self.whole(item)]
        served = {document for adapter in owners for document in adapter.documents}
        return Decision(tuple(owners), tuple(key for key in chosen.documents if key in served), chosen.matches)

    def injection(self, decision: Decision, state: State) -> AdapterInjection | None:
        """The decided adapters with the study skill under them; None for the base."""
        skill = self.skill(state) if decision.documents else None  # an imported adapter was not trained on the skill
        active = [*([(skill, 1.0)] if skill else []), *((self.adapter(item.digest), item.weight) for item in decision.adapters)]
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
        order = sorted(range(len(questions)), key=lambda number: (decisions[number].key, (contexts and contexts[number]) or ""))
        texts = [""] * len(questions)
        for batch in _batches(order, decisions, contexts):
            found = answer_questions(
                self.model, [questions[n] for n in batch], self._by_row([decisions[n] for n in batch], state),
                [contexts[n] for n in batch] if contexts else None, batch=len(batch),
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
            for item in decision.adapters:
                weights.setdefault(item.digest, [0.0] * len(decisions))[row] = item.weight
        active: list[tuple[Adapter, float | Sequence[float]]] = [(self.adapter(digest), row) for digest, row in weights.items()]
        if skill and any(decision.documents for decision in decisions):
            active.insert(0, (skill, [1.0 if decision.documents else 0.0 for decision in decisions]))
        return inject(active, self.model.dtype, self.model.device)

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
