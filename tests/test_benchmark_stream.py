"""The stream benchmark never lets training see its questions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from benchmarks.stream.run import Stream, measured, squad_stream, write, written_stream
from tests.tiny_models import llama

from retain.config import StudyConfig
from retain.learners.study import build_study


def squad_file(path: Path) -> Path:
    """Three articles with one passage of 120 words and four questions each."""
    articles = []
    for name in ("Aldermoor", "Brackwater", "Corvane"):
        text = " ".join(f"The {name} engine number {n} was built in {1900 + n} by Ms Quillan of {name}." for n in range(9))
        questions = [
            {"id": f"{name}{n}", "question": f"When did {name} get engine {n}?", "answers": [{"text": str(1900 + n), "answer_start": 0}]}
            for n in range(4)
        ]
        articles.append({"title": name, "paragraphs": [{"context": text, "qas": questions}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


def asked(stream: Stream) -> set[str]:
    """Every question of the examination."""
    return {probe.question for probes in stream.questions.values() for probe in probes}


def test_squad_documents_are_taught_without_their_questions(tmp_path: Path) -> None:
    stream = squad_stream(squad_file(tmp_path / "squad.json"), 3)
    assert len(stream.documents) == 3 and len(asked(stream)) == 12
    for document in stream.documents:
        study = build_study(llama(), None, document, StudyConfig(writer="none"))
        assert study.train and not {item.prompt for item in (*study.train, *study.probes)} & asked(stream)


def test_written_documents_bring_no_questions() -> None:
    stream = written_stream(24)
    assert len(stream.documents) == 24 and not any(document.pairs for document in stream.documents)


def test_arms_that_were_measured_are_kept_only_with_the_same_settings(tmp_path: Path) -> None:
    stream = written_stream(2)
    options = argparse.Namespace(documents=2, squad=None, model="m", seed=0, jobs=1, out=tmp_path / "results.json", resume=True)
    assert measured(options, stream) == []
    write(options, stream, [{"arm": "nothing", "recall_at_end": 0.0}])
    assert [row["arm"] for row in measured(options, stream)] == ["nothing"]
    options.resume = False
    assert measured(options, stream) == []
    options.resume, options.seed = True, 1
    with pytest.raises(SystemExit, match="another seed"):
        measured(options, stream)
