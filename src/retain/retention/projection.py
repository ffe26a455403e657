"""Gradient projection: a step may not go against what earlier tasks ask for (A-GEM), or may not change what they say (OGD)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Objective, Params, Retention, Task
from retain.retention.buffer import ReplayBuffer
from retain.retention.positions import labels_of
from retain.retention.registry import RetentionError, method

Subject = Literal["gradient", "update"]


@method(
    "agem", paper="1812.00420", kind="projection", summary="removes from a step what would raise the loss on stored examples",
    build=lambda config, resources: AveragedGem(config.agem.examples, seed=resources.seed),
)  # fmt: skip
class AveragedGem(Retention):
    """A-GEM (Chaudhry et al., 1812.00420, equation 11): g <- g - (g . r / r . r) r whenever g . r < 0, where r is the gradient of the mean
    loss on ``examples`` stored ones, drawn anew at every step.

    ``subject`` "gradient" is the paper's method, exact for SGD. AdamW's step is not along the gradient, so its step can oppose r although
    the gradient does not; "update" (default) projects the step itself: p_new - p_old loses its component along r when that component is
    positive (the loss on the memory would rise to first order). Costs one backward pass over the examples per step.
    """

    def __init__(self, examples: int = 64, *, subject: Subject = "update", capacity: int = 10_000, seed: int = 0) -> None:
        self.examples, self.subject = examples, subject
        self.buffer = ReplayBuffer(capacity, "reservoir", seed)
        self.conflicts = 0  # steps that were projected
        self._objective: Objective | None = None
        self._reference: Params = {}

    def before_task(self, task: Task, params: Params) -> None:
        self.buffer.hide(task.examples, task.id)
        self._objective = task.objective

    def adjust_gradients(self, params: Params, gradients: Params) -> None:
        memory = self.buffer.sample(self.examples)
        self._reference = {}
        if not memory or self._objective is None:
            return
        with torch.enable_grad():
            loss = self._objective.loss(memory, params)
            found = torch.autograd.grad(loss, [params[name] for name in gradients], allow_unused=True)
        self._reference = {name: gradient for name, gradient in zip(gradients, found, strict=True) if gradient is not None}
        if self.subject == "gradient":
            self._project(gradients, -1.0)

    def adjust_update(self, params: Params, previous: Params) -> None:
        if self.subject != "update" or not self._reference:
            return
        steps = {name: params[name] - previous[name] for name in self._reference}
        if self._project(steps, 1.0):
            for name, step in steps.items():
                params[name].copy_(previous[name] + step)

    def _project(self, vectors: Params, sign: float) -> bool:
        """Take the component along the reference out of ``vectors``, in place, if its sign is ``sign``."""
        along = sum(float((vectors[name] * reference).sum(dtype=torch.float64)) for name, reference in self._reference.items())
        square = sum(float(reference.square().sum(dtype=torch.float64)) for reference in self._reference.values())
        if along * sign <= 0.0 or square == 0.0:
            return False
        for name, reference in self._reference.items():
            vectors[name].sub_(reference, alpha=along / square)
        self.conflicts += 1
        return True

    def after_task(self, task: Task, params: Params) -> None:
        self.buffer.add(task.examples, task.id)
        self.buffer.hide(())
        self._reference, self._objective = {}, None

    def remove(self, document: str) -> int:
        """Forget a document: take its examples out; returns how many there were."""
        return self.buffer.remove(document)

    def state_dict(self) -> dict[str, Any]:
        return self.buffer.state_dict() | {"conflicts": self.conflicts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)
        self.conflicts = int(state["conflicts"])


@method(
    "ogd", paper="1910.07104", kind="projection", summary="steps at right angles to the gradients of earlier examples' answers",
    build=lambda config, resources: OrthogonalGradient(seed=resources.seed),
)  # fmt: skip
class OrthogonalGradient(Retention):
    """Orthogonal gradient descent (Farajtabar et al., 1910.07104, section 3; the variant OGD-GTL).

    When a task ends, the gradients of the ground-truth logits at up to ``per_task`` of its supervised positions are made orthonormal to
    those stored. Later steps lose their component in that span, so to first order those logits stay. The paper projects the gradient and
    steps by SGD; AdamW leaves that plane, so here it is the step that is projected. One backward pass per position.

    Memory: one copy of the trained parameters per stored gradient, at most ``capacity``; when they are full, later tasks go unprotected.
    The same parameters must go on from task to task.
    """

    def __init__(self, per_task: int = 32, capacity: int = 128, seed: int = 0) -> None:
        self.per_task, self.capacity, self.seed = per_task, capacity, seed
        self.basis = torch.zeros(0, 0)  # [stored, parameters]
        self.shapes: dict[str, list[int]] = {}
        self.tasks = 0

    def before_task(self, task: Task, params: Params) -> None:
        shapes = {name: list(params[name].shape) for name in sorted(params)}
        if len(self.basis) and shapes != self.shapes:
            raise RetentionError("ogd: the parameters are not those whose gradients are stored; it needs one adapter that goes on")
        if not len(self.basis):  # the stored gradients are in this order, whatever order later dictionaries have
            self.shapes = shapes
        self.basis = self.basis.to(next(iter(params.values())).device)

    def adjust_update(self, params: Params, previous: Params) -> None:
        if not len(self.basis):
            return
        step = torch.cat([(params[name] - previous[name]).flatten() for name in self.shapes])
        step -= (self.basis @ step) @ self.basis
        for name, part in zip(self.shapes, step.split([params[name].numel() for name in self.shapes]), strict=True):
            params[name].copy_(previous[name] + part.view_as(params[name]))

    def after_task(self, task: Task, params: Params) -> None:
        generator = torch.Generator().manual_seed(self.seed + self.tasks)
        self.tasks += 1
        places = [(example, place) for example in task.examples for place in range(sum(example.supervised))]
        chosen: dict[Example, list[int]] = {}
        for number in torch.randperm(len(places), generator=generator)[: min(self.per_task, self.capacity - len(self.basis))].tolist():
            chosen.setdefault(places[number][0], []).append(places[number][1])
        leaves = {name: params[name].detach().requires_grad_(True) for name in self.shapes}
        for example, positions in chosen.items():
            with torch.enable_grad():
                logits, _ = task.objective.logits([example], leaves)
                answers = logits.gather(1, labels_of([example], logits.device)[:, None])[:, 0]
            for place in positions:
                found = torch.autograd.grad(
                    answers[place], list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
                )  # fmt: skip
                self._add(torch.cat([gradient.float().flatten() for gradient in found]))

    def _add(self, vector: Tensor) -> None:
        """Gram-Schmidt, twice against rounding; what lies in the span already is left out."""
        if not len(self.basis):
            self.basis = vector.new_zeros(0, len(vector))
        length = float(vector.norm())
        for _ in range(2):
            vector = vector - (self.basis @ vector) @ self.basis
        if length and float(vector.norm()) > 1e-4 * length:
            self.basis = torch.cat([self.basis, (vector / vector.norm())[None]])

    def state_dict(self) -> dict[str, Any]:
        return {"basis": self.basis.clone(), "shapes": self.shapes, "tasks": self.tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.basis, self.tasks = state["basis"].clone(), int(state["tasks"])
        self.shapes = {str(name): [int(size) for size in shape] for name, shape in state["shapes"].items()}
