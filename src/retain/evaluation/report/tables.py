"""The tables of a report, from the results of a run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from retain.evaluation import metrics
from retain.evaluation.runs import RunError

DASH = "–"


@dataclass(frozen=True)
class Measure:
    """A metric of :func:`retain.evaluation.metrics.summarise`: its name for readers, which way is better, and what it is."""

    key: str
    name: str
    better: str
    meaning: str


MEASURES = (
    Measure("average_accuracy", "average {score}", "↑", "1/T Σ_j R[T, j]: mean over all tasks at the end"),
    Measure("average_anytime_accuracy", "anytime {score}", "↑", "mean over i of the mean over the tasks learned so far, R[i, j ≤ i]"),
    Measure("learning_accuracy", "learned {score}", "↑", "1/T Σ_j R[j, j]: each task right after it was learned"),
    Measure("backward_transfer", "backward transfer", "↑", "1/(T-1) Σ_{j<T} (R[T, j] - R[j, j]): below zero where old tasks got worse"),
    Measure("forward_transfer", "forward transfer", "↑", "1/(T-1) Σ_{j>1} (R[j-1, j] - R[0, j]): what earlier tasks gave to later ones"),
    Measure("forgetting", "forgetting", "↓", "1/(T-1) Σ_{j<T} (max_{l<T} R[l, j] - R[T, j]): lost since the best value"),
    Measure("forgetting_rate", "forgetting rate", "↓", "Σ_{j<T} (R[j, j] - R[T, j]) / Σ_{j<T} R[j, j]: the share that was lost"),
    Measure("intransigence", "intransigence", "↓", "1/T Σ_j (joint[j] - R[j, j]): what a model that learns all tasks together has more"),
    Measure("retention_area", "retention area", "↑", "area under the retention curve, 1 when nothing is ever lost"),
)


@dataclass(frozen=True)
class Number:
    """A number as it is shown and as it is, so that nobody has to copy rounded ones; `margin` is what may be added or taken away."""

    text: str
    value: float
    margin: str = ""


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Table:
    """A table with its caption. The first column names the row."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Method:
    """One method over its seeds: the metrics of each, and what each cost."""

    name: str
    seeds: tuple[str, ...]
    matrices: tuple[metrics.Matrix, ...]
    summaries: tuple[dict[str, Any], ...]
    records: tuple[Mapping[str, Any], ...]
    losses: tuple[Sequence[Sequence[float]], ...] = field(default=(), repr=False)

    def values(self, key: str) -> list[float]:
        """A metric for each seed."""
        return [float(summary[key]) for summary in self.summaries]


def methods_of(results: Mapping[str, Any]) -> list[Method]:
    """The methods of a run. Raises RunError that names the seed whose matrix cannot be used."""
    found = []
    for name, method in (results.get("methods") or {}).items():
        seeds = {seed: record for seed, record in (method.get("seeds") or {}).items() if record.get("matrix") is not None}
        matrices, summaries = [], []
        for seed, record in seeds.items():
            try:
                matrices.append(metrics.accuracy_matrix(record["matrix"]))
                summaries.append(metrics.summarise(record["matrix"], record.get("joint")))
            except (ValueError, TypeError) as error:
                raise RunError(f"results.json, method {name}, seed {seed}: {error}") from None
        widths = {matrix.shape[1] for matrix in matrices}
        if len(widths) > 1:
            raise RunError(f"results.json, method {name}: seeds have different numbers of tasks ({', '.join(map(str, sorted(widths)))})")
        if seeds:
            losses = tuple(record["losses"] for record in seeds.values() if record.get("losses"))
            found.append(Method(name, tuple(seeds), tuple(matrices), tuple(summaries), tuple(seeds.values()), losses))
    return found


def task_names(results: Mapping[str, Any], count: int) -> list[str]:
    """Names of the tasks; numbers for those that have none."""
    given = [str(name) for name in results.get("tasks") or ()]
    return (given + [f"task {number}" for number in range(len(given) + 1, count + 1)])[:count]


def tables(results: Mapping[str, Any], methods: Sequence[Method]) -> list[Table]:
    """Every table that the results have something for."""
    score = str(results.get("score") or "accuracy")
    made = [comparison_table(results), main_table(methods, score), final_table(methods, results, score), cost_table(methods)]
    made += [curvature_table(results), bound_table(results), study_table(results)]
    return [table for table in made if table is not None]


def shown_measures(methods: Sequence[Method]) -> list[Measure]:
    """The measures that are defined for a method at least."""
    return [measure for measure in MEASURES if any(math.isfinite(value) for method in methods for value in method.values(measure.key))]


def main_table(methods: Sequence[Method], score: str) -> Table | None:
    """Every metric of every method, mean over seeds with its interval."""
    measures = shown_measures(methods)
    if not measures:
        return None
    rows = [[method.name, str(len(method.seeds)), *(interval(method.values(measure.key)) for measure in measures)] for method in methods]
    notes = [f"{measure.name.format(score=score)}: {measure.meaning}" for measure in measures]
    caption = f"Metrics by method: mean over seeds{_plus_minus(methods)}; ↑ higher is better, ↓ lower is better"
    heads = [f"{measure.name.format(score=score)}\N{NO-BREAK SPACE}{measure.better}" for measure in measures]
    return Table("metrics", caption, ["method", "seeds", *heads], rows, notes)


def final_table(methods: Sequence[Method], results: Mapping[str, Any], score: str) -> Table | None:
    """The last row of the matrix: what is left of every task at the end."""
    widths = {method.matrices[0].shape[1] for method in methods}
    if len(widths) != 1 or (count := widths.pop()) < 2:
        return None
    rows = [[method.name, *(interval([float(m[-1, task]) for m in method.matrices]) for task in range(count))] for method in methods]
    caption = f"{score.capitalize()} on every task at the end: mean over seeds{_plus_minus(methods)}"
    return Table("final", caption, ["method", *task_names(results, count)], rows)


def cost_table(methods: Sequence[Method]) -> Table | None:
    """What a run of each method cost, mean over seeds."""
    columns = (
        ("steps", "steps", 1.0),
        ("seconds", "seconds", 1.0),
        ("parameters", "trained parameters", 1.0),
        ("memory_bytes", "memory (MB)", 1e-6),
    )
    shown = [column for column in columns if any(column[0] in record for method in methods for record in method.records)]
    if not shown:
        return None
    rows: list[list[Cell]] = []
    for method in methods:
        row: list[Cell] = [method.name]
        for key, _, factor in shown:
            known = [float(record[key]) for record in method.records if record.get(key) is not None]
            row.append(number(sum(known) / len(known) * factor) if known else DASH)
        rows.append(row)
    return Table("cost", "Cost of one run: mean over seeds", ["method", *(name for _, name, _ in shown)], rows)


def comparison_table(results: Mapping[str, Any]) -> Table | None:
    """What ways of learning reached and cost, mean over seeds; best first."""
    found: Mapping[str, Any] = results.get("comparison") or {}
    columns = (
        ("contains", "right ↑", "share of the answers that hold the expected words, after the last document"),
        ("exact", "exact ↑", "share of the answers that are the expected words (SQuAD)"),
        ("f1", "F1 ↑", "overlap of words with the expected answer (SQuAD)"),
        ("log_likelihood", "log-likelihood ↑", "of a token of the right answer, nats"),
        ("forgetting", "forgotten ↓", "right just after a document was learned, less right at the end"),
        ("control_lost", "control lost ↓", "share of the right answers to general questions that is lost"),
        ("perplexity_rise", "perplexity ↓", "rise of the perplexity of general text, as a share"),
        ("learn_seconds", "learn (s) ↓", "seconds to learn a document"),
        ("answer_seconds", "answer (s) ↓", "seconds to answer a question, many at a time"),
        ("tokens", "tokens", "that went through the model while learning"),
        ("bytes_per_document", "bytes", "kept of a document"),
    )
    rows: list[list[Cell]] = []
    for name in sorted(found, key=lambda arm: -float(found[arm]["contains"])):
        values = found[name]
        rows.append([name, *(DASH if values.get(key) is None else number(float(values[key])) for key, _, _ in columns)])
    notes = [f"{head}: {meaning}" for _, head, meaning in columns]
    caption = "Ways of learning: mean over seeds; ↑ higher is better, ↓ lower is better"
    return Table("comparison", caption, ["way", *(head for _, head, _ in columns)], rows, notes) if rows else None


def curvature_table(results: Mapping[str, Any]) -> Table | None:
    """Largest and smallest eigenvalue, how many converged, and the trace, by checkpoint."""
    rows: list[list[Cell]] = []
    for name, part in (results.get("curvature") or {}).items():
        values = [float(value) for value in part.get("eigenvalues") or ()]
        converged, residuals = part.get("converged"), [float(value) for value in part.get("residuals") or ()]
        trace, error = part.get("trace"), part.get("trace_error")
        rows.append([
            name,
            number(part["parameters"]) if part.get("parameters") is not None else DASH,
            number(max(values)) if values else DASH,
            number(min(values)) if values else DASH,
            f"{sum(map(bool, converged))} of {len(converged)}" if converged is not None else DASH,
            number(max(residuals)) if residuals else DASH,
            DASH if trace is None else Number(short(trace), float(trace), "" if error is None else f"± {short(error)}"),
        ])  # fmt: skip
    head = ["checkpoint", "parameters", "largest λ", "smallest λ of those computed", "converged", "largest residual", "trace"]
    return Table("curvature", "Curvature of the loss by checkpoint; trace with its standard error", head, rows) if rows else None


def study_table(results: Mapping[str, Any]) -> Table | None:
    """How well each predictor foretells forgetting, over the runs of a study."""
    found = (results.get("study") or {}).get("correlations") or ()
    rows: list[list[Cell]] = []
    for part in found:
        known = part.get("rho") is not None and math.isfinite(part["rho"])
        ends = [part.get("low"), part.get("high")]
        between = f"{short(ends[0])} to {short(ends[1])}" if all(end is not None and math.isfinite(end) for end in ends) else DASH
        rho = number(part["rho"]) if known else DASH
        names = [str(part[key]).replace("_", " ") for key in ("predictor", "target", "space")]
        rows.append([*names, rho, between, str(part["n"])])
    head = ["predictor", "of", "space", "Spearman's ρ", "95 % interval", "runs"]
    caption = "How well each quantity foretells forgetting: rank correlation over runs, bootstrap over runs"
    return Table("study", caption, head, rows) if rows else None


def bound_table(results: Mapping[str, Any]) -> Table | None:
    """What second order says about a move of the parameters, and what was measured."""
    columns = {
        "displacement": "‖Δθ‖", "gradient_term": "gradient term", "lambda_max": "largest λ", "bound": "bound",
        "second_order": "second order", "measured": "measured",
    }  # fmt: skip
    rows: list[list[Cell]] = []
    for part in results.get("bound") or ():
        numbers: list[Cell] = [number(part[key]) if part.get(key) is not None else DASH for key in columns]
        bound, measured = part.get("bound"), part.get("measured")
        share = number(measured / bound) if bound and measured is not None else DASH
        rows.append([str(part.get("label", DASH)), str(part.get("space", DASH)), *numbers, share])
    caption = "Rise of the loss on the way from the old to the new parameters: bound, second order, and measured"
    return Table("bound", caption, ["move", "space", *columns.values(), "measured / bound"], rows) if rows else None


def results_csv(methods: Sequence[Method]) -> str:
    """Every single seed with all its numbers, nothing rounded; empty where undefined."""
    keys = [measure.key for measure in MEASURES]
    costs = ["steps", "seconds", "parameters", "memory_bytes"]
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["method", "seed", "tasks", *keys, *costs])
    for method in methods:
        for seed, summary, record in zip(method.seeds, method.summaries, method.records, strict=True):
            writer.writerow([method.name, seed, summary["tasks"], *_known(summary[key] for key in keys), *_known(map(record.get, costs))])
    return target.getvalue()


def interval(values: Sequence[float]) -> Cell:
    """Mean and half the width of its interval over seeds."""
    found = metrics.seed_interval(values)
    if math.isnan(found.mean):
        return DASH
    half = (found.high - found.low) / 2
    text = f"{0.0 if round(found.mean, 3) == 0 else found.mean:.3f}"  # no -0.000
    return Number(text.replace("-", "−"), found.mean, "" if math.isnan(half) else f"± {half:.3f}")


def number(value: float) -> Cell:
    """A number with about four digits."""
    return Number(short(value), float(value)) if math.isfinite(value) else DASH


def short(value: float) -> str:
    """A count in full, anything else in four digits."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return text.replace("-", "−")


def _plus_minus(methods: Sequence[Method]) -> str:
    return " ± half of its 95 % Student-t interval" if any(len(method.seeds) > 1 for method in methods) else ""


def _known(values: Iterable[Any]) -> list[Any]:
    return ["" if value is None or (isinstance(value, float) and math.isnan(value)) else value for value in values]
