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
_HELPING = frozenset({"jitrl", "jitrl-full", "ace"})  # whose memories are no adapters
_OWN: dict[str, Learner] = {}


def register(learner: Learner) -> None:
    """Make a learner of your own known by its name, for this process. Raises LearnerError for a name in use."""
    if learner.name in names():
        raise LearnerError(f"there is a learner {learner.name!r} already")
    _OWN[learner.name] = learner


def names() -> tuple[str, ...]:
    """All learners, the default one first."""
    return (DEFAULT, *_PLACES, *_OWN)


def check_learner(name: str) -> None:
    """Raise LearnerError, with the nearest name, unless there is such a learner."""
    if name not in names():
        raise LearnerError(f"unknown learner {name!r}: {did_you_mean(name, names()) or 'there is ' + ', '.join(names())}")


def injects(name: str) -> bool:
    """Whether what a learner makes is an adapter; the others help while an answer is written. Imports nothing."""
    return _OWN[name].injected if name in _OWN else name not in _HELPING


def learner_named(name: str) -> Learner:
    """A learner other than the default one, which the transaction drives itself. Raises LearnerError."""
    check_learner(name)
    return _OWN[name] if name in _OWN else _imported(name)


@cache
def _imported(name: str) -> Learner:
    module, kind = _PLACES[name].split(":")
    return cast(Learner, getattr(import_module(f"retain.learners.{module}"), kind)())
