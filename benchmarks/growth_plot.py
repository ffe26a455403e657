"""The picture of the growth benchmark: one small panel per cost, each from zero, so that what does not grow is a flat line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINE, DOT, GREY, WARNING = "#1f5a96", "#8fb4d9", "#6b7280", "#b45309"
GROWN = 1.5  # from this ratio on a panel's figures are printed in the colour of a warning
ROWS: dict[str, dict[str, str]] = {
    "An answer": {
        "route_document": "route a question\nabout a document",
        "route_general": "route a general\nquestion",
        "answer_document": "answer from a document\n({document} tokens)",
        "answer_general": "answer a general\nquestion ({general} tokens)",
        "first_answer": "open and give the\nfirst token",
    },
    "An update": {
        "route_candidate": "route a question to\nthe candidate",
        "route_old_probes": "route the drawn\nearlier questions",
        "check_kept": "check what was\nknown before",
        "commit": "commit",
        "learn": "learn a short document\n({epochs} epoch)",
    },
    "The workspace": {
        "open": "open",
        "verify": "verify everything",
        "forget": "forget a document",
        "disk": "bytes on disk",
        "memory": "peak memory",
    },
}
BUDGETED = ("route_old_probes", "check_kept", "learn", "verify")
STAGES = {"update": "after an update", "every_document_asked": "all documents asked", "model": "model alone"}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the figures of one run and write them as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wide = max(map(len, ROWS.values()))
    figure, grid = pyplot.subplots(len(ROWS), wide, figsize=(3.0 * wide, 2.75 * len(ROWS)), squeeze=False)
    counts = record["counts"]
    document, general = record["facts"][str(counts[0])]["answer_tokens"]
    names = {"document": document, "general": general, "epochs": record["settings"]["epochs"]}
    for row, (heading, panels) in zip(grid, ROWS.items(), strict=True):
        for axes, (name, title) in zip(row, panels.items(), strict=True):
            axes.set_title(title.format(**names), fontsize=9.5, loc="left", pad=20, linespacing=1.1)
            if name == "disk":
                _disk(axes, counts, record["facts"])
            elif name == "memory":
                _memory(axes, counts, record["peak_bytes"])
            else:
                _times(axes, counts, record["times"][name], record["budget_reached"] if name in BUDGETED else None)
            _dress(axes, counts)
        row[0].annotate(
            heading, (-0.42, 0.5), xycoords="axes fraction", rotation=90, va="center", ha="center", fontsize=12, fontweight="bold"
        )
    for axes in grid[-1]:
        axes.set_xlabel("documents in the workspace", fontsize=8.5, color=GREY)
    machine = record["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    figure.suptitle(
        f"What {counts[-1]} documents cost against {counts[0]}: model {record['model']}, {machine['cpu']}, {threads}, "
        f"median of {record['repeats']}; dots are single runs, triangles those beyond the frame",
        fontsize=11, x=0.02, ha="left",
    )  # fmt: skip
    figure.tight_layout(rect=(0.02, 0, 1, 0.97), h_pad=1.6, w_pad=1.2)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _times(axes: Any, counts: Sequence[int], row: Mapping[str, Any], budget: int | None) -> None:
    """Medians as a line, single runs as dots (triangles at the edge for those beyond it); a dotted line where the budget of earlier
    questions is spent for the first time."""
    medians = [row["median_ms"][str(count)] for count in counts]
    unit, factor = ("s", 1e-3) if max(medians) >= 1000 else ("ms", 1.0)
    axes.set_ylabel(unit, fontsize=8, color=GREY, labelpad=2)
    top = 1.5 * max(medians) * factor
    axes.set_ylim(0, top)
    for count in counts:
        for value in row["all_ms"][str(count)]:
            inside = value * factor <= top
            axes.plot(count, min(value * factor, top), "o" if inside else "^", color=DOT, markersize=3, markeredgewidth=0, clip_on=False)
    axes.plot(counts, [value * factor for value in medians], "-o", color=LINE, linewidth=1.6, markersize=4)
    if budget is not None and counts[0] < budget < counts[-1]:
        axes.axvline(budget, color=GREY, linewidth=0.9, linestyle=":")
        axes.annotate(f"all questions drawn\nfrom here on: ×{row['ratio_beyond_budget']:.2f}", (budget, 0.97), va="top", fontsize=7,
                      xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", color=GREY)  # fmt: skip
    _say(axes, f"{_time(medians[0])} → {_time(medians[-1])}", row["ratio"])


def _disk(axes: Any, counts: Sequence[int], facts: Mapping[str, Any]) -> None:
    whole = [facts[str(count)]["bytes"]["all"] / 1e6 for count in counts]
    rest = [(facts[str(count)]["bytes"]["all"] - facts[str(count)]["bytes"]["adapters"]) / 1e6 for count in counts]
    axes.set_ylabel("MB", fontsize=8, color=GREY, labelpad=2)
    axes.plot(counts, whole, "-o", color=LINE, linewidth=1.6, markersize=4)
    axes.plot(counts, rest, "-o", color=DOT, linewidth=1.2, markersize=3)
    axes.set_ylim(0, 1.3 * whole[-1])
    axes.annotate("without adapters", (counts[-1], rest[-1]), xytext=(0, 5), textcoords="offset points", ha="right", fontsize=7, color=GREY)
    each = (whole[-1] - whole[0]) / max(1, counts[-1] - counts[0])
    _say(axes, f"{_short(whole[0])} → {_short(whole[-1])} MB, {_short(each)} per document", 1.0)


def _memory(axes: Any, counts: Sequence[int], peaks: Mapping[str, Any]) -> None:
    axes.set_ylabel("MB", fontsize=8, color=GREY, labelpad=2)
    tops = []
    for (stage, label), colour in zip(STAGES.items(), (LINE, DOT, GREY), strict=True):
        values = [peaks[str(count)][stage] / 1e6 for count in counts]
        tops.append(max(values))
        axes.plot(counts, values, "-o", color=colour, linewidth=1.4, markersize=3, label=label)
    axes.set_ylim(0, 1.75 * max(tops))
    axes.legend(fontsize=7, frameon=False, loc="upper left", borderaxespad=0.2, labelspacing=0.25)
    first, last = (peaks[str(count)]["update"] / 1e6 for count in (counts[0], counts[-1]))
    _say(axes, f"{_short(first)} → {_short(last)} MB", last / first)


def _say(axes: Any, text: str, ratio: float) -> None:
    """The figures of a panel, above it, with the ratio where there is one to tell."""
    colour = WARNING if ratio >= GROWN else GREY
    shown = text if ratio == 1.0 else f"{text} (×{ratio:.2f})"
    axes.annotate(shown, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", fontsize=8.5, color=colour)


def _dress(axes: Any, counts: Sequence[int]) -> None:
    axes.set_xlim(0, counts[-1] * 1.05)
    axes.set_xticks([count for count in counts if count in (counts[0], counts[-1]) or count >= 0.2 * counts[-1]])
    axes.tick_params(labelsize=8, colors=GREY, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c9ced6")
    axes.grid(axis="y", color="#eceff3", linewidth=0.8)
    axes.set_axisbelow(True)


def _time(milliseconds: float) -> str:
    return f"{_short(milliseconds / 1000)} s" if milliseconds >= 1000 else f"{_short(milliseconds)} ms"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
