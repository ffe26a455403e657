"""Consolidation: what protects old knowledge is measured anew, so that it speaks of the parameters as they are now."""

from __future__ import annotations

from collections.abc import Sequence

from retain.retention.base import Objective, Params, Retention
from retain.retention.positions import key_of


def consolidate(methods: Sequence[Retention], objective: Objective, params: Params) -> None:
    """Refresh every method on all examples that any of them has stored: Fisher information and one anchor for EWC, today's losses for
    replay, today's logits for DER++. Learning and consolidating take turns (Progress & Compress, 1805.06370, section 2.1)."""
    stored = {key_of(example): example for method in methods for example in method.remembered()}
    for method in methods:
        method.refresh(objective, list(stored.values()), params)
