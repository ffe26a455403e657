"""Adapters that a hypernetwork wrote, active in a forward pass: another one for every row, with gradients back into the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retain.adapters import Adapter
from retain.adapters.injection import AdapterInjection, Part, inject
from retain.learners.doc2lora.hypernetwork import Hypernetwork, Written
from retain.lm.model import Injection, LanguageModel


def inject_written(
    network: Hypernetwork, model: LanguageModel, texts: Sequence[Written], active: Sequence[Sequence[int]], frozen: Sequence[Adapter] = ()
) -> AdapterInjection:
    """The injection in which row i has the adapters of the ``texts`` numbered ``active[i]``, each with the network's bias, as they are when
    used together; a row with number -1 has the bias alone. ``frozen``: adapters that all rows have beneath them."""
    places, parts = frozenset(network.places.all_sites), list[Part]()
    for adapter in frozen:
        tensors = {name: tensor.to(model.device) for name, tensor in adapter.tensors.items()}
        parts.append(Part(tensors, frozenset(adapter.spec.sites), adapter.spec.scale, torch.ones(len(active)), adapter.spec.kind))
    for number, written in enumerate(texts):
        share = torch.tensor([float(number in row) for row in active])
        parts.append(Part(network.tensors(written), places, network.config.scale, share))
    counts = torch.tensor([float(len(row)) for row in active])
    parts.append(Part(network.tensors(network.bias), places, network.config.scale, counts))
    return AdapterInjection(parts, model.dtype)


def frozen_injection(model: LanguageModel, frozen: Sequence[Adapter]) -> Injection | None:
    """The injection of adapters that all rows have."""
    return inject([(adapter, 1.0) for adapter in frozen], model.dtype, model.device)
