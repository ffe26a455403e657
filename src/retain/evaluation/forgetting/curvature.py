"""Curvature of a task's loss at a checkpoint, as results: signed eigenvalues, trace, density; within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.evaluation.curvature import (
    HessianOperator,
    Loss,
    Search,
    Spectrum,
    adapter_loss,
    dense_deltas,
    hutchpp,
    lanczos,
    spectral_density,
)
from retain.evaluation.forgetting.checkpoints import Checkpoint
from retain.evaluation.forgetting.config import CurvatureConfig, Space
from retain.lm.model import LanguageModel
from retain.retention.base import Params

_GB = 1e9
_VALUE = 4  # bytes of a number


@dataclass(frozen=True)
class Product:
    """Told after each Hessian-vector product: ``done`` for this purpose, of at most ``most``; ``found``: how far a search was when it
    looked last."""

    about: str
    done: int
    most: int
    found: Search | None = None


TellProduct = Callable[[Product], None]


class ToldOperator(HessianOperator):
    """A Hessian that tells of its products. ``purpose``: what they are for now, and how many at most."""

    def __init__(self, loss: Loss, params: Params, *, graph_bytes: int, tell: TellProduct | None = None) -> None:
        self.tell, self.about, self.most, self.since = tell, "", 0, 0
        self.found: Search | None = None
        super().__init__(loss, params, graph_bytes=graph_bytes)

    def purpose(self, about: str, most: int) -> None:
        """What the next products are for."""
        self.about, self.most, self.since, self.found = about, most, self.products, None

    def watch(self, found: Search) -> None:
        """How far the search is whose products are told of."""
        self.found = found

    def matvec(self, v: Tensor) -> Tensor:
        """H v."""
        found = super().matvec(v)
        if self.tell and self.most:
            done = self.products - self.since
            self.tell(Product(self.about, done, max(done, self.most), self.found))
        return found


def sample(examples: Sequence[Example], tokens: int, seed: int) -> list[Example]:
    """Examples drawn without replacement until ``tokens`` are reached; at least one."""
    chosen: list[Example] = []
    used = 0
    for number in torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist():
        if chosen and used + len(examples[number]) > tokens:
            break
        chosen.append(examples[number])
        used += len(examples[number])
    return chosen


def space_size(model: LanguageModel, checkpoint: Checkpoint, space: Space) -> int:
    """Parameters of a space: those of the factors, or of the dense changes of the weights at their sites."""
    if space == "factors":
        return sum(tensor.numel() for tensor in checkpoint.params.values())
    sites = [name.removesuffix(".lora_A.weight") for name in checkpoint.params if name.endswith(".lora_A.weight")]
    return sum(model.sites[site][0] * model.sites[site][1] for site in sites)


def plan_search(size: int, config: CurvatureConfig) -> tuple[int, int] | None:
    """How many eigenvalues are searched for with how many vectors of that size, within the memory; None when not even one is possible.

    A smaller basis needs more products; the bound needs the largest eigenvalue at least.
    """
    room = int(config.memory * _GB / (_VALUE * size))
    most = max(config.products, config.top + 8)
    for top, basis in ((config.top, min(3 * config.top + 30, most)), (config.top, config.top + 12), (1, 33), (1, 10)):
        wanted, vectors = min(top, size), min(basis, size)
        if vectors <= room:
            return wanted, vectors
    return None


def memory_needed(size: int) -> float:
    """GB for the smallest search."""
    return 10 * _VALUE * size / _GB


def operator_at(
    model: LanguageModel, checkpoint: Checkpoint, examples: Sequence[Example], space: Space, config: CurvatureConfig,
    tell: TellProduct | None = None,
) -> ToldOperator:  # fmt: skip
    """The Hessian of the mean loss of the examples' answers with respect to the adapter. Raises ValueError, ArithmeticError."""
    loss, params = adapter_loss(model, examples, checkpoint.params, checkpoint.scale, space=space)
    return ToldOperator(loss, params, graph_bytes=int(config.graphs * _GB), tell=tell)


def in_space(checkpoint: Checkpoint, space: Space, like: HessianOperator) -> Params:
    """A checkpoint as parameters of an operator's space."""
    found = checkpoint.params if space == "factors" else dense_deltas(checkpoint.params, checkpoint.scale)
    return {name: found[name].to(like.device, like.dtype) for name in like.params}


def spectrum_at(operator: ToldOperator, config: CurvatureConfig, top: int, basis: int, about: str, seed: int = 0) -> Spectrum:
    """The ``top`` eigenvalues of largest magnitude, the algebraically largest among them."""
    most = max(config.products, top + 8)
    operator.purpose(f"eigenvalues {about}", most)
    search = partial(lanczos, operator, tolerance=config.tolerance, max_products=most, basis=basis, seed=seed, watch=operator.watch)
    found = search(top, which=("magnitude",))
    if all(pair.value <= 0 for pair in found.pairs):  # only then can the largest be outside of them
        other = search(1, which=("largest",))
        found = replace(found, pairs=(*other.pairs, *found.pairs), products=found.products + other.products)
    return replace(found, k=len(found.pairs), which=("magnitude", "largest"))


def curvature_facts(
    operator: ToldOperator,
    spectrum: Spectrum,
    config: CurvatureConfig,
    examples: Sequence[Example],
    space: Space,
    about: str,
    seed: int = 0,
) -> dict[str, Any]:
    """What a report draws of one checkpoint, and where it came from."""
    pairs = spectrum.largest()
    found: dict[str, Any] = {
        "eigenvalues": [pair.value for pair in pairs],
        "residuals": [pair.residual for pair in pairs],
        "converged": [pair.converged for pair in pairs],
        "trace": None, "trace_error": None, "density": None,
        "parameters": operator.size, "space": space, "products": spectrum.products, "complete": spectrum.complete,
        "loss": operator.value, "gradient_norm": float(operator.gradient.double().norm()),
        "examples": len(examples), "tokens": sum(len(example) for example in examples),
    }  # fmt: skip
    if config.trace:
        operator.purpose(f"trace {about}", config.trace)
        trace = hutchpp(operator, config.trace, seed=seed)
        found |= {"trace": trace.value, "trace_error": trace.error}
    if config.density:
        steps = min(60, operator.size)
        operator.purpose(f"density {about}", config.density * steps)
        density = spectral_density(operator, config.density, steps, seed=seed)
        found["density"] = {"grid": density.grid.tolist(), "values": density.density.tolist()}
    return found


def largest_of(facts: Mapping[str, Any]) -> float:
    """The largest eigenvalue in results."""
    return float(max(facts["eigenvalues"]))
