"""Language models: a frozen base and its tokenizer; adapters are an argument of every pass."""

from retain.lm.model import Injection, LanguageModel, LanguageModelError
from retain.lm.packing import Packed, targets

__all__ = ["Injection", "LanguageModel", "LanguageModelError", "Packed", "targets"]
