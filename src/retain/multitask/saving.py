"""The saved model: a folder that holds everything that answers need, and that is read back and compared before it counts."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from retain.multitask.assembly import Experiment
from retain.multitask.files import publish, write_json, write_tensors
from retain.multitask.predictor import FORMAT, MANIFEST, MODEL, WEIGHTS, Predictor
from retain.multitask.scoring import scores
from retain.training.loop import TrainingError

__all__ = ["MODEL", "save_model"]
COMPARED = 32  # validation records of each task that the saved model answers again


def save_model(experiment: Experiment, directory: Path, results: dict[str, Any]) -> None:
    """Write ``directory/model``. Before it is given its name, it is loaded as a user would load it and must say exactly what the trained
    network says of some validation records of every task; else TrainingError, and nothing is left."""

    def fill(place: Path) -> None:
        network = experiment.network
        write_tensors(place / WEIGHTS, network.kept())
        manifest = {
            "format": FORMAT, "experiment": experiment.config.recorded(), "precision": str(experiment.precision).removeprefix("torch."),
            "backbone": network.backbone.save(place, network.whole), "tasks": {task.name: task.state() for task in experiment.tasks},
            "results": results, "versions": {name: version(name) for name in ("retain", "torch", "transformers")},
        }  # fmt: skip
        write_json(place / MANIFEST, manifest)
        compare(experiment, Predictor.load(place, device=str(experiment.device.type)))

    publish(directory / MODEL, fill)


def compare(experiment: Experiment, loaded: Predictor) -> None:
    """Raise TrainingError unless a loaded model answers as the trained one."""
    for task in experiment.tasks:
        inputs = experiment.parts[task.name]["validation"].inputs[:COMPARED]
        size = experiment.config.training.batch
        trained, _ = scores(experiment.network, task, inputs, size, experiment.device, experiment.precision)
        again, _ = scores(loaded.network, loaded.network.tasks[task.name], inputs, size, loaded.device, loaded.precision)
        for number, (one, other) in enumerate(zip(trained, again, strict=True)):
            if not same(one, other):
                raise TrainingError(
                    f"task {task.name}: the saved model answers validation record {number + 1} differently; nothing was saved"
                )
        if task.state() != loaded.network.tasks[task.name].state():
            raise TrainingError(f"task {task.name}: labels or thresholds were not saved as they are; nothing was saved")


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, str):
        return bool(one == other)
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-5))
