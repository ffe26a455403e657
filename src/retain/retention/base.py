"""What every retention method is: a set of hooks that the one training loop calls. A method never calls backward or step."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retain.data.examples import Example

Params = dict[str, Tensor]


class Objective(Protocol):
    """The model as a retention method sees it: a function from examples and parameters to logits and a loss."""

    def logits(self, examples: Sequence[Example], params: Params) -> tuple[Tensor, Tensor]:
        """Float32 logits [N, V] at the supervised positions of all examples, and the example number [N] of each."""

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        """Mean cross-entropy over the supervised tokens, a scalar with gradient."""

    def base_logits(self, examples: Sequence[Example]) -> Tensor:
        """Logits [N, V] of the untouched base at the same positions, without gradient."""


@dataclass(frozen=True)
class Task:
    """One unit of learning: its name, its training examples and the objective they are trained with."""

    id: str
    examples: Sequence[Example]
    objective: Objective


@dataclass
class Batch:
    """What one step trains on: ``new`` examples, ``replayed`` ones (may be empty), the ``step`` number, its ``learning_rate``; and the
    examples that a method asked to consult, with their ``logits`` (see :meth:`Retention.consult`)."""

    new: Sequence[Example]
    replayed: Sequence[Example]
    step: int
    objective: Objective
    learning_rate: float
    consulted: Sequence[Example] = ()
    logits: Tensor | None = None


class Retention:
    """Base of all methods; every hook does nothing. ``name`` is how configuration refers to it."""

    name: str = ""
    looks_back = True  # whether adjust_update reads the values from before the step, which costs a copy of them in each

    def before_task(self, task: Task, params: Params) -> None:
        """Called once before the first step; ``params`` are the parameters as they are before learning."""

    def replay(self, n: int) -> list[Example]:
        """Up to ``n`` stored examples to be trained beside ``n`` new ones."""
        return []

    def consult(self, n: int) -> list[Example]:
        """Stored examples whose logits :meth:`loss` needs in this step, beside ``n`` new ones. They come in the batch, with gradient, and
        cost no pass of their own where the objective can make all logits at once."""
        return []

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        """A term to add to the training loss, or None."""
        return None

    def adjust_gradients(self, params: Params, gradients: Params) -> None:
        """Change the gradients in place, before clipping and the optimizer."""

    def adjust_update(self, params: Params, previous: Params) -> None:
        """Change ``params`` in place after the optimizer's step; ``previous`` are their values before it."""

    def after_task(self, task: Task, params: Params) -> None:
        """Called once after a task has been kept (not when it was rolled back)."""

    def remembered(self) -> list[Example]:
        """The examples of earlier tasks that the method has stored."""
        return []

    def refresh(self, objective: Objective, examples: Sequence[Example], params: Params) -> None:
        """Take what is remembered anew from the parameters as they are; ``examples`` are those that all methods in use have stored."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


def total(terms: Iterable[Tensor | None]) -> Tensor | None:
    """Sum of the terms that are there."""
    present = [term.float() for term in terms if term is not None]
    return functools.reduce(torch.add, present) if present else None
