"""The consolidation benchmark measures before and after, on the documents that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.consolidation import measure
from benchmarks.stream.run import Stream
from tests.tiny import tiny_documents, tiny_questions

from retain.data.document import Document
from retain.evaluation.probes import Probe
from retain.workspace.continual import ContinualLM


def test_before_and_after(tmp_path: Path, tiny_model: Any) -> None:
    documents = [Document.from_text(text, title) for title, text in tiny_documents()[:3]]
    questions = {
        document.id: [Probe(document.id, item.wordings[-1], item.answer) for item in tiny_questions(number)]
        for number, document in enumerate(documents)
    }
    with ContinualLM.open(tmp_path / "w", tiny_model) as lm:
        assert len(lm.learn(documents)) == 3
    found = measure(tmp_path / "w", Stream(documents[:2], questions, [], ""), tiny_model)
    assert len(found["before"]["recall"]) == len(found["after"]["recall"]) == 2
    assert found["status"] in ("committed", "rejected") and found["seconds"] > 0
    assert found["after"]["adapters"] == (1 if found["status"] == "committed" else found["before"]["adapters"])
    assert found["certificate"]["learned"]["probes"] > 0
