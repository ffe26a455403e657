"""How questions with known answers are answered from what was learned: asked together, graded one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.evaluation.probes import Tell
from retain.evaluation.qa import Item, grade_answers, passages
from retain.workspace.asking import Wanted, decided
from retain.workspace.knowledge import ROWS, Decision, Knowledge
from retain.workspace.records import State


def score(
    knowledge: Knowledge, state: State, items: Sequence[Item], *, retrieval: bool | None = None, adapters: Wanted | None = None,
    learner: str | None = None, in_context: bool = False, seed: int = 0, tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What :func:`retain.evaluation.grade_answers` says of the answers in ``state``, and "routed": how many questions got an adapter or
    what a learner keeps instead. See :meth:`retain.ContinualLM.evaluate`."""
    questions = [item.question for item in items]
    own = passages(items) if in_context else None
    decisions = [decided(knowledge, state, question, adapters, learner) for question in questions]
    retrieval = knowledge.config.generate.retrieval if retrieval is None else retrieval
    contexts = own if own or not retrieval else [_passages(knowledge, *asked) for asked in zip(questions, decisions, strict=True)]
    order = sorted(range(len(items)), key=lambda place: decisions[place].key)  # those with the same adapters together
    answers, tokens = [""] * len(items), 0
    for first in range(0, len(order), ROWS):
        part = order[first : first + ROWS]
        shown = [contexts[place] for place in part] if contexts else None
        found = knowledge.answers([questions[place] for place in part], [decisions[place] for place in part], state, shown)
        for place, text in zip(part, found, strict=True):
            answers[place] = text
        if tell is not None:
            read = [*(questions[place] for place in part), *(shown or ())]
            tokens += sum(len(knowledge.model.tokenizer(text or "", add_special_tokens=False).input_ids) for text in read)
            tell(first + len(part), len(order), tokens)
    return {**grade_answers(items, answers, seed), "routed": sum(bool(decision.adapters) for decision in decisions)}


def _passages(knowledge: Knowledge, question: str, decision: Decision) -> str | None:
    """The passages beside a question as asking shows them: none where a learner without adapters has a text of its own."""
    if not decision.injected and knowledge.aid(question, decision).context:
        return None
    return knowledge.context(question, decision)[0]
