"""Decisions on a knife's edge: a small change of a record's input, and it is decided otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.multitask.assembly import Experiment
from retain.multitask.backbones.base import Backbone, Inputs
from retain.multitask.conflicts import Seen
from retain.multitask.scoring import autocast, evaluating


@torch.no_grad()
def unsteady(experiment: Experiment, seen: Seen, rows: Tensor, noise: float, copies: int) -> Tensor:
    """For the records ``rows`` of a batch the share [n] of slightly changed copies that get another decision, without dropout, than the
    record itself gets. Costs ``copies`` + 1 passes forward over these records."""
    task, network = experiment.task(seen.task), experiment.network
    inputs = {name: value[rows] for name, value in seen.inputs.items()}
    targets = {name: value[rows] for name, value in seen.targets.items()}

    def decided(given: Inputs) -> Tensor:
        with autocast(experiment.device, experiment.precision):
            outputs = network(seen.task, given)
        logits, known = task.logits(outputs, targets)
        return torch.where(known, logits.argmax(-1), -1)

    with evaluating(network):
        first = decided(inputs)
        others = [(decided(changed(inputs, network.backbone, noise)) != first).any(1) for _ in range(copies)]
    return torch.stack(others).double().mean(0).cpu()


def changed(inputs: Inputs, backbone: Backbone, noise: float) -> Inputs:
    """A batch with noise: numbers get normal noise of ``noise`` deviations of their kind over the batch (columns of a table are scaled to
    deviations already); of the tokens of a text a share of ``noise``, but not the first and the last, becomes the token for what is hidden
    or unknown. Masks stay."""
    found = dict(inputs)
    for name, value in inputs.items():
        if name == "input_ids":
            found[name] = _hidden(value, inputs.get("attention_mask"), backbone, noise)
        elif value.is_floating_point():
            size = 1.0 if name == "features" else float(value.float().std())
            found[name] = value + noise * size * torch.randn_like(value)
    return found


def _hidden(ids: Tensor, mask: Tensor | None, backbone: Backbone, noise: float) -> Tensor:
    tokenizer: Any = getattr(backbone, "tokenizer", None)
    named = [getattr(tokenizer, name, None) for name in ("mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id")]
    hidden = next((token for token in named if token is not None), 0)
    lengths = mask.sum(1) if mask is not None else torch.full((len(ids),), ids.shape[1], device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    inside = (places > 0) & (places < lengths[:, None] - 1)
    return torch.where(inside & (torch.rand(ids.shape, device=ids.device) < noise), hidden, ids)
