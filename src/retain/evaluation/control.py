"""The control set: general English, general questions and general prompts, all written for retain.

It has nothing to do with what is learned: what a model loses on it, it has forgotten.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from retain.data import Question


@dataclass(frozen=True, slots=True)
class Control:
    """Attributes: ``texts``: passages of about 90 words; ``questions``: general knowledge; ``prompts``: what general text begins from."""

    texts: tuple[str, ...]
    questions: tuple[Question, ...]
    prompts: tuple[str, ...]


@cache
def load_control() -> Control:
    """The control set that comes with retain."""
    record = json.loads(files("retain.evaluation").joinpath("control.json").read_text(encoding="utf-8"))
    questions = tuple(Question(item["question"], item["answer"], aliases=tuple(item["aliases"])) for item in record["questions"])
    return Control(tuple(record["texts"]), questions, tuple(record["prompts"]))
