"""An experiment's file, checked: unknown keys, kinds, tasks and metrics are errors of one line before anything is loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from retain.config import ConfigError, parse_yaml
from retain.config.errors import explain, unknown_key
from retain.config.section import Section
from retain.config.values import merge, put
from retain.data.errors import did_you_mean
from retain.multitask.backbones import BACKBONES
from retain.multitask.callbacks import CALLBACKS
from retain.multitask.config import ExperimentConfig
from retain.multitask.quantising import quantised
from retain.multitask.tasks import TASKS
from retain.retention import RetentionError, describe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
S = TypeVar("S", bound=Section)


def load_experiment(path: Path | str, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The experiment in a YAML file. ``overrides``: dotted key -> value; "null" means nothing. Raises ConfigError."""
    file = Path(path).expanduser()
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, dict):
        values.setdefault("name", file.stem)
    return parse_experiment(values, file.parent, str(path), overrides)


def parse_experiment(
    values: Any, folder: Path | str = ".", where: str = "experiment", overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """The experiment in nested values. ``folder``: where relative names of files start; ``where`` begins messages. Raises ConfigError."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where}: must hold sections, such as `backbone:` and `tasks:`")
    raw: dict[str, Any] = {}
    merge(raw, copy.deepcopy(dict(values)))
    for key, value in (overrides or {}).items():
        _override(raw, key, value, where)
    unknown = next((key for key in raw if key not in ExperimentConfig.model_fields), None)
    for section in ("backbone", "tasks"):
        if not isinstance(raw.get(section), dict) or not raw[section]:
            if unknown is not None:  # it may be this section, misspelt
                raise unknown_key(where, unknown, section_keys(ExperimentConfig))
            raise ConfigError(f"{where}: {section}: is missing; it holds `key: value` entries")
    raw["backbone"] = _kind(raw["backbone"], f"{where}: backbone", BACKBONES)
    raw["tasks"] = {name: _kind(task, f"{where}: tasks.{name}", TASKS) for name, task in raw["tasks"].items()}
    config = validated(ExperimentConfig, raw, where)
    config._folder = Path(folder)
    _check(config, where)
    return config


def validated(cls: type[S], values: Any, where: str) -> S:
    """A section made of these values. Raises ConfigError in the words of the configuration."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        missing = next((detail for detail in error.errors() if detail["type"] == "missing"), None)
        if missing is not None and all(detail["type"] != "extra_forbidden" for detail in error.errors()):
            raise ConfigError(f"{where}: {'.'.join(map(str, missing['loc']))}: is missing") from None
        raise explain(error, where, section_keys(cls)) from None


def section_keys(cls: type[Section], prefix: str = "") -> list[str]:
    """Every dotted key of a section, those of the sections in it included."""
    keys = []
    for name, field in cls.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        keys.append(key)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                keys += section_keys(kind, f"{key}.")
    return keys


def _kind(values: Any, where: str, registry: Any) -> Section:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must hold `key: value` entries")
    if "kind" not in values:
        raise ConfigError(f"{where}: kind: is missing; there is {', '.join(registry)}")
    return validated(registry.find(values["kind"], f"{where}: kind").Config, values, where)


def _override(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    tasks = raw.get("tasks")
    parts = key.split(".")
    if parts[0] == "tasks" and isinstance(tasks, dict) and (len(parts) < 3 or parts[1] not in tasks):
        raise unknown_key(where, key, [f"tasks.{name}.{'.'.join(parts[2:]) or 'weight'}" for name in tasks])
    put(raw, key, None if value == "null" else value)


def _check(config: ExperimentConfig, where: str) -> None:
    """What no single section can check by itself."""
    for name in config.tasks:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: tasks.{name}: a name has letters, digits, - and _ only, and begins with a letter or digit")
    grouped = [name for group in config.sampling.phases for name in group]
    for name in grouped:
        if name not in config.tasks:
            raise ConfigError(
                f"{where}: sampling.phases: there is no task {name!r}: {did_you_mean(name, config.tasks) or ', '.join(config.tasks)}"
            )
    if grouped and sorted(grouped) != sorted(config.tasks):
        left = sorted(set(config.tasks) - set(grouped))
        raise ConfigError(f"{where}: sampling.phases: " + (f"{left[0]} is in no phase" if left else "a task is named twice"))
    for name, options in config.training.callbacks.items():
        validated(CALLBACKS.find(name, f"{where}: training.callbacks").Config, options, f"{where}: training.callbacks.{name}")
    if quantised(config.backbone) and not BACKBONES.find(config.backbone.kind, where).four_bits:
        able = " and ".join(kind for kind in BACKBONES if BACKBONES.find(kind, where).four_bits)
        raise ConfigError(f"{where}: backbone.peft.method: qlora is for {able}; for {config.backbone.kind} take lora")
    _check_metric(config, where)
    _check_conflicts(config, where)
    _check_retention(config, where)


def _check_metric(config: ExperimentConfig, where: str) -> None:
    """The metric exists, and can be had at every evaluation."""
    wanted = config.training.metric
    named = {f"{name}.{metric}" for name, task in config.tasks.items() for metric in TASKS.find(task.kind, where).metrics_of(task)}
    if wanted not in {"mean", "loss", *named}:
        hint = did_you_mean(wanted, named) or f"there is mean, loss, {', '.join(sorted(named))}"
        raise ConfigError(f"{where}: training.metric: there is no metric {wanted!r}: {hint}")
    if wanted in named and len(config.phases) > 1:
        raise ConfigError(f"{where}: training.metric: with phases it is mean or loss, of the tasks learned so far")


def _check_conflicts(config: ExperimentConfig, where: str) -> None:
    if config.conflicts.kind != "pcgrad":
        return
    if min(len(group) for group in config.phases) < 2:
        raise ConfigError(f"{where}: conflicts.kind: pcgrad needs two tasks that learn together")
    if config.training.accumulation == 1:
        raise ConfigError(
            f"{where}: training.accumulation: pcgrad needs batches of two tasks in a step; leave it out, or make it 2 or more"
        )


def _check_retention(config: ExperimentConfig, where: str) -> None:
    for name in config.retention.methods:
        try:
            describe(name)
        except RetentionError as error:
            raise ConfigError(f"{where}: retention.methods: {error}") from None
        if name == "olora" and (config.backbone.peft is None or config.backbone.peft.method not in ("lora", "rslora")):
            raise ConfigError(
                f"{where}: retention.methods: olora needs an adapter for every phase: add backbone.peft of lora, or take ewc or replay"
            )
        if len(config.phases) < 2:
            raise ConfigError(f"{where}: retention.methods: there are no earlier tasks to protect: name them in sampling.phases")
    if "kl" in config.retention.methods and "replay" not in config.retention.methods:
        raise ConfigError(f"{where}: retention.methods: kl compares on replayed records: add replay")
