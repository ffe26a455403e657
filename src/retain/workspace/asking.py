"""From a question to what the model is asked, and to its answer: adapters by routing or by name, passages, what learners' memories add."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from retain.adapters import Adapter
from retain.data.document import Message
from retain.data.examples import prompt_tokens
from retain.learners.base import Aid, Guide
from retain.learners.registry import injects
from retain.lm.generation import Sampling, generate, stream
from retain.workspace.errors import NotFound, WorkspaceError
from retain.workspace.knowledge import Decision, Knowledge, processors_of
from retain.workspace.records import ActiveAdapter, State
from retain.workspace.reports import Source

Wanted = Sequence[str | tuple[str, float]] | Mapping[str, float]
"""Adapters by name: names, (name, weight) pairs, or a mapping of names to weights. A name alone has the weight 1."""


@dataclass(frozen=True)
class Asked:
    """A question as the model gets it: ``prompt`` token ids, the adapters of ``decision`` (``active``: with weights, and with the
    study skill), the ``guide`` of the logits, and the passages in the prompt."""

    prompt: tuple[int, ...]
    decision: Decision
    active: tuple[tuple[Adapter, float], ...]
    guide: Guide | None
    sources: list[Source]
    sampling: Sampling


def prepare(
    knowledge: Knowledge, state: State, question: str, sampling: Sampling, *, history: Sequence[Message] = (),
    retrieval: bool | None = None, adapters: Wanted | None = None, learner: str | None = None, capacity: int | None = None,
) -> Asked:  # fmt: skip
    """What a question in ``state`` runs with.

    ``retrieval``: put passages of the documents that it speaks of into the context (default from the configuration); ``adapters``: use
    exactly these by name, with their weights, instead of routing; ``learner``: with what this learner made alone; ``capacity``: tokens
    of prompt and answer together, by default the model's context. Raises NotFound, WorkspaceError.
    """
    settings = knowledge.config.generate
    decision = decided(knowledge, state, question, adapters, learner)
    aid = knowledge.aid(question, decision)
    with_passages = (settings.retrieval if retrieval is None else retrieval) and not (aid.context and not decision.injected)
    context, hits = knowledge.context(question, decision) if with_passages else (aid.context, [])
    tokenizer, longest = knowledge.model.tokenizer, knowledge.model.context
    room = min(capacity or longest, longest) - sampling.max_tokens
    prompt = prompt_tokens(tokenizer, question, context, history=list(history), max_tokens=room)
    used = decision.beside_passages(settings.weight_beside_passages) if context else decision
    scores = {item.document: item.score for item in decision.matches}
    titles = knowledge.ledger.document
    sources = [Source(hit.document, titles(hit.document).title, hit.text, scores.get(hit.document, 0.0)) for hit in hits]
    return Asked(prompt, used, knowledge.active(used, state), aid.guide, sources, sampling)


def answer(knowledge: Knowledge, state: State, asked: Asked, on_token: Callable[[str], None] | None = None) -> tuple[str, int]:
    """The text that answers, and how many tokens it has; ``on_token`` receives the text as it is written."""
    model, injection = knowledge.model, knowledge.injection(asked.decision, state)
    processors = processors_of([Aid(guide=asked.guide)])
    if on_token is None:
        text = generate(model, [asked.prompt], asked.sampling, injection, processors)[0]
        return text, len(model.tokenizer(text, add_special_tokens=False).input_ids)
    ids: list[int] = []
    shown = ""
    for _, token in stream(model, [asked.prompt], asked.sampling, injection, processors):
        ids.append(token)
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # an unfinished character
            on_token(text[len(shown) :])
            shown = text
    return shown, len(ids)


def decided(knowledge: Knowledge, state: State, prompt: str, adapters: Wanted | None = None, learner: str | None = None) -> Decision:
    """The adapters of a prompt: those that it is routed to, or ``adapters``, each with its weight in the state times the one asked for, so
    that a disabled one adds nothing. ``learner``: of the routed ones those of this learner alone. Raises NotFound, WorkspaceError."""
    if adapters is None:
        return knowledge.decide(prompt, state, learner=learner)
    chosen = named_adapters(state, adapters)
    for item, weight in chosen:
        if weight != 1.0 and not injects(item.learner):
            raise WorkspaceError(f"{item.name} of the learner {item.learner} is no adapter, so it has no weight: leave out ={weight:g}")
    active = tuple(replace(item, weight=item.weight * weight) for item, weight in chosen)
    return Decision(active, tuple(dict.fromkeys(document for item in active for document in item.documents)))


def named_adapters(state: State, wanted: Wanted) -> list[tuple[ActiveAdapter, float]]:
    """Adapters by name with the weights asked for. Raises NotFound; WorkspaceError for a weight that is no finite number and for an adapter
    that is named twice."""
    if isinstance(wanted, str):
        raise WorkspaceError(f"adapters are a list of names or a mapping of names to weights, not the text {wanted!r}: write [{wanted!r}]")
    pairs = list(wanted.items()) if isinstance(wanted, Mapping) else [(name, 1.0) if isinstance(name, str) else name for name in wanted]
    found: dict[str, tuple[ActiveAdapter, float]] = {}
    for name, weight in pairs:
        item = adapter_named(state, name)
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise WorkspaceError(f"adapter {name}: its weight is a finite number, not {weight!r}")
        if item.name in found:
            raise WorkspaceError(f"adapter {item.name} is asked for twice: name it once, with one weight")
        found[item.name] = item, float(weight)
    return list(found.values())


def adapter_named(state: State, name: str) -> ActiveAdapter:
    """An adapter of the state by its name, or by an unambiguous beginning of it. Raises NotFound."""
    known = state.adapters
    found = [item for item in known if item.name == name] or [item for item in known if len(name) > 3 and item.name.startswith(name)]
    if len(found) != 1:
        raise NotFound("adapter", name, [item.name for item in known])
    return found[0]
