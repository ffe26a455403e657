"""retain: teach a language model new documents, one after another, without forgetting.

Names are resolved on first use, so that `import retain` is instant:

    import retain
    model = retain.ContinualLM.open("workspace")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retain.data import Document as Document
    from retain.lm import LanguageModel as LanguageModel
    from retain.workspace.continual import ContinualLM as ContinualLM

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # torch reads it when it is imported: what MPS lacks is computed on the CPU

__version__ = "0.1.0"
__all__ = ["ContinualLM", "Document", "LanguageModel", "__version__"]

_HOMES = {"ContinualLM": "retain.workspace.continual", "Document": "retain.data", "LanguageModel": "retain.lm"}


def __getattr__(name: str) -> Any:
    """Import the room that a public name lives in, on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'retain' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
