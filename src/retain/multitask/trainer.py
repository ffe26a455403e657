"""Training an experiment: phases, evaluations, the best weights, checkpoints; then the saved model, checked against what was trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.config import ConfigError
from retain.multitask.adapting import use_adapter
from retain.multitask.assembly import Experiment, assemble
from retain.multitask.callbacks import CALLBACKS, Callback, Progress
from retain.multitask.checkpoints import (
    load_checkpoint,
    mixed_state,
    random_state,
    remove_checkpoints,
    restore_random,
    save_checkpoint,
    unmixed_state,
)  # fmt: skip
from retain.multitask.config import ExperimentConfig
from retain.multitask.distilling import Distiller
from retain.multitask.files import named, sweep, under
from retain.multitask.loading import validated
from retain.multitask.loop import Company, train_phase
from retain.multitask.nested import Updates, updates_of
from retain.multitask.network import parts_of
from retain.multitask.quantising import count
from retain.multitask.retaining import RecordObjective, methods_of
from retain.multitask.saving import MODEL, save_model
from retain.multitask.scoring import evaluate
from retain.multitask.sentinel import SUSPECTS, Sentinel
from retain.multitask.tasks.base import TASKS
from retain.retention import Task as Learned
from retain.training.loop import TrainingError

Metrics = dict[str, dict[str, float | None]]
Tell = Callable[[str, Mapping[str, Any]], None]


def train(
    config: ExperimentConfig | Experiment, directory: Path | str, *, resume: bool = False, callbacks: Sequence[Callback] = (),
    tell: Tell | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the experiment and save the model in ``directory/model``; the results as JSON values.

    ``config``: a configuration, or what :func:`retain.multitask.assemble` made of it, unused so far.
    ``resume`` goes on from the latest checkpoint in the directory, or begins where there is none. ``callbacks`` come after those of the
    configuration. ``tell(event, fields)`` hears of notes, steps, evaluations and phases. Raises ConfigError, DataError and TrainingError.
    """
    place = Path(directory).expanduser()
    if (place / MODEL).exists():
        raise ConfigError(f"{place}: holds a finished run already: choose another directory")
    sweep(place)
    settings = config.config if isinstance(config, Experiment) else config
    saved = load_checkpoint(place, settings.recorded())
    if saved is not None and not resume:
        raise ConfigError(f"{place}: holds a run that was interrupted: go on with --resume, or choose another directory")
    experiment = config if isinstance(config, Experiment) else assemble(config)
    devices = [experiment.device] if experiment.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        return Trainer(experiment, place, callbacks, tell).run(saved)


class Trainer:
    """One training. Everything that changes while it goes on is in the attributes below, and in a checkpoint."""

    def __init__(self, experiment: Experiment, directory: Path, callbacks: Sequence[Callback] = (), tell: Tell | None = None) -> None:
        self.experiment, self.config, self.directory = experiment, experiment.config, directory
        self.network = experiment.network
        named_callbacks = self.config.training.callbacks.items()
        own = [(CALLBACKS.find(name, "training.callbacks"), name, options) for name, options in named_callbacks]
        self.callbacks = [kind(validated(kind.Config, options, f"training.callbacks.{name}")) for kind, name, options in own]
        self.callbacks += callbacks
        self._tell = tell or (lambda event, fields: None)
        self.methods = methods_of(experiment)
        self.objective = RecordObjective(experiment) if self.methods else None
        self.sentinel = Sentinel(experiment, self.config.sentinel, directory) if self.config.sentinel is not None else None
        self.distiller = Distiller(experiment, self.config.distill) if self.config.distill is not None else None
        self._updates()  # so that what is wrong with its groups is told before anything is learned
        self.at = Progress()
        self.best: dict[str, Tensor] = {}  # weights, on the CPU
        self.best_states: dict[str, Any] = {}  # label names and thresholds of the tasks
        self.began: dict[str, Tensor] = {}  # weights when the phase began
        self.counted: dict[str, list[int]] = {}  # of each task: its batches so far, and how many had a loss that was not 0
        self.matrix: list[Metrics] = []  # before training, and after every phase
        self.stopped: list[str | None] = []
        self.spent = 0.0  # seconds before an interruption

    def run(self, saved: tuple[dict[str, Any], dict[str, Tensor]] | None) -> dict[str, Any]:
        """All phases from the beginning or from a checkpoint; then save."""
        self.started = time.monotonic()
        for note in self.experiment.notes:
            self._note(note)
        if saved is not None:
            self.spent = float(saved[0]["seconds"])
            self.matrix, self.stopped = saved[0]["matrix"], saved[0]["stopped"]
        else:
            self.matrix.append(self._measure(list(self.config.tasks), "validation", tune=False))
        for phase in range(int(saved[0]["phase"]) if saved else 0, len(self.config.phases)):
            self._phase(phase, saved)
            saved = None
        return self._finish()

    def _phase(self, phase: int, saved: tuple[dict[str, Any], dict[str, Tensor]] | None) -> None:
        """Learn the tasks of a phase, end with its best weights, and let the retention methods remember."""
        schedule, tasks = self.experiment.schedules[phase], self.config.phases[phase]
        self.at = Progress(phase=phase, steps=schedule.steps)
        self.counted = {name: [0, 0] for name in tasks}
        self.best, self.best_states = {}, {}
        self.stop: str | None = None
        use_adapter(self.network.backbone, phase)
        updates = self._updates()
        if saved is not None:
            self._restore(saved, updates)
        else:
            self.began = {name: value.clone() for name, value in self.network.kept().items()}
            for callback in self.callbacks:
                callback.on_phase(self.at)
        if self.sentinel is not None:
            self.sentinel.begin(phase, tasks, self.at.step)
        if self.distiller is not None:
            self.distiller.begin(phase, self.began)
        learned = self._task(phase)
        if learned is not None:
            start = {name: self.began[name] for name in self.network.learning()}
            for method in self.methods:
                method.before_task(learned, start)
        self._tell("phase", {"phase": phase, "tasks": tasks, "steps": schedule.steps})
        done = sum(earlier.steps for earlier in self.experiment.schedules[:phase])
        every = self.config.training.evaluate_every or schedule.steps_per_epoch
        kept = self.config.training.checkpoint_every or every

        def after_step(step: int, losses: dict[str, float], rate: float) -> bool:
            self._stepped(step + 1, losses, rate, (step + 1) / schedule.steps_per_epoch)
            last = step + 1 == schedule.steps
            if (step + 1) % every == 0 or last or self.stop:
                self._evaluated()
            if not last and not self.stop and (step + 1) % kept == 0:
                self._checkpoint(updates)
            return self.stop is None

        company = Company(updates, self.methods, self.objective, self.sentinel, self.distiller, self._note)
        train_phase(self.experiment, schedule, self.at.step, done, company, after_step)
        self._check_effect()
        self.network.load(self.best, "the best weights")
        for name, state in self.best_states.items():
            self.experiment.task(name).restore(state)
        self._tell_suspects(tasks)
        learned = self._task(phase)
        if learned is not None:
            for method in self.methods:
                method.after_task(learned, self.network.learning())
        self.stopped.append(self.stop)
        self.matrix.append(self._measure(list(self.config.tasks), "validation", tune=False))
        self._tell("learned", {"phase": phase, "step": self.at.best_step, "stopped": self.stop, "metrics": self.matrix[-1]})

    def _task(self, phase: int) -> Learned | None:
        """What retention methods see of a phase: never records that the sentinel has left out."""
        if self.objective is None:
            return None
        out = {name: self.sentinel.dropped(name) for name in self.config.phases[phase]} if self.sentinel is not None else {}
        return Learned(f"phase-{phase + 1}", self.objective.examples(self.config.phases[phase], out), self.objective)

    def _updates(self) -> Updates:
        """The optimizers of a phase."""
        return updates_of(self.network, self.config, self.backbone_rate, self.distiller.parameters if self.distiller is not None else None)

    def _note(self, message: str) -> None:
        self._tell("note", {"message": message})

    def _tell_suspects(self, tasks: Sequence[str]) -> None:
        found = self.sentinel.summary() if self.sentinel is not None else {}
        for name in tasks:
            counts = [f"{count} by {check}" for check, count in found.get(name, {}).get("suspects", {}).items() if count]
            if counts:
                out = found[name]["left_out"]
                message = f"{name}: suspect records: {', '.join(counts)}; {out} left out: see {self.directory / SUSPECTS}"
                self._note(message)

    @property
    def backbone_rate(self) -> float:
        """The peak rate of the backbone: the configuration's, or what its kind is used to."""
        asked, backbone = self.config.training.learning_rate, self.network.backbone
        return asked or (backbone.learning_rate if self.config.backbone.peft is None else backbone.adapted_rate)

    @property
    def seconds(self) -> float:
        """Time since the training began, that before interruptions included."""
        return self.spent + time.monotonic() - self.started

    def _stepped(self, step: int, losses: dict[str, float], rate: float, epoch: float) -> None:
        self.at.step, self.at.losses, self.at.rate, self.at.epoch, self.at.seconds = step, losses, rate, epoch, self.seconds
        for name, loss in losses.items():
            self.counted[name][0] += 1
            self.counted[name][1] += loss != 0.0
        self._tell(
            "step",
            {"phase": self.at.phase, "step": step, "steps": self.at.steps, "rate": rate, "seconds": self.at.seconds, "losses": losses},
        )
        for callback in self.callbacks:
            self.stop = callback.on_step(self.at) or self.stop

    def _evaluated(self) -> None:
        """Measure the tasks learned so far, tune their thresholds, and keep the weights if they are the best; of equals, if the loss is."""
        self._check_losses()
        names = [name for group in self.config.phases[: self.at.phase + 1] for name in group]
        self.at.evaluation = self._measure(names, "validation", tune=True)
        self.at.value = self._value(self.at.evaluation)
        loss = sum(metrics["loss"] or 0.0 for metrics in self.at.evaluation.values())
        if self.at.best is None or (self.at.value, -loss) > (self.at.best, -self.at.best_loss):
            self.at.best, self.at.best_loss, self.at.best_step = self.at.value, loss, self.at.step
            self.best = {name: value.to("cpu", copy=True) for name, value in self.network.kept().items()}
            self.best_states = {task.name: task.state() for task in self.experiment.tasks}
        metric = self.config.training.metric
        self._tell(
            "evaluation",
            {"phase": self.at.phase, "step": self.at.step, "chosen_by": metric, "value": self.at.value, "metrics": self.at.evaluation},
        )
        for callback in self.callbacks:
            self.stop = callback.on_evaluation(self.at) or self.stop

    def _measure(self, names: Sequence[str], split: str, tune: bool) -> Metrics:
        return {name: evaluate(self.experiment, name, split, tune) for name in names if len(self.experiment.parts[name][split])}

    def _rows(self, name: str) -> dict[str, int]:
        return {split: len(part) for split, part in self.experiment.parts[name].items()}

    def _value(self, metrics: Metrics) -> float:
        """What the best step is chosen by; higher is better."""
        wanted = self.config.training.metric
        if wanted == "loss":
            values: list[float | None] = [-metrics[name]["loss"] * self.config.tasks[name].weight for name in metrics]  # type: ignore[operator]
        elif wanted == "mean":
            values = [metrics[name][self.experiment.task(name).main()] for name in metrics]
        else:
            name, _, metric = wanted.partition(".")
            found = metrics[name][metric]
            better = TASKS.find(self.config.tasks[name].kind, "tasks").metrics_of(self.config.tasks[name])[metric]
            values = [found if found is None or better else -found]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            raise TrainingError(f"{wanted} cannot be had on the validation records: choose another training.metric")
        return sum(known) / len(known)

    def _check_losses(self) -> None:
        for name, (batches, alive) in self.counted.items():
            if batches and not alive:
                raise TrainingError(
                    f"task {name}: its loss was exactly 0 in all of {batches} batches, so nothing is learned: check its labels"
                )

    def _check_effect(self) -> None:
        """Every part that learns has changed in this phase."""
        self._check_losses()
        now = self.network.learning()
        for part, names in parts_of(list(now)).items():
            task = part.removeprefix("the head of ")
            concerned = task == part or task in self.config.phases[self.at.phase]
            if concerned and all(torch.equal(now[name].detach(), self.began[name]) for name in names):
                raise TrainingError(f"training changed nothing in {part}: it takes part in no loss, or the rate is too small")

    def _checkpoint(self, updates: Updates) -> None:
        tensors = {**named("network", self.network.kept()), **named("best", self.best), **named("updates", updates.tensors())}
        tensors |= {
            **named("began", self.began),
            **named("random", random_state(self.experiment.device)),
            **named("plan", self.experiment.plan.state_dict()),
            **named("distiller", self.distiller.tensors() if self.distiller is not None else {}),
            **named("sentinel", self.sentinel.tensors() if self.sentinel is not None else {}),
        }
        remembered = []
        for number, method in enumerate(self.methods):
            values, kept = mixed_state(f"retention/{number}", method.state_dict())
            remembered.append(values)
            tensors |= kept
        at = {name: getattr(self.at, name) for name in ("step", "value", "best", "best_loss", "best_step")}
        state = {
            "config": self.config.recorded(), "phase": self.at.phase, "at": at, "matrix": self.matrix, "stopped": self.stopped,
            "counted": self.counted, "best_states": self.best_states, "seconds": self.seconds, "retention": remembered,
            "tasks": {task.name: task.state() for task in self.experiment.tasks},
            "callbacks": {callback.kind: callback.state_dict() for callback in self.callbacks if callback.kind},
            "sentinel": self.sentinel.state() if self.sentinel is not None else None,
        }  # fmt: skip
        save_checkpoint(self.directory, self.at.phase, self.at.step, state, tensors)

    def _restore(self, saved: tuple[dict[str, Any], dict[str, Tensor]], updates: Updates) -> None:
        state, tensors = saved
        self.network.load(under("network", tensors), str(self.directory))
        updates.load(under("updates", tensors))
        restore_random(under("random", tensors), self.experiment.device)
        self.experiment.plan.load_state_dict(under("plan", tensors))
        self.best, self.best_states, self.counted = under("best", tensors), state["best_states"], state["counted"]
        self.began = {name: tensor.to(self.experiment.device) for name, tensor in under("began", tensors).items()}
        for name, value in state["at"].items():
            setattr(self.at, name, value)
        for task in self.experiment.tasks:
            task.restore(state["tasks"][task.name])
        for number, (method, values) in enumerate(zip(self.methods, state["retention"], strict=True)):
            method.load_state_dict(unmixed_state(f"retention/{number}", values, tensors))
        if self.sentinel is not None:
            self.sentinel.load(state["sentinel"], under("sentinel", tensors))
        if self.distiller is not None:
            self.distiller.load(under("distiller", tensors))
        for callback in self.callbacks:
            if callback.kind in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.kind])

    def _finish(self) -> dict[str, Any]:
        """Measure the test records, save the model, and give the results."""
        tests = self._measure(list(self.config.tasks), "test", tune=False)
        learning = sum(value.numel() for value in self.network.learning().values())
        results: dict[str, Any] = {
            "name": self.config.name,
            "tasks": {
                task.name: {
                    "kind": task.kind, "main": task.main(), "rows": self._rows(task.name), "before": self.matrix[0][task.name],
                    "validation": self.matrix[-1][task.name], "test": tests.get(task.name),
                }
                for task in self.experiment.tasks
            },
            "phases": [{"tasks": group, "stopped": why} for group, why in zip(self.config.phases, self.stopped, strict=True)],
            "matrix": self.matrix, "chosen_by": self.config.training.metric, "best": self.at.best, "best_step": self.at.best_step,
            "parameters": {"trained": learning, "all": sum(map(count, self.network.parameters()))},
            "seconds": self.seconds, "notes": self.experiment.notes,
        }  # fmt: skip
        if self.sentinel is not None:
            results["sentinel"] = self.sentinel.summary()
        save_model(self.experiment, self.directory, results)
        remove_checkpoints(self.directory)
        return results
