"""What learners share whose adapters build on those of earlier documents: the chain so far, progress, and the cost in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retain.adapters import Adapter, AdapterError
from retain.data.examples import Example
from retain.learners.base import LearnerError, Lesson, Tell
from retain.learners.lora import PREFIX_BYTES
from retain.lm.model import LanguageModel
from retain.training.loop import Progress, TrainingReport


def chain_of(model: LanguageModel, lesson: Lesson, kind: str) -> list[Adapter]:
    """The adapters of the earlier documents, oldest first. Raises LearnerError when one is not of that ``kind`` or fits another model."""
    found = []
    for document, memory in lesson.earlier:
        if not isinstance(memory, Adapter) or memory.spec.kind != kind:
            raise LearnerError(f"what was learned of {document} is no {kind} adapter, so nothing can be built on it: forget it first")
        try:
            memory.check(model)
        except AdapterError as error:
            raise LearnerError(f"what was learned of {document} does not fit: {error}") from error
        found.append(memory)
    return found


def keeps_prefix(model: LanguageModel, examples: Sequence[Example]) -> bool:
    """Whether the hidden states below the first trained layer are few enough to be kept while training."""
    return sum(map(len, examples)) * model.width * model.dtype.itemsize <= PREFIX_BYTES


def teller(tell: Tell, title: str) -> Callable[[Progress], None]:
    """A callback of the training loop that tells of its steps."""

    def on_step(progress: Progress) -> None:
        rate = progress.tokens / max(progress.seconds, 1e-9)
        tell(title, progress.step, progress.steps, {"loss": progress.loss, "tokens_per_second": rate, "tokens": progress.tokens})

    return on_step


def cost_of(adapter: Adapter, reports: Sequence[TrainingReport], **more: Any) -> dict[str, Any]:
    """The cost of an adapter whose tensors went through these trainings, one after another, for its certificate."""
    return {
        "training_seconds": round(sum(report.seconds for report in reports), 3),
        "tokens": sum(report.tokens for report in reports),
        "supervised_tokens": sum(report.supervised for report in reports),
        "steps": sum(report.steps for report in reports),
        "parameters": adapter.parameter_count,
        "bytes": adapter.byte_count,
        "first_loss": reports[0].losses[0],
        "last_loss": reports[-1].losses[-1],
        **more,
    }
