"""Forgetting of one task by the next: sequential fine-tuning with LoRA, its curvature, and how well that foretells what is lost."""

from retain.evaluation.forgetting.checkpoints import Checkpoint, checkpoint, checkpoints, is_run, moved, peft_checkpoint
from retain.evaluation.forgetting.config import PRESETS, CurvatureConfig, ForgettingConfig, load_forgetting, study_values
from retain.evaluation.forgetting.curvature import Product
from retain.evaluation.forgetting.experiment import Move, run_forgetting, task_examples
from retain.evaluation.forgetting.spectra import run_curvature
from retain.evaluation.forgetting.study import PREDICTORS, TARGETS, correlations, run_study, spearman, study_cells

__all__ = [
    "PREDICTORS",
    "PRESETS",
    "TARGETS",
    "Checkpoint",
    "CurvatureConfig",
    "ForgettingConfig",
    "Move",
    "Product",
    "checkpoint",
    "checkpoints",
    "correlations",
    "is_run",
    "load_forgetting",
    "moved",
    "peft_checkpoint",
    "run_curvature",
    "run_forgetting",
    "run_study",
    "spearman",
    "study_cells",
    "study_values",
    "task_examples",
]
