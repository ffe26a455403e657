"""The error of this room."""

from __future__ import annotations


class PretrainingError(RuntimeError):
    """Pre-training or distillation cannot begin or go on. One line that says what to do."""
