"""Pre-training of the own decoder on a corpus, and distillation into a student."""

from retain.pretraining.config import DistillConfig, PretrainConfig, read_config
from retain.pretraining.distillation import distill, plan_distillation
from retain.pretraining.errors import PretrainingError
from retain.pretraining.folder import Step, Watch
from retain.pretraining.run import plan, pretrain

__all__ = [
    "DistillConfig",
    "PretrainConfig",
    "PretrainingError",
    "Step",
    "Watch",
    "distill",
    "plan",
    "plan_distillation",
    "pretrain",
    "read_config",
]
