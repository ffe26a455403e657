"""What a training would do, without doing it: all checks, counts, steps, parameters, memory and time, and samples to look at."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.multitask.assembly import Experiment, Part, assemble
from retain.multitask.config import ExperimentConfig
from retain.multitask.quantising import count
from retain.multitask.scoring import autocast, scores
from retain.multitask.tasks.base import Task
from retain.multitask.trainer import Trainer
from retain.retention import total

SAMPLES = 3
SHOWN = 160  # characters of a sample's input
TIMED = 64  # validation records that are timed


@dataclass(frozen=True)
class TaskPlan:
    """A task: ``rows`` of each split, ``counts`` of its labels among the training records, ``samples`` of inputs with their labels."""

    name: str
    kind: str
    rows: dict[str, int]
    counts: dict[str, int]
    batches: int
    samples: list[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """``memory``: bytes of weights, gradients, moments and what a backward pass of the largest batch keeps; ``seconds``: of all steps and
    evaluations, from one step of every task and some validation records, timed here."""

    name: str
    tasks: list[TaskPlan]
    phases: list[list[str]]
    steps: int
    trained: int
    parameters: int
    memory: int
    seconds: float
    device: str
    precision: str
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def plan_experiment(experiment: ExperimentConfig | Experiment) -> Plan:
    """The plan of an experiment. Raises whatever training would raise before its first step, and for a first step that fails."""
    if isinstance(experiment, ExperimentConfig):
        experiment = assemble(experiment)
    Trainer(experiment, Path())  # whose parts check what they are asked for
    config = experiment.config
    with torch.random.fork_rng(devices=[experiment.device] if experiment.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        seconds, kept = _rehearse(experiment)
    network = experiment.network
    learning = network.learning()
    weights = sum(value.nbytes for value in network.parameters())
    return Plan(
        name=config.name,
        tasks=[_task_plan(experiment, task) for task in experiment.tasks],
        phases=config.phases,
        steps=sum(schedule.steps for schedule in experiment.schedules),
        trained=sum(value.numel() for value in learning.values()),
        parameters=sum(map(count, network.parameters())),
        memory=weights + 3 * sum(value.nbytes for value in learning.values()) + kept,  # a gradient and two moments of AdamW
        seconds=seconds,
        device=str(experiment.device),
        precision=str(experiment.precision).removeprefix("torch."),
        notes=experiment.notes,
    )


def _task_plan(experiment: Experiment, task: Task) -> TaskPlan:
    parts = experiment.parts[task.name]
    train, backbone = parts["train"], experiment.network.backbone
    places = [round(place * (len(train) - 1) / max(1, SAMPLES - 1)) for place in range(SAMPLES)]
    samples = [(_short(backbone.show(train.raws[place])), task.show(train.truths[place])) for place in dict.fromkeys(places)]
    batches = sum(schedule.order.count(task.name) for schedule in experiment.schedules)
    return TaskPlan(task.name, task.kind, {split: len(part) for split, part in parts.items()}, task.counts(train.truths), batches, samples)


def _rehearse(experiment: Experiment) -> tuple[float, int]:
    """Seconds of the whole training, and bytes that a backward pass keeps: from one step of every task, with no update."""
    config, network = experiment.config, experiment.network
    seconds, most = 0.0, 0
    for task in experiment.tasks:
        part = experiment.parts[task.name]["train"]
        batches = sum(schedule.order.count(task.name) for schedule in experiment.schedules)
        most = max(most, _step(experiment, task, _batch(part, config.training.batch, longest=True))[1])  # the first is slow: not timed
        seconds += _step(experiment, task, _batch(part, config.training.batch, longest=False))[0] * batches
        validation = experiment.parts[task.name]["validation"]
        started = time.perf_counter()
        some = validation.inputs[:TIMED]
        scores(network, task, some, config.training.batch, experiment.device, experiment.precision, validation.targets[:TIMED])
        spent = (time.perf_counter() - started) / len(some) * len(validation)
        every = config.training.evaluate_every
        evaluations = sum(max(1, schedule.steps // (every or schedule.steps_per_epoch)) for schedule in experiment.schedules) + 1
        seconds += spent * evaluations
    network.zero_grad(set_to_none=True)
    return seconds, most


def _batch(part: Part, size: int, longest: bool) -> list[int]:
    """Records of about the middle length, or the longest."""
    order = sorted(range(len(part)), key=lambda number: part.inputs[number].length)
    first = len(order) - size if longest else (len(order) - size) // 2
    return order[max(0, first) : max(0, first) + size]


def _step(experiment: Experiment, task: Task, numbers: list[int]) -> tuple[float, int]:
    """Seconds of a forward and a backward pass, and bytes that are kept in between."""
    kept: dict[int, int] = {}
    known = {value.untyped_storage().data_ptr() for value in experiment.network.parameters()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    inputs, targets = experiment.batch(task.name, "train", numbers)
    experiment.network.train()
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast(experiment.device, experiment.precision):
        loss = task.loss(experiment.network(task.name, inputs), targets)
    loss = total([experiment.network.weighted(task, loss), experiment.plan.penalty()])  # type: ignore[assignment]
    loss.backward()
    float(loss.detach())
    return time.perf_counter() - started, sum(kept.values())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1].rstrip() + "…"
