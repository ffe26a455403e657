"""What makes the figures of an experiment say less than they seem to, in one line each, with the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retain.evaluation.sequences.sequence import TaskSequence
from retain.training.loop import TrainingSettings

FEW_STEPS = 20  # optimizer steps for a task
FEW_QUESTIONS = 20
LEARNED = 0.05  # rise of the score below which a task was not learned
FELL = 0.2  # share by which a loss falls that tells of learning where the score does not


def cautions_before(steps: Mapping[str, Sequence[int]], sequence: TaskSequence, settings: TrainingSettings) -> list[str]:
    """What can be said before any training; ``steps``: optimizer steps of each method for each task."""
    found = list(sequence.notes)
    for number, task in enumerate(sequence.tasks):
        if (asked := sequence.asked(number)) < FEW_QUESTIONS:
            found.append(f"{task}: {asked} questions are few: one of them is {1 / asked:.2f} of the {sequence.score_name}")
    said: dict[str, list[str]] = {}
    for name, counts in steps.items():
        for count, task in zip(counts, sequence.tasks, strict=True):
            rising = max(1, round(settings.warmup * count))
            if count < FEW_STEPS:
                said.setdefault(f"{_steps(count)} for {task} can teach little: more epochs, or a smaller batch", []).append(name)
            if 2 * rising > count:
                text = f"the warm-up takes {rising} of {_steps(count)} for {task}, so "
                text += "the training ends before it" if rising >= count else "less than half of the training is left for learning"
                said.setdefault(text, []).append(name)
    return found + _grouped(said)


def cautions_after(methods: Mapping[str, Mapping[str, Any]], sequence: TaskSequence) -> list[str]:
    """What the results show."""
    said: dict[str, list[str]] = {}
    for name, method in methods.items():
        for row in method["seeds"].values():
            for number, task in enumerate(sequence.tasks):
                for text in _of_task(row, number, task, sequence):
                    said.setdefault(text, []).append(name)
    return _grouped(said)


def _of_task(row: Mapping[str, Any], number: int, task: str, sequence: TaskSequence) -> list[str]:
    """A task by itself, as it was right after it was learned."""
    (before, after), (loss, learned) = ((row[key][0][number], row[key][number + 1][number]) for key in ("matrix", "loss_matrix"))
    scores, losses = f"{sequence.score_name} {before:.3f} before, {after:.3f} after", f"loss {loss:.3f} before, {learned:.3f} after"
    found = []
    lower = learned < (1 - FELL) * loss
    if after - before < LEARNED and number + 1 < len(sequence.tasks):
        if lower:
            found.append(f"{task} was learned by its loss alone ({losses}; {scores}): judge forgetting by the loss")
        else:
            found.append(f"{task} was not learned ({scores}; {losses}), so there is nothing to forget")
    chance, asked = sequence.chance(number), sequence.asked(number)
    if chance is not None and after <= chance + 1.96 * math.sqrt(chance * (1 - chance) / asked):
        found.append(f"{task}: {after:.3f} right after learning cannot be told from guessing ({chance:.3f}, {asked} questions)")
    return found


def _grouped(said: Mapping[str, Sequence[str]]) -> list[str]:
    """The same about several methods once."""
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in said.items()]


def _steps(count: int) -> str:
    return f"{count} optimizer {'step' if count == 1 else 'steps'}"
