"""Reports: one file that asks nobody for anything, whose numbers are those of the metrics."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.results import forgetting, matrix, sequence

from retain.evaluation import metrics
from retain.evaluation.report import Report, write_report
from retain.evaluation.report.tables import MEASURES
from retain.evaluation.runs import Run, RunError

pytest.importorskip("matplotlib")

VOID = {"meta", "input", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """What a reader finds: elements that are all closed, their attributes, tables cell by cell, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.words: list[str] = []
        self._table = ""
        self.feed(source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = str(values.get("id", "facts"))
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append(("", None))
        elif tag == "data":
            self.tables[self._table][-1][-1] = ("", float(str(values["value"])))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            words, value = self.tables[self._table][-1][-1]
            self.tables[self._table][-1][-1] = (words + data, value)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(place: Path, results: dict[str, Any] | None, target: Path | None = None) -> tuple[Report, Page, str]:
    with Run.create(place, {"stream": "digits", "note": "<b>&"}, seeds=[0, 1, 2]) as run:
        run.event("step", loss=1.0)
        run.event("step", loss=0.5)
        run.warn("the loss rose <script>alert(1)</script>")
        if results is not None:
            run.complete(results)
    written = write_report(place, target)
    source = written.html.read_text(encoding="utf-8")
    return written, Page(source), source


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Page, str]:
    return made(tmp_path_factory.mktemp("runs") / "digits", sequence())


def test_numbers_of_the_table_are_those_of_the_metrics(digits: tuple[Report, Page, str]) -> None:
    report, page, _ = digits
    head, *rows = page.tables["table-metrics"]
    assert [row[0][0] for row in rows] == ["naive", "ewc"] and all(row[1][0] == "3" for row in rows)
    names = {f"{measure.name.format(score='accuracy')}\N{NO-BREAK SPACE}{measure.better}": measure.key for measure in MEASURES}
    keys = [names[cell[0]] for cell in head[2:]]
    assert set(keys) == {measure.key for measure in MEASURES}
    for row, method in zip(rows, sequence()["methods"].values(), strict=True):
        summaries = [metrics.summarise(record["matrix"], record["joint"]) for record in method["seeds"].values()]
        for key, (words, value) in zip(keys, row[2:], strict=True):
            found = metrics.seed_interval([summary[key] for summary in summaries])
            if math.isnan(found.mean):
                assert words == "–" and value is None  # one seed was not measured, or there is no joint model
                continue
            assert value == found.mean and words == f"{found.mean:.3f} ± {found.high - found.mean:.3f}".replace("-", "−")
            assert report.metrics[row[0][0]][key] == found.mean
    final = page.tables["table-final"]
    assert [cell[0] for cell in final[0]] == ["method", "task 1", "task 2", "task 3"]
    assert final[1][1][1] == pytest.approx(
        np.mean([record["matrix"][-1][0] for record in sequence()["methods"]["naive"]["seeds"].values()])
    )
    assert [cell[0] for cell in page.tables["table-cost"][1]] == ["naive", "120", "2.5", "1,234", "5"]


def test_files_beside_the_page_hold_every_seed(digits: tuple[Report, Page, str]) -> None:
    report, page, _ = digits
    rows = list(csv.DictReader(report.csv.open()))
    assert [(row["method"], row["seed"]) for row in rows] == [(name, str(seed)) for name in ("naive", "ewc") for seed in range(3)]
    expected = metrics.summarise(sequence()["methods"]["naive"]["seeds"]["1"]["matrix"])
    assert (
        float(rows[1]["forgetting"]) == expected["forgetting"] and rows[0]["intransigence"] == "" and rows[0]["memory_bytes"] == "5000000"
    )
    folder = report.html.parent
    assert {path.suffix for path in report.plots} == {".png", ".svg"} and all(path.stat().st_size > 1000 for path in report.plots)
    links = [str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")]
    assert links and all((folder / link).is_file() for link in links)
    assert {path.stem for path in report.plots} == {"methods", "accuracy", "retention", "matrix-naive", "matrix-ewc", "losses"}
    assert json.loads((folder / "results.json").read_text())["kind"] == "sequence"


def test_the_page_asks_nobody_for_anything(digits: tuple[Report, Page, str]) -> None:
    _, page, source = digits
    assert "http:" not in source and "https:" not in source and "//" not in re.sub(r"/\*.*?\*/", "", source)
    assert not page.all("script") and not page.all("link") and not page.all("img") and "@import" not in source
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy and str(policy[0]).startswith("default-src 'none'")


def test_texts_of_a_run_are_escaped(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    results = {
        "kind": "sequence",
        "stream": evil,
        "tasks": [evil, "b"],
        "score": evil,
        "methods": {evil: {"seeds": {"0": {"matrix": matrix(2, 0.5)}}}},
    }
    _, page, source = made(tmp_path / "run", {**results, "warnings": [evil]})
    assert "<img" not in source and "<script" not in source and not page.all("img")
    assert evil in "".join(page.words) and "<b>&" in "".join(page.words) and "<script>alert(1)</script>" in "".join(page.words)
    assert any(evil in str(svg["aria-label"]) for svg in page.all("svg"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_figures_are_there_in_both_themes_and_named(digits: tuple[Report, Page, str]) -> None:
    _, page, source = digits
    pictures = page.all("svg")
    assert len(pictures) == 2 * len(page.all("figure")) == 12
    assert all(svg["role"] == "img" and len(str(svg["aria-label"])) > 30 and svg["viewbox"] for svg in pictures)
    assert sum("naive 0." in str(svg["aria-label"]) for svg in pictures) >= 4  # with the numbers that the figure shows
    identities = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(identities) == len(set(identities))
    used = re.findall(r"url\(#([^)]+)\)", source) + [str(use.get("xlink:href", "#"))[1:] for use in page.all("use")]
    assert used and set(used) <= set(map(str, identities))
    assert source.count("#161b22") > 6 and "prefers-color-scheme: dark" in source


def test_the_page_can_be_read_without_eyes_or_mouse(digits: tuple[Report, Page, str]) -> None:
    _, page, source = digits
    assert page.elements[0][0] == "html" and page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == len(page.all("section")) == 6
    assert len(page.all("caption")) == len(page.all("table")) and len(page.all("figcaption")) == len(page.all("figure"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    choices = page.all("input")
    assert [choice["type"] for choice in choices] == ["radio"] * 3 and ["checked" in choice for choice in choices] == [True, False, False]
    assert page.all("legend") and len(page.all("label")) == 3 and ":focus-visible" in source
    targets = {str(link["href"])[1:] for link in page.all("a") if str(link["href"]).startswith("#")}
    assert targets <= {str(attributes.get("id")) for _, attributes in page.elements}


def test_it_says_what_was_asked_for_where_and_what_happened(digits: tuple[Report, Page, str]) -> None:
    report, page, source = digits
    words = "".join(page.words)
    assert "Learning a sequence of tasks: permuted-digits" in words and report.title in words
    for expected in ("stream: digits", "transformers", "seeds", "3 tasks", "2 methods", "3 seeds", "finished", "a spike", "the loss rose"):
        assert expected in words, expected
    events = {row[0][0]: row[1][0] for row in page.tables["table-events"][1:]}
    assert events == {"started": "1", "step": "2", "warning": "1", "finished": "1"}
    assert report.finished and report.warnings == ("a spike", "the loss rose <script>alert(1)</script>")
    assert write_report(report.html.parent).html.read_text(encoding="utf-8") == source  # the same run, the same bytes


def test_curvature_and_bounds(tmp_path: Path) -> None:
    report, page, _ = made(tmp_path / "run", forgetting())
    assert report.title == "What a new task costs an old one: A → B"
    names = {path.stem for path in report.plots}
    assert {"eigenvalues", "density", "displacement", "paths", "loss-matrix", "matrix-naive"} <= names and "methods" not in names
    curvature = page.tables["table-curvature"][1]
    assert [cell[0] for cell in curvature] == ["after A", "1,234", "40", "−1.5", "4 of 6", "0.3", "61.5 ± 2.5"]
    bound = page.tables["table-bound"]
    assert [row[0][0] for row in bound[1:]] == ["naive", "ewc", "replay"]
    assert bound[1][-1][1] == pytest.approx(1.1 / 20.01) and bound[2][2][1] == 0.5
    assert page.tables["table-metrics"][1][2] == ("0.675", pytest.approx(0.675))  # one seed: no interval


@pytest.mark.parametrize(
    "results", [None, {}, {"kind": "other", "methods": {}, "curvature": None, "bound": [{"label": "x"}], "warnings": None}]
)
def test_a_report_shows_what_is_there(tmp_path: Path, results: dict[str, Any] | None) -> None:
    report, page, _ = made(tmp_path / "run", results)
    assert report.finished is (results is not None) and not report.plots and "stream: digits" in "".join(page.words)
    assert ("not finished" in "".join(page.words)) is (results is None) and report.csv.read_text().count("\n") == 1


@pytest.mark.parametrize(("results", "said"), [
    ({"methods": {"naive": {"seeds": {"3": {"matrix": [[0.1, 0.2], [0.3, 0.4]]}}}}}, "method naive, seed 3: an accuracy matrix"),
    ({"methods": {"naive": {"seeds": {"3": {"matrix": matrix(2, 0.5), "joint": [1.0]}}}}}, "1 joint scores for 2 tasks"),
    ({"methods": {"naive": {"seeds": {"0": {"matrix": matrix(2, 0.5)}, "1": {"matrix": matrix(3, 0.5)}}}}}, "different numbers of tasks"),
    ({"methods": ["naive"]}, r"not the results of an experiment"),
])  # fmt: skip
def test_results_that_cannot_be_shown_are_told(tmp_path: Path, results: dict[str, Any], said: str) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        run.complete(results)
    with pytest.raises(RunError, match=said) as caught:
        write_report(tmp_path / "run")
    assert "results.json" in str(caught.value) and not (tmp_path / "run" / "report.html").exists()


def test_a_report_elsewhere_brings_its_numbers_and_spares_other_runs(tmp_path: Path) -> None:
    report, _, _ = made(tmp_path / "run", sequence(2, 1), tmp_path / "out" / "digits.html")
    assert report.html == tmp_path / "out" / "digits.html" and not (tmp_path / "run" / "plots").exists()
    assert (tmp_path / "out" / "results.json").read_bytes() == (tmp_path / "run" / "results.json").read_bytes()
    assert write_report(tmp_path / "run", tmp_path / "out").html == tmp_path / "out" / "report.html"
    Run.create(tmp_path / "other", {}).close()
    with pytest.raises(RunError, match="directory of another run"):
        write_report(tmp_path / "run", tmp_path / "other" / "report.html")
    with pytest.raises(RunError, match="this is not a run"):
        write_report(tmp_path / "out")


def test_a_study_shows_each_space_by_itself(tmp_path: Path) -> None:
    bound = [
        {"label": f"run {number}", "space": space, "displacement": 1.0 + number, "measured": 0.1 * number}
        for number in range(3)
        for space in ("factors", "product")
    ]
    correlations = [
        {"space": "factors", "predictor": "second_order", "target": "loss", "rho": 0.5, "low": -0.25, "high": 1.0, "n": 3},
        {"space": "product", "predictor": "bound", "target": "loss", "rho": math.nan, "low": math.nan, "high": math.nan, "n": 2},
    ]
    results = {"kind": "forgetting", "tasks": ["a", "b"], "bound": bound, "study": {"correlations": correlations}}
    with Run.create(tmp_path / "run", {"a": 1}) as run:
        run.complete(results)
    made = write_report(tmp_path / "run")
    assert {"displacement-factors.png", "displacement-product.png"} <= {path.name for path in made.plots}
    page = made.html.read_text(encoding="utf-8")
    assert "second order" in page and "-0.25 to 1" in page.replace("−", "-")
