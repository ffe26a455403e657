"""The ways of learning by name. A learner's module is imported when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from retain.data.errors import did_you_mean
from retain.learners.base import Learner, LearnerError

DEFAULT = "lora"
_PLACES = {
    "ttt": "ttt:TestTimeTraining",
    "jitrl": "jitrl:Passages",
    "jitrl-full": "states:HiddenStates",
    "ace": "ace:Playbooks",
    "doc2lora": "doc2lora:Doc2Lora",
    "progressive": "progressive:Progressive",
    "packnet": "packnet:PackNet",
}
NAMES = (DEFAULT, *_PLACES)
INJECTED = frozenset(NAMES) - {"jitrl", "jitrl-full", "ace"}
"""Learners whose memories are adapters; the others help while an answer is written."""


def check_learner(name: str) -> None:
    """Raise LearnerError, with the nearest name, unless there is such a learner."""
    if name not in NAMES:
        raise LearnerError(f"unknown learner {name!r}: {did_you_mean(name, NAMES) or 'there is ' + ', '.join(NAMES)}")


@cache
def learner_named(name: str) -> Learner:
    """A learner other than the default one, which the transaction drives itself. Raises LearnerError."""
    check_learner(name)
    module, kind = _PLACES[name].split(":")
    return cast(Learner, getattr(import_module(f"retain.learners.{module}"), kind)())
