"""Retention methods: what keeps earlier knowledge while something new is learned. Each is a set of hooks that the training loop calls."""

from retain.retention.base import Batch, Objective, Params, Retention, Task, total
from retain.retention.buffer import ReplayBuffer
from retain.retention.consolidation import consolidate
from retain.retention.derpp import DarkReplay
from retain.retention.distillation import Distillation, kl_divergence
from retain.retention.ewc import EWC, L2
from retain.retention.fisher import Fisher, fisher_by_loop, fisher_information
from retain.retention.orthogonal import OrthogonalLora
from retain.retention.projection import AveragedGem, OrthogonalGradient
from retain.retention.registry import Description, Resources, RetentionError, build, describe, method, methods
from retain.retention.replay import Replay
from retain.retention.sumtree import SumTree

__all__ = [
    "EWC",
    "L2",
    "AveragedGem",
    "Batch",
    "DarkReplay",
    "Description",
    "Distillation",
    "Fisher",
    "Objective",
    "OrthogonalGradient",
    "OrthogonalLora",
    "Params",
    "Replay",
    "ReplayBuffer",
    "Resources",
    "Retention",
    "RetentionError",
    "SumTree",
    "Task",
    "build",
    "consolidate",
    "describe",
    "fisher_by_loop",
    "fisher_information",
    "kl_divergence",
    "method",
    "methods",
    "total",
]
