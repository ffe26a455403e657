"""What is compared: a learner in a workspace of its own, and the baselines that need none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from retain.adapters import Adapter, inject
from retain.config import Config
from retain.data.document import Document
from retain.data.examples import question_example, text_example
from retain.evaluation.control import load_control
from retain.evaluation.probes import Probe, answer_questions, perplexity, recall
from retain.learners.base import Aid
from retain.learners.lora import train_adapter
from retain.learners.study import build_study, study_examples
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed
from retain.workspace.continual import ContinualLM
from retain.workspace.knowledge import Decision
from retain.workspace.learning import with_learner
from retain.workspace.records import State
from retain.workspace.reports import Event
from retain.workspace.transaction import check_kept

BASELINES = ("nothing", "context", "plain")
PASSAGES = "+passages"
"""Ending of the arm in which a learner's adapters answer with retrieved passages in the prompt."""


@dataclass(frozen=True)
class Asked:
    """A question of the comparison: the document that answers it, and all right answers."""

    document: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What learning one document cost: seconds, tokens that went through the model, and why it was refused (empty: it was not)."""

    seconds: float = 0.0
    tokens: int = 0
    refusal: str = ""


class Arm(Protocol):
    """One way of knowing, in one fresh state."""

    def learn(self, document: Document) -> Cost:
        """Learn a document."""

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        """Greedy answers."""

    def log_likelihoods(self, asked: Sequence[Asked]) -> list[float]:
        """Mean log-likelihood of a token of each right answer, in nats."""

    def control(self) -> Mapping[str, float]:
        """``control_accuracy`` and ``control_perplexity`` on questions and text that have nothing to do with the documents."""

    @property
    def stored(self) -> int:
        """Bytes kept of what was learned."""

    def close(self) -> None:
        """Give back what it held."""


class Baseline:
    """The base alone (``nothing``), with the whole document in the prompt (``context``), or with one adapter that is fine-tuned on the
    text of one document after another and always on (``plain``)."""

    def __init__(self, name: str, model: LanguageModel, config: Config, documents: Sequence[Document]) -> None:
        self.name, self.model, self.config = name, model, config
        self.texts = {document.id: f"{document.title}\n\n{document.text}" for document in documents}
        self.adapter: Adapter | None = None
        self.said: dict[str, str] = {}  # what does not change while documents are learned

    def learn(self, document: Document) -> Cost:
        if self.name != "plain":
            return Cost()
        started = time.perf_counter()
        # as many tokens as the questions of the rules have, so that the arms differ in the data and not in the effort
        study = build_study(self.model, None, document, self.config.study.model_copy(update={"writer": "none"}), self.config.learn.seed)
        budget = sum(len(example) for example in study_examples(self.model, document, study))
        example = text_example(self.model.tokenizer, self.texts[document.id], document=document.id, end=False)
        examples = [example] * max(1, round(budget / len(example)))
        start = self.adapter.tensors if self.adapter else None
        made = train_adapter(self.model, document.id, examples, self.config.learn, start=start)
        self.adapter = made.adapter
        return Cost(time.perf_counter() - started, made.report.tokens)

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        new = [one for one in asked if one.question not in self.said]
        texts = answer_questions(self.model, [one.question for one in new], self._injection(), self._contexts(new))
        found = {**self.said, **dict(zip([one.question for one in new], texts, strict=True))}
        if self.name != "plain":
            self.said = found
        return [found[one.question] for one in asked]

    def log_likelihoods(self, asked: Sequence[Asked]) -> list[float]:
        contexts = self._contexts(asked)
        return [
            log_likelihood(self.model, one, self._injection(), contexts[number] if contexts else None) for number, one in enumerate(asked)
        ]

    def control(self) -> Mapping[str, float]:
        control = load_control()
        probes = [Probe("", item.question, item.answer, tuple(item.aliases)) for item in control.questions]
        right = recall(answer_questions(self.model, [probe.question for probe in probes], self._injection()), probes)
        return {
            "control_accuracy": sum(right) / len(right), "control_perplexity": perplexity(self.model, control.texts, self._injection())
        }  # fmt: skip

    @property
    def stored(self) -> int:
        return self.adapter.byte_count if self.adapter else 0

    def close(self) -> None:
        """Nothing is held."""

    def _contexts(self, asked: Sequence[Asked]) -> list[str | None] | None:
        return [self.texts[one.document] for one in asked] if self.name == "context" else None

    def _injection(self) -> Injection | None:
        return inject([(self.adapter, 1.0)], self.model.dtype, self.model.device) if self.adapter else None


class Workspace:
    """A learner in a workspace of its own, with its router and its gate. ``passages``: answer with retrieved passages in the prompt."""

    def __init__(
        self, learner: str, model: LanguageModel, config: Config, place: Path, tell: Callable[[Event], None], passages: bool = False
    ) -> None:
        self.lm = ContinualLM.open(place, model, config=with_learner(config, learner), progress=tell)
        self.passages = passages

    def learn(self, document: Document) -> Cost:
        started = time.perf_counter()
        update = self.lm.learn(document)
        cost = update.certificate.get("cost", {})
        return Cost(time.perf_counter() - started, int(cost.get("tokens") or 0), update.reason if update.status == "rejected" else "")

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        state = self.lm.state
        questions = [one.question for one in asked]
        decisions = [self.lm.knowledge.decide(question, state) for question in questions]
        contexts = [self._context(question, decision) for question, decision in zip(questions, decisions, strict=True)]
        return self.lm.knowledge.answers(questions, decisions, state, contexts if any(contexts) else None)

    def log_likelihoods(self, asked: Sequence[Asked]) -> list[float]:
        knowledge, state = self.lm.knowledge, self.lm.state
        found = []
        for one in asked:
            decision = knowledge.decide(one.question, state)
            context, aid = self._context(one.question, decision), knowledge.aid(one.question, decision)
            used = decision.beside_passages(self.lm.config.generate.weight_beside_passages) if context else decision
            found.append(log_likelihood(knowledge.model, one, knowledge.injection(used, state), context or aid.context, aid))
        return found

    def control(self) -> Mapping[str, float]:
        kept = check_kept(self.lm.knowledge, State(), self.lm.state, {}, [], None, None)
        return {"control_accuracy": kept["control_accuracy_after"], "control_perplexity": kept["control_perplexity_after"]}

    @property
    def stored(self) -> int:
        return sum(info.bytes for info in self.lm.adapters)

    def close(self) -> None:
        self.lm.close()

    def _context(self, question: str, decision: Decision) -> str | None:
        return self.lm.knowledge.context(question, decision)[0] if self.passages else None


@torch.inference_mode()
def log_likelihood(
    model: LanguageModel, asked: Asked, injection: Injection | None, context: str | None = None, aid: Aid | None = None
) -> float:
    """Mean log-likelihood in nats of a token of the right answer (of several the likeliest) and the end of the turn, after its question,
    with what a guide does to the logits of every token."""
    best = -torch.inf
    for answer in asked.answers:
        example = question_example(model.tokenizer, asked.question, answer, context, max_tokens=model.context)
        first = example.supervised.index(True)
        final = model.hidden(Packed.of([example.tokens], model.device), injection)[first - 1 : -1]
        logits, last, total = model.logits(final), None, 0.0
        for hidden, row, token in zip(final, logits, example.tokens[first:], strict=True):
            changed = aid.guide(hidden, row, last) if aid and aid.guide else row
            total += float(torch.log_softmax(changed.float(), -1)[token])
            last = token
        best = max(best, total / len(final))
    return float(best)


def arm_named(
    name: str, model: LanguageModel, config: Config, documents: Sequence[Document], place: Path, tell: Callable[[Event], None]
) -> Arm:
    """An arm in a fresh state; those with learners keep it in ``place``."""
    if name in BASELINES:
        return Baseline(name, model, config, documents)
    return Workspace(name, model, config, place, tell)


def facts_of(costs: Sequence[Cost]) -> dict[str, Any]:
    """What learning cost over all documents."""
    return {
        "learn_seconds": sum(cost.seconds for cost in costs) / len(costs),
        "tokens": sum(cost.tokens for cost in costs),
        "refused": [cost.refusal for cost in costs if cost.refusal],
    }
