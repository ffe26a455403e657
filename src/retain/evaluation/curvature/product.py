"""Adapters as dense changes of the weights: curvature in the space of W, which does not depend on how a change is split into factors.

The same dW = scale B A has many pairs of factors, and distances and curvature of the factors differ between them. The Hessian of the
factors also holds what is not curvature of the loss at all: d2L / dB dA contains scale G x 1_r, G = dL/dW, and so pairs of eigenvalues
+- scale sigma_i(G), each r times, which near B = 0 outweigh all others. Here the parameters are dW [d_out, d_in] themselves, one per site,
and the loss is a function of these: base output plus x dW', which is what the factors do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters import Adapter, inject
from retain.adapters.adapter import LORA_A, LORA_B
from retain.data.examples import Example
from retain.evaluation.curvature.operator import Params
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, targets
from retain.training.objective import AdapterObjective, soft_targets

DELTA = ".delta"


def dense_deltas(tensors: Mapping[str, Tensor], scale: float) -> Params:
    """``<site>.delta`` [d_out, d_in] = scale B A for every site of LoRA factors."""
    sites = [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]
    if not sites:
        raise ValueError(f"none of {len(tensors)} tensors is a LoRA factor")
    return {site + DELTA: scale * (tensors[site + LORA_B].detach() @ tensors[site + LORA_A].detach()) for site in sites}


def product_space(objective: AdapterObjective, tensors: Mapping[str, Tensor]) -> tuple[ProductObjective, Params]:
    """The objective as a function of dense changes, and the adapter's factors as such: the loss of both is the same number."""
    deltas = {name: delta.to(objective.model.dtype) for name, delta in dense_deltas(tensors, objective.scale).items()}
    return ProductObjective(objective.model, objective.sites, objective.frozen), deltas


class ProductObjective:
    """Loss of examples under ``base + frozen adapters + dense changes``, whose parameters are ``<site>.delta``."""

    def __init__(self, model: LanguageModel, sites: Sequence[str], frozen: Sequence[tuple[Adapter, float]] = ()) -> None:
        self.model, self.sites, self.frozen = model, tuple(sites), tuple(frozen)
        self._frozen_injection = inject(self.frozen, model.dtype, model.device)

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        """Mean cross-entropy over the supervised tokens, as :meth:`AdapterObjective.loss`."""
        packed = Packed.of([example.tokens for example in examples], self.model.device)
        deltas = _Deltas({site: params[site + DELTA] for site in self.sites}, self.model.sites, self._frozen_injection)
        hidden = self.model.hidden(packed, deltas)
        unused = set(self.sites) - deltas.applied
        if unused:
            raise RuntimeError(f"{len(unused)} of {len(self.sites)} adapter sites were never reached, the first is {sorted(unused)[0]}")
        positions, labels = targets(packed, [example.supervised for example in examples])
        return self.model.token_loss(hidden[positions], *soft_targets(examples, labels))


class _Deltas:
    """An injection of dense changes beside what is already injected."""

    by_row = False

    def __init__(self, deltas: Params, shapes: Mapping[str, tuple[int, int]], frozen: Injection | None) -> None:
        self.deltas, self.shapes, self.frozen = deltas, shapes, frozen
        self.applied: set[str] = set()

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if self.frozen is not None:
            y = self.frozen(sites, x, y, rows)
        here = [site for site in sites if site in self.deltas]
        if not here:
            return y
        self.applied.update(here)
        parts = [F.linear(x, self.deltas[site]) if site in self.deltas else x.new_zeros(len(x), self.shapes[site][1]) for site in sites]
        return y + torch.cat(parts, -1)
