"""Figures of experiments: each function takes plain values and gives a matplotlib figure, light or dark; `save` writes PNG and SVG.

matplotlib comes with `pip install 'retain[experiments]'` and is imported when the first figure is made.
"""

from retain.evaluation.plots.curvature import (
    displacement_against_forgetting,
    eigenvalues,
    loss_along_path,
    rank_correlation,
    spectral_density,
)
from retain.evaluation.plots.sequences import accuracy_over_sequence, loss_curves, matrix_heatmap, method_comparison, retention_curve
from retain.evaluation.plots.style import THEMES, MissingMatplotlib, Theme, ThemeName, save, to_svg

__all__ = [
    "THEMES",
    "MissingMatplotlib",
    "Theme",
    "ThemeName",
    "accuracy_over_sequence",
    "displacement_against_forgetting",
    "eigenvalues",
    "loss_along_path",
    "loss_curves",
    "matrix_heatmap",
    "method_comparison",
    "rank_correlation",
    "retention_curve",
    "save",
    "spectral_density",
    "to_svg",
]
