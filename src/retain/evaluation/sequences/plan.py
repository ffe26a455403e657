"""What an experiment would do, without doing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retain.data.errors import DataError
from retain.evaluation.sequences.cautions import cautions_before
from retain.evaluation.sequences.config import SequenceConfig
from retain.evaluation.sequences.methods import build_way, parts_of
from retain.evaluation.sequences.sequence import TaskSequence

SHOWN = 3  # examples


@dataclass(frozen=True)
class Plan:
    """``tasks``: name, number of examples to learn and of questions to ask; ``steps``: optimizer steps of each method over all tasks;
    ``parameters``: numbers that are trained, of one network or adapter; ``examples``: a few as a person reads them."""

    stream: str
    tasks: list[tuple[str, int, int]]
    steps: dict[str, int]
    seeds: int
    parameters: int
    score: str
    examples: list[str]
    warnings: list[str]

    @property
    def total(self) -> int:
        """Optimizer steps of everything."""
        return self.seeds * sum(self.steps.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        tasks = [{"name": name, "learned": learned, "asked": asked} for name, learned, asked in self.tasks]
        return {**asdict(self), "tasks": tasks, "total_steps": self.total}


def plan_sequence(config: SequenceConfig, sequence: TaskSequence) -> Plan:
    """The plan of an experiment on a sequence. Raises DataError for what cannot be run."""
    steps = steps_by_method(config, sequence)
    return Plan(
        stream=sequence.name,
        tasks=[(name, len(sequence.task(number).examples), sequence.asked(number)) for number, name in enumerate(sequence.tasks)],
        steps={name: sum(counts) for name, counts in steps.items()},
        seeds=config.seeds,
        parameters=sum(tensor.numel() for tensor in sequence.start().values()),
        score=sequence.score_name,
        examples=[sequence.shown(number % len(sequence.tasks), number // len(sequence.tasks)) for number in range(SHOWN)],
        warnings=cautions_before(steps, sequence, config.training.settings(0)),
    )


def names_of(config: SequenceConfig) -> list[str]:
    """The methods by their full names, each once."""
    return list(dict.fromkeys("+".join(parts_of(name)) for name in config.methods))


def steps_by_method(config: SequenceConfig, sequence: TaskSequence) -> dict[str, list[int]]:
    """Optimizer steps of every method for each task. Raises DataError for methods or tasks that do not fit."""
    batch = config.training.batch * config.training.accumulation
    for number, name in enumerate(sequence.tasks):
        if (learned := len(sequence.task(number).examples)) < batch:
            parts = "training.batch" if config.training.accumulation == 1 else "training.batch times training.accumulation"
            raise DataError(f"{name} has {learned} examples to learn, fewer than the {batch} of one step", fix=f"lower {parts}")
    found = {}
    for name in names_of(config):  # one at a time: each has parameters of its own
        way = build_way(name, sequence, config.training.settings(0), config.settings, 0)
        found[name] = [way.steps(number) for number in range(len(sequence.tasks))]
    return found
