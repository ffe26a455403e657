"""Checkpoints of learned adapters: those that a run keeps of its tasks, and those exported for peft."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.adapters.peft_format import CONFIG, import_peft
from retain.data.errors import DataError
from retain.evaluation.runs import Run
from retain.evaluation.sequences.language import stored_adapter
from retain.lm.model import LanguageModel
from retain.retention.base import Params


@dataclass(frozen=True)
class Checkpoint:
    """``params``: LoRA factors; ``scale``: alpha / rank, the factor on B A."""

    name: str
    params: Params
    scale: float


def is_run(place: Path) -> bool:
    """Whether a directory is that of a run, rather than an adapter's."""
    return not (place / CONFIG).exists()


def checkpoint(run: Run, method: str, seed: int, task: int, name: str = "") -> Checkpoint:
    """What a method had learned when a task, counted from 0, was finished. Raises DataError or RunError."""
    params = stored_adapter(run.tensors(f"{method}-seed{seed}-task{task}"))
    return Checkpoint(name or f"task {task + 1}", params, float(run.config["alpha"]) / int(run.config["rank"]))


def checkpoints(run: Run, tasks: Sequence[str], model: LanguageModel, method: str = "", seed: int = 0) -> list[Checkpoint]:
    """All checkpoints of a method (by default the first that has any) in a run. Raises DataError, with what there is."""
    marks = {f"-seed{seed}-task{task}": task for task in range(len(tasks))}
    found: dict[str, list[int]] = {}
    for key in run.tasks:
        for mark, task in marks.items():
            if key.endswith(mark):
                found.setdefault(key.removesuffix(mark), []).append(task)
    chosen = method or next((name for name in run.config.get("methods", ()) if name in found), next(iter(found), ""))
    if chosen not in found:
        there = f"there is {', '.join(found)}" if found else "no task is finished"
        raise DataError(f"{run.directory}: holds nothing that {method or 'a method'} learned from seed {seed}: {there}")
    base = (run.finished(f"inputs-seed{seed}") or {}).get("base")
    if base and base != model.fingerprint:
        raise DataError(f"{run.directory}: was made with another base model ({base[:12]}) than {model.name} ({model.fingerprint[:12]})")
    return [checkpoint(run, chosen, seed, task, f"after {tasks[task]}") for task in sorted(found[chosen])]


def peft_checkpoint(place: Path, model: LanguageModel) -> Checkpoint:
    """An adapter in peft's format. Raises AdapterError for one of another base model."""
    adapter = import_peft(place, model)
    return Checkpoint(
        place.resolve().name, {name: tensor.to(model.device, model.dtype) for name, tensor in adapter.tensors.items()}, adapter.spec.scale
    )


def moved(before: Checkpoint, after: Checkpoint) -> dict[str, float | None]:
    """How far the parameters moved, in the Frobenius norm: of the factors, sqrt(||dA||^2 + ||dB||^2) over all sites (None where their
    shapes differ), and of the change that they make to the weights, ||scale_2 B_2 A_2 - scale_1 B_1 A_1||."""
    return {"factors": _factors(before.params, after.params), "product": _product(before, after)}


def _factors(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    if any(before[name].shape != after[name].shape for name in before):
        return None
    return math.sqrt(sum(float((after[name].double() - before[name].double()).square().sum()) for name in before))


def _product(before: Checkpoint, after: Checkpoint) -> float:
    total = 0.0
    for name in before.params:
        if name.endswith(".lora_A.weight"):  # one site at a time: the dense change of all would be as large as the model
            up = name.replace(".lora_A.", ".lora_B.")
            first, second = (one.scale * (one.params[up].double() @ one.params[name].double()) for one in (before, after))
            total += float((second - first).square().sum())
    return math.sqrt(total)
