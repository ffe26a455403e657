"""From a question to what the model is asked: adapters by routing or by name, passages, what learners' memories add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retain.adapters import Adapter
from retain.data.document import Message
from retain.data.examples import prompt_tokens
from retain.learners.base import Guide
from retain.lm.generation import Sampling
from retain.workspace.errors import NotFound
from retain.workspace.knowledge import Decision, Knowledge
from retain.workspace.records import ActiveAdapter, State
from retain.workspace.reports import Source


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
    retrieval: bool | None = None, adapters: Sequence[str] | None = None, learner: str | None = None, capacity: int | None = None,
) -> Asked:  # fmt: skip
    """What a question in ``state`` runs with.

    ``retrieval``: put passages of the documents that it speaks of into the context (default from the configuration); ``adapters``: use
    exactly these by name instead of routing; ``learner``: with what this learner made alone; ``capacity``: tokens of prompt and
    answer together, by default the model's context. Raises NotFound.
    """
    settings = knowledge.config.generate
    if adapters is None:
        decision = knowledge.decide(question, state, learner=learner)
    else:
        chosen = tuple(adapter_named(state, name) for name in adapters)
        decision = Decision(chosen, tuple(document for item in chosen for document in item.documents))
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


def adapter_named(state: State, name: str) -> ActiveAdapter:
    """An adapter of the state by its name, or by an unambiguous beginning of it. Raises NotFound."""
    known = state.adapters
    found = [item for item in known if item.name == name] or [item for item in known if len(name) > 3 and item.name.startswith(name)]
    if len(found) != 1:
        raise NotFound("adapter", name, [item.name for item in known])
    return found[0]
