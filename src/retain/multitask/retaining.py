"""Records as retention methods see them: a target is a position with an outcome, as a token is. So EWC, replay, DER++ and the others
protect the tasks of earlier phases, whatever their kind and their input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from retain.data.examples import Example
from retain.multitask.adapting import ADAPTER
from retain.multitask.assembly import Experiment
from retain.multitask.backbones.base import Inputs
from retain.multitask.scoring import autocast, evaluating
from retain.multitask.tasks.base import Outputs, Targets, widened
from retain.retention import Batch, OrthogonalLora, Params, Resources, Retention, build
from retain.retention import Task as Learned


class RecordObjective:
    """The network as a function of records and parameters (:class:`retain.retention.Objective`).

    An example's first token is the number of a training record among those of all tasks, its other tokens are the outcomes of that
    record's targets, its ``kind`` is the task. Logits are taken without dropout.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.network = experiment, experiment.network
        self._first: dict[str, int] = {}
        self._examples: dict[str, list[Example]] = {}
        first = 0
        for task in experiment.tasks:
            targets = experiment.parts[task.name]["train"].targets
            self._first[task.name] = first
            self._examples[task.name] = [task.example(first + number, target) for number, target in enumerate(targets)]
            first += len(targets)
        self._outcomes = max(task.outcomes() for task in experiment.tasks)
        self._start = {name: parameter.detach().clone() for name, parameter in self.network.learning().items()}

    def examples(self, tasks: Iterable[str], without: Mapping[str, Collection[int]] | None = None) -> list[Example]:
        """The training records of tasks that have a target; ``without``: numbers of those that are left out, by task."""
        out = without or {}
        found = [(number in out.get(name, ()), example) for name in tasks for number, example in enumerate(self._examples[name])]
        return [example for left_out, example in found if not left_out and any(example.supervised)]

    def chosen(self, name: str, numbers: Sequence[int]) -> list[Example]:
        """Training records of a task by their numbers."""
        return [example for number in numbers if any((example := self._examples[name][number]).supervised)]

    def logits(self, examples: Sequence[Example], params: Params) -> tuple[Tensor, Tensor]:
        """Float32 logits [N, outcomes] at the targets of all examples, and the example number [N] of each. A call with many examples goes
        through the network in batches of the training's size."""
        rows, parts, size = [], [], self.experiment.config.training.batch
        some = [(name, own[at : at + size]) for name, own in self._by_task(examples).items() for at in range(0, len(own), size)]
        with evaluating(self.network):
            for name, places in some:
                outputs, targets = self._run(name, [examples[place] for place in places], params)
                logits, known = self.experiment.task(name).logits(outputs, targets)
                parts.append(widened(logits, self._outcomes)[known])
                rows.append(torch.tensor(places, device=known.device)[known.nonzero()[:, 0]])
        numbers = torch.cat(rows)
        order = torch.argsort(numbers, stable=True)
        return torch.cat(parts)[order], numbers[order]

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        """Mean of the tasks' own losses, weighted as in training, each by its share of the examples."""
        terms = []
        for name, places in self._by_task(examples).items():
            outputs, targets = self._run(name, [examples[place] for place in places], params)
            task = self.experiment.task(name)
            terms.append(task.config.weight * task.loss(outputs, targets) * (len(places) / len(examples)))
        return torch.stack(terms).sum()

    @torch.no_grad()
    def base_logits(self, examples: Sequence[Example]) -> Tensor:
        """Logits of the network as it was before any training."""
        return self.logits(examples, self._start)[0]

    def _by_task(self, examples: Sequence[Example]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place, example in enumerate(examples):
            found.setdefault(example.kind, []).append(place)
        return found

    def _run(self, name: str, examples: Sequence[Example], params: Params) -> tuple[Outputs, Targets]:
        inputs, targets = self.experiment.batch(name, "train", [example.tokens[0] - self._first[name] for example in examples])
        with autocast(self.experiment.device, self.experiment.precision):
            return self._forward(name, inputs, params), targets

    def _forward(self, name: str, inputs: Inputs, params: Params) -> Outputs:
        own = self.network.learning()
        if all(params.get(key) is value for key, value in own.items()):
            return self.network(name, inputs)
        return torch.func.functional_call(self.network, params, (name, inputs))


class OrthogonalPhases(Retention):
    """O-LoRA on the adapters of the library peft, one for each phase (:func:`retain.multitask.adapting.use_adapter`): the adapter of the
    running phase is what :class:`retain.retention.OrthogonalLora` sees, each matrix by the name of its layer alone. Adapters of earlier
    phases are frozen and take part."""

    looks_back = False

    def __init__(self, inner: OrthogonalLora) -> None:
        self.inner = inner

    def before_task(self, task: Learned, params: Params) -> None:
        self.inner.before_task(task, by_layer(params))

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        return self.inner.loss(batch, by_layer(params))

    def after_task(self, task: Learned, params: Params) -> None:
        self.inner.after_task(task, by_layer(params))

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def by_layer(params: Params) -> Params:
    """Of these parameters the matrices of LoRA, without the name of their adapter."""
    return {
        f"{name[: own.start()]}{own[0].replace(f'.{own[1]}.', '.')}": value
        for name, value in params.items()
        if (own := ADAPTER.search(name))
    }


def methods_of(experiment: Experiment) -> list[Retention]:
    """The retention methods that the configuration names."""
    config = experiment.config
    found = build(config.retention.methods, config.retention, Resources(seed=config.seed))
    return [OrthogonalPhases(method) if isinstance(method, OrthogonalLora) else method for method in found]
