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


def perceptron_squares(params: Params, x: Tensor, labels: Tensor) -> Params:
    """Sums over the rows of ``x`` [n, inputs] of the squared gradients of log p(label): what a diagonal Fisher information is made of.

    The gradient of a row at a linear layer is the outer product of the gradient g at its output and its input a, so its square is the outer
    product of the squares, and the sum over rows one matrix product: (G * G)^T (A * A).
    """
    inputs, outputs = [x], []
    leaves = {name: tensor.detach() for name, tensor in params.items()}
    last = len(leaves) // 2 - 1
    for layer in range(last + 1):
        outputs.append(F.linear(inputs[-1], leaves[f"layers.{layer}.weight"], leaves[f"layers.{layer}.bias"]))
        if layer == 0:
            outputs[0].requires_grad_(True)
        if layer < last:
            inputs.append(F.relu(outputs[-1]))
    gradients = torch.autograd.grad(F.cross_entropy(outputs[-1], labels, reduction="sum"), outputs)
    squares: Params = {}
    for layer, (gradient, given) in enumerate(zip(gradients, inputs, strict=True)):
        squared = gradient.square()
        squares[f"layers.{layer}.weight"] = squared.t() @ given.detach().square()
        squares[f"layers.{layer}.bias"] = squared.sum(0)
    return squares


def module_forward(module: nn.Module) -> Forward:
    """The forward pass of a module with the parameters of a dictionary; start from ``dict(module.named_parameters())``, detached."""
    return lambda params, x: torch.func.functional_call(module, params, (x,))


class NetworkObjective:
    """Cross-entropy of the classes of rows: an objective for tables of examples (:mod:`retain.data.tables`).

    ``features`` [rows, ...]: the inputs; ``forward``: logits [n, classes] from parameters and inputs; ``start``: the parameters before any
    training, which a distillation from the base needs; ``squares``: sums of squared gradients of single rows, where the network has a
    faster way to them than one backward pass for each (:func:`perceptron_squares`).
    """

    def __init__(
        self,
        forward: Forward,
        features: Tensor,
        start: Params | None = None,
        squares: Callable[[Params, Tensor, Tensor], Params] | None = None,
    ) -> None:
        self.forward, self.features, self.start = forward, features, start or {}
        self.squares = squares or self._squares

    def _squares(self, params: Params, x: Tensor, labels: Tensor) -> Params:
        """For any network, vectorised over the rows."""

        def loss(leaves: Params, row: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(self.forward(leaves, row[None]), label[None])

        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x, labels)
        return {name: gradient.float().square().sum(0) for name, gradient in gradients.items()}

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
