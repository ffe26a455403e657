"""Language models: a frozen base and its tokenizer; adapters are an argument of every pass.

Names are resolved on first use, so that looking for the embedded model does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retain.lm.model import Injection as Injection
    from retain.lm.model import LanguageModel as LanguageModel
    from retain.lm.model import LanguageModelError as LanguageModelError
    from retain.lm.packing import Packed as Packed
    from retain.lm.packing import targets as targets

__all__ = ["Injection", "LanguageModel", "LanguageModelError", "Packed", "targets"]

_HOMES = {
    "Injection": "retain.lm.model",
    "LanguageModel": "retain.lm.model",
    "LanguageModelError": "retain.lm.model",
    "Packed": "retain.lm.packing",
    "targets": "retain.lm.packing",
}


def __getattr__(name: str) -> Any:
    """Import the file that a public name lives in, on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'retain.lm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
