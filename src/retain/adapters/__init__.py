"""Adapters: values that hold everything that was learned."""

from retain.adapters.adapter import Adapter, AdapterError, AdapterSpec, first_layer, layer_of, new_lora, select_sites
from retain.adapters.column import column_sites
from retain.adapters.dual_mlp import dual_mlp_sites
from retain.adapters.injection import AdapterInjection, Composer, inject, inject_trainable

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterInjection",
    "AdapterSpec",
    "Composer",
    "column_sites",
    "dual_mlp_sites",
    "first_layer",
    "inject",
    "inject_trainable",
    "layer_of",
    "new_lora",
    "select_sites",
]
