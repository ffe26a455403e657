"""How every figure looks: a light and a dark theme, colours that colour-blind readers tell apart, and files that are the same every time.

Colours are those of Okabe and Ito (Color Universal Design, 2008), in an order that suits each background; marker and line style differ as
well, so that no figure needs its colours. Figures are made with matplotlib's objects: nothing global is changed, and nothing is shown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ThemeName: TypeAlias = Literal["light", "dark"]
WIDTH, HEIGHT = 7.6, 4.1  # inches of a figure with one panel
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_FONTS = "'DejaVu Sans', Verdana, sans-serif"  # an SVG names its font; Verdana has nearly the same widths
_DOTS = 150  # per inch, of a PNG
_SETTINGS: Any = {
    "svg.hashsalt": "retain", "svg.fonttype": "none", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans",
    "axes.unicode_minus": True, "path.simplify": True,
}  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. `series` are for methods, checkpoints and tasks, in this order."""

    background: str
    text: str
    muted: str
    grid: str
    missing: str
    series: tuple[str, ...]


THEMES: dict[str, Theme] = {
    "light": Theme(
        "#ffffff", "#1d2430", "#5b6575", "#e4e8ee", "#eef1f5",
        ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"),
    ),
    "dark": Theme(
        "#161b22", "#e6eaf0", "#9aa5b4", "#2b333f", "#222a35",
        ("#56b4e9", "#e69f00", "#2fc39a", "#e79ac4", "#f0e442", "#ff8345", "#c8ced8"),
    ),
}  # fmt: skip


class MissingMatplotlib(RuntimeError):
    """matplotlib has to be installed first. The message is one line with the command."""


@dataclass(frozen=True)
class Look:
    """How one series is drawn: no two of the first 45 share colour, marker and line style."""

    color: str
    marker: str
    line: Any


def theme_of(name: str) -> Theme:
    """A theme by name; ValueError for an unknown one."""
    if name not in THEMES:
        raise ValueError(f"theme {name!r}: choose light or dark")
    return THEMES[name]


def look(index: int, theme: str) -> Look:
    """The look of the series at a position."""
    colors = theme_of(theme).series
    return Look(colors[index % len(colors)], MARKERS[index % len(MARKERS)], LINES[index % len(LINES)])


@contextmanager
def settings() -> Iterator[None]:
    """matplotlib with our settings and without the user's, for as long as the block lasts."""
    try:
        import matplotlib
    except ImportError:
        raise MissingMatplotlib("plots need matplotlib, which is not installed: pip install 'retain[experiments]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(
    theme: str, title: str, width: float = WIDTH, height: float = HEIGHT, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a title and its panels in reading order."""
    from matplotlib.figure import Figure

    colors = theme_of(theme)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=colors.background)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, hspace=0.06, wspace=0.05)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels:
        dress(axes, theme)
    figure.suptitle(title, x=0.08 / width, ha="left", fontsize=11.5, fontweight="bold", color=colors.text)
    return figure, panels


def dress(axes: Axes, theme: str) -> None:
    """Quiet axes: two spines, a light grid behind the data, small ticks."""
    colors = theme_of(theme)
    axes.set_facecolor(colors.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colors.muted)
        spine.set_linewidth(0.8)
    axes.grid(True, color=colors.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=colors.muted, labelcolor=colors.text, labelsize=9, length=3, width=0.8)
    axes.tick_params(which="minor", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=colors.text, fontsize=9.5)


def legend(figure: Figure, axes: Sequence[Axes], theme: str) -> None:
    """One legend below all panels, in as many columns as its longest name allows; none for a single unnamed series."""
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    room, lengths = figure.get_figwidth() * 13.5, [len(label) + 8 for label in entries]  # in characters of this size
    columns = len(entries) if sum(lengths) <= room else max(1, int(room / max(lengths)))
    figure.set_figheight(figure.get_figheight() + 0.19 * (-(-len(entries) // columns) - 1))  # more lines take nothing from the panels
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower left", ncols=columns, fontsize=9, frameon=False, handlelength=3.2,
        columnspacing=1.8, labelcolor=theme_of(theme).text, borderaxespad=0.5, borderpad=0.1,
    )  # fmt: skip


def note(axes: Axes, text: str, theme: str, x: float = 0.985, y: float = 0.97) -> None:
    """A remark inside a panel, at its upper right unless told otherwise."""
    colors = theme_of(theme)
    axes.text(
        x, y, text, transform=axes.transAxes, ha="right" if x > 0.5 else "left", va="top" if y > 0.5 else "bottom", fontsize=8.5,
        color=colors.muted, linespacing=1.35, bbox={"facecolor": colors.background, "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )  # fmt: skip


def shorten(text: str, limit: int = 26) -> str:
    """A label that fits, in which no dollar sign begins a formula."""
    return (text if len(text) <= limit else text[: limit - 1].rstrip() + "…").replace("$", r"\$")


def to_svg(figure: Figure) -> str:
    """A figure as SVG: the same bytes whenever it is drawn from the same data by the same matplotlib."""
    target = io.StringIO()
    with settings():
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return target.getvalue().replace("'DejaVu Sans'", _FONTS)


def save(figure: Figure, directory: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.svg; the two paths."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with settings():
        figure.savefig(png, format="png", dpi=_DOTS, metadata={"Software": None})
    svg.write_text(to_svg(figure), encoding="utf-8", newline="\n")
    return png, svg
