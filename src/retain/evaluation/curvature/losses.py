"""Losses to take the curvature of: of an adapter on examples, of any torch module on batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.adapters import Adapter
from retain.adapters.adapter import LORA_A
from retain.data.examples import Example
from retain.evaluation.curvature.operator import BatchedLoss, Loss, Params
from retain.evaluation.curvature.product import ProductObjective, product_space
from retain.lm.model import LanguageModel
from retain.retention.positions import by_tokens
from retain.training.objective import AdapterObjective

Space = Literal["factors", "product"]


def adapter_loss(
    model: LanguageModel, examples: Sequence[Example], tensors: Mapping[str, Tensor], scale: float, *,
    frozen: Sequence[tuple[Adapter, float]] = (), space: Space = "factors", batch_tokens: int = 512,
) -> tuple[BatchedLoss, Params]:  # fmt: skip
    """The mean cross-entropy over all supervised tokens of ``examples``, as a function of an adapter's tensors, and those tensors.

    ``scale``: alpha / rank, as in the adapter's spec. ``space``: "factors", the parameters are A and B; "product", dense dW = scale B A per
    site. In float32, so the model has to be; a float64 model gives all in float64. Graphs of double backward are large: about 12 MB per
    token for a model of 135M parameters, so batches are small.
    """
    objective, params = _objective(model, examples, tensors, scale, frozen, space)
    batches = [[examples[number] for number in batch] for batch in by_tokens(examples, batch_tokens)]
    weights = tuple(float(sum(example.n_supervised() for example in batch)) for batch in batches)
    return BatchedLoss(tuple(_on(objective, batch) for batch in batches), weights), params


def example_losses(
    model: LanguageModel, examples: Sequence[Example], tensors: Mapping[str, Tensor], scale: float, *,
    frozen: Sequence[tuple[Adapter, float]] = (), space: Space = "factors", reduction: Literal["sum", "mean"] = "sum",
) -> tuple[list[Loss], Params]:  # fmt: skip
    """One loss per example, for :func:`retain.evaluation.curvature.gram_spectrum`: with "sum" the negative log-likelihood of the sequence,
    as in :mod:`retain.retention.fisher`; with "mean" its mean over the supervised tokens."""
    objective, params = _objective(model, examples, tensors, scale, frozen, space)
    return [_on(objective, [example], example.n_supervised() if reduction == "sum" else 1) for example in examples], params


def module_loss(
    module: nn.Module, criterion: Callable[[Callable[..., Any], Any], Tensor], batches: Sequence[Any], *,
    weights: Sequence[float] | None = None, names: Sequence[str] | None = None,
) -> tuple[BatchedLoss, Params]:  # fmt: skip
    """The mean of ``criterion(run, batch)`` over the batches, as a function of the module's parameters, and these, in float32 at least.

    ``run`` stands for the module: ``lambda run, batch: run(**batch).loss`` for a transformers model with labels, ``lambda run, batch:
    F.cross_entropy(run(batch[0]), batch[1])`` for a classifier. ``weights``: of the batches, by default equal: where they differ in size
    give their numbers of examples, or of supervised tokens. ``names``: of the parameters, by default those that require a gradient.
    Raises ValueError in training mode, where dropout and batch statistics would give another function at every pass.
    """
    if module.training:
        raise ValueError("the module is in training mode, where every pass is another function: call eval() first")
    found = dict(module.named_parameters())
    chosen = list(names) if names is not None else [name for name, parameter in found.items() if parameter.requires_grad]
    unknown = sorted(set(chosen) - set(found))
    if unknown or not chosen:
        raise ValueError(f"the module has no parameter {unknown[0]}" if unknown else "no parameter of the module requires a gradient")
    narrow = next((name for name, parameter in found.items() if _narrow(parameter)), None)
    if narrow is not None:
        raise ValueError(f"curvature needs float32 at least, and {narrow} is {found[narrow].dtype}: convert the module first")

    def on(batch: Any) -> Loss:
        return lambda params: criterion(lambda *args, **kwargs: torch.func.functional_call(module, params, args, kwargs), batch)

    shares = tuple(map(float, weights)) if weights is not None else (1.0,) * len(batches)
    return BatchedLoss(tuple(on(batch) for batch in batches), shares), {name: found[name].detach().clone() for name in chosen}


def _objective(
    model: LanguageModel, examples: Sequence[Example], tensors: Mapping[str, Tensor], scale: float,
    frozen: Sequence[tuple[Adapter, float]], space: Space,
) -> tuple[AdapterObjective | ProductObjective, Params]:  # fmt: skip
    if not examples:
        raise ValueError("a loss needs at least one example")
    if _narrow(torch.empty(0, dtype=model.dtype)):
        raise ValueError(f"curvature needs a model in float32, and {model.name} is in {model.dtype}: load it with model.precision float32")
    sites = [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]
    if not sites:
        raise ValueError(f"none of {len(tensors)} tensors is a LoRA factor")
    objective = AdapterObjective(model, sites, scale, frozen)
    params = {name: tensor.detach().to(model.device, model.dtype) for name, tensor in tensors.items()}
    return product_space(objective, params) if space == "product" else (objective, params)


def _on(objective: AdapterObjective | ProductObjective, batch: Sequence[Example], factor: int = 1) -> Loss:
    return lambda params: factor * objective.loss(batch, params)


def _narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
