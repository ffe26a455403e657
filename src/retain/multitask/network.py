"""The whole network: one backbone, fusion where it is asked for, and a head for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask.backbones.base import Backbone, Inputs, States
from retain.multitask.tasks.base import Outputs, Task, View

MOST_LOG_VARIANCE = 4.0  # of a learned loss weight exp(-s): between 1/55 and 55


class TaskFusion(nn.Module):
    """Multi-head attention of each task over the shared states. A task has a query vector of its own; all else is shared.

    For a whole record the query is the task's vector plus the pooled state, for a token the task's vector plus the token's state; keys
    and values are the states that are not padding. What is found is added to the state, and the sum normalised.
    """

    def __init__(self, tasks: Sequence[str], width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"fusion.heads: {heads} heads do not divide the backbone's width of {width}")
        self.heads, self.places = heads, {name: place for place, name in enumerate(tasks)}
        self.tasks = nn.Parameter(torch.randn(len(tasks), width) / math.sqrt(width))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, task: str, states: States, start: Tensor) -> Tensor:
        """``start`` [B, N, width], the states that ask; the same shape comes out."""
        asked = self.query(start + self.tasks[self.places[task]])
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (asked, self.key(states.tokens), self.value(states.tokens))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=states.mask[:, None, None, :])
        return self.norm(start + self.out(found.transpose(1, 2).flatten(-2)))


class MultitaskNetwork(nn.Module):
    """``forward(task, inputs)`` gives a task's logits of a batch. ``log_variances`` [tasks]: learned weights of the losses, or None."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], fusion_heads: int | None, uncertainty: bool) -> None:
        super().__init__()
        for task in tasks:
            lacking = task.needs - backbone.gives
            if lacking:
                raise ConfigError(
                    f"tasks.{task.name}: {task.kind} needs {sorted(lacking)[0]}, which a backbone of kind {backbone.kind} has not"
                )
        if fusion_heads and not any(task.fuses for task in tasks):
            raise ConfigError(f"fusion.kind: {tasks[0].kind} reads no fused states, and no other task does: leave fusion out")
        self.tasks = {task.name: task for task in tasks}
        self.places = {task.name: place for place, task in enumerate(tasks)}
        self.backbone = backbone
        self.fusion = TaskFusion([task.name for task in tasks], backbone.width, fusion_heads) if fusion_heads else None
        self.heads = nn.ModuleDict({f"task_{task.name}": task.head(backbone) for task in tasks})
        self.log_variances = nn.Parameter(torch.zeros(len(tasks))) if uncertainty else None

    def forward(self, task: str, inputs: Inputs) -> Outputs:
        """Logits by the task's own names."""
        return self.tasks[task].run(self, inputs)

    def head(self, task: Task) -> nn.Module:
        """A task's own part."""
        return self.heads[f"task_{task.name}"]

    def view(self, task: Task, inputs: Inputs) -> View:
        """The states that a task's head reads."""
        states: States = self.backbone(inputs)
        if task.reads == "tokens":
            found = states.tokens if self.fusion is None else self.fusion(task.name, states, states.tokens)
            return View(found, states.mask)
        pooled = self.backbone.pool(states)
        if self.fusion is not None:
            pooled = self.fusion(task.name, states, pooled[:, None])[:, 0]
        return View(pooled, states.mask)

    def weighted(self, task: Task, loss: Tensor) -> Tensor:
        """A task's loss as it is minimised: times the task's weight, and, where weights are learned, exp(-s) loss + s / 2 (1705.07115,
        section 3.2, with s = log sigma^2, kept within 4 of 0)."""
        loss = task.config.weight * loss
        if self.log_variances is None:
            return loss
        s = self.log_variances[self.places[task.name]].clamp(-MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)
        return torch.exp(-s) * loss + 0.5 * s

    def learning(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def kept(self) -> dict[str, Tensor]:
        """What a saved network holds: everything that training can change, and frozen weights that cannot be had again elsewhere."""
        buffers = dict(self.named_buffers())
        lasting = {name: buffers[name] for name in self.state_dict() if name in buffers}
        fixed = {
            name: value
            for name, value in self.named_parameters()
            if ".lora_" in name or (not self.backbone.pretrained and name.startswith("backbone."))  # of other phases; AdaLoRA's ranks
        }
        return {name: value.detach() for name, value in {**self.learning(), **lasting, **fixed}.items()}

    @property
    def whole(self) -> bool:
        """Whether every weight of the backbone is trained, so that a saved network needs no other."""
        return all(parameter.requires_grad for parameter in self.backbone.parameters())

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take what :meth:`kept` gave. Raises DataError unless the names and shapes are exactly those that this network keeps."""
        own = self.kept()
        for name in sorted({*own, *tensors}):
            if name not in tensors or name not in own:
                what = "is missing" if name not in tensors else "belongs to no part of this network"
                raise DataError(f"the tensor {name} {what}", path=where)
            if own[name].shape != tensors[name].shape:
                raise DataError(f"the tensor {name} has the shape {list(tensors[name].shape)}, not {list(own[name].shape)}", path=where)
            own[name].copy_(tensors[name])


def parts_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of parameters by the part of the network that they belong to: backbone, fusion, weights of losses, each task's head."""
    found: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        found.setdefault(f"the head of {rest.partition('.')[0].removeprefix('task_')}" if first == "heads" else first, []).append(name)
    return found
