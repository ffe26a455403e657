"""Learning of any network on the rows of a table: its parameters are a dictionary, as an adapter's are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.data.examples import Example
from retain.retention.base import Params

Forward = Callable[[Params, Tensor], Tensor]


def perceptron(sizes: Sequence[int], seed: int) -> Params:
    """Weights and biases of a multilayer perceptron ``sizes[0]`` - ... - ``sizes[-1]``, drawn as torch.nn.Linear draws them: uniform
    within 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    params: Params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = 1 / math.sqrt(inputs)
        params[f"layers.{layer}.weight"] = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
        params[f"layers.{layer}.bias"] = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    return params


def perceptron_forward(params: Params, x: Tensor) -> Tensor:
    """Outputs [n, sizes[-1]] for inputs ``x`` [n, sizes[0]]; ReLU between the layers."""
    last = len(params) // 2 - 1
    for layer in range(last + 1):
        x = F.linear(x, params[f"layers.{layer}.weight"], params[f"layers.{layer}.bias"])
        if layer < last:
            x = F.relu(x)
    return x


def module_forward(module: nn.Module) -> Forward:
    """The forward pass of a module with the parameters of a dictionary; start from ``dict(module.named_parameters())``, detached."""
    return lambda params, x: torch.func.functional_call(module, params, (x,))


class NetworkObjective:
    """Cross-entropy of the classes of rows: an objective for tables of examples (:mod:`retain.data.tables`).

    ``features`` [rows, ...]: the inputs; ``forward``: logits [n, classes] from parameters and inputs; ``start``: the parameters before any
    training, which a distillation from the base needs.
    """

    def __init__(self, forward: Forward, features: Tensor, start: Params | None = None) -> None:
        self.forward, self.features, self.start = forward, features, start or {}

    def logits(self, examples: Sequence[Example], params: Params) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and the number of each example."""
        rows = torch.tensor([example.tokens[0] for example in examples])
        return self.forward(params, self.features[rows]), torch.arange(len(examples))

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        """Mean cross-entropy in nats."""
        rows, labels = zip(*[example.tokens for example in examples], strict=True)
        return F.cross_entropy(self.forward(params, self.features[torch.tensor(rows)]), torch.tensor(labels))

    def losses(
        self, new: Sequence[Example], replayed: Sequence[Example], consulted: Sequence[Sequence[Example]], params: Params
    ) -> tuple[tuple[Tensor, Tensor | None], list[Tensor | None]]:
        """What :func:`retain.training.batches.losses_and_logits` gives, from one pass."""
        rows, labels = zip(*[example.tokens for part in (new, replayed, *consulted) for example in part], strict=True)
        parts = self.forward(params, self.features[torch.tensor(rows)]).split([len(new), len(replayed), *map(len, consulted)])
        first = F.cross_entropy(parts[0], torch.tensor(labels[: len(new)]))
        second = F.cross_entropy(parts[1], torch.tensor(labels[len(new) : len(new) + len(replayed)])) if replayed else None
        return (first, second), [part if len(part) else None for part in parts[2:]]

    @torch.no_grad()
    def base_logits(self, examples: Sequence[Example]) -> Tensor:
        """Logits of the network as it was before any training."""
        return self.logits(examples, self.start)[0]
