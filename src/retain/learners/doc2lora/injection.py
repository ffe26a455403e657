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
    sites, scale = frozenset(network.places.all_sites), network.config.scale
    parts = list(known.parts) if (known := inject([(adapter, 1.0) for adapter in frozen], model.dtype, model.device)) else []
    for number, written in enumerate(texts):
        share = [float(number in row) for row in active]
        if any(share):
            parts.append(Part(network.tensors(written), sites, scale, share[0] if len(set(share)) == 1 else torch.tensor(share)))
    counts = [float(len(row)) for row in active]
    parts.append(Part(network.tensors(network.bias), sites, scale, counts[0] if len(set(counts)) == 1 else torch.tensor(counts)))
    return AdapterInjection(parts, model.dtype)


def frozen_injection(model: LanguageModel, frozen: Sequence[Adapter]) -> Injection | None:
    """The injection of adapters that all rows have."""
    return inject([(adapter, 1.0) for adapter in frozen], model.dtype, model.device)
