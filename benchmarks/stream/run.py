"""Teach a stream of documents one after another, by several methods side by side, and measure what is known and what was lost.

    python -m benchmarks.stream.run                         # the written stream, all arms
    python -m benchmarks.stream.run --documents 4 --arms nothing,context,default
    python -m benchmarks.stream.run --squad dev-v1.1.json --documents 20 --jobs 2
    python -m benchmarks.stream.run --resume                # only the arms that the results do not have yet

Every arm learns from the raw documents; the questions (both wordings) are never trained on. Answers are greedy; an answer counts when
it holds the expected words or an alias. ``forgetting`` is the mean over documents of the recall right after learning minus the recall at
the end of the stream. Control questions and text have nothing to do with the documents. Results go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from retain.adapters import Adapter, inject
from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.examples import text_example
from retain.data.readers import read_path
from retain.data.streams import load_questions, load_squad
from retain.evaluation.probes import Probe, answer_questions, perplexity, recall
from retain.learners.lora import train_adapter
from retain.learners.skills import shipped_skill
from retain.learners.study import StudySet, build_study, study_examples
from retain.lm.devices import machine_facts
from retain.lm.loading import load_model
from retain.lm.model import Injection, LanguageModel
from retain.retention.registry import Resources, build
from retain.workspace.continual import ContinualLM
from retain.workspace.knowledge import Decision

HERE = Path(__file__).parent
ARMS = ("nothing", "context", "text", "study", "ewc", "replay", "default")


@dataclass
class Stream:
    """Documents in their order, the questions of each, and the control set."""

    documents: list[Document]
    questions: dict[str, list[Probe]]
    control: list[Probe]
    control_text: str


@dataclass
class Result:
    """One arm's figures."""

    arm: str
    after_learning: list[float] = field(default_factory=list)
    at_end: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Means over documents."""
        learned = sum(self.after_learning) / len(self.after_learning) if self.after_learning else None
        end = sum(self.at_end) / len(self.at_end)
        return {
            "arm": self.arm,
            "recall_after_learning": learned,
            "recall_at_end": end,
            "forgetting": None if learned is None else learned - end,
            "forgetting_rate": None if not learned else (learned - end) / learned,
            "seconds_per_document": sum(self.seconds) / len(self.seconds) if self.seconds else 0.0,
            **self.extra,
            "per_document": {"after_learning": self.after_learning, "at_end": self.at_end, "seconds": self.seconds},
        }


def written_stream(limit: int) -> Stream:
    """The documents written for this benchmark."""
    documents = [document for path in sorted((HERE / "documents").iterdir()) for document in read_path(path)][:limit]
    by_file: dict[str, list[Probe]] = {}
    for item in load_questions(HERE / "questions.jsonl"):
        by_file.setdefault(item.document, []).extend(
            Probe(item.document, wording, item.answer, tuple(item.aliases)) for wording in (item.question, item.reworded) if wording
        )
    return Stream(documents, {d.id: by_file[Path(d.source).name] for d in documents}, *_control())


def squad_stream(path: Path, limit: int) -> Stream:
    """Passages of a SQuAD file, one per article, with their human questions."""
    seen: dict[str, Any] = {}
    for passage in load_squad(path):
        if len(passage.questions) >= 4 and len(passage.text.split()) >= 90:
            seen.setdefault(passage.title, passage)
    chosen = list(seen.values())[:limit]
    # without the questions as pairs, which would be trained on
    documents = [Document.from_text(passage.text, passage.title, "squad") for passage in chosen]
    questions = {
        document.id: [Probe(document.id, item.question, item.answer, tuple(item.aliases)) for item in passage.questions]
        for document, passage in zip(documents, chosen, strict=True)
    }
    return Stream(documents, questions, *_control())


def _control() -> tuple[list[Probe], str]:
    items = load_questions(HERE / "control_questions.jsonl")
    return [Probe("", item.question, item.answer, tuple(item.aliases)) for item in items], (HERE / "control_text.txt").read_text()


class Bench:
    """The model, the stream, and study sets that all arms share through ``folder``."""

    def __init__(self, model: LanguageModel, stream: Stream, config: Config, folder: Path) -> None:
        self.model, self.stream, self.config, self.folder = model, stream, config, folder
        self.skill = shipped_skill(model)

    def study(self, document: Document) -> tuple[StudySet, float]:
        """The document's study set and the seconds it took to make."""
        place = self.folder / f"{document.id}.json"
        if not place.exists():
            started = time.perf_counter()
            made = build_study(self.model, self.skill, document, self.config.study, self.config.learn.seed)
            (half := place.with_suffix(f".{os.getpid()}")).write_text(f"{time.perf_counter() - started}\n{made.to_json().decode()}")
            half.replace(place)
        seconds, study = place.read_text().split("\n", 1)
        return StudySet.from_json(study.encode()), float(seconds)

    def score(self, document: Document, injection: Injection | None = None, context: bool = False) -> float:
        """Recall of a document's questions."""
        probes = self.stream.questions[document.id]
        contexts = [f"{document.title}\n\n{document.text}"] * len(probes) if context else None
        answers = answer_questions(self.model, [probe.question for probe in probes], injection, contexts)
        return sum(recall(answers, probes)) / len(probes)

    def control(self, injection: Injection | None) -> dict[str, float]:
        """Control accuracy and perplexity with an injection that is always on."""
        answers = answer_questions(self.model, [probe.question for probe in self.stream.control], injection)
        right = sum(recall(answers, self.stream.control)) / len(self.stream.control)
        return {"control_accuracy": right, "control_perplexity": perplexity(self.model, [self.stream.control_text], injection)}


def fixed_arm(bench: Bench, arm: str) -> Result:
    """Nothing learned, or the document in the context."""
    result = Result(arm)
    result.at_end = [bench.score(document, context=arm == "context") for document in bench.stream.documents]
    result.extra = bench.control(None)
    return result


def sequential_arm(bench: Bench, arm: str) -> Result:
    """One adapter that learns every document in turn: on the raw text, or on study sets with a retention method."""
    result, adapter = Result(arm), None
    names = {"ewc": ["ewc"], "replay": ["replay"]}.get(arm, [])
    methods = build(names, bench.config.retention, Resources(seed=bench.config.learn.seed))
    for document in bench.stream.documents:
        extra = 0.0
        if arm == "text":
            # as many tokens as the study sets see, so that the arms differ in the data and not in the effort
            study, _ = bench.study(document)
            tokens = sum(len(example.tokens) for example in study_examples(bench.model, document, study))
            example = text_example(bench.model.tokenizer, f"{document.title}\n\n{document.text}", document=document.id, end=False)
            examples = [example] * max(1, round(tokens / len(example.tokens)))
        else:
            study, extra = bench.study(document)
            examples = study_examples(bench.model, document, study)
        started = time.perf_counter()
        start = adapter.tensors if adapter else None
        adapter = train_adapter(bench.model, document.id, examples, bench.config.learn, retention=methods, start=start).adapter
        result.seconds.append(time.perf_counter() - started + extra)
        result.after_learning.append(bench.score(document, _active(bench, adapter)))
    assert adapter is not None
    result.at_end = [bench.score(document, _active(bench, adapter)) for document in bench.stream.documents]
    result.extra = bench.control(_active(bench, adapter))
    return result


def _active(bench: Bench, adapter: Adapter) -> Injection | None:
    return inject([(adapter, 1.0)], bench.model.dtype, bench.model.device)


def default_arm(bench: Bench, arm: str) -> Result:
    """The product: ContinualLM with its router, its gate and its transactions, in a workspace of its own."""
    result = Result(arm)
    with tempfile.TemporaryDirectory() as folder, ContinualLM.open(Path(folder) / "ws", bench.model, config=bench.config) as lm:
        for document in bench.stream.documents:
            started = time.perf_counter()
            update = lm.learn(document)
            result.seconds.append(time.perf_counter() - started)
            result.after_learning.append(_routed(lm, bench, document)[0])
            print(
                f"  {document.title[:50]}: {update.status}, recall {result.after_learning[-1]:.2f}, {result.seconds[-1]:.0f} s", flush=True
            )
        scores = [_routed(lm, bench, document) for document in bench.stream.documents]
        result.at_end = [score for score, _ in scores]
        with_context = [_routed(lm, bench, document, context=True)[0] for document in bench.stream.documents]
        state = lm.state
        decisions = [lm.knowledge.decide(probe.question, state) for probe in bench.stream.control]
        answers = lm.knowledge.answers([probe.question for probe in bench.stream.control], decisions, state)
        # the base in batches of the same size: in bfloat16 a matrix product's rounding depends on its shape
        alone = [Decision()] * len(decisions)
        base = lm.knowledge.answers([probe.question for probe in bench.stream.control], alone, state)
        to_base = [number for number, decision in enumerate(decisions) if not decision.documents]
        injection = lm.knowledge.injection(lm.knowledge.decide(bench.stream.control_text, state), state)
        sizes = [info.bytes for info in lm.adapters]
        result.extra = {
            "recall_with_retrieval": sum(with_context) / len(with_context),
            "routed_right": sum(right for _, right in scores) / len(scores),
            "control_accuracy": sum(recall(answers, bench.stream.control)) / len(answers),
            "control_perplexity": perplexity(bench.model, [bench.stream.control_text], injection),
            "control_questions_to_base": len(to_base),
            "control_answers_of_base_identical": all(answers[number] == base[number] for number in to_base),
            "bytes_per_document": sum(sizes) / len(bench.stream.documents),
            "rejected": sum(update.status == "rejected" for update in lm.log()),
        }
    return result


def _routed(lm: ContinualLM, bench: Bench, document: Document, context: bool = False) -> tuple[float, float]:
    """Recall of a document's questions through the router, and the share of them that was routed to the document."""
    probes, state = bench.stream.questions[document.id], lm.state
    decisions = [lm.knowledge.decide(probe.question, state) for probe in probes]
    contexts = [lm.knowledge.context(probe.question, decision)[0] for probe, decision in zip(probes, decisions, strict=True)]
    answers = lm.knowledge.answers([probe.question for probe in probes], decisions, state, contexts if context else None)
    routed = sum(document.id in decision.documents for decision in decisions) / len(decisions)
    return sum(recall(answers, probes)) / len(probes), routed


RUNNERS: dict[str, Callable[[Bench, str], Result]] = {"nothing": fixed_arm, "context": fixed_arm, "default": default_arm}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The comparison as a table."""
    print(f"{'arm':10} {'learned':>8} {'end':>6} {'forgot':>7} {'control':>8} {'perplexity':>10} {'s/doc':>6}")
    for row in rows:
        learned = "" if row["recall_after_learning"] is None else f"{row['recall_after_learning']:.1%}"
        forgot = "" if row["forgetting"] is None else f"{row['forgetting']:.1%}"
        print(
            f"{row['arm']:10} {learned:>8} {row['recall_at_end']:6.1%} {forgot:>7} {row['control_accuracy']:8.1%} "
            f"{row['control_perplexity']:10.2f} {row['seconds_per_document']:6.1f}"
        )


def run_arm(options: argparse.Namespace, arm: str, folder: Path) -> dict[str, Any]:
    """One arm, in this process; ``folder`` is where arms find each other's study sets."""
    config, stream = configured(options), stream_of(options)
    if any(document.pairs for document in stream.documents):
        raise ValueError("a document of the stream brings questions of its own: they would be trained on")
    model = load_model(options.model, threads=1 if options.jobs > 1 else config.model.threads)
    print(f"{arm} ...", flush=True)
    row = RUNNERS.get(arm, sequential_arm)(Bench(model, stream, config, folder), arm).summary()
    row["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    show([row])
    return row


def stream_of(options: argparse.Namespace) -> Stream:
    """The stream that was asked for."""
    return squad_stream(options.squad, options.documents) if options.squad else written_stream(options.documents)


def configured(options: argparse.Namespace) -> Config:
    """The default configuration with the seed."""
    config = load_config(None)
    return config.model_copy(update={"learn": config.learn.model_copy(update={"seed": options.seed})})


def results_file(options: argparse.Namespace) -> Path:
    """Where the results go."""
    name = "squad" if options.squad else "written"
    return options.out or HERE.parent / "results" / f"stream-{name}-{options.documents}-seed{options.seed}.json"


def settings(options: argparse.Namespace, stream: Stream) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "benchmark": "stream-squad" if options.squad else "stream-written",
        "documents": len(stream.documents),
        "questions": sum(map(len, stream.questions.values())),
        "seed": options.seed,
        "model": options.model,
        "config": configured(options).model_dump(mode="json", include={"study", "learn", "retention", "gate", "route", "generate"}),
    }


def measured(options: argparse.Namespace, stream: Stream) -> list[dict[str, Any]]:
    """The arms in the results file, where it was measured with the same settings; with ``--resume`` only."""
    if not options.resume or not results_file(options).exists():
        return []
    record = json.loads(results_file(options).read_text())
    if changed := [name for name, value in settings(options, stream).items() if record[name] != value]:
        raise SystemExit(f"{results_file(options).name} was measured with another {changed[0]}: run without --resume, or with --out FILE")
    return list(record["arms"])


def write(options: argparse.Namespace, stream: Stream, rows: Sequence[dict[str, Any]]) -> None:
    """The results as JSON, with the configuration and the machine's facts."""
    target = results_file(options)
    record = {**settings(options, stream), "jobs": options.jobs, "machine": machine_facts(), "arms": list(rows)}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Run the arms and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--squad", type=Path, help="a SQuAD v1.1 JSON file instead of the written stream")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="arms that run at the same time, with one thread each")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--resume", action="store_true", help="keep the arms that the results file has, and run the others")
    options = parser.parse_args()
    arms = options.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"unknown arm {sorted(unknown)[0]!r}; there are {', '.join(ARMS)}")
    stream = stream_of(options)
    rows = measured(options, stream)
    missing = sorted(set(arms) - {row["arm"] for row in rows}, key=ARMS.index, reverse=True)  # the longest first
    # a process for every arm: its peak of memory is its own
    pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, pool:
        for done in as_completed([pool.submit(run_arm, options, arm, Path(folder)) for arm in missing]):
            rows = sorted([*rows, done.result()], key=lambda row: ARMS.index(row["arm"]))
            write(options, stream, rows)  # after every arm, so that an interrupted run leaves what it has
    show(rows)
    print(f"written to {results_file(options).name}")


if __name__ == "__main__":
    main()
