"""Figures: what stands on their axes, that series can be told apart without colour, and that files are the same every time."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.results import forgetting, matrix, sequence

from retain.evaluation import metrics

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from retain.evaluation import plots
from retain.evaluation.plots.style import look

TASKS = ["task 1", "task 2", "task 3"]
MATRICES = {name: [record["matrix"] for record in method["seeds"].values()] for name, method in sequence()["methods"].items()}
LOSSES = {name: [record["losses"] for record in method["seeds"].values()] for name, method in sequence()["methods"].items()}
CURVATURE = forgetting()["curvature"]
PATHS = {part["label"]: part["path"] for part in forgetting()["bound"]}
POINTS = [("naive", 1.0, 2.0), ("naive", 2.0, 3.5), ("ewc", 0.5, 1.0), ("ewc", 0.7, 0.9)]
FIGURES: dict[str, Any] = {
    "matrix": lambda theme: plots.matrix_heatmap(matrix(3, 0.7), TASKS, theme=theme),
    "accuracy": lambda theme: plots.accuracy_over_sequence(MATRICES, TASKS, theme=theme),
    "retention": lambda theme: plots.retention_curve(MATRICES, theme=theme),
    "losses": lambda theme: plots.loss_curves(LOSSES, TASKS, theme=theme),
    "methods": lambda theme: plots.method_comparison({"accuracy": {"a": [0.1, 0.3], "b": [0.5]}}, theme=theme),
    "eigenvalues": lambda theme: plots.eigenvalues(CURVATURE, theme=theme),
    "density": lambda theme: plots.spectral_density({"after A": CURVATURE["after A"]["density"]}, theme=theme),
    "displacement": lambda theme: plots.displacement_against_forgetting(POINTS, theme=theme),
    "paths": lambda theme: plots.loss_along_path(PATHS, theme=theme),
}


def lines(figure: Figure, panel: int = 0) -> dict[str, Any]:
    """The named lines of a panel."""
    return {str(line.get_label()): line for line in figure.axes[panel].get_lines() if not str(line.get_label()).startswith("_")}


def words(figure: Figure) -> str:
    """Every text in a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_themes_differ(name: str) -> None:
    light, dark = FIGURES[name]("light"), FIGURES[name]("dark")
    for axes in light.axes:
        if axes.get_visible() and axes.get_subplotspec() is not None and axes.get_subplotspec().is_last_row():
            assert axes.get_xlabel(), name
    assert name == "methods" or light.axes[0].get_ylabel()
    assert sum(to_rgb(light.get_facecolor())) == 3 and sum(to_rgb(dark.get_facecolor())) < 0.5
    for figure, theme in ((light, plots.THEMES["light"]), (dark, plots.THEMES["dark"])):
        assert contrast(theme.text, theme.background) > 7 and contrast(theme.muted, theme.background) > 4.5
        assert to_rgb(figure.axes[0].xaxis.label.get_color()) == to_rgb(theme.text)


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_the_same_every_time(name: str, tmp_path: Path) -> None:
    first, second = (plots.save(FIGURES[name]("light"), tmp_path / part, name) for part in ("a", "b"))
    assert [path.name for path in first] == [f"{name}.png", f"{name}.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    svg = first[1].read_text()
    assert "<dc:date>" not in svg and "Matplotlib" not in svg and first[0].read_bytes().startswith(b"\x89PNG")


def test_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from retain.evaluation import plots\n"
        "figure = plots.accuracy_over_sequence({'naive': [[[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]] * 2}, ['a', 'b'])\n"
        "plots.save(figure, sys.argv[1], 'x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    for part in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / part)], check=True)
    assert (tmp_path / "a" / "x.svg").read_bytes() == (tmp_path / "b" / "x.svg").read_bytes()


def test_no_two_series_share_marker_and_line() -> None:
    looks = [look(index, "light") for index in range(45)]
    assert len({(each.marker, str(each.line)) for each in looks}) == 45  # told apart without any colour
    for theme in plots.THEMES.values():
        assert len(set(theme.series)) == 7 and all(contrast(color, theme.background) > 2 for color in theme.series)


def test_heat_map_prints_every_value(tmp_path: Path) -> None:
    values = matrix(3, 0.7)
    values[0][1] = math.nan
    figure = plots.matrix_heatmap(values, ["A", "B", "a task with a name that is far too long"])
    axes = figure.axes[0]
    printed = {(round(text.get_position()[0] - 0.5), round(text.get_position()[1] - 0.5)): text.get_text() for text in axes.texts}
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        assert printed[column, row] == ("–" if math.isnan(value) else f"{value:.2f}")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["before training", "A", "B", "a task with a nam…"]
    assert [(frame.get_x() // 1, frame.get_y() // 1) for frame in axes.patches] == [(0, 1), (1, 2), (2, 3)]  # R[j, j]
    assert axes.yaxis_inverted() and axes.collections[0].get_clim() == (0, 1)
    assert axes.get_xlabel() == "accuracy on" and axes.get_ylabel() == "after learning"
    assert plots.matrix_heatmap([[2.3, 2.1], [0.1, 2.0], [1.5, 0.2]], ["A", "B"], "loss").axes[0].collections[0].get_clim() == (0.1, 2.3)
    with pytest.raises(ValueError, match="2 names of tasks for a matrix of 3"):
        plots.matrix_heatmap(values, ["A", "B"])


def test_accuracy_is_the_mean_over_seeds_of_the_tasks_so_far() -> None:
    figure = plots.accuracy_over_sequence(MATRICES, TASKS)
    drawn = lines(figure)
    assert list(drawn) == ["naive", "ewc"]
    for name, matrices in MATRICES.items():
        expected = [np.mean([np.mean(each[row][:row]) for each in matrices]) for row in (1, 2, 3)]
        assert drawn[name].get_ydata() == pytest.approx(expected) and list(drawn[name].get_xdata()) == [1, 2, 3]
    bands = figure.axes[0].collections
    interval = metrics.seed_interval([metrics.average_accuracy(each) for each in MATRICES["naive"]])
    last = [y for x, y in bands[0].get_paths()[0].vertices if x == 3]
    assert len(bands) == 2 and min(last) == pytest.approx(interval.low) and max(last) == pytest.approx(interval.high)
    assert len(figure.axes[0].get_lines()) == 2 * (1 + 3) and "95 %" in words(figure)  # with every seed
    alone = plots.accuracy_over_sequence({"naive": MATRICES["naive"][:1]}, TASKS)
    assert not alone.axes[0].collections and "95 %" not in words(alone)


def test_retention_starts_at_one() -> None:
    drawn = lines(plots.retention_curve(MATRICES))
    assert drawn["naive"].get_ydata()[0] == 1
    assert drawn["ewc"].get_ydata()[1:] == pytest.approx(np.mean([metrics.retention_curve(each)[1:] for each in MATRICES["ewc"]], axis=0))


def test_losses_of_all_methods_change_task_at_the_same_step() -> None:
    losses = {"short": [[[1.0] * 10, [1.0] * 10]], "long": [[[2.0] * 20, [2.0] * 20]], "gap": [[[1.0, math.nan, 3.0], [1.0] * 5]]}
    figure = plots.loss_curves(losses, ["A", "B"])
    curves = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.7]
    starts = [line.get_xdata()[0] for line in curves]
    assert starts == [1, 21] * 3 and list(lines(figure)) == ["short", "long", "gap"]
    boundary = [line for line in figure.axes[0].get_lines() if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in boundary] == [20.5] and "A" in words(figure) and "loss (nats)" in words(figure)
    many = plots.loss_curves({"m": [[list(np.linspace(2, 0.01, 5000))]]}, ["A"])
    assert all(len(line.get_xdata()) <= 300 for line in many.axes[0].get_lines()) and many.axes[0].get_yscale() == "log"


def test_comparison_shows_every_seed_and_the_interval() -> None:
    figure = plots.method_comparison({"accuracy": {"naive": [0.4, 0.5, 0.6], "ewc": [0.9]}, "forgetting": {"naive": [0.2, math.nan, 0.3]}})
    first, second = figure.axes
    dots = [line for line in first.get_lines() if line.get_markersize() == 3.6]
    assert list(dots[0].get_xdata()) == [0.4, 0.5, 0.6] and len(dots) == 1  # a single value has no interval and no dots
    marks = [line.get_xdata() for line in first.get_lines() if line.get_markersize() == 7.5]
    assert [float(np.ravel(mark)[0]) for mark in marks] == pytest.approx([0.5, 0.9])
    (bar,) = first.containers[0].lines[2]
    interval = metrics.seed_interval([0.4, 0.5, 0.6])
    assert [point[0] for point in bar.get_segments()[0]] == pytest.approx([interval.low, interval.high])
    assert [label.get_text() for label in first.get_yticklabels()] == ["naive", "ewc"] and first.get_ylim()[0] > first.get_ylim()[1]
    assert first.get_xlabel() == "accuracy" and second.get_xlabel() == "forgetting"


def test_unconverged_eigenvalues_are_hollow_and_signs_are_kept() -> None:
    figure = plots.eigenvalues({"after A": CURVATURE["after A"]})
    axes = figure.axes[0]
    marks = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_linestyle() == "None"]
    filled, hollow = marks
    assert list(filled.get_ydata()) == [40.0, 9.0, 2.0, 0.5] and list(hollow.get_ydata()) == [-0.2, -1.5]
    assert to_rgb(hollow.get_markerfacecolor()) == to_rgb(plots.THEMES["light"].background) != to_rgb(filled.get_markerfacecolor())
    assert axes.get_yscale() == "symlog" and "hollow: not converged" in words(figure) and "residual" in words(figure)
    assert plots.eigenvalues({"x": {"eigenvalues": [3.0, 2.0, 1.0]}}).axes[0].get_yscale() == "linear"
    assert plots.eigenvalues({"x": {"eigenvalues": [1.0, 1e3]}}).axes[0].get_yscale() == "log"


def test_density_is_logarithmic_and_leaves_zeros_out() -> None:
    axes = plots.spectral_density({"after A": {"grid": [0, 1, 2], "values": [1.0, 0.0, 0.1]}}).axes[0]
    values = axes.get_lines()[0].get_ydata()
    assert axes.get_yscale() == "log" and math.isnan(values[1]) and values[0] == 1.0


def test_rank_correlation_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 20), generator.standard_normal(20)  # with ties
    assert plots.rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert math.isnan(plots.rank_correlation([1, 1, 1], [1, 2, 3]))


def test_displacement_has_a_fit_where_there_is_something_to_fit() -> None:
    figure = plots.displacement_against_forgetting([*POINTS, ("ewc", math.nan, 1.0)])
    assert list(lines(figure)) == ["naive", "ewc"] and "n = 4" in words(figure)
    x, y = np.array([point[1] for point in POINTS]), np.array([point[2] for point in POINTS])
    assert f"slope {np.polyfit(x, y, 1)[0]:.3g}" in words(figure) and f"ρ = {plots.rank_correlation(x, y):.2f}" in words(figure)
    powers = plots.displacement_against_forgetting([(str(k), 10.0**k, 3 * 100.0**k) for k in range(4)])
    assert powers.axes[0].get_xscale() == "log" and "x^2.00" in words(powers)
    assert "fit" not in words(plots.displacement_against_forgetting(POINTS[:2])) and plots.displacement_against_forgetting([]).axes


def test_paths_are_measured_against_the_prediction() -> None:
    figure = plots.loss_along_path(PATHS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["naive", "ewc", "replay"]
    for panel in range(3):
        drawn = lines(figure, panel)
        assert list(drawn["measured"].get_ydata()) == [0.1, 0.4, 1.2] and list(drawn["quadratic prediction"].get_ydata()) == [
            0.1,
            0.35,
            1.1,
        ]
        assert drawn["measured"].get_linestyle() != drawn["quadratic prediction"].get_linestyle()
    wild = plots.loss_along_path({"x": {"points": [0, 1], "loss": [0.1, 0.2], "quadratic": [0.1, 1e9]}})
    assert wild.axes[0].get_ylim()[1] < 1  # a prediction that explodes does not flatten what was measured


def test_dollars_are_no_formula(tmp_path: Path) -> None:
    figure = plots.accuracy_over_sequence({"costs $5": MATRICES["naive"], "and \\frac $x$": MATRICES["ewc"]}, TASKS)
    assert "costs $5" in plots.save(figure, tmp_path, "x")[1].read_text()


def test_the_users_settings_stay_as_they_are() -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 33
    try:
        before = dict(matplotlib.rcParams)
        small = plots.accuracy_over_sequence(MATRICES, TASKS)
        plots.to_svg(small)
        assert dict(matplotlib.rcParams) == before and small.axes[0].xaxis.label.get_fontsize() < 12
    finally:
        matplotlib.rcdefaults()


def test_a_missing_matplotlib_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.MissingMatplotlib, match=r"pip install 'retain\[experiments\]'"):
        plots.retention_curve(MATRICES)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="choose light or dark"):
        plots.retention_curve(MATRICES, theme="blue")  # type: ignore[arg-type]


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two colours."""
    bright = []
    for color in (first, second):
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        bright.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(bright) / min(bright)
