"""The loop over batches of any input: flat, read from top to bottom. Tasks, conflicts and retention methods all go through it.

It is the sibling of :mod:`retain.training.loop`, which learns packed tokens of one task; the hooks of retention methods are the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retain.lm.devices import out_of_memory, release_memory
from retain.multitask.assembly import Experiment
from retain.multitask.config import TrainingConfig
from retain.multitask.conflicts import backward
from retain.multitask.distilling import Distiller
from retain.multitask.nested import Updates
from retain.multitask.retaining import RecordObjective
from retain.multitask.sampling import Batch as Drawn
from retain.multitask.sampling import Schedule
from retain.multitask.sentinel import Sentinel
from retain.retention import Batch, Params, Retention, total
from retain.training.loop import TrainingError

log = logging.getLogger(__name__)
AfterStep = Callable[[int, dict[str, float], float], bool]


def factor_at(step: int, steps: int, training: TrainingConfig) -> float:
    """Share of the peak rate: a linear rise, then the schedule down to 0."""
    warm = round(training.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    falls = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1.0 - progress, "constant": 1.0}
    return falls[training.schedule]


@dataclass(frozen=True)
class Company:
    """What goes along with the learning of a phase: ``updates`` of the weights; retention ``methods`` and the ``objective`` that they see;
    a ``sentinel``, and a ``distiller``, where they are asked for. ``say`` hears what a user should know."""

    updates: Updates
    methods: Sequence[Retention] = ()
    objective: RecordObjective | None = None
    sentinel: Sentinel | None = None
    distiller: Distiller | None = None
    say: Callable[[str], None] = log.warning


def train_phase(experiment: Experiment, schedule: Schedule, first: int, done: int, company: Company, after_step: AfterStep) -> None:
    """Learn from step ``first`` of the schedule to its end, or until ``after_step`` says that it is enough.

    ``done``: steps of earlier phases, which AdaLoRA's plan counts; ``after_step(step, losses of the step's tasks, rate)`` is called
    with weights as they are after the step. Where the device has no memory left, batches go through the network in twice as many pieces
    from there on. Raises TrainingError for a loss that is not finite, where the sentinel halts, and for a record that has no room alone.
    """
    network, training, plan = experiment.network, experiment.config.training, experiment.plan
    updates, methods, objective = company.updates, company.methods, company.objective
    params = network.learning()
    ordered = [params[name] for name in sorted(params)]
    adjusting = [method for method in methods if type(method).adjust_update is not Retention.adjust_update]
    looking_back = any(method.looks_back for method in adjusting)
    pieces = 1

    for step in range(first, schedule.steps):
        network.train()
        rate = updates.set_rate(factor_at(step, schedule.steps, training))
        updates.zero_grad()
        drawn = schedule.batches(step)
        while (found := _learned(experiment, drawn, params, schedule.seed + step, company, pieces)) is None:
            updates.zero_grad()
            pieces = _more_pieces(experiment, drawn, pieces, company)
        batches, values = found
        if batches:
            terms = [plan.penalty(), *_protection(objective, methods, batches, step, rate, params)]
            extra = total(terms)
            if extra is not None:
                extra.backward()
            _check(values, extra, step)
        gradients = {name: parameter.grad for name, parameter in params.items() if parameter.grad is not None}
        with torch.no_grad():
            for method in methods if batches else ():
                method.adjust_gradients(params, gradients)
            if training.clip is not None:
                torch.nn.utils.clip_grad_norm_(ordered, training.clip)
            previous = {name: parameter.detach().clone() for name, parameter in params.items()} if looking_back else {}
            updates.step(last=step + 1 == schedule.steps)
            for method in adjusting:
                method.adjust_update(params, previous)
        if batches:
            plan.after_step(done + step + 1)
        if not after_step(step, values, rate):
            return


def _learned(
    experiment: Experiment, batches: list[Drawn], params: Params, seed: int, company: Company, pieces: int
) -> tuple[list[Drawn], dict[str, float]] | None:
    """The gradients of a step, and its losses by task; None when the device has no memory for them. Records that the sentinel has left out
    take no part: where it finds some in this very step, the step is made again without them. The batches that were learned come back, none
    if nothing of them is left."""
    looks = [company.distiller.look] if company.distiller is not None else []
    sentinel = company.sentinel
    try:
        if sentinel is None:
            return batches, backward(experiment, batches, params, seed, looks, pieces)
        batches = sentinel.left(batches)
        with sentinel.watching():
            values = backward(experiment, batches, params, seed, [*looks, sentinel.look], pieces)
        if sentinel.judge():
            company.updates.zero_grad()
            batches = sentinel.left(batches)
            values = backward(experiment, batches, params, seed, looks, pieces)
        return batches, values
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None  # not handled here: the error holds on to the tensors of the step


def _more_pieces(experiment: Experiment, batches: Sequence[Drawn], pieces: int, company: Company) -> int:
    """Twice as many pieces, told. Raises TrainingError where each is a single record already."""
    largest = max(len(numbers) for _, numbers in batches)
    if pieces >= largest:
        raise TrainingError("the device has no memory for a single record: shorten the inputs, or take a smaller backbone")
    release_memory(experiment.device)
    size = math.ceil(largest / (2 * pieces))
    company.say(f"out of memory: batches go through the network in {2 * pieces} pieces of at most {size} records from here on")
    return 2 * pieces


def _protection(
    objective: RecordObjective | None, methods: Sequence[Retention], batches: Sequence[Drawn], step: int, rate: float,
    params: Params,
) -> list[Tensor | None]:  # fmt: skip
    """The terms that retention methods add to a step: the loss of what is replayed, and each method's own."""
    if objective is None or not methods:
        return []
    new = [example for name, numbers in batches for example in objective.chosen(name, numbers)]
    replayed = [example for method in methods for example in method.replay(len(new))]
    batch = Batch(new, replayed, step, objective, rate)
    terms: list[Tensor | None] = [objective.loss(replayed, params) if replayed else None]
    for method in methods:
        asked = method.consult(len(new))
        logits = objective.logits(asked, params)[0] if asked else None
        terms.append(method.loss(replace(batch, consulted=asked, logits=logits), params))
    return terms


def _check(values: dict[str, float], extra: Tensor | None, step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"task {name}: the loss became {value} at step {step + 1}: lower training.learning_rate")
    if extra is not None and not math.isfinite(float(extra.detach())):
        raise TrainingError(f"what protects earlier tasks became {float(extra.detach())} at step {step + 1}: lower its strength")
