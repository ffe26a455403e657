"""Adapters: values that hold everything that was learned."""

from retain.adapters.adapter import Adapter, AdapterError, AdapterSpec, first_layer, layer_of, new_lora, select_sites
from retain.adapters.injection import LoraInjection, inject, inject_trainable

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterSpec",
    "LoraInjection",
    "first_layer",
    "inject",
    "inject_trainable",
    "layer_of",
    "new_lora",
    "select_sites",
]
