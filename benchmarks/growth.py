"""Growth: the cost of an answer, of an update, of opening and of verifying, with 1 and with 200 documents in the workspace.

    python -m benchmarks.growth [--counts 1,10,50,100,200] [--model embedded|tiny|DIRECTORY] [--repeats 5]
                                [--out benchmarks/results/growth.json] [--scratch DIRECTORY]

One workspace is filled with invented documents (:mod:`benchmarks.growth_fill`: really there, but not trained) and kept at every count.
Then all counts take turns, arm by arm and repeat by repeat, in one process with one model, so that a change of the machine's load meets
them all. Costs are milliseconds by the clock and of computing, medians over the repeats; a ratio is the median of the ratios within a
repeat of the largest count to the smallest. Answers and routes are warm (the adapter is in memory); opening, the first answer, verifying,
committing and learning work on a workspace that was just opened. What changes a workspace works on a copy of it. Memory is measured in a
process of its own per count.

Some work is bounded but one document does not reach the bound: an update draws at most ``gate.probe_budget`` questions of earlier
documents, and one document has few. ``budget_reached`` is the first count where all are drawn, ``ratio_beyond_budget`` compares with it.

Adapters are one per document here (``learn.consolidate_after`` is 0): training a shared adapter is a cost of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.growth_fill import commit, fill, invented, prepare, random_adapter, tiny_model
from benchmarks.growth_plot import plot
from retain.config import Config
from retain.data.document import Document
from retain.evaluation.control import load_control
from retain.learners.study import build_study
from retain.lm.devices import machine_facts
from retain.lm.loading import load_model, quiet
from retain.lm.model import LanguageModel
from retain.workspace import ActiveAdapter
from retain.workspace.continual import ContinualLM
from retain.workspace.reports import Event
from retain.workspace.transaction import check_kept, document_chunks

NEW, SHORT, ANSWER_TOKENS, EPOCHS = 1_000_003, 4, 16, 1
TELLING, GENERAL = f"Describe the {invented(0).subject} in many words.", "Describe the sea in many words."


class Cost(NamedTuple):
    """Milliseconds by the clock, which waits for the disk and for other processes, and of this process's own computing."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Cost:
        """The clocks as they stand."""
        return cls(1000 * time.perf_counter(), 1000 * time.process_time())

    def until(self, end: Cost, over: int = 1) -> Cost:
        """From these clocks to later ones, for each of ``over`` things."""
        return Cost((end.wall - self.wall) / over, (end.cpu - self.cpu) / over)


Costs = dict[str, Cost]


@dataclass
class Place:
    """A workspace with ``count`` documents: its folder, which stays as it is, the workspace opened, with warm caches, and what became of
    the short document each time that it was learned."""

    count: int
    root: Path
    lm: ContinualLM
    outcomes: list[str] = field(default_factory=list)

    def fresh(self, root: Path | None = None, progress: Callable[[Event], None] | None = None) -> ContinualLM:
        """The same workspace (or a copy of it) opened anew, as another process finds it; the model is shared."""
        return ContinualLM.open(root or self.root, self.lm.model, config=self.lm.config, create=False, progress=progress)

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """A copy that may be changed; removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self.root.parent) as scratch:
            yield duplicate(self.root, Path(scratch) / "work")


def duplicate(root: Path, target: Path) -> Path:
    """Copy a closed workspace; objects never change, so they are linked."""
    shutil.copytree(root / "objects", target / "objects", copy_function=os.link)
    shutil.copy(root / "ledger.db", target / "ledger.db")
    return target


def timed(work: Callable[[], Any], over: int = 1) -> Cost:
    """What one call costs, divided by the number of things that it does."""
    started = Cost.now()
    work()
    return started.until(Cost.now(), over)


def first_questions(lm: ContinualLM) -> list[str]:
    """The stored questions about the first document, which every workspace has."""
    return [probe.question for probe in lm.ledger.probes(invented(0).document.id)]


def answer(place: Place) -> Costs:
    """What a question costs: reading the state, routing, and the whole answer, about the first document and about nothing learned."""
    lm, state = place.lm, place.lm.state
    own, general = first_questions(lm), [question.question for question in load_control().questions[:10]]
    return {
        "read_state": timed(lambda: lm.state),
        "route_document": timed(lambda: [lm.knowledge.decide(question, state) for question in own], len(own)),
        "route_general": timed(lambda: [lm.knowledge.decide(question, state) for question in general], len(general)),
        "answer_document": timed(lambda: lm.ask(TELLING, max_tokens=ANSWER_TOKENS)),
        "answer_general": timed(lambda: lm.ask(GENERAL, max_tokens=ANSWER_TOKENS)),
    }


def check(place: Place) -> Costs:
    """What the gate costs, with every adapter that it asks for in memory: routing the new document's questions, routing the drawn questions
    of earlier documents before and after, and the whole check of old knowledge."""
    lm, document = place.lm, invented(NEW).document
    study = build_study(lm.model, None, document, lm.config.study, lm.config.learn.seed)
    adapter = random_adapter(lm, NEW)
    item = ActiveAdapter(document.id, lm.knowledge.keep(adapter), 1.0, (document.id,))
    before, extra = lm.state, {document.id: "\n".join(piece.text for piece in document_chunks(lm.model, document))}
    after, questions = replace(before, adapters=(*before.adapters, item)), [probe.prompt for probe in study.probes if probe.prompt]
    old = drawn(lm)

    def routes() -> None:
        for probe in drawn(lm):
            lm.knowledge.decide(probe.question, after, extra)
            lm.knowledge.decide(probe.question, before)

    return {
        "route_candidate": timed(lambda: [lm.knowledge.decide(question, after, extra) for question in questions], len(questions)),
        "route_old_probes": timed(routes),
        "check_kept": timed(lambda: check_kept(lm.knowledge, before, after, extra, old, adapter, lm.knowledge.skill(before))),
    }


def drawn(lm: ContinualLM) -> list[Any]:
    """The questions of earlier documents that an update asks."""
    return lm.ledger.sample_probes(lm.config.gate.probe_budget, lm.config.learn.seed)


def opening(place: Place) -> Costs:
    """Opening with its state, the first answer of a new process, a document that is known already, and verifying everything."""

    def opened() -> None:
        with place.fresh() as lm:
            assert len(lm.state.adapters) == place.count

    def first() -> None:
        with place.fresh() as lm:
            lm.ask(first_questions(lm)[0], max_tokens=1)

    def known() -> None:
        first = invented(0).document
        with place.fresh() as lm:
            found = lm.learn(Document.from_text(f"{first.text} This is all.", first.title))
            assert found.status == "unchanged", found.status

    def whole() -> None:
        with place.fresh() as lm:
            found = lm.verify()
            assert found.ok, found.problems

    return {"open": timed(opened), "first_answer": timed(first), "known_already": timed(known), "verify": timed(whole)}


def committing(place: Place) -> Costs:
    """The last step of an update: the new state in the store and the ledger's transaction."""
    with place.copied() as root, place.fresh(root) as lm:
        ready = prepare(lm, NEW)
        return {"commit": timed(lambda: commit(lm, ready))}


def learning(place: Place) -> Costs:
    """A short document learned as a whole, its parts before training and after it, and forgetting it again."""
    document = invented(NEW, SHORT).document
    marks: dict[str, Cost] = {}

    def mark(event: Event) -> None:
        marks.setdefault(event.kind, Cost.now())
        if event.kind == "train":
            marks["trained"] = Cost.now()

    with place.copied() as root, place.fresh(root, mark) as lm:
        started = Cost.now()
        place.outcomes.append(lm.learn(document).status)
        ended = Cost.now()
        forgetting = timed(lambda: lm.forget(document.id))
    return {
        "learn": started.until(ended),
        "learn_before_training": started.until(marks["train"]),
        "learn_training": marks["train"].until(marks["trained"]),
        "learn_after_training": marks["trained"].until(ended),
        "forget": forgetting,
    }


WARM: tuple[Callable[[Place], Costs], ...] = (answer, check)
FRESH: tuple[Callable[[Place], Costs], ...] = (opening, committing, learning)


def measure_costs(places: Sequence[Place], repeats: int) -> dict[str, dict[int, list[Cost]]]:
    """The cost of every arm at every count, repeat by repeat, after a warm-up."""
    for place in places:
        for part in WARM:
            part(place)
    for part in FRESH:
        part(places[0])  # imports and the like; each of these opens the workspace anew anyway
    found: dict[str, dict[int, list[Cost]]] = {}
    for repeat in range(repeats):
        for part in (*WARM, *FRESH):
            for place in places if repeat % 2 == 0 else reversed(places):
                gc.collect()
                for arm, value in part(place).items():
                    found.setdefault(arm, {}).setdefault(place.count, []).append(value)
        print(f"  repeat {repeat + 1} of {repeats} done", flush=True)
    return found


def summary(costs: Mapping[str, Mapping[int, Sequence[Cost]]], counts: Sequence[int], full: int) -> dict[str, Any]:
    """Medians and all values at each count, and the ratio of the last count to the first (also of computing alone) and to ``full``."""

    def ratio(values: Mapping[int, Sequence[Cost]], to: int, clock: int) -> float:
        return round(statistics.median(last[clock] / first[clock] for first, last in zip(values[to], values[counts[-1]], strict=True)), 3)

    return {
        arm: {
            "median_ms": {str(count): round(statistics.median(cost.wall for cost in values[count]), 4) for count in counts},
            "median_cpu_ms": {str(count): round(statistics.median(cost.cpu for cost in values[count]), 4) for count in counts},
            "all_ms": {str(count): [round(cost.wall, 4) for cost in values[count]] for count in counts},
            "ratio": ratio(values, counts[0], 0),
            "cpu_ratio": ratio(values, counts[0], 1),
            "ratio_beyond_budget": ratio(values, full, 0) if full < counts[-1] else None,
        }
        for arm, values in costs.items()
    }


def facts(place: Place) -> dict[str, Any]:
    """What a workspace holds, its bytes on disk, and how many tokens the timed answers have."""
    lm, state = place.lm, place.lm.state
    sizes = lm.store.sizes()
    adapters = {item.digest for item in state.adapters} | set(state.objects.values())
    states = {update.after for update in lm.ledger.updates()}
    ledger = (place.root / "ledger.db").stat().st_size
    return {
        "documents": len(state.adapters),
        "chunks": lm.ledger.chunk_count(),
        "probes": len(lm.ledger.probes()),
        "probes_drawn": len(drawn(lm)),
        "answer_tokens": [lm.ask(question, max_tokens=ANSWER_TOKENS, on_token=len).tokens for question in (TELLING, GENERAL)],
        "answered_with": [item == invented(0).document.id for item in lm.ask(first_questions(lm)[0], max_tokens=1).adapters],
        "bytes": {
            "all": sum(sizes.values()) + ledger,
            "adapters": sum(size for digest, size in sizes.items() if digest in adapters),
            "states": sum(size for digest, size in sizes.items() if digest in states),
            "current_state": len(state.to_bytes()),
            "ledger": ledger,
            "documents_and_study_sets": sum(size for digest, size in sizes.items() if digest not in adapters | states),
        },
    }


def memory(root: Path, model: str, config: Config) -> dict[str, int]:
    """Highest resident bytes of this process: with the model, the workspace open, after an answer, a question per document, an update."""
    found = {}
    loaded = load_base(model, root.parent)
    found["model"] = peak_bytes()
    with ContinualLM.open(root, loaded, config=config, create=False) as lm:
        lm.knowledge.decide("Hello?", lm.state)
        found["open"] = peak_bytes()
        lm.ask(first_questions(lm)[0], max_tokens=ANSWER_TOKENS)
        found["answer"] = peak_bytes()
        state = lm.state
        for number in range(len(state.adapters)):
            lm.knowledge.injection(lm.knowledge.decide(f"Who founded the {invented(number).subject}?", state), state)
        found["every_document_asked"] = peak_bytes()
        lm.learn(invented(NEW, SHORT).document)
        found["update"] = peak_bytes()
    return found


def peak_bytes() -> int:
    """Highest resident memory of this process so far. Linux's own figure where there is one: getrusage counts the starting process in."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_base(model: str, cache: Path) -> LanguageModel:
    """The embedded model or the one in a directory."""
    if model == "embedded":
        return load_model()
    return load_model(model, device="cpu", precision="float32", cache_dir=cache)


def settings() -> Config:
    """The defaults, but few epochs, one attempt and questions by rules only: what costs the same with any number of documents is short."""
    learn = {"epochs": EPOCHS, "consolidate_after": 0}
    return Config.model_validate({"learn": learn, "gate": {"attempts": 1}, "study": {"writer": "none"}})


def run(counts: Sequence[int], model: str, repeats: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """Fill, keep a workspace per count, measure: first times and facts, then memory."""
    config = settings()
    if model == "tiny":
        with quiet():
            model = str(tiny_model(scratch / "model"))
    loaded, roots = load_base(model, scratch), {}
    for count in counts:
        with ContinualLM.open(scratch / "growing", loaded, config=config) as lm:
            fill(lm, count)
        roots[count] = duplicate(scratch / "growing", scratch / f"with-{count}")
        print(f"  filled to {count} documents", flush=True)
    shutil.rmtree(scratch / "growing")
    places = [Place(count, root, ContinualLM.open(root, loaded, config=config)) for count, root in roots.items()]
    known = {place.count: facts(place) for place in places}
    most = max(fact["probes_drawn"] for fact in known.values())
    full = min(count for count, fact in known.items() if fact["probes_drawn"] == most)
    times = summary(measure_costs(places, repeats), counts, full)
    for place in places:
        place.lm.close()
    described = {str(place.count): known[place.count] | {"learned": place.outcomes} for place in places}
    yield {"budget_reached": full, "facts": described, "times": times}
    peaks = {}
    for place in places:
        with place.copied() as root:
            command = [sys.executable, "-m", "benchmarks.growth", "--part", str(root), "--model", model]
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        peaks[str(place.count)] = json.loads(output.stdout.splitlines()[-1])
    yield {"peak_bytes": peaks}


def numbers(text: str) -> list[int]:
    """Counts given as "1,10,200", each once and the smallest first."""
    found = sorted({int(count) for count in text.split(",")})
    if found[0] < 1:
        raise ValueError("a workspace without documents has nothing to ask about")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=numbers, default="1,10,50,100,200", help="how many documents, from 1 on")
    parser.add_argument("--model", default="embedded", help="embedded, tiny (random, made on the spot) or a directory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth.json")
    parser.add_argument("--scratch", type=Path, help="where the workspaces are made; 200 documents of the embedded model take 1.4 GB")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(memory(options.part, options.model, settings())))
        return
    counts = options.counts
    record: dict[str, Any] = {
        "benchmark": "growth",
        "model": options.model if options.model in ("embedded", "tiny") else "directory",
        "counts": counts,
        "repeats": options.repeats,
        "settings": {"answer_tokens": ANSWER_TOKENS, "epochs": EPOCHS, "learn": settings().learn.model_dump(mode="json")},
        "machine": machine_facts() | {"load_average_before": round(os.getloadavg()[0], 2)},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for part in run(counts, options.model, options.repeats, Path(scratch)):
            record |= part
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    picture = options.out.with_suffix(".png")
    plot(record, picture)
    print(f"{'milliseconds':22}" + "".join(f"{heading:>10}" for heading in [*counts, "ratio", "beyond", "cpu ratio"]))
    for arm, row in record["times"].items():
        figures = [*row["median_ms"].values(), row["ratio"], row["ratio_beyond_budget"], row["cpu_ratio"]]
        print(f"{arm:22}" + "".join(" " * 10 if figure is None else f"{figure:10.2f}" for figure in figures))
    print(f"written to {options.out} and {picture.name}")


if __name__ == "__main__":
    main()
