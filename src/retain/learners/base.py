"""What every way of learning a document offers: it makes a memory of a document, and says how questions are answered with it.

A memory is an adapter, which is injected, or tensors and facts that help while an answer is written (an :class:`Aid`). The workspace
stores it by its content, names it in its state, asks the probes before and after, commits or drops it. A learner does nothing but learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from retain.adapters import Adapter
from retain.config import Config
from retain.data.document import Document
from retain.data.examples import Example
from retain.lm.generation import Processor, Step
from retain.lm.model import LanguageModel

Form = Literal["document", "chain", "shared"]
Guide: TypeAlias = Callable[[Tensor, Tensor, int | None], Tensor]
"""(final hidden state [width], logits [V], token written last or None at the first) -> logits [V], for one question."""


class LearnerError(RuntimeError):
    """A learner cannot do what was asked (an endpoint is down, weights are missing); nothing was changed. The message is one line."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document as it is searched and put into contexts."""

    document: str
    heading: str
    text: str


@dataclass(frozen=True)
class Memory:
    """What a learner that trains no adapter keeps of documents: ``tensors`` by name and ``facts`` (JSON values)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """What is to be learned. ``passages``: the document in pieces of about 128 tokens, in order; ``examples``: its study set, tokenised,
    the held-out questions left out (empty for learners that do not study); ``pairs``: questions and answers of the study set that stand
    in for held-out ones while learning; ``skill``: the frozen adapter that answers are made with; ``earlier``: what this learner made
    of earlier documents, (document id, memory), oldest first; for a shared memory the one that there is, under ""."""

    document: Document
    passages: tuple[Passage, ...]
    examples: tuple[Example, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    skill: Adapter | None = None
    earlier: tuple[tuple[str, Adapter | Memory], ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Learned:
    """A memory that nobody uses yet, and the ``cost`` of making it, for the certificate: ``training_seconds``, ``tokens`` (that went
    through the model), and what else the learner can say in numbers: ``steps``, ``first_loss``, ``last_loss``, ``parameter_change`` ..."""

    memory: Adapter | Memory
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Aid:
    """How a memory that is no adapter helps with one question: a text for the prompt, and a guide of the logits."""

    context: str | None = None
    guide: Guide | None = None


Tell: TypeAlias = Callable[[str, int, int, Mapping[str, Any]], None]
"""Progress: (what is going on, how much is done, of how much, numbers such as loss and tokens_per_second)."""


class Learner(Protocol):
    """A way of learning. ``form``: one memory per document; per document, each built on those of earlier documents ("chain": forgetting one
    means learning the later ones anew); or one "shared" memory. ``studies``: whether it wants the study set as training examples.
    ``injected``: whether its memories are adapters."""

    name: str
    form: Form
    studies: bool
    injected: bool

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError, one line, when no document could be learned: what is needed is missing, or a setting does not fit the model.
        Asked before anything is queued, and for a plan, so it is quick and changes nothing."""

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """Learn. Raises TrainingError when it had no effect, LearnerError, DataError."""

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """Help with a question. ``memories``: those of the documents that the question was routed to; ``passages``: those of them that it
        speaks of, best first. Learners with adapters have nothing to add."""

    def without(self, memory: Memory, document: str) -> Memory | None:
        """A shared memory as if the document had never been learned; None when nothing is left of it."""


def guided(guides: Mapping[int, Guide]) -> Processor:
    """One processor of many questions, each with its own guide, by row."""

    def process(step: Step, logits: Tensor) -> Tensor:
        changed = logits.clone()
        for place, row in enumerate(step.rows.tolist()):
            if row in guides:
                last = None if step.tokens is None else int(step.tokens[place])
                changed[place] = guides[row](step.hidden[place], logits[place], last)
        return changed

    return process
