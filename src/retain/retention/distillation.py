"""Distillation from the model before the update: what it said of general text, and of replayed examples, it goes on saying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Batch, Objective, Params, Retention, Task
from retain.retention.positions import Key, key_of
from retain.retention.registry import RetentionError, method


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * mean over positions of KL(teacher || student) at temperature T, from logits [N, V] (1503.02531, section 2: the factor T^2
    keeps the size of the gradient independent of T). The gradient reaches the student only."""
    then = torch.log_softmax(teacher.detach().float() / temperature, -1)
    now = torch.log_softmax(student.float() / temperature, -1)
    return temperature**2 * F.kl_div(now, then, reduction="batchmean", log_target=True)


@method(
    "kl", paper="1606.09282", kind="distillation", summary="keeps what the model said before the update on general text",
    build=lambda config, resources: Distillation(
        resources.general, config.kl.weight, config.kl.general_fraction, teacher=config.kl.teacher, on_replayed=not resources.general
    ),
)  # fmt: skip
class Distillation(Retention):
    """Learning without forgetting for language models (Li & Hoiem, 1606.09282, section 3): weight * KL(before || now).

    Forward KL over the whole vocabulary, at supervised positions only (there is no padding), a mean over positions.
    - On ``general`` text: the caller's examples, best written by the base model itself. Each step takes the next ones, in turn, until
      they are ``fraction`` of all tokens of the step. The ``teacher`` is the model "before" the task, with the parameters as they were when
      it began, as in the paper; or the "base" with the frozen adapters, an anchor that does not move with the tasks, which also draws
      back what earlier tasks changed. For a fresh adapter, which has no effect yet, both are the same.
    - With ``on_replayed``, on the replayed examples too (a second pass over them); there the teacher is always the model before the task,
      which knows what earlier tasks taught.

    Teacher logits of general text are kept in float16 up to ``cache_bytes`` for the length of a task and computed again beyond that: a
    forward pass, about a third of a training step on the same tokens. Both are rounded to float16, so the result does not depend on it.
    """

    def __init__(
        self, general: Sequence[Example] = (), weight: float = 1.0, fraction: float = 0.25, *, temperature: float = 1.0,
        teacher: Literal["before", "base"] = "before", on_replayed: bool = True, cache_bytes: int = 256 << 20,
    ) -> None:  # fmt: skip
        if not 0.0 <= fraction < 1.0 or temperature <= 0.0:
            raise RetentionError(f"kl: general_fraction {fraction} must be in [0, 1) and temperature {temperature} positive")
        if any(not any(example.supervised) for example in general):
            raise RetentionError("kl: an example of general text has no supervised position, so there is nothing to compare there")
        self.general, self.weight, self.fraction, self.temperature = tuple(general), weight, fraction, temperature
        self.teacher, self.on_replayed, self.cache_bytes = teacher, on_replayed, cache_bytes
        self._next = 0
        self._cache: dict[Key, Tensor] = {}
        self._cached = 0
        self._before: Params = {}

    def before_task(self, task: Task, params: Params) -> None:
        self._cache, self._cached = {}, 0
        needed = self.on_replayed or self.teacher == "before"
        self._before = {name: tensor.detach().clone() for name, tensor in params.items()} if needed else {}

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        general = self.take(sum(len(example.tokens) for example in (*batch.new, *batch.replayed)))
        replayed = list(batch.replayed) if self.on_replayed else []
        if not general and not replayed:
            return None
        teacher = self._teach(batch.objective, general)
        if replayed:
            teacher.append(self._logits_before(batch.objective, replayed))
        student, _ = batch.objective.logits([*general, *replayed], params)
        return self.weight * kl_divergence(torch.cat([block.to(student.dtype) for block in teacher]), student, self.temperature)

    def take(self, tokens: int) -> list[Example]:
        """The next general examples beside ``tokens`` others: as near to ``fraction`` of all as whole examples allow, at least one."""
        budget = tokens * self.fraction / (1.0 - self.fraction)
        chosen: list[Example] = []
        used = 0.0
        while self.general and budget > 0 and len(chosen) < len(self.general):
            example = self.general[self._next]
            if chosen and used + len(example.tokens) / 2 > budget:
                break
            chosen.append(example)
            used += len(example.tokens)
            self._next = (self._next + 1) % len(self.general)
        return chosen

    def _teach(self, objective: Objective, examples: list[Example]) -> list[Tensor]:
        missing = [example for example in examples if key_of(example) not in self._cache]
        fresh: dict[Key, Tensor] = {}
        if missing:
            logits = objective.base_logits(missing) if self.teacher == "base" else self._logits_before(objective, missing)
            logits = logits.to(torch.float16)
            for example, block in zip(missing, logits.split([sum(example.supervised) for example in missing]), strict=True):
                fresh[key_of(example)] = block
                if self._cached + block.nbytes <= self.cache_bytes:
                    self._cache[key_of(example)] = block.clone()
                    self._cached += block.nbytes
        return [self._cache.get(key_of(example), fresh.get(key_of(example), torch.empty(0))) for example in examples]

    def _logits_before(self, objective: Objective, examples: list[Example]) -> Tensor:
        with torch.no_grad():
            return objective.logits(examples, self._before)[0]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"]) % max(1, len(self.general))
