"""Nested learning: groups of parameters at several update frequencies, each with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import ConfigError
from retain.data.errors import did_you_mean
from retain.multitask.adapting import layers_of
from retain.multitask.checkpoints import optimizer_state, restore_optimizer
from retain.multitask.config import ExperimentConfig, NestedGroupConfig
from retain.multitask.files import named, under
from retain.multitask.network import MultitaskNetwork

REST = "rest"  # the group of what no group names


@dataclass
class Group:
    """Parameters that are updated together, every so many steps. ``sums``: their gradients added up since the last update, None where
    there was none; ``gathered``: of how many steps."""

    name: str
    every: int
    optimizer: torch.optim.Optimizer
    sums: list[Tensor | None] = field(default_factory=list)
    gathered: int = 0

    @property
    def parameters(self) -> list[Tensor]:
        """In the order of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Updates:
    """All groups of a network. One that is updated in every step passes its gradients on as they are.

    A group with ``every: N`` adds up the gradients of N steps, each as it was after clipping, and then makes one update with their sum
    divided by N, at the rate of that step. (In nested learning, Behrouz et al., 2512.24695, a level of the continuum memory takes the sum
    over its chunk; to AdamW mean and sum are the same.) A parameter that took part in none of them stays as it is. The
    last step of a phase updates every group, by the mean of the steps that it has gathered.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all optimizers."""
        return [entry for group in self.groups for entry in group.optimizer.param_groups]

    def set_rate(self, factor: float) -> float:
        """Every group at this share of its peak rate; the largest of the rates."""
        for entry in self.param_groups:
            entry["lr"] = entry["peak"] * factor
        return max(float(entry["lr"]) for entry in self.param_groups)

    def zero_grad(self) -> None:
        """Forget the gradients of the latest step; what was gathered stays."""
        for group in self.groups:
            group.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, last: bool) -> None:
        """Take up the gradients of a step, and update the groups whose turn it is; with ``last`` all."""
        for group in self.groups:
            if group.every > 1:
                parameters = group.parameters
                group.sums = [_added(sum_, p.grad) for sum_, p in zip(group.sums or [None] * len(parameters), parameters, strict=True)]
                group.gathered += 1
                if group.gathered < group.every and not last:
                    continue
                for parameter, gathered in zip(parameters, group.sums, strict=True):
                    parameter.grad = None if gathered is None else gathered / group.gathered
                group.sums, group.gathered = [], 0
            group.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        found: dict[str, Tensor] = {}
        for group in self.groups:
            found |= named(f"{group.name}/optimizer", optimizer_state(group.optimizer))
            found[f"{group.name}/gathered"] = torch.tensor(group.gathered)
            found |= {f"{group.name}/sums/{place}": value for place, value in enumerate(group.sums) if value is not None}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`, for the same groups."""
        for group in self.groups:
            restore_optimizer(group.optimizer, under(f"{group.name}/optimizer", tensors))
            group.gathered = int(tensors[f"{group.name}/gathered"])
            saved, parameters = under(f"{group.name}/sums", tensors), group.parameters
            group.sums = [saved[str(place)].to(p.device) if str(place) in saved else None for place, p in enumerate(parameters)]


def updates_of(
    network: MultitaskNetwork, config: ExperimentConfig, backbone_rate: float, beside: Mapping[str, Tensor] | None = None
) -> Updates:
    """The groups that the configuration asks for, and one of all other parameters that learn. ``beside``: parameters that are not the
    network's own; they learn like heads. Raises ConfigError for a group that names nothing that learns."""
    if config.nested.groups and config.backbone.peft is not None and config.backbone.peft.method == "adalora":
        raise ConfigError("nested: adalora prunes by the gradients of every step: take another backbone.peft.method")
    left = {**network.learning(), **(beside or {})}
    made = []
    for name, asked in config.nested.groups.items():
        if name == REST:
            raise ConfigError(f"nested.groups.{REST}: is the name of what no group names: choose another")
        wanted = _named(network, asked, f"nested.groups.{name}")
        own = {key: left.pop(key) for key in sorted(wanted) if key in left}
        if not own:
            why = "is frozen, or belongs to earlier groups" if wanted else "is not there"
            raise ConfigError(f"nested.groups.{name}: no parameter is left for it: what it names {why}")
        made.append(Group(name, asked.every, _optimizer(own, config, asked, backbone_rate)))
    if left:
        made.append(Group(REST, 1, _optimizer(left, config, NestedGroupConfig(), backbone_rate)))
    return Updates(made)


def _optimizer(
    parameters: Mapping[str, Tensor], config: ExperimentConfig, asked: NestedGroupConfig, backbone_rate: float
) -> torch.optim.Optimizer:
    """One over up to four groups: the backbone's parameters and the others, matrices (which decay) and the rest."""
    training = config.training
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in sorted(parameters.items()):
        groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    decay = training.weight_decay if asked.weight_decay is None else asked.weight_decay
    made: list[dict[str, Any]] = []
    for (own, decays), tensors in groups.items():
        peak = asked.learning_rate or (backbone_rate if own else training.head_learning_rate)
        made.append({"params": tensors, "lr": peak, "peak": peak, "weight_decay": decay if decays else 0.0})
    if asked.optimizer == "sgd":
        return torch.optim.SGD(made, momentum=asked.momentum)
    if asked.optimizer == "adafactor":
        return torch.optim.Adafactor(made)
    return torch.optim.AdamW(made, fused=all(tensor.device.type in ("cpu", "cuda") for tensor in parameters.values()))


def _named(network: MultitaskNetwork, asked: NestedGroupConfig, where: str) -> set[str]:
    """Names of the network's parameters that a group means, whether they learn or not."""
    everything = [name for name, _ in network.named_parameters()]
    if asked.part is None and not asked.layers and not asked.patterns:
        raise ConfigError(f"{where}: names nothing: give part, layers or patterns")
    found: set[str] = set()
    layers = layers_of(network.backbone.network)
    for number in asked.layers:
        if number >= len(layers):
            raise ConfigError(f"{where}.layers: this backbone has {len(layers)} layers, the last is {len(layers) - 1}, not {number}")
    if asked.part == "embeddings" and not any(isinstance(module, nn.Embedding) for module in network.backbone.modules()):
        raise ConfigError(f"{where}.part: this backbone has no embeddings")
    if asked.part == "fusion" and network.fusion is None:
        raise ConfigError(f"{where}.part: this experiment has no fusion")
    chosen: list[nn.Module] = [layers[number] for number in asked.layers]
    if asked.part == "layers":
        chosen += layers
    elif asked.part == "embeddings":
        chosen += [module for module in network.backbone.modules() if isinstance(module, nn.Embedding)]
    elif asked.part is not None:
        found |= {name for name in everything if name.startswith(f"{asked.part}.")}
    inside = {id(parameter) for module in chosen for parameter in module.parameters()}
    found |= {name for name, parameter in network.named_parameters() if id(parameter) in inside}
    for pattern in asked.patterns:
        matched = [name for name in everything if fnmatchcase(name, pattern)]
        if not matched:
            hint = did_you_mean(pattern, everything) or f"the first is {everything[0]}"
            raise ConfigError(f"{where}.patterns: {pattern!r} matches no parameter: {hint}")
        found |= set(matched)
    return found


def _added(gathered: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if gradient is None:
        return gathered
    return gradient.clone() if gathered is None else gathered + gradient
