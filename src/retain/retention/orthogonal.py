"""O-LoRA: a new adapter learns in directions that earlier adapters do not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters.adapter import LORA_A
from retain.retention.base import Batch, Params, Retention, Task
from retain.retention.registry import RetentionError, method

Form = Literal["penalty", "projection"]


@method(
    "olora", paper="2310.14152", kind="projection", summary="keeps a new adapter's input directions orthogonal to those of earlier ones",
    build=lambda config, resources: OrthogonalLora(resources.earlier, config.olora.weight),
)  # fmt: skip
class OrthogonalLora(Retention):
    """Orthogonal subspaces for LoRA (Wang et al., 2310.14152, section 3.2). ``earlier``: the LoRA tensors of the adapters learned before;
    they stay frozen and active. Each kept task adds its own A, so the parameters of the next task must be a new adapter's.

    ``form`` "penalty": weight * sum over new rows a of the mean over earlier rows e of |cos(a, e)|, a mean over sites. The published
    term is sum |A_old A_new^T|, which grows with rank and tasks and is smallest when A shrinks to nothing; with rows of length 1 and a
    mean over earlier rows neither happens. "projection": the term is not used; the start (where B
    is still zero) and every step of A lose their component in the span of the earlier rows, so A_old A_new^T = 0 up to rounding.
    """

    def __init__(self, earlier: Sequence[Mapping[str, Tensor]] = (), weight: float = 0.5, form: Form = "penalty") -> None:
        self.weight, self.form = weight, form
        self.rows: Params = {}  # name of A -> its rows of all earlier adapters, each of length 1
        self.tasks = 0
        self._bases: Params = {}
        self._checked = False
        for tensors in earlier:
            self.add(tensors)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """One more earlier adapter."""
        for name, tensor in tensors.items():
            if name.endswith(LORA_A):
                rows = F.normalize(tensor.detach().float(), dim=1)
                self.rows[name] = torch.cat([self.rows[name], rows.to(self.rows[name].device)]) if name in self.rows else rows
        self.tasks += 1

    @torch.no_grad()
    def before_task(self, task: Task, params: Params) -> None:
        self._checked = False
        self._bases = {}
        if not self.tasks:
            return
        common = [name for name in params if name in self.rows]
        if not common:
            raise RetentionError(f"olora: none of the {self.tasks} earlier adapters has a site in common with the new one")
        if self.form == "projection":
            for name in common:
                self._bases[name] = orthonormal(self.rows[name].to(params[name].device))
                if len(self._bases[name]) >= params[name].shape[1]:
                    raise RetentionError(f"olora: {self.tasks} earlier adapters fill all {params[name].shape[1]} directions of {name}")
                b = params.get(name.removesuffix(LORA_A) + ".lora_B.weight")
                if b is not None and not bool(b.any()):
                    _take_out(params[name], self._bases[name])

    def overlap(self, params: Params) -> Tensor:
        """Sum over new rows of the mean |cosine| with earlier rows, a mean over sites: from 0 to the rank."""
        terms = [
            (F.normalize(tensor.float(), dim=1) @ self.rows[name].to(tensor.device).t()).abs().mean(1).sum()
            for name, tensor in params.items() if name in self.rows
        ]  # fmt: skip
        return torch.stack(terms).mean() if terms else next(iter(params.values())).new_zeros(())

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        if self.form != "penalty" or not self.tasks:
            return None
        term = self.overlap(params)
        if not self._checked and not float(term.detach()) > 0.0:
            raise RetentionError("olora: the overlap with earlier adapters is exactly zero, so the penalty has no effect")
        self._checked = True
        return self.weight * term

    def adjust_update(self, params: Params, previous: Params) -> None:
        for name, basis in self._bases.items():
            step = params[name] - previous[name]
            _take_out(step, basis)
            params[name].copy_(previous[name] + step)

    def after_task(self, task: Task, params: Params) -> None:
        self.add(params)

    def state_dict(self) -> dict[str, Any]:
        return {f"rows/{name}": rows.clone() for name, rows in self.rows.items()} | {"tasks": self.tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = {name.removeprefix("rows/"): rows.clone() for name, rows in state.items() if name.startswith("rows/")}
        self.tasks = int(state["tasks"])


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis [k, d] of the span of rows [n, d]; directions below 1e-6 of the largest are left out."""
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    return basis[values > 1e-6 * values.max()].to(rows.dtype)


def _take_out(matrix: Tensor, basis: Tensor) -> None:
    """Remove the component of each row in the span of the basis, in place; twice, against rounding."""
    for _ in range(2):
        matrix -= (matrix @ basis.t()) @ basis
