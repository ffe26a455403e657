"""Where a training goes on after an interruption: weights, optimizer, random state, what is remembered, what was best."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.config import ConfigError
from retain.multitask.files import named, publish, read_json, read_tensors, under, write_json, write_tensors

NAME = re.compile(r"checkpoint-(\d+)-(\d+)")
TENSORS, STATE = "tensors.safetensors", "state.json"


def save_checkpoint(directory: Path, phase: int, step: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Keep a checkpoint in place of the earlier ones."""
    folder = directory / f"checkpoint-{phase}-{step}"
    if folder.exists():
        return
    earlier = checkpoints(directory)

    def fill(place: Path) -> None:
        write_tensors(place / TENSORS, tensors)
        write_json(place / STATE, state)

    publish(folder, fill)
    for other in earlier:
        shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The latest checkpoint; None where there is none. Raises ConfigError when it is of another configuration."""
    found = checkpoints(directory)
    if not found:
        return None
    state = read_json(found[-1] / STATE)
    difference = differs(state["config"], config)
    if difference is not None:
        raise ConfigError(f"{directory}: {difference}: go on with the configuration that it began with, or choose another directory")
    return state, read_tensors(found[-1] / TENSORS)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, earliest first."""
    found = [(int(match[1]), int(match[2]), path) for path in directory.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, _, path in sorted(found)]


def remove_checkpoints(directory: Path) -> None:
    """A run that is finished needs them no more."""
    for path in checkpoints(directory):
        shutil.rmtree(path, ignore_errors=True)


def differs(there: Any, here: Any, name: str = "") -> str | None:
    """The first key in which two configurations differ, in words; None where they are the same."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            dotted = f"{name}.{key}" if name else str(key)
            if key not in there or key not in here:
                return f"{dotted} is only {'there' if key in there else 'here'}"
            if (found := differs(there[key], here[key], dotted)) is not None:
                return found
        return None
    return None if there == here else f"{name} was {there!r} and is {here!r}"


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its moments and step counts as tensors: ``number of the parameter/name``."""
    return {f"{number}/{name}": value for number, values in optimizer.state_dict()["state"].items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_state`, for an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random states."""
    found = {"cpu": torch.get_rng_state()}
    return found | {"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else found


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "device" in tensors:
        torch.cuda.set_rng_state(tensors["device"], device)


def mixed_state(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A flat state of tensors and JSON values as both."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value for name, value in state.items() if name not in tensors}, named(prefix, tensors)


def unmixed_state(prefix: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Inverse of :func:`mixed_state`."""
    return {**values, **under(prefix, tensors)}
