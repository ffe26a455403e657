"""Elastic weight consolidation and its plain sibling: a quadratic pull toward the parameters of earlier tasks.

The pull of many anchors, sum_i F_i (p - w_i)^2 / 2, is kept exactly in the memory of one: with F = sum_i F_i and m = sum_i F_i w_i / F it
equals F (p - m)^2 / 2 + C, where C does not depend on p. F, m and C are updated when a task ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Batch, Objective, Params, Retention, Task
from retain.retention.fisher import Labels, fisher_information
from retain.retention.registry import method
from retain.retention.state import flatten, unflatten

Form = Literal["anchors", "online"]
Apply = Literal["proximal", "loss"]


class QuadraticPull(Retention):
    """strength / 2 * sum_i F_i (p - w_i)^2 with the half, for any F; subclasses say what F is.

    ``form`` "anchors" keeps every anchor (1612.00796, section 2.1: the quadratics are added, none is overwritten); "online" keeps the
    latest parameters as the only anchor and adds up F (Progress & Compress, 1805.06370, section 2.3).
    ``gamma``: before F of a new task is added, earlier F is multiplied by gamma, in both forms: F <- gamma F + F_new; 1 forgets nothing.

    ``apply`` "proximal" (default): after the optimizer's step, p <- (p + lr s sum_i F_i w_i) / (1 + lr s sum_i F_i), the exact minimiser
    of the pull plus |p - p_step|^2 / (2 lr). It moves p toward the anchor and never past it, so it is finite at every strength. "loss":
    the explicit loss term; it diverges once lr * strength * F exceeds about 2.
    """

    looks_back = False

    def __init__(self, strength: float, gamma: float = 1.0, form: Form = "anchors", apply: Apply = "proximal") -> None:
        self.strength, self.gamma, self.form, self.apply = strength, gamma, form, apply
        self.weights: Params = {}  # F
        self.anchors: Params = {}  # m
        self.constant = 0.0  # C, without the strength
        self.tasks = 0
        self._rate = 0.0
        self._shares: tuple[float, list[Tensor]] | None = None  # the step toward the anchors at the latest rate

    def measure(self, objective: Objective, examples: Sequence[Example], params: Params) -> Params:
        """F of the task that has just ended."""
        raise NotImplementedError

    def before_task(self, task: Task, params: Params) -> None:
        self._shares = None
        for name, tensor in self._known(params):  # a loaded state is on the CPU
            self.weights[name], self.anchors[name] = self.weights[name].to(tensor.device), self.anchors[name].to(tensor.device)

    def penalty(self, params: Params) -> Tensor:
        """The explicit term, strength and half included. Parameters without an anchor add nothing."""
        terms = [(self.weights[name] * (tensor - self.anchors[name]).square()).sum() for name, tensor in self._known(params)]
        pulled = torch.stack(terms).sum() if terms else next(iter(params.values())).new_zeros(())
        return 0.5 * self.strength * (pulled + self.constant)

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        self._rate = batch.learning_rate
        return self.penalty(params) if self.apply == "loss" and self.tasks else None

    def adjust_update(self, params: Params, previous: Params) -> None:
        if self.apply != "proximal":
            return
        factor = min(self._rate * self.strength, 1e30)  # both bounds: float32 has no larger numbers, and 0 * infinity is none
        known = self._known(params)
        if self._shares is None or self._shares[0] != factor:
            pulls = [(factor * self.weights[name]).clamp_(max=1e30) for name, _ in known]
            self._shares = factor, [pull.div_(1.0 + pull) for pull in pulls]
        if known:
            torch._foreach_lerp_([tensor for _, tensor in known], [self.anchors[name] for name, _ in known], self._shares[1])

    def after_task(self, task: Task, params: Params) -> None:
        self.add(self.measure(task.objective, task.examples, params), params)

    @torch.no_grad()
    def add(self, weights: Params, params: Params) -> None:
        """A new anchor at ``params`` with these weights; what was there before decays by gamma."""
        self.constant *= self.gamma
        for name, new in weights.items():
            here = params[name].detach().float()
            old = self.gamma * self.weights[name] if name in self.weights else torch.zeros_like(new)
            total = old + new
            anchor = self.anchors.get(name, here)
            if self.form == "online":
                anchor = here.clone()
            else:
                share = torch.where(total > 0, new / total, torch.ones_like(total))
                self.constant += float((old * share * (here - anchor).square()).sum(dtype=torch.float64))
                anchor = anchor + share * (here - anchor)
            self.weights[name], self.anchors[name] = total, anchor
        self.tasks += 1

    def refresh(self, objective: Objective, examples: Sequence[Example], params: Params) -> None:
        """Forget all anchors and take one at ``params``, measured on ``examples``; with none the anchors stay."""
        if not examples:
            return
        weights = self.measure(objective, examples, params)
        self.weights, self.anchors, self.constant = {}, {}, 0.0
        self.add(weights, params)

    def state_dict(self) -> dict[str, Any]:
        settings = {"constant": self.constant, "tasks": self.tasks}
        return {**flatten("weights", self.weights), **flatten("anchors", self.anchors), **settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.anchors = unflatten("weights", state), unflatten("anchors", state)
        self.constant, self.tasks = float(state["constant"]), int(state["tasks"])

    def _known(self, params: Params) -> list[tuple[str, Tensor]]:
        # a tensor that came later has no anchor and is free; one that changed its shape is a mistake and fails in the arithmetic
        return [(name, tensor) for name, tensor in params.items() if name in self.weights]


@method(
    "ewc", paper="1612.00796", kind="penalty", summary="holds parameters in proportion to their Fisher information",
    build=lambda config, resources: EWC(config.ewc.strength, config.ewc.gamma, config.ewc.form, seed=resources.seed),
)  # fmt: skip
class EWC(QuadraticPull):
    """Elastic weight consolidation (Kirkpatrick et al., 1612.00796, equation 3): lambda / 2 * sum_i F_i (p - w_i)^2.

    F is the diagonal Fisher information of the finished task's sequences (conventions: :mod:`retain.retention.fisher`), from at most
    ``samples`` of its examples, drawn without replacement. ``labels``: "sampled" (default) is the true Fisher; "empirical" vanishes where
    a task has been learned by heart, for then its gradients do. lambda counts per sequence likelihood: frameworks without the half
    (Avalanche) have the same pull at half of this lambda.
    """

    def __init__(
        self, strength: float = 1000.0, gamma: float = 1.0, form: Form = "anchors", apply: Apply = "proximal", *,
        labels: Labels = "sampled", samples: int = 512, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(strength, gamma, form, apply)
        self.labels, self.samples, self.seed = labels, samples, seed

    def measure(self, objective: Objective, examples: Sequence[Example], params: Params) -> Params:
        generator = torch.Generator().manual_seed(self.seed + self.tasks)
        if len(examples) > self.samples:
            chosen = torch.randperm(len(examples), generator=generator)[: self.samples].sort().values.tolist()
            examples = [examples[number] for number in chosen]
        return fisher_information(objective, examples, params, labels=self.labels, generator=generator).diagonal


@method(
    "l2", paper="1612.00796", kind="penalty", summary="holds all parameters alike: the control for ewc",
    build=lambda config, resources: L2(gamma=config.ewc.gamma, form=config.ewc.form),
)  # fmt: skip
class L2(QuadraticPull):
    """The L2 baseline of 1612.00796 (section 2.1, figure 2): the same pull with F = 1 for every parameter."""

    def __init__(self, strength: float = 1.0, gamma: float = 1.0, form: Form = "anchors", apply: Apply = "proximal") -> None:
        super().__init__(strength, gamma, form, apply)

    def measure(self, objective: Objective, examples: Sequence[Example], params: Params) -> Params:
        return {name: torch.ones_like(tensor, dtype=torch.float32) for name, tensor in params.items()}
