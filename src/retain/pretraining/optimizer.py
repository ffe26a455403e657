"""The optimizer of pre-training and distillation."""

from __future__ import annotations

import torch
from torch import nn

from retain.pretraining.config import TrainConfig


def make_optimizer(module: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW (1711.05101) with weight decay on matrices only, not on norms and biases."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learned if parameter.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in learned if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in learned)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=fused)
