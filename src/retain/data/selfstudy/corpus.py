"""The study corpus: passages with questions written by people, to train and to judge question writers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyQuestion:
    """One question with a second wording, its answer, and the sentence of the passage that says so."""

    question: str
    reworded: str
    answer: str
    evidence: str


@dataclass(frozen=True)
class StudyPassage:
    """A passage with its questions."""

    title: str
    text: str
    questions: tuple[StudyQuestion, ...]


def load_study_corpus(path: str | Path | Iterable[str | Path]) -> list[StudyPassage]:
    """Read passages from one or several JSONL files, one passage a line.

    Raises:
        ValueError: a line is not a passage; the message names the file and the line.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    found = []
    for each in paths:
        for number, line in enumerate(each.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                questions = tuple(
                    StudyQuestion(q["question"], q.get("reworded", ""), q["answer"], q.get("evidence", "")) for q in entry["questions"]
                )
                found.append(StudyPassage(entry["title"], entry["text"], questions))
            except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
                raise ValueError(f"{each}, line {number}: not a study passage ({type(error).__name__}: {error})") from error
    return found
