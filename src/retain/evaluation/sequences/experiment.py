"""Sequence experiments: every method learns the same tasks from the same seeds; what each task scores after each is the result.

An interrupted run goes on behind the last finished task of a method and seed, with the same result as one that was not interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from torch import Tensor

from retain.adapters import select_sites
from retain.config.errors import explain
from retain.config.settings import keys_of
from retain.config.values import parse_yaml, put
from retain.data.errors import DataError, did_you_mean
from retain.data.tables import load_table_stream, table_streams
from retain.data.tasks import load_tasks, shipped_tasks
from retain.evaluation.metrics import seed_interval, summarise
from retain.evaluation.runs import Run, RunError
from retain.evaluation.sequences.cautions import cautions_after, cautions_before
from retain.evaluation.sequences.config import SequenceConfig
from retain.evaluation.sequences.language import AdapterSequence
from retain.evaluation.sequences.methods import build_way
from retain.evaluation.sequences.plan import names_of, steps_by_method
from retain.evaluation.sequences.sequence import NetworkSequence, TaskSequence
from retain.evaluation.sequences.ways import Way
from retain.lm.model import LanguageModel
from retain.training.loop import Progress

SUMMARY = (
    "average_accuracy", "learning_accuracy", "forgetting", "forgetting_rate", "backward_transfer", "forward_transfer", "retention_area",
    "intransigence",
)  # fmt: skip
C = TypeVar("C", bound=SequenceConfig)


@dataclass(frozen=True)
class Learned:
    """Told after each task: ``done`` of ``total`` tasks of all methods and seeds; the scores of the tasks so far; ``again``: it was
    learned in an earlier session already."""

    method: str
    seed: int
    task: str
    done: int
    total: int
    seconds: float
    scores: list[float]
    again: bool = False


@dataclass(frozen=True)
class Step:
    """Told after each optimizer step: ``done`` of ``total`` steps of all methods and seeds."""

    method: str
    seed: int
    task: str
    done: int
    total: int
    loss: float


Tell = Callable[[Learned], None]
TellStep = Callable[[Step], None]


def make_sequence(config: SequenceConfig, seed: int, model: LanguageModel | None = None) -> TaskSequence:
    """The sequence of a seed. Raises DataError."""
    if not config.tasks:
        return NetworkSequence(load_table_stream(config.stream, seed), config.hidden, seed)
    if model is None:
        raise ValueError("tasks of language need a model")
    split = {"held_out": config.held_out, "limit": config.limit, "split": config.split}
    tasks = load_tasks(config.tasks, data=config.data, seed=seed, **split)
    if config.measure == "learned":  # nothing needs to be held out when what was learned is asked
        tasks = [replace(task, train=(*task.train, *task.test)) for task in tasks]
    sites = select_sites(model, config.layers, config.targets[0] if len(config.targets) == 1 else config.targets)
    return AdapterSequence(
        model, tasks, sites, rank=config.rank, alpha=config.alpha, dropout=config.dropout, seed=seed, max_tokens=config.max_tokens,
        name=config.stream, measure=config.measure,
    )  # fmt: skip


def run_sequence(
    config: SequenceConfig, run: Run, model: LanguageModel | None = None, tell: Tell | None = None, tell_step: TellStep | None = None
) -> dict[str, Any]:
    """Run every method from every seed, record it in ``run``, and return the results. Raises DataError before any training for a stream
    or method that is not known or does not fit."""
    results = {"kind": "sequence", **learn_sequence(config, run, model, tell, tell_step)}
    run.complete(results)
    return results


def learn_sequence(
    config: SequenceConfig, run: Run, model: LanguageModel | None = None, tell: Tell | None = None, tell_step: TellStep | None = None
) -> dict[str, Any]:
    """The same without an end, for experiments that go on with what was learned."""
    first = make_sequence(config, 0, model)
    steps = steps_by_method(config, first)
    told = _Told(tell, tell_step, steps, config.seeds)
    methods: dict[str, dict[str, Any]] = {name: {"seeds": {}} for name in steps}
    for seed in range(config.seeds):
        sequence = first if seed == 0 else make_sequence(config, seed, model)
        _same_inputs(run, sequence, seed)
        for name in steps:
            way = build_way(name, sequence, config.training.settings(seed), config.settings, seed)
            methods[name]["seeds"][str(seed)] = _run_method(name, way, sequence, seed, run, told)
    for name in methods:
        _add_joint(methods, name)
        methods[name]["summary"] = _summary(methods[name]["seeds"])
    warnings = [*cautions_before(steps, first, config.training.settings(0)), *cautions_after(methods, first)]
    if "o-lora" in methods and config.dropout:
        warnings.append(f"o-lora: trained without the dropout of {config.dropout:g}, which does not go with several adapters")
    for message in warnings:
        run.warn(message)
    facts = {"stream": first.name, "tasks": list(first.tasks), "score": first.score_name}
    return {**facts, "methods": methods, "warnings": warnings}


class _Told:
    """How much is done, over all methods and seeds."""

    def __init__(self, tell: Tell | None, tell_step: TellStep | None, steps: Mapping[str, list[int]], seeds: int) -> None:
        self.tell, self.tell_step, self.steps = tell, tell_step, steps
        self.tasks = seeds * sum(map(len, steps.values()))
        self.total = seeds * sum(map(sum, steps.values()))
        self.done = self.finished = 0

    def learned(self, name: str, seed: int, task: str, number: int, record: Mapping[str, Any], again: bool) -> None:
        self.done += 1
        self.finished += self.steps[name][number]
        if self.tell:
            scores = record["matrix"][number + 1][: number + 1]
            self.tell(Learned(name, seed, task, self.done, self.tasks, record["seconds"], scores, again))

    def stepping(self, name: str, seed: int, task: str) -> Callable[[Progress], None] | None:
        tell, before, steps = self.tell_step, self.finished, 0

        def step(progress: Progress) -> None:
            nonlocal steps
            steps += 1  # a task may be trained twice
            assert tell is not None
            tell(Step(name, seed, task, min(before + steps, self.total), self.total, progress.loss))

        return step if tell else None


def _run_method(name: str, way: Way, sequence: TaskSequence, seed: int, run: Run, told: _Told) -> dict[str, Any]:
    """One method from one seed: the accuracy matrix with its row 0 from before any training."""
    count = len(sequence.tasks)
    keys = [f"{name}-seed{seed}-task{number}" for number in range(count)]
    record: dict[str, Any] = {}
    for number, key in enumerate(keys):
        found = run.finished(key)
        if found is not None:
            record = found["record"]
            if number + 1 == count or run.finished(keys[number + 1]) is None:
                way.load_state_dict({**found["state"], **run.tensors(key)})
        else:
            if not number:
                record = {
                    "matrix": [[way.score(task) for task in range(count)]],
                    "loss_matrix": [[way.loss(task) for task in range(count)]],
                    "losses": [], "steps": 0, "seconds": 0.0, "parameters": 0, "memory_bytes": 0, "knows_task": way.knows_task,
                }  # fmt: skip
            started = time.perf_counter()
            report = way.learn(number, told.stepping(name, seed, sequence.tasks[number]))
            record["seconds"] += time.perf_counter() - started
            record["losses"].append(report.losses)
            record["steps"] += report.steps
            record["parameters"], record["memory_bytes"] = way.values, way.memory_bytes
            record["matrix"].append([way.score(task) for task in range(count)])
            record["loss_matrix"].append([way.loss(task) for task in range(count)])
            state = way.state_dict()
            tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            run.finish(key, {"record": record, "state": {key: value for key, value in state.items() if key not in tensors}}, tensors)
            run.event("learned", method=name, seed=seed, task=sequence.tasks[number], step=record["steps"], scores=record["matrix"][-1])
        told.learned(name, seed, sequence.tasks[number], number, record, found is not None)
    return record


def _same_inputs(run: Run, sequence: TaskSequence, seed: int) -> None:
    """A run goes on only with the examples and the base model that it began with."""
    key, digest = f"inputs-seed{seed}", sequence.identity()
    found = run.finished(key)
    if found is None:
        run.finish(key, {"digest": digest, "base": sequence.base})
    elif found["digest"] != digest:
        raise RunError(f"{run.directory}: was begun with other examples or another base model: choose another directory")


def _add_joint(methods: dict[str, dict[str, Any]], name: str) -> None:
    """Each task's score by joint training on it and all before it, from the same seed: what intransigence is measured against."""
    for seed, row in methods[name]["seeds"].items():
        joint = methods.get("joint", {}).get("seeds", {}).get(seed)
        row["joint"] = [joint["matrix"][task + 1][task] for task in range(len(joint["matrix"]) - 1)] if joint else None


def _summary(seeds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and 95% interval over seeds of every metric."""
    found = [summarise(row["matrix"], row["joint"]) for row in seeds.values()]
    intervals = {name: seed_interval([metrics[name] for metrics in found]) for name in SUMMARY}
    return {name: {"mean": item.mean, "low": item.low, "high": item.high, "n": item.n} for name, item in intervals.items()}


def load_config(source: str, overrides: Mapping[str, Any] | None = None) -> SequenceConfig:
    """The configuration of a stream by name or from a YAML file, with overrides by dotted key (None leaves a value as it is, "null" is
    nothing). Paths in a file start from the file's folder. Raises DataError or ConfigError with file and field."""
    if Path(source).suffix in (".yaml", ".yml"):
        return validated(SequenceConfig, _read_yaml(Path(source)), overrides, source)
    known = table_streams()
    if source not in known:
        hint = did_you_mean(source, known) or f"there are {', '.join(known)}, and YAML files with tasks of your own"
        raise DataError(f"there is no task sequence {source!r}: {hint}")
    return validated(SequenceConfig, {"stream": source}, overrides, source)


def validated(kind: type[C], data: dict[str, Any], overrides: Mapping[str, Any] | None, where: str, tasks: Sequence[str] = ()) -> C:
    """A configuration of that kind with overrides by dotted key; ``tasks``: some that it may have. Raises ConfigError, and DataError for a
    method that is not known."""
    for key, value in (overrides or {}).items():
        if value is not None:
            put(data, key, None if value == "null" else value)
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        raise explain(error, where, keys_of(kind(stream=where, tasks=list(tasks)))) from None
    names_of(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not YAML: {' '.join(str(error).split())}", path=path) from error
    if not isinstance(data, dict):
        raise DataError("holds no settings", path=path, fix="stream, methods, tasks ...")
    if isinstance(data.get("tasks"), list):
        data["tasks"] = [_placed(str(task), path.parent) for task in data["tasks"]]
    if data.get("data"):
        data["data"] = str(path.parent / str(data["data"]))
    return {"stream": path.stem, **data}


def _placed(task: str, folder: Path) -> str:
    """A task that a file in this folder names: a name, or a path."""
    path = folder / task
    return task if task.startswith("mmlu:") or (task in shipped_tasks() and not path.exists()) else str(path)
