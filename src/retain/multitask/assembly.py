"""From an experiment's configuration to data and a network: everything that can be wrong is found here, before any training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retain.config import ConfigError
from retain.config.schema import ModelConfig
from retain.data.errors import DataError
from retain.lm.devices import choose_device, training_precision
from retain.multitask.adapting import RankPlan, adapt
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs
from retain.multitask.config import ExperimentConfig
from retain.multitask.network import MultitaskNetwork
from retain.multitask.quantising import place_quantised
from retain.multitask.records import Row, check_columns, read_rows, split_rows
from retain.multitask.sampling import Schedule, schedule_of
from retain.multitask.tasks.base import TASKS, Targets, Task

log = logging.getLogger(__name__)
Say = Callable[[str], None]
SPLITS = ("train", "validation", "test")


@dataclass
class Part:
    """The records of one task in one split, with their labels; ``inputs`` and ``targets`` once a backbone has encoded them."""

    rows: list[Row]
    truths: list[Any]
    raws: list[Any] = field(default_factory=list)
    inputs: list[Encoded] = field(default_factory=list)
    targets: list[Targets] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Experiment:
    """Everything that a training needs. ``parts``: task, then split ("train", "validation", "test"; the last may be empty)."""

    config: ExperimentConfig
    tasks: list[Task]
    parts: dict[str, dict[str, Part]]
    network: MultitaskNetwork
    plan: RankPlan
    schedules: list[Schedule]
    device: torch.device
    precision: torch.dtype
    notes: list[str]

    def task(self, name: str) -> Task:
        """The task of that name."""
        return self.network.tasks[name]

    def batch(self, name: str, split: str, numbers: Sequence[int]) -> tuple[Inputs, Targets]:
        """Inputs and targets of these records on the device."""
        part = self.parts[name][split]
        own = [part.targets[number] for number in numbers]
        inputs, targets = self.task(name).batch(self.network.backbone, [part.inputs[number] for number in numbers], own)
        return moved(inputs, self.device), moved(targets or {}, self.device)


def assemble(config: ExperimentConfig) -> Experiment:
    """Read and check all records, fit what is fitted on the training records, load the backbone, freeze, adapt, and put heads on it.

    Raises DataError and ConfigError, one line each, in the order: libraries, files, columns, labels, backbone, targets.
    """
    notes: list[str] = []
    tasks = [TASKS.find(task.kind, "tasks").__call__(name, task) for name, task in config.tasks.items()]
    device = choose_device(ModelConfig.model_validate({"device": config.training.device}))
    place_quantised(config.backbone, device)
    parts = read_parts(config, tasks, notes.append)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = _backbone(config, tasks, parts)
        encode_parts(backbone, tasks, parts, notes.append)
        sizes = {task.name: [item.length for item in parts[task.name]["train"].inputs] for task in tasks}
        schedules = [schedule_of(config, group, sizes, phase) for phase, group in enumerate(config.phases)]
        adapt(backbone, config.backbone, sum(schedule.steps for schedule in schedules), config.adapters)
        network = network_of(config, backbone, tasks)
    if not network.learning():
        raise ConfigError("backbone.freeze: nothing is left to learn")
    network.to(device)
    plan = RankPlan(backbone.network, config.backbone)
    return Experiment(config, tasks, parts, network, plan, schedules, device, precision_of(config, device, backbone), notes)


def network_of(config: ExperimentConfig, backbone: Backbone, tasks: Sequence[Task]) -> MultitaskNetwork:
    """The network of an experiment on this backbone."""
    fused = config.fusion.heads if config.fusion.kind == "attention" else None
    return MultitaskNetwork(backbone, tasks, fused, config.conflicts.kind == "uncertainty")


def precision_of(config: ExperimentConfig, device: torch.device, backbone: Backbone) -> torch.dtype:
    """What products are computed in: float32, or bfloat16 by autocast. Weights are float32 in any case. ``auto`` is what the device
    computes in for a pretrained network, and float32 for the small ones that begin at random, which gain nothing."""
    asked = config.training.precision
    return training_precision(device, "float32" if asked == "auto" and not backbone.pretrained else asked)


def read_parts(config: ExperimentConfig, tasks: Sequence[Task], say: Say) -> dict[str, dict[str, Part]]:
    """The records of every task with their labels, checked."""
    taken = {column for task in tasks for column in task.columns()}
    files: dict[Path, list[Row]] = {}
    found: dict[str, dict[str, Part]] = {}
    for task in tasks:
        rows = _rows(config, task, files, taken, say)
        for split in SPLITS[:2]:
            if not rows[split]:
                raise DataError(f"tasks.{task.name}: there are no {split} records", fix="give a file, or a larger share")
        task.fit(rows["train"])
        parts = {split: _labelled(task, rows[split], split, say) for split in SPLITS}
        train = parts["train"]
        learned = [number for number, truth in enumerate(train.truths) if task.trains_on(truth)]
        if len(learned) < len(train):
            say(f"{task.name}: {len(train) - len(learned)} of {len(train)} training records are not learned from: they are anomalies")
            parts["train"] = Part([train.rows[number] for number in learned], [train.truths[number] for number in learned])
        if not len(parts["train"]):
            raise DataError(f"tasks.{task.name}: no training record is left to learn from")
        _check_metrics(config, task, parts["validation"].truths)
        found[task.name] = parts
    return found


def _rows(config: ExperimentConfig, task: Task, files: dict[Path, list[Row]], taken: set[str], say: Say) -> dict[str, list[Row]]:
    """The records of a task by split: from its files, and shares of the training files for splits without any."""
    where = task.config.data or config.data

    def read(names: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for name in names:
            path = config.folder / Path(name).expanduser()
            rows += files[path] if path in files else files.setdefault(path, read_rows(path))
        return rows

    if not where.train:
        raise ConfigError(f"tasks.{task.name}.data.train: is missing; name the files to learn from, there or in data.train")
    found = {"train": read(where.train), "validation": read(where.validation), "test": read(where.test)}
    shares = [0.0 if where.validation else where.validation_share, 0.0 if where.test else where.test_share]
    if sum(shares) >= 1.0:
        raise ConfigError(f"tasks.{task.name}.data: the shares for validation and test leave nothing to learn from")
    if any(shares):
        found["train"], validation, test = split_rows(found["train"], shares, config.seed, taken)
        found["validation"], found["test"] = found["validation"] or validation, found["test"] or test
    seen = {_content(row, taken) for row in found["train"]}
    for split in SPLITS[1:]:
        again = sum(_content(row, taken) in seen for row in found[split])
        if again:
            say(f"{task.name}: {again} of {len(found[split])} {split} records are among the training records: its figures say too much")
    return found


def _content(row: Row, taken: set[str]) -> int:
    return hash(tuple(sorted((key, str(value)) for key, value in row.values.items() if key not in taken)))


def _labelled(task: Task, rows: Sequence[Row], split: str, say: Say) -> Part:
    truths = [task.truth(row) for row in rows]
    kept = [number for number, truth in enumerate(truths) if truth is not None]
    if len(kept) < len(rows):
        if task.config.unlabelled == "error":
            row = next(row for row, truth in zip(rows, truths, strict=True) if truth is None)
            raise row.error("has no label", task.columns()[0], f"tasks.{task.name}.unlabelled: skip leaves such records out")
        say(f"{task.name}: {len(rows) - len(kept)} of {len(rows)} {split} records have no label and are left out")
    return Part([rows[number] for number in kept], [truths[number] for number in kept])


def _check_metrics(config: ExperimentConfig, task: Task, truths: Sequence[Any]) -> None:
    """The metric that decides can be had on the validation records."""
    wanted = config.training.metric
    name, _, metric = wanted.partition(".")
    if wanted == "mean":
        name, metric = task.name, task.main()
    if name == task.name and (why := task.undefined(metric, truths)):
        raise DataError(f"tasks.{task.name}: {metric} cannot be had: {why}", fix="add such records, or choose another training.metric")


def _backbone(config: ExperimentConfig, tasks: Sequence[Task], parts: Mapping[str, Mapping[str, Part]]) -> Backbone:
    taken = {column for task in tasks for column in task.columns()}
    unique = {id(row): row for task in tasks for row in parts[task.name]["train"].rows}
    kind = BACKBONES.find(config.backbone.kind, "backbone.kind")
    lacking = [(task, need) for task in tasks for need in sorted(task.needs - kind.gives)]
    if lacking:
        task, need = lacking[0]
        raise ConfigError(f"tasks.{task.name}: {task.kind} needs {need}, which a backbone of kind {kind.kind} has not")
    backbone = kind.build(config.backbone, list(unique.values()), taken, config.folder, any(task.hides for task in tasks))
    backbone.prepare({need for task in tasks for need in task.needs})
    return backbone


def encode_parts(backbone: Backbone, tasks: Sequence[Task], parts: Mapping[str, Mapping[str, Part]], say: Say) -> None:
    """Fill in inputs and targets."""
    for task in tasks:
        for split, part in parts[task.name].items():
            check_columns(part.rows, task.inputs(backbone))
            part.raws = [task.raw(row, backbone) for row in part.rows]
            for row, truth, raw in zip(part.rows, part.truths, part.raws, strict=True):
                task.check(row, truth, raw)
            part.inputs = task.encode(backbone, part.raws)
            part.targets = task.targets(backbone, part.truths, part.inputs)
            for remark in task.remarks(part.truths, part.targets):
                say(f"{task.name}: {split} records: {remark}")
            cut = sum(item.truncated for item in part.inputs)
            if cut:
                say(f"{task.name}: {cut} of {len(part)} {split} records are longer than backbone.{backbone.limit} and are cut off")
    for note in backbone.notes():
        say(note)


def moved(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
