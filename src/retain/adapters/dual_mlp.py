"""A second SwiGLU MLP beside a frozen one (the dual MLP of TTT-E2E, 2512.23675, section 2.3): the block kind ``dual-mlp``.

At a site, h neurons read what the frozen MLP reads and add to what it writes:

    y = MLP(x) + alpha * down (silu(gate x) * (up x))          gate [h, d]   up [h, d]   down [d, h]

``spec.rank`` is h and ``spec.scale`` is the blend alpha. A sum of both MLPs, not a weighted mean of them: at any alpha above zero gradients
reach the second one, and the frozen one is never turned down. With ``down`` zero at the start there is no effect at first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters.adapter import AdapterError, layer_of, select_sites
from retain.adapters.blocks import BLOCK_KINDS, BlockKind
from retain.lm.model import LanguageModel

KIND = "dual-mlp"
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def dual_mlp_sites(model: LanguageModel, layers: str | int = "last-quarter") -> tuple[str, ...]:
    """The MLPs of the layers that :func:`retain.adapters.select_sites` means by ``layers``. Raises AdapterError for a model whose MLPs have
    no gate, up and down projections."""
    chosen = {layer_of(site) for site in select_sites(model, layers)} if model.sites else set()
    sites = tuple(
        site for site in model.blocks if layer_of(site) in chosen and all(f"{site}.{part}" in model.sites for part in _PROJECTIONS)
    )
    if not sites:
        raise AdapterError(f"{model.name} has no MLP with gate, up and down projections, so that no dual MLP can stand beside it")
    return sites


def projection(model: LanguageModel, site: str, part: str) -> Tensor:
    """The weight [d_out, d_in] of the frozen MLP's ``gate_proj``, ``up_proj`` or ``down_proj``."""
    return model.parameters()[f"{site}.{part}.weight"]


def new_dual_mlp(model: LanguageModel, neurons: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh float32 tensors by full name: at every site gate and up are copies of the frozen MLP's rows ``neurons`` [h], down is zero."""
    tensors: dict[str, Tensor] = {}
    for site, chosen in neurons.items():
        for name in ("gate", "up"):
            tensors[f"{site}.{name}"] = projection(model, site, f"{name}_proj").detach()[chosen].float()
        tensors[f"{site}.down"] = torch.zeros(model.blocks[site], len(chosen), device=model.device)
    return tensors


def dual_mlp_change(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the second MLP adds, before alpha, for the input ``x`` [T, d] of the first."""
    return F.linear(F.silu(F.linear(x, tensors["gate"])) * F.linear(x, tensors["up"]), tensors["down"])


def dual_mlp_problem(tensors: Mapping[str, Tensor], width: int) -> str:
    """What is wrong with the shapes at a site of a model of that width, or nothing."""
    neurons = tensors["down"].shape[-1]
    wanted = {"gate": (neurons, width), "up": (neurons, width), "down": (width, neurons)}
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            return f"the tensor {name} has the shape {list(tensors[name].shape)} instead of {list(shape)}"
    return ""


BLOCK_KINDS[KIND] = BlockKind(("gate", "up", "down"), dual_mlp_change, dual_mlp_problem)
