"""The comparison: every arm from a fresh state learns the documents one after another and is asked the same questions after each."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.config import Config
from retain.data.answers import contains, exact_match, f1
from retain.data.document import Document
from retain.data.errors import DataError, did_you_mean
from retain.data.streams import Question
from retain.evaluation.metrics import bootstrap, seed_interval
from retain.evaluation.runs import Run
from retain.learners.base import LearnerError
from retain.learners.checks import check_ready
from retain.learners.lora import check_sites
from retain.learners.registry import check_learner, injects, names
from retain.lm.devices import give_memory_back
from retain.lm.model import LanguageModel
from retain.training.loop import TrainingError
from retain.workspace.comparison.arms import BASELINES, PASSAGES, Arm, Asked, Baseline, Workspace, arm_named, facts_of
from retain.workspace.learning import with_learner
from retain.workspace.reports import Event

FIGURES = (
    "contains", "exact", "f1", "log_likelihood", "forgetting", "control_lost", "perplexity_rise", "learn_seconds", "answer_seconds",
    "tokens", "bytes_per_document",
)  # fmt: skip
"""What is measured of every arm; :func:`retain.evaluation.report.tables.comparison_table` says what each is."""


@dataclass(frozen=True)
class Compared:
    """Told when an arm has learned a document: ``done`` of ``total`` of all arms and seeds."""

    arm: str
    seed: int
    document: str
    done: int
    total: int
    contains: float


def arms_of(learners: str) -> list[str]:
    """The arms of "all" or of names joined by commas, baselines first. Raises LearnerError."""
    wanted = [name.strip() for name in learners.split(",") if name.strip()]
    if wanted == ["all"]:
        wanted = list(names())
    for name in wanted:
        if name not in BASELINES:
            check_learner(name.removesuffix(PASSAGES))
    chosen = list(dict.fromkeys(name.removesuffix(PASSAGES) for name in wanted))
    if not chosen:
        raise LearnerError("there is nothing to compare: name learners, such as lora,jitrl, or all")
    return [*BASELINES, *(name for name in chosen if name not in BASELINES)]


def lacking(arms: Sequence[str], model: LanguageModel, config: Config) -> dict[str, str]:
    """Why learners among the arms could not learn, by name; the others can be compared. Raises LearnerError for layers or targets that the
    model does not have: plain fine-tuning needs them too."""
    check_sites(model, config)
    found = {}
    for name in arms:
        if name not in BASELINES:
            try:
                check_ready(model, with_learner(config, name))
            except LearnerError as error:
                found[name] = str(error)
    return found


def assign_questions(documents: Sequence[Document], questions: Sequence[Question], path: str | Path) -> list[Asked]:
    """Each question with the document that it is about: the one that it names (by id, title or file name), else the only one whose text
    holds the answer. Both wordings of a question are asked. Raises DataError with the question."""
    names = {name: document.id for document in documents for name in (document.title, Path(document.source).name, document.id)}
    asked = []
    for number, item in enumerate(questions, 1):
        if item.document and item.document not in names:
            hint = did_you_mean(item.document, names) or f"there are {', '.join(document.title for document in documents)}"
            raise DataError(f"question {number} is about {item.document!r}, which is not among the documents", path=path, fix=hint)
        holding = [document.id for document in documents if any(answer.lower() in document.text.lower() for answer in item.answers)]
        if not item.document and len(holding) != 1:
            found = f"{len(holding)} documents hold" if holding else "no document holds"
            fix = 'add "document": its title or file name'
            raise DataError(f"question {number}: {found} its answer {item.answer!r}", path=path, field="document", fix=fix)
        owner = names[item.document] if item.document else holding[0]
        asked += [Asked(owner, wording, item.answers) for wording in (item.question, item.reworded) if wording]
    without = [document.title for document in documents if document.id not in {one.document for one in asked}]
    if without:
        raise DataError(f"there is no question about {without[0]!r}", path=path)
    return asked


def run_comparison(
    documents: Sequence[Document], asked: Sequence[Asked], arms: Sequence[str], seeds: int, model: LanguageModel, config: Config, run: Run,
    tell: Callable[[Compared], None] | None = None, progress: Callable[[Event], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare ``arms`` (:func:`arms_of`) and record it in ``run``, which goes on behind the last arm that was finished. A learner that
    cannot learn is reported with the reason, and the others go on."""
    methods: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    done, total = 0, len(arms) * seeds * len(documents)
    for name in arms:
        for seed in range(seeds):
            key = f"{name}-seed{seed}"
            record = run.finished(key)
            if record is None:
                seeded = config.model_copy(update={"learn": config.learn.model_copy(update={"seed": seed})})

                def told(document: str, score: float, name: str = name, seed: int = seed) -> None:
                    nonlocal done
                    done += 1
                    if tell:
                        tell(Compared(name, seed, document, done, total, score))

                before = methods["nothing"]["seeds"]["0"]["matrix"][0] if "nothing" in methods else None
                record = _run_arm(name, model, seeded, documents, asked, before, told, progress or (lambda event: None), run.directory)
                run.finish(key, record)
                run.event("compared", arm=name, seed=seed, failed=record.get("failed", ""))
            else:
                done += len(documents)
            if record.get("failed"):
                warnings.append(f"{name}, seed {seed}: {record['failed']}")
            for arm, found in record["arms"].items():
                methods.setdefault(arm, {"seeds": {}})["seeds"][str(seed)] = found
                warnings += [f"{arm}, seed {seed}: refused: {reason}" for reason in found["refused"]]
    for message in warnings:
        run.warn(message)
    base = methods["nothing"]["seeds"]["0"]
    for method in methods.values():
        for found in method["seeds"].values():
            known = base["control_accuracy"]  # a base that knows nothing of it can lose nothing
            found["control_lost"] = (known - found["control_accuracy"]) / known if known else None
            found["perplexity_rise"] = found["control_perplexity"] / base["control_perplexity"] - 1
            found["forgetting"] = _forgotten(found["matrix"])
    table = {name: _summary(method["seeds"]) for name, method in methods.items()}
    results = {
        "kind": "comparison", "tasks": [document.title for document in documents], "score": "contains", "questions": len(asked),
        "methods": methods, "comparison": table, "warnings": warnings,
    }  # fmt: skip
    run.complete(results)
    return results


def _forgotten(matrix: Sequence[Sequence[float]]) -> float | None:
    """What is lost of the earlier documents: their mean score just after each was learned, less that at the end; None for one document."""
    lost = [matrix[place + 1][place] - last for place, last in enumerate(matrix[-1][:-1])]
    return math.fsum(lost) / len(lost) if lost else None


def _run_arm(
    name: str, model: LanguageModel, config: Config, documents: Sequence[Document], asked: Sequence[Asked], before: list[float] | None,
    told: Callable[[str, float], None], progress: Callable[[Event], None], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """One arm from one seed; with a learner of adapters also the same adapters beside retrieved passages. ``before``: what the base
    scores on every document, where that is known."""
    place = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}-"))
    arm = arm_named(name, model, config, documents, place / "workspace", progress)
    ways = {name: False, **({name + PASSAGES: True} if name not in BASELINES and injects(name) else {})}
    rows = {way: [before or _row(arm, False, asked, documents, len(documents))] for way in ways}
    costs = []
    try:
        for number, document in enumerate(documents):
            try:
                costs.append(arm.learn(document))
            except (LearnerError, TrainingError) as error:
                return {"arms": {}, "failed": str(error)}
            give_memory_back()
            for way, passages in ways.items():
                rows[way].append(_row(arm, passages, asked, documents, number + 1))
            told(document.title, rows[name][-1][number])
        return {"arms": {way: {**facts_of(costs), **_at_end(arm, passages, asked, rows[way])} for way, passages in ways.items()}}
    finally:
        arm.close()
        shutil.rmtree(place, ignore_errors=True)


def _row(arm: Arm, passages: bool, asked: Sequence[Asked], documents: Sequence[Document], learned: int) -> list[float]:
    """A row of the matrix R: the score on each of the first ``learned`` documents, not a number for the others."""
    if isinstance(arm, Workspace):
        arm.passages = passages
    now = {document.id for document in documents[:learned]}
    chosen = [one for one in asked if one.document in now]
    right: dict[str, list[bool]] = {}
    for one, text in zip(chosen, arm.answers(chosen), strict=True):
        right.setdefault(one.document, []).append(contains(text, one.answers))
    return [sum(right[document.id]) / len(right[document.id]) if document.id in right else math.nan for document in documents]


def _at_end(arm: Arm, passages: bool, asked: Sequence[Asked], matrix: list[list[float]]) -> dict[str, Any]:
    if isinstance(arm, Workspace):
        arm.passages = passages
    elif isinstance(arm, Baseline):
        arm.said = {}  # or the time of answering would not be measured
    started = time.perf_counter()
    texts = arm.answers(asked)
    seconds = (time.perf_counter() - started) / len(asked)
    likelihoods = arm.log_likelihoods(asked)
    items: list[dict[str, Any]] = [
        {
            "document": one.document, "question": one.question, "answer": one.answers[0], "said": text,
            "contains": contains(text, one.answers), "exact": exact_match(text, one.answers), "f1": f1(text, one.answers),
            "log_likelihood": likelihood,
        }
        for one, text, likelihood in zip(asked, texts, likelihoods, strict=True)
    ]  # fmt: skip
    keys = ("contains", "exact", "f1", "log_likelihood")
    means = {key: math.fsum(float(item[key]) for item in items) / len(items) for key in keys}
    return {
        "matrix": matrix, **means, "answer_seconds": seconds, **arm.control(),
        "bytes_per_document": arm.stored / len(matrix[0]), "items": items,
    }  # fmt: skip


def _summary(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of every column; the interval of ``contains``: over seeds, or with one seed over questions."""
    found: dict[str, Any] = {}
    for key in FIGURES:
        values = [float(record[key]) for record in seeds.values() if record[key] is not None]
        found[key] = sum(values) / len(values) if values else None
    records = list(seeds.values())
    interval = (
        seed_interval([record["contains"] for record in records])
        if len(records) > 1
        else bootstrap([float(item["contains"]) for item in records[0]["items"]], 0)
    )
    return {**found, "low": interval.low, "high": interval.high, "seeds": len(records)}
