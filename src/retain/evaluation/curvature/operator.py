"""Exact Hessian-vector products of a scalar function of named tensors.

H v is the gradient of g(w)'v with v held fixed (Pearlmutter 1994, "Fast exact multiplication by the Hessian"), by a second backward pass
through the graph of the gradient. Forward and first backward pass are made once and kept, so that a product costs one backward pass; where
the graphs of all batches do not fit into ``graph_bytes``, those of the later ones are made anew for every product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retain.lm.derivatives import twice_differentiable

Params = dict[str, Tensor]
Loss = Callable[[Params], Tensor]


class Operator(Protocol):
    """A symmetric matrix [n, n], known by what it does to a vector. All that the spectral methods of this room need."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` [n], a tensor [n] of the operator's type."""


@dataclass(frozen=True)
class BatchedLoss:
    """The weighted mean of the losses of several batches, sum_b weights_b parts_b(w) / sum_b weights_b.

    Where every part is the mean over the supervised tokens of its batch, their numbers as weights give the mean over all tokens.
    """

    parts: tuple[Loss, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights) or min(self.weights) <= 0:
            raise ValueError(f"{len(self.parts)} losses with {len(self.weights)} weights: each needs one above zero, and there must be one")

    def __call__(self, params: Params) -> Tensor:
        """The loss at ``params``, a scalar with gradient."""
        return torch.stack([share * part(params) for part, share in weighted(self)]).sum()


def weighted(loss: Loss) -> list[tuple[Loss, float]]:
    """The parts of a loss and their shares, which sum to 1."""
    if not isinstance(loss, BatchedLoss):
        return [(loss, 1.0)]
    total = sum(loss.weights)
    return [(part, weight / total) for part, weight in zip(loss.parts, loss.weights, strict=True)]


@torch.no_grad()
def loss_at(loss: Loss, params: Params) -> float:
    """The loss at ``params``, in the arithmetic that curvature is computed in. Raises ArithmeticError when it is not finite."""
    with twice_differentiable():
        return sum(share * float(finite(part(params), "loss")) for part, share in weighted(loss))


class HessianOperator:
    """The Hessian of ``loss`` at ``params``, in their order and type (all the same; float64 where small eigenvalues matter).

    ``value``: the loss; ``gradient`` [n]; ``unused``: the names of parameters that the loss does not depend on; ``products``: how many were
    made; ``kept``: how many batches' graphs are held. ``graph_bytes``: how much the tensors that graphs hold may take, those that the
    model holds anyway included; 0 keeps none. Raises ValueError when the loss depends on none of the parameters, ArithmeticError when
    loss, gradient or a product is not finite.
    """

    def __init__(self, loss: Loss, params: Params, *, graph_bytes: int = 4 << 30) -> None:
        kinds = {(tensor.dtype, tensor.device) for tensor in params.values()}
        if len(kinds) != 1 or not next(iter(kinds))[0].is_floating_point:
            raise ValueError("a Hessian needs parameters, all of one floating-point type and on one device")
        self.dtype, self.device = next(iter(kinds))
        self.loss = loss
        self._leaves = [tensor.detach().clone().requires_grad_(True) for tensor in params.values()]
        self.params = {name: leaf.detach() for name, leaf in zip(params, self._leaves, strict=True)}
        self.size = sum(tensor.numel() for tensor in params.values())
        self.products = 0
        self._batches = weighted(loss)
        self._graphs: list[list[Tensor | None] | None] = []  # the gradient of every batch, None where its graph is not held
        self._prepare(graph_bytes)

    def matvec(self, v: Tensor) -> Tensor:
        """H v for ``v`` [n]."""
        if v.shape != (self.size,):
            raise ValueError(f"a vector of {tuple(v.shape)} for a Hessian of {self.size} parameters")
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        pieces = self._pieces(v.to(self.device, self.dtype))
        for number, (part, share) in enumerate(self._batches):
            kept = self._graphs[number]
            gradients = kept if kept is not None else self._differentiate(part)[0]
            # what does not depend on the parameters, the gradient of a linear loss, has a second derivative of zero
            curved = [(g, piece) for g, piece in zip(gradients, pieces, strict=True) if g is not None and g.requires_grad]
            if curved:
                outputs, vectors = zip(*curved, strict=True)
                found = torch.autograd.grad(outputs, self._leaves, vectors, retain_graph=kept is not None, allow_unused=True)
                total.add_(self._flat(found), alpha=share)
        self.products += 1
        return finite(total, "Hessian-vector product")

    def flatten(self, params: Params) -> Tensor:
        """Tensors of the parameters' names and shapes as one vector [n]."""
        if set(params) != set(self.params) or any(params[name].shape != tensor.shape for name, tensor in self.params.items()):
            raise ValueError("these tensors do not have the names and shapes of the Hessian's parameters")
        return torch.cat([params[name].detach().to(self.device, self.dtype).reshape(-1) for name in self.params])

    def unflatten(self, v: Tensor) -> Params:
        """Inverse of :meth:`flatten`."""
        return {name: piece.clone() for name, piece in zip(self.params, self._pieces(v), strict=True)}

    def release(self) -> None:
        """Drop the graphs that are held; products go on without."""
        self._graphs = [None] * len(self._graphs)

    @property
    def kept(self) -> int:
        """How many batches' graphs are held."""
        return sum(graph is not None for graph in self._graphs)

    def _prepare(self, graph_bytes: int) -> None:
        """Loss and gradient of every batch, and the graphs of the first ones as far as they fit."""
        held: dict[int, int] = {}  # storage -> its bytes
        used = [False] * len(self._leaves)
        self.value, self.gradient = 0.0, torch.zeros(self.size, dtype=self.dtype, device=self.device)

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        keeping = graph_bytes > 0
        for part, share in self._batches:
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                gradients, loss = self._differentiate(part)
            self.value += share * float(loss.detach())
            self.gradient.add_(self._flat([None if g is None else g.detach() for g in gradients]), alpha=share)
            used = [before or g is not None for before, g in zip(used, gradients, strict=True)]
            keeping = keeping and sum(held.values()) <= graph_bytes
            self._graphs.append(gradients if keeping else None)
        self.unused = tuple(name for name, reached in zip(self.params, used, strict=True) if not reached)
        if len(self.unused) == len(self.params):
            raise ValueError("the loss does not depend on any of the parameters")
        finite(self.gradient, "gradient")

    def _differentiate(self, part: Loss) -> tuple[list[Tensor | None], Tensor]:
        """The gradients of one batch's loss with their graph (None: not reached), and the loss."""
        with torch.enable_grad(), twice_differentiable():
            loss = finite(part(dict(zip(self.params, self._leaves, strict=True))), "loss")
            if loss.ndim or not loss.requires_grad:
                raise ValueError(f"the loss must be a scalar that depends on the parameters, this one has the shape {tuple(loss.shape)}")
            return list(torch.autograd.grad(loss, self._leaves, create_graph=True, allow_unused=True)), loss

    def _pieces(self, v: Tensor) -> list[Tensor]:
        sizes = [tensor.numel() for tensor in self._leaves]
        return [piece.view_as(tensor) for piece, tensor in zip(v.split(sizes), self._leaves, strict=True)]

    def _flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return torch.cat([
            torch.zeros_like(leaf).reshape(-1) if tensor is None else tensor.reshape(-1)
            for tensor, leaf in zip(tensors, self._leaves, strict=True)
        ])  # fmt: skip


def finite(tensor: Tensor, what: str) -> Tensor:
    """The tensor itself; raises ArithmeticError unless all its values are finite."""
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise ArithmeticError(f"the {what} is not finite: there is no curvature to measure here")
    return tensor


def random_unit(operator: Operator, generator: torch.Generator) -> Tensor:
    """A random direction [n], uniform on the sphere; drawn on the CPU, so that every device gets the same."""
    v = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    return (v / v.norm()).to(operator.device, operator.dtype)
