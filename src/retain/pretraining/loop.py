"""The loop of pre-training and distillation.

It is not ``retain.training.loop`` because almost nothing of that would be used: there an adapter learns a list of examples in memory,
beside retention methods, in one go. Here the data is a stream from a file, all weights of a network are trained, by one process or
several, for hours or days, and every step can be the first one after an interruption.

A step is a function of its number: the data, the rate and what dropout draws follow from seed and step. So a run that was stopped and
resumed is bit for bit the run that was not (on a CPU).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retain.pretraining.checkpoints import Checkpoints, Save
from retain.pretraining.config import TrainConfig
from retain.pretraining.folder import RunFolder, Step
from retain.pretraining.optimizer import make_optimizer
from retain.pretraining.processes import Processes, whole
from retain.training.loop import TrainingError, TrainingSettings, rate_at

SPEED_OVER = 20  # steps that the speed is taken over


class Stream(Protocol):
    """What is learned. A piece is whatever the module takes."""

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""

    def pieces(self, step: int, rank: int, world: int) -> Sequence[tuple[Any, float]]:
        """The pieces of a process's part of a step, with their shares of the step's targets; all shares together are 1."""

    def checks(self) -> Sequence[tuple[Any, int]]:
        """The pieces that are held out, with the number of their targets; empty where nothing is."""


@dataclass(frozen=True)
class Job:
    """What is trained on what: a module that gives {"loss": mean over the targets of a piece, ...}, its data, and how many steps.

    ``every``: steps between two checks; ``save`` writes a model of the whole parameters; ``look``, called by the first process at each
    check with these, gives what is to be recorded beside the validation (sample texts).
    """

    module: nn.Module
    stream: Stream
    steps: int
    settings: TrainConfig
    seed: int
    every: int
    save: Save
    look: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] = lambda parameters: {}


def train(job: Job, here: Processes, checkpoints: Checkpoints, start: Path | None, folder: RunFolder | None) -> dict[str, Any]:
    """Train from the beginning or from the checkpoint ``start``, whose weights the module already has; the last check's record.

    ``folder`` (of the first process) is told of steps and checks. Raises TrainingError when the loss is no number any more; the
    checkpoints stay.
    """
    settings = job.settings
    schedule = TrainingSettings(settings.learning_rate, warmup=settings.warmup, final_rate=settings.final_rate)
    called = here.wrap(job.module)
    optimizer = make_optimizer(job.module, settings)
    last: dict[str, Any] = {"step": 0, "seconds": 0.0} if start is None else checkpoints.restore(job.module, optimizer, start)
    first, began = int(last["step"]), time.perf_counter() - last["seconds"]
    times: deque[float] = deque([time.perf_counter()], maxlen=SPEED_OVER + 1)
    if folder:
        folder.begin(first)

    for step in range(first, job.steps):
        torch.manual_seed(hash((job.seed, step, here.rank)) % 2**63)  # what dropout draws
        job.module.train()
        rate = rate_at(step, job.steps, schedule)
        pieces, loss = job.stream.pieces(step, here.rank, here.world), 0.0
        for number, (piece, share) in enumerate(pieces):
            with here.computing(called, last=number + 1 == len(pieces)):
                with here.autocast():
                    part = share * called(piece)["loss"]
                (here.world * part).backward()  # the processes' gradients are averaged
            loss += float(part.detach())
        (loss,) = here.sums([loss])
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {step + 1}: lower training.learning_rate; --resume goes on before it")
        norm = torch.nn.utils.clip_grad_norm_(job.module.parameters(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        times.append(time.perf_counter())
        speed = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
        tokens = (step + 1) * job.stream.step_tokens
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        left = (job.steps - step - 1) / speed
        if folder:
            folder.step(Step(step + 1, job.steps, loss, rate, value, tokens, speed * job.stream.step_tokens, left))
        if (step + 1) % job.every == 0 or step + 1 == job.steps:
            last = {"step": step + 1, "loss": loss, "tokens": tokens, "seconds": time.perf_counter() - began, "validation": None}
            seen = check(job, here)
            last |= {name: value for name, value in seen.items() if isinstance(value, float)}
            if folder:
                folder.check({**last, **seen})
            checkpoints.write(job.module, optimizer, last, job.save, here)
            times = deque([time.perf_counter()], maxlen=SPEED_OVER + 1)
    return last


@torch.no_grad()
def check(job: Job, here: Processes) -> dict[str, Any]:
    """The means over what is held out ("validation" is the loss, "perplexity" that of the labels), and what the job looks at."""
    job.module.eval()
    pieces = job.stream.checks()
    totals: dict[str, float] = {}
    found: dict[str, Any] = {}
    for turn in range(-(-len(pieces) // here.world)):  # every process makes the same number of passes
        number = turn * here.world + here.rank
        piece, targets = pieces[min(number, len(pieces) - 1)]
        with here.autocast():
            means = job.module(piece)
        for name, mean in means.items():
            totals[name] = totals.get(name, 0.0) + float(mean) * targets * (number < len(pieces))
    if pieces:
        sums = dict(zip(totals, here.sums(totals.values()), strict=True))
        found = {name: total / sum(targets for _, targets in pieces) for name, total in sums.items()}
        found = {"validation": found.pop("loss"), **found}
        found["perplexity"] = math.exp(min(found.get("nll", found["validation"]), 700.0))
    parameters = whole(here.parameters(job.module))
    return {**found, **(job.look(parameters) if here.first else {})}
