"""A teacher beside the labels: an earlier run that knows a task, or the network itself as it was before the phase began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.config import ConfigError
from retain.data.errors import did_you_mean
from retain.multitask.assembly import Experiment, moved
from retain.multitask.backbones.base import Encoded, States
from retain.multitask.config import DistillConfig
from retain.multitask.conflicts import Seen
from retain.multitask.predictor import Predictor
from retain.multitask.scoring import autocast, evaluating
from retain.multitask.tasks import Regression, Task
from retain.multitask.tasks.base import Outputs, Targets
from retain.multitask.tasks.heads import Head, Heads
from retain.retention import total
from retain.retention.distillation import kl_divergence

PROJECTION = "distill.projection.weight"
POOLED = "pooled"  # beside a task's outputs


class Distiller:
    """Adds to the loss of a batch what the teacher says of the same records (Hinton et al., 1503.02531, section 2):

        labels * loss + weight * T^2 KL(teacher || student) + hidden * mean (W h_student - h_teacher)^2

    The divergence is that of :func:`retain.retention.distillation.kl_divergence`, over a task's outcomes, mean over positions: the classes
    of each head, has it or not for each label, and for a number a normal distribution around it. h are the pooled states, W is learned
    and is no part of the saved model (1412.6550, section 2.2).

    What the teacher says of a record is said once, without dropout, and kept. A batch hears the teacher on its own task and, with no
    labels, on tasks of earlier phases: what the network says there, it goes on saying (learning without forgetting, Li & Hoiem,
    1606.09282, section 3). The latter costs a pass of the network for each such task.

    Raises ConfigError for a teacher that has none of the tasks, or other labels.
    """

    def __init__(self, experiment: Experiment, config: DistillConfig) -> None:
        self.experiment, self.config, self.network = experiment, config, experiment.network
        self.teacher, self.precision = experiment.network, experiment.precision
        self.phase = 0
        self.projection: nn.Linear | None = None
        self._before: dict[str, Tensor] = {}  # weights of the network before the phase, where that is the teacher
        self._said: dict[tuple[str, str], dict[int, Outputs]] = {}  # task that is asked, task of the record: by the record's number
        self._encoded: dict[tuple[str, str], list[Encoded]] = {}
        self._pooled: Tensor | None = None
        if config.teacher is None:
            self._itself()
        else:
            self._other(config.teacher)
        if config.hidden:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(experiment.config.seed)
                self.projection = nn.Linear(self.network.backbone.width, self.teacher.backbone.width, bias=False).to(experiment.device)
            self.network.backbone.register_forward_hook(self._keep)

    def _itself(self) -> None:
        if len(self.experiment.config.phases) < 2:
            raise ConfigError("distill.teacher: null is the network before a phase, and there is one phase: name a run, or sampling.phases")
        if self.config.tasks:
            raise ConfigError("distill.tasks: without a teacher's run the tasks are those of earlier phases: leave it out")
        self.asked = {task.name: task.name for task in self.experiment.tasks}
        for task in self.experiment.tasks:
            _check_kind(task)

    def _other(self, run: str) -> None:
        place = self.experiment.config.folder / Path(run).expanduser()
        loaded = Predictor.load(place, device=self.experiment.device.type)
        theirs, ours = loaded.network.tasks, self.network.tasks
        self.asked = dict(self.config.tasks) or {name: name for name in ours if name in theirs}
        for name, other in self.asked.items():
            for there, known, whose in ((name, ours, "here"), (other, theirs, f"in {place}")):
                if there not in known:
                    hint = did_you_mean(there, known) or f"there is {', '.join(known)}"
                    raise ConfigError(f"distill.tasks: there is no task {there!r} {whose}: {hint}")
            _check_kind(ours[name])
            _check_same(ours[name], theirs[other], place)
        if not self.asked:
            raise ConfigError(
                f"distill: the teacher knows {', '.join(theirs)}, and none of it is learned here: name pairs in distill.tasks"
            )
        self.teacher, self.precision = loaded.network.requires_grad_(False), loaded.precision

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What learns beside the network."""
        return {} if self.projection is None else {PROJECTION: self.projection.weight}

    def begin(self, phase: int, began: Mapping[str, Tensor]) -> None:
        """A phase begins, with these weights of the network."""
        self.phase = phase
        if self.config.teacher is None:
            self._before, self._said = dict(began), {}

    def look(self, seen: Seen, loss: Tensor) -> Tensor:
        """The loss of a batch, with the teacher's part."""
        earlier = {name for group in self.experiment.config.phases[: self.phase] for name in group}
        own = self.config.teacher is not None and seen.task in self.asked
        chosen = [name for name in self.asked if (own and name == seen.task) or (name in earlier and name != seen.task)]
        if not chosen:
            return loss
        terms: list[Tensor | None] = [loss * self.config.labels if own else loss]
        pooled = self._pooled  # of this batch; what follows asks the network again
        for name in chosen:
            taught, outputs = self._ask(name, seen), seen.outputs
            if name != seen.task:
                with autocast(self.experiment.device, self.experiment.precision):
                    outputs = self.network(name, seen.inputs)
            task = self.experiment.task(name)
            then, now = (outcomes(task, found).flatten(0, 1) for found in (taught, outputs))
            terms.append(self.config.weight * kl_divergence(then, now, self.config.temperature))
        if self.projection is not None:
            assert pooled is not None
            terms.append(self.config.hidden * F.mse_loss(self.projection(pooled.float()), taught[POOLED]))
        found = total(terms)
        assert found is not None
        return found

    def _ask(self, name: str, seen: Seen) -> Outputs:
        """The teacher's outputs for a task, in the order of the labels here, and its pooled states where they are compared."""
        said = self._said.setdefault((name, seen.task), {})
        missing = [number for number in seen.numbers if number not in said]
        if missing:
            outputs = self._answers(name, seen.task, missing)
            for place, number in enumerate(missing):
                said[number] = {key: value[place].clone() for key, value in outputs.items()}
        found = [said[number] for number in seen.numbers]
        return {key: torch.stack([one[key] for one in found]) for key in found[0]}

    @torch.no_grad()
    def _answers(self, name: str, of: str, numbers: Sequence[int]) -> Outputs:
        theirs, teacher = self.teacher.tasks[self.asked[name]], self.teacher
        inputs = moved(teacher.backbone.collate([self._inputs(theirs, of)[number] for number in numbers]), self.experiment.device)
        with evaluating(teacher), autocast(self.experiment.device, self.precision):
            found = translated(theirs, self.experiment.task(name), torch.func.functional_call(teacher, self._before, (theirs.name, inputs)))
            if self.projection is not None:
                states = torch.func.functional_call(
                    teacher.backbone,
                    {name.removeprefix("backbone."): value for name, value in self._before.items() if name.startswith("backbone.")},
                    (inputs,),
                )
                found[POOLED] = teacher.backbone.pool(states).float()
        return found

    def _inputs(self, theirs: Task, of: str) -> list[Encoded]:
        """The training records of a task as the teacher reads them."""
        part = self.experiment.parts[of]["train"]
        if self.config.teacher is None:
            return part.inputs
        if (theirs.name, of) not in self._encoded:
            backbone = self.teacher.backbone
            self._encoded[theirs.name, of] = theirs.encode(backbone, [theirs.raw(row, backbone) for row in part.rows])
        return self._encoded[theirs.name, of]

    def _keep(self, module: nn.Module, inputs: Any, states: States) -> None:
        """Of the latest pass in training the pooled states."""
        if module.training and torch.is_grad_enabled():
            self._pooled = self.network.backbone.pool(states)

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed training needs; the teacher says the same again."""
        return {} if self.projection is None else {"projection": self.projection.weight.detach()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`."""
        if self.projection is not None:
            self.projection.weight.copy_(tensors["projection"])


def outcomes(task: Task, outputs: Outputs) -> Tensor:
    """Logits [B, positions, outcomes] of a task, whatever the labels of the records."""
    targets: Targets = {}
    if isinstance(task, Heads):
        targets = {head.name: torch.zeros_like(outputs[head.name], dtype=torch.int64) for head in task.heads if head.multi}
        targets |= {head.name: torch.zeros_like(outputs[head.name][:, 0], dtype=torch.int64) for head in task.heads if not head.multi}
    return task.logits(outputs, targets)[0]


def translated(theirs: Task, ours: Task, outputs: Outputs) -> Outputs:
    """A teacher's outputs as the student's task has them: labels in its order, numbers in its scale."""
    if isinstance(theirs, Regression) and isinstance(ours, Regression):
        value = outputs["value"].float() * theirs.scale + theirs.centre
        return {"value": (value - ours.centre) / ours.scale}
    found = {}
    for own, other in _pairs(ours, theirs):
        order = [other.places[label] for label in own.labels]
        found[own.name] = outputs[other.name].float()[:, order]
    return found


def _pairs(ours: Task, theirs: Task) -> list[tuple[Head, Head]]:
    """Heads here with the teacher's of the same name."""
    assert isinstance(ours, Heads) and isinstance(theirs, Heads)
    named = {head.name: head for head in theirs.heads}
    return [(head, named[head.name]) for head in ours.heads]


def _check_kind(task: Task) -> None:
    if not isinstance(task, Heads | Regression):
        raise ConfigError(
            f"distill: {task.kind} ({task.name}) cannot be distilled: classification, multilabel, multihead and regression can"
        )


def _check_same(ours: Task, theirs: Task, place: Path) -> None:
    """The teacher's task can be translated into the student's."""
    where = f"distill: task {ours.name}: the teacher in {place}"
    if ours.kind != theirs.kind:
        raise ConfigError(f"{where} learned a {theirs.kind}, and here it is a {ours.kind}")
    if not isinstance(ours, Heads) or not isinstance(theirs, Heads):
        return
    if {head.name for head in ours.heads} != {head.name for head in theirs.heads}:
        raise ConfigError(
            f"{where} has the heads {', '.join(head.name for head in theirs.heads)}, not {', '.join(h.name for h in ours.heads)}"
        )
    for own, other in _pairs(ours, theirs):
        if set(own.labels) != set(other.labels):
            more = sorted(set(own.labels) ^ set(other.labels))[0]
            whose = "only the teacher has" if more in other.labels else "the teacher does not have"
            raise ConfigError(f"{where} has other labels: {whose} {more!r}: name the same in tasks.{ours.name}.labels")
        if own.multi != other.multi:
            raise ConfigError(f"{where} has {'any number of labels' if other.multi else 'one label'} in {own.name}, and here it is not so")
