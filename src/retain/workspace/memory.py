"""What the retention methods of an adapter remember, between one document and the next: replayed examples, Fisher information, logits.

It is an object of the store like any other: the state names it, a checkpoint keeps it, a revert brings the earlier one back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from retain.workspace.store import Store


def keep_memory(store: Store, memory: Mapping[str, Mapping[str, Any]]) -> str:
    """Store the ``state_dict`` of each method, by its name; the object's digest."""
    tensors = {f"{name}/{key}": value for name, state in memory.items() for key, value in state.items() if isinstance(value, Tensor)}
    values = {name: {key: value for key, value in state.items() if not isinstance(value, Tensor)} for name, state in memory.items()}
    return store.put_tensors(tensors, {"values": json.dumps(values, sort_keys=True)})


def load_memory(store: Store, digest: str) -> dict[str, dict[str, Any]]:
    """Inverse of :func:`keep_memory`. Raises NotFound, Damaged."""
    tensors, metadata = store.get_tensors(digest)
    memory: dict[str, dict[str, Any]] = json.loads(metadata["values"])
    for place, tensor in tensors.items():
        name, key = place.split("/", 1)
        memory[name][key] = tensor
    return memory
