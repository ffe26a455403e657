"""Saved state: flat dictionaries whose values are tensors or JSON values, nothing else, so that no pickle is ever needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def flatten(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of ``tensors`` under ``group/name``; copies, because the state must not change with the method that it was taken from."""
    return {f"{group}/{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def unflatten(group: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inverse of :func:`flatten`."""
    start = f"{group}/"
    return {name.removeprefix(start): tensor.clone() for name, tensor in state.items() if name.startswith(start)}


def random_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of a PCG64 generator as JSON values (its two numbers have 128 bits, so they are kept as text)."""
    state: Mapping[str, Any] = generator.bit_generator.state
    inner = state["state"]
    return {"state": str(inner["state"]), "inc": str(inner["inc"]), "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def restore_random(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state["state"]), "inc": int(state["inc"])},
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }
