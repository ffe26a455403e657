"""From the directory of a run to its report: report.html with plots/, results.csv and results.json beside it."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.evaluation import plots
from retain.evaluation.durable import write_atomically
from retain.evaluation.report import page
from retain.evaluation.report.figures import drawings
from retain.evaluation.report.tables import DASH, Method, Table, interval, methods_of, results_csv, short, shown_measures, tables
from retain.evaluation.runs import CONFIG, RESULTS, Run, RunError

NAME = "report.html"
_TITLES = {"sequence": "Learning a sequence of tasks", "forgetting": "What a new task costs an old one", "comparison": "Ways of learning"}


@dataclass(frozen=True)
class Report:
    """What was written: paths of the page, the numbers and the figures, and what the page says in short."""

    html: Path
    csv: Path
    results: Path | None
    plots: tuple[Path, ...]
    title: str
    finished: bool
    metrics: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


def write_report(run_directory: str | Path, target: str | Path | None = None) -> Report:
    """Write the report of a run, finished or not, to `target` (report.html in the run's directory unless told otherwise).

    The same run gives the same bytes. Raises RunError for a directory that holds no run, results that cannot be read, or a target among
    the files of another run.
    """
    run = Run.open(run_directory)
    place = _target(run, Path(target) if target is not None else run.directory / NAME)
    results, events = run.results, run.events()
    found: Mapping[str, Any] = results or {}
    warnings = _warnings(found, events)
    try:
        methods = methods_of(found)
        title = _title(found)
        sections = [page.Section("warnings", "Warnings", _list(warnings, "warnings"))] if warnings else []
        sections.append(page.Section("results", "Results", _results(found, methods, results is not None)))
        place.parent.mkdir(parents=True, exist_ok=True)
        pictures, files = _pictures(found, methods, place.parent)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"{run.directory / RESULTS}: not the results of an experiment ({type(error).__name__}: {error})") from error
    if pictures:
        sections.append(page.Section("figures", "Figures", page.pictures(pictures)))
    configuration = (run.directory / CONFIG).read_text(encoding="utf-8")
    sections.append(page.Section("configuration", "Configuration", f'<pre tabindex="0"><code>{page.text(configuration)}</code></pre>'))
    sections.append(page.Section("environment", "Environment", _environment(run.environment)))
    sections.append(page.Section("events", "Events", _events(events)))
    table, copy = place.with_name("results.csv"), place.with_name(RESULTS) if results is not None else None
    write_atomically(table, results_csv(methods).encode())
    if copy is not None and place.parent.resolve() != run.directory.resolve():
        write_atomically(copy, (run.directory / RESULTS).read_bytes())
    write_atomically(place, page.page(title, _lead(run, found, methods, results is not None), sections).encode())
    numbers = {
        method.name: {measure.key: _mean(method.values(measure.key)) for measure in shown_measures(methods)} | {"seeds": len(method.seeds)}
        for method in methods
    }
    return Report(place, table, copy, files, title, results is not None, numbers, tuple(warnings))


def _target(run: Run, wanted: Path) -> Path:
    """The file to write: in a directory its usual name; never among the files of another run, whose results it would replace."""
    place = wanted / NAME if wanted.is_dir() else wanted
    if (place.parent / CONFIG).exists() and place.parent.resolve() != run.directory.resolve():
        raise RunError(f"{place.parent}: this is the directory of another run, whose {RESULTS} would be replaced: choose another place")
    return place


def _title(results: Mapping[str, Any]) -> str:
    kind, tasks = str(results.get("kind") or ""), [str(task) for task in results.get("tasks") or ()]
    title = _TITLES.get(kind, "Report of a run")
    if results.get("stream"):
        return f"{title}: {results['stream']}"
    return f"{title}: {' → '.join(tasks)}" if kind == "forgetting" and tasks else title


def _lead(run: Run, results: Mapping[str, Any], methods: Sequence[Method], finished: bool) -> list[str]:
    """The line below the title."""
    here = run.environment
    said = [run.directory.resolve().name, "finished" if finished else f"not finished, {_count(len(run.tasks), 'unit')} of work done"]
    if methods:
        seeds = {len(method.seeds) for method in methods}
        counted = _count(seeds.pop(), "seed") if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
        said += [_count(methods[0].matrices[0].shape[1], "task"), _count(len(methods), "method"), counted]
    if here.get("started"):
        said.append(f"started {str(here['started'])[:16].replace('T', ' ')} UTC")
    return [*said, f"retain {here['retain']}"] if here.get("retain") else said


def _results(results: Mapping[str, Any], methods: Sequence[Method], finished: bool) -> str:
    made = tables(results, methods)
    if made:
        return "\n".join(map(page.table, made))
    said = "The run recorded no results that fit a table." if finished else "The run is not finished: there are no results yet."
    return f'<p class="quiet">{said}</p>'


def _pictures(results: Mapping[str, Any], methods: Sequence[Method], folder: Path) -> tuple[list[page.Picture], tuple[Path, ...]]:
    """Every figure drawn in both themes; the light ones also as files."""
    made: list[page.Picture] = []
    files: list[Path] = []
    for drawing in drawings(results, methods):
        saved = plots.save(drawing.draw("light"), folder / "plots", drawing.name)
        dark = plots.to_svg(drawing.draw("dark"))
        names = [f"plots/{path.name}" for path in saved]
        made.append(
            page.Picture(drawing.name, drawing.caption, drawing.alt, saved[1].read_text(encoding="utf-8"), dark, names, drawing.narrow)
        )
        files += saved
    return made, tuple(files)


def _environment(here: Mapping[str, Any]) -> str:
    if not here:
        return '<p class="quiet">Nothing was recorded.</p>'
    return page.facts(
        ((key.replace("_", " ").replace(" gib", " (GiB)"), _words(value)) for key, value in here.items()), "Where the run was made"
    )


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    """How often each event happened, first and last; the time from the first event to the last."""
    if not events:
        return '<p class="quiet">Nothing was recorded.</p>'
    counts = Counter(str(event.get("event")) for event in events)
    rows = []
    for name, count in counts.items():
        times = [_time(event) for event in events if str(event.get("event")) == name]
        rows.append([name, short(count), times[0], times[-1]])
    span = _seconds(events[-1]) - _seconds(events[0])
    caption = f"{_count(len(events), 'event')} in {datetime.timedelta(seconds=round(span))} (hours:minutes:seconds); times are UTC"
    return page.table(Table("events", caption, ["event", "times", "first", "last"], rows))


def _warnings(results: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the results and the events warn of, each once."""
    told = [str(event.get("message")) for event in events if event.get("event") == "warning"]
    return list(dict.fromkeys([*map(str, results.get("warnings") or ()), *told]))


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{page.text(item)}</li>" for item in items) + "</ul>"


def _time(event: Mapping[str, Any]) -> str:
    return str(event.get("time", DASH))[:19].replace("T", " ")


def _seconds(event: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(str(event["time"])).timestamp()


def _mean(values: Sequence[float]) -> float | None:
    cell = interval(values)
    return None if isinstance(cell, str) else cell.value


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else DASH if value is None else str(value)


def _count(amount: int, noun: str) -> str:
    return f"{amount:,} {noun if amount == 1 else noun + 's'}"
