"""Distillation into a student: from the logits of a teacher here, or from the answers of one behind an API."""

from retain.pretraining.distillation.loss import Distiller, distillation_loss
from retain.pretraining.distillation.networks import OwnNetwork, TransformersNetwork, load_network
from retain.pretraining.distillation.run import distill, plan_distillation

__all__ = [
    "Distiller",
    "OwnNetwork",
    "TransformersNetwork",
    "distill",
    "distillation_loss",
    "load_network",
    "plan_distillation",
]
