"""How many documents one adapter holds: recall with an adapter for each document, and after ``retain consolidate`` made one of them.

    python -m benchmarks.consolidation --documents 8
    python -m benchmarks.consolidation --documents 8 --taught WORKSPACE     # documents of the written stream, learned there already

The first documents of the written stream (:mod:`benchmarks.stream`) are learned, each into an adapter of its own, their questions (both
wordings, never trained on) are asked closed book through the router, the domain is consolidated, and the questions are asked again. The
gate decides by the documents' own probes; the questions here are not known to it. Results: ``benchmarks/results/consolidation-N.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stream.run import Stream, written_stream
from retain.config import load_config
from retain.evaluation.probes import recall
from retain.lm.devices import machine_facts
from retain.lm.loading import load_model
from retain.workspace.continual import ContinualLM

RESULTS = Path(__file__).parent / "results"


def closed_book(lm: ContinualLM, stream: Stream) -> list[float]:
    """Recall of each document's questions, through the router, without passages."""
    found = []
    for document in stream.documents:
        probes = stream.questions[document.id]
        decisions = [lm.knowledge.decide(probe.question, lm.state) for probe in probes]
        answers = lm.knowledge.answers([probe.question for probe in probes], decisions, lm.state)
        found.append(sum(recall(answers, probes)) / len(probes))
    return found


def size(lm: ContinualLM) -> dict[str, Any]:
    """Adapters in use and their bytes for each document."""
    adapters = lm.adapters
    return {
        "adapters": len(adapters),
        "bytes_per_document": sum(item.bytes for item in adapters) / sum(len(item.documents) for item in adapters),
    }


def measure(place: Path, stream: Stream, model: Any) -> dict[str, Any]:
    """Learn what is not learned yet, ask, consolidate, ask again."""
    with ContinualLM.open(place, model, config=load_config(None)) as lm:
        wanted = [document.id for document in stream.documents]
        for record in lm.documents():
            if record.id not in wanted:
                lm.forget(record.id)
        for document in stream.documents:
            print(f"  {document.title[:50]}: {lm.learn(document).status}", flush=True)
        before = {"recall": closed_book(lm, stream), **size(lm)}
        started = time.perf_counter()
        update = lm.consolidate()
        assert update is not None
        seconds = time.perf_counter() - started
        after = {"recall": closed_book(lm, stream), **size(lm)}
        return {
            "before": before,
            "after": after,
            "recall_before": sum(before["recall"]) / len(wanted),
            "recall_after": sum(after["recall"]) / len(wanted),
            "status": update.status,
            "reason": update.reason,
            "seconds": seconds,
            "certificate": {key: update.certificate[key] for key in ("learned", "kept", "cost", "gate") if key in update.certificate},
        }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--taught", type=Path, help="a workspace in which they were learned; it is copied")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    stream, model = written_stream(options.documents), load_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "work"
        if options.taught:
            shutil.copytree(options.taught, place)
        found = measure(place, stream, model)
    record = {"benchmark": "consolidation", "documents": len(stream.documents), "model": options.model, **found, "machine": machine_facts()}
    target: Path = options.out or RESULTS / f"consolidation-{len(stream.documents)}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{found['status']}: recall {found['recall_before']:.1%} -> {found['recall_after']:.1%}, {found['seconds']:.0f} s; {target.name}")


if __name__ == "__main__":
    main()
