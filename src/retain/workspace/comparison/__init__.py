"""Learners side by side: the same documents and questions, each from a fresh state of its own."""

from retain.workspace.comparison.arms import BASELINES, PASSAGES, Asked
from retain.workspace.comparison.compare import FIGURES, Compared, arms_of, assign_questions, lacking, run_comparison

__all__ = ["BASELINES", "FIGURES", "PASSAGES", "Asked", "Compared", "arms_of", "assign_questions", "lacking", "run_comparison"]
