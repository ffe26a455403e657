"""`retain bench`: what was learned beside the base, on a small model that really learned something."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.tiny import TINY_SETTINGS, known_questions, tiny_documents, tiny_questions
from typer.testing import CliRunner

from retain.cli import bench, session
from retain.cli.command import add
from retain.config import Config, load_config
from retain.data.document import Document
from retain.lm.decoder import DecoderLM
from retain.workspace.continual import ContinualLM

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(
        None,
        {
            **TINY_SETTINGS,
            "gate": {"max_forgetting": 1.0, "max_perplexity_rise": 1e9},
        },
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: DecoderLM, settings: Config) -> Path:
    """A workspace that knows one document."""
    place = tmp_path_factory.mktemp("bench") / "work"
    title, text = tiny_documents()[0]
    with ContinualLM.open(place, tiny_model, config=settings) as lm:
        assert lm.learn(Document.from_text(text, title)).status == "committed"
    return place


def command_line(*words: object) -> Any:
    app = typer.Typer()
    for name, function in (("qa", bench.qa), ("mc", bench.mc), ("perplexity", bench.perplexity)):
        add(app, function, name)
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="retain bench")


@pytest.fixture
def run(learned: Path, tiny_model: DecoderLM, settings: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("qa", file)`: a command over that workspace."""

    def open_workspace(place: Path, **options: Any) -> ContinualLM:
        return ContinualLM.open(place, tiny_model, config=settings, create=False, progress=options["progress"])

    monkeypatch.setenv("RETAIN_WORKSPACE", str(learned))
    monkeypatch.setattr(session, "open_workspace", open_workspace)
    return command_line


@pytest.fixture
def bare(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`bare("qa", file)`: the same where there is no workspace, with the small model as the configured one."""
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("RETAIN_MODEL__NAME", str(tiny_model_dir))
    return command_line


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """The document's questions, and known ones about other things."""
    path = tmp_path / "exam.jsonl"
    asked = [*tiny_questions(0), *known_questions()[:4]]
    path.write_text("".join(json.dumps({"question": item.wordings[-1], "answer": item.answer}) + "\n" for item in asked))
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """The document's questions, the answers to the others as wrong options."""
    path = tmp_path / "choices.jsonl"
    answers = [item.answer for item in tiny_questions(0)]
    rows = [
        {"question": item.wordings[-1], "choices": answers, "answer": item.answer, "subject": "odd" if n % 2 else "even"}
        for n, item in enumerate(tiny_questions(0))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_was_learned_is_answered_and_the_base_does_not_know_it(run: Run, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = run("qa", questions, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    base, learned = found["arms"]["base"], found["arms"]["learned"]
    document = len(tiny_questions(0))
    assert sum(row["contains"] for row in base["items"][:document]) == 0
    assert sum(row["contains"] for row in learned["items"][:document]) >= 0.75 * document
    assert [row["answer"] for row in learned["items"][document:]] == [row["answer"] for row in base["items"][document:]]
    assert learned["routed"] == document and found["n"] == document + 4
    assert found["difference"]["contains"]["mean"] == pytest.approx(learned["contains"] - base["contains"])
    assert base["intervals"]["contains"][0] <= base["contains"] <= base["intervals"]["contains"][1]
    assert json.loads(out.read_text()) == found


def test_a_table_for_people(run: Run, questions: Path) -> None:
    result = run("qa", questions, "--limit", 6)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= {"base", "learned", "difference"}
    assert "contains" in result.stdout and "EM" in result.stdout and " to " in result.stdout
    assert max(map(len, lines)) <= 85
    assert "6 questions" in result.stderr and "tokens/s" in result.stderr and "6/6" in result.stderr


def test_the_base_alone_and_one_adapter(run: Run, questions: Path, learned: Path, tiny_model: DecoderLM) -> None:
    assert list(json.loads(run("qa", questions, "--base", "--json").stdout)["arms"]) == ["base"]
    with ContinualLM.open(learned, tiny_model) as lm:
        name = lm.adapters[0].name
    always = json.loads(run("qa", questions, "--adapter", name, "--json").stdout)
    assert always["arms"]["learned"]["routed"] == always["n"]
    refused = run("qa", questions, "--adapter", "nothing-like-it")
    assert refused.exit_code == 2 and "no adapter" in refused.stderr
    assert run("qa", questions, "--adapter", name, "--base").exit_code == 2


def test_retrieval_and_passages(run: Run, tmp_path: Path, questions: Path) -> None:
    title, text = tiny_documents()[1]
    asked = [{"id": str(n), "question": q.wordings[0], "answers": [{"text": q.answer}]} for n, q in enumerate(tiny_questions(1))]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": title, "paragraphs": [{"context": text, "qas": asked}]}]}))
    closed = json.loads(run("qa", path, "--base", "--json").stdout)["arms"]["base"]["contains"]
    shown = json.loads(run("qa", path, "--base", "--in-context", "--json").stdout)["arms"]["base"]["contains"]
    assert shown > closed  # the small model reads
    assert json.loads(run("qa", questions, "--retrieval", "--json").stdout)["arms"]["learned"]["contains"] > 0.3
    assert run("qa", questions, "--in-context").exit_code == 2  # no passages there
    both = run("qa", path, "--in-context", "--retrieval")
    assert both.exit_code == 2 and "choose one" in both.stderr


def test_multiple_choice(run: Run, choices: Path) -> None:
    result = run("mc", choices, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["score"] == "options" and found["chance"] == pytest.approx(1 / len(tiny_questions(0)))
    assert found["arms"]["learned"]["accuracy"] > found["arms"]["base"]["accuracy"]
    assert set(found["arms"]["base"]["subjects"]) == {"odd", "even"}
    people = run("mc", choices, "--score", "letters", "--limit", 3, "--seed", 2)
    assert people.exit_code == 0 and "accuracy by letters" in people.stdout and "3 questions" in people.stderr
    assert "the interval includes chance" in people.stderr or "100.0 %" in people.stdout


def test_mmlu_by_subject_with_shots(bare: Run, tmp_path: Path) -> None:
    data = tmp_path / "mmlu"
    for split, count in (("test", 4), ("dev", 5)):
        (data / split).mkdir(parents=True)
        with (data / split / f"anatomy_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[f"{split} question {n}?", "a", "b", "c", "d", "ABCD"[n % 4]] for n in range(count)])
    result = bare("mc", "mmlu:anatomy", "--data", data, "--shots", 2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["score"] == "letters" and found["shots"] == 2 and found["n"] == 4 and list(found["arms"]) == ["base"]
    typo = bare("mc", "mmlu:anatomi", "--data", data)
    assert typo.exit_code == 2 and "did you mean 'anatomy'?" in typo.stderr
    assert bare("mc", "mmlu:virology", "--data", data).exit_code == 2
    many = bare("mc", "mmlu:anatomy", "--data", data, "--shots", 9)
    assert many.exit_code == 2 and "5 few-shot examples" in many.stderr
    assert "one of auto, letters, options" in bare("mc", "mmlu:anatomy", "--data", data, "--score", "letter").stderr


def test_perplexity_falls_on_what_was_learned_and_the_divergence_is_told(run: Run, tmp_path: Path) -> None:
    title, text = tiny_documents()[0]
    notes = tmp_path / "notes.txt"
    notes.write_text(f"{title}\n\n{text}")
    result = run("perplexity", notes, "--json")
    assert result.exit_code == 0, result.output
    arms = json.loads(result.stdout)["arms"]
    assert arms["learned"]["routed"] == 1 and arms["learned"]["kl"] > 0.01 and arms["base"]["kl"] == 0.0
    assert arms["learned"]["perplexity"] < arms["base"]["perplexity"]
    other = tmp_path / "other.txt"
    other.write_text("What is it that they say of the other one?\n")
    result = run("perplexity", other)
    assert result.exit_code == 0 and "KL to the base" in result.stdout and "0 routed" in result.stderr


def test_the_same_twice_gives_the_same(bare: Run, questions: Path) -> None:
    first, second = (bare("qa", questions, "--limit", 3, "--json").stdout for _ in range(2))
    assert first == second and json.loads(first)["arms"]["base"]["n"] == 3


def test_mistakes_are_told_before_the_model_is_loaded(bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_MODEL__NAME", str(tmp_path / "no-model"))
    wrong = tmp_path / "wrong.jsonl"
    good = {"question": "Which?", "choices": ["a", "b"], "answer": "a"}
    wrong.write_text(f"{json.dumps(good)}\n\n{json.dumps({**good, 'answer': 'c'})}\n")
    result = bare("mc", wrong)
    assert result.exit_code == 2
    assert f"{wrong}, line 3, field 'answer': 'c' is no option" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    wrong.write_text('{"question": "Which?"}\n')
    result = bare("qa", wrong)
    assert result.exit_code == 2 and "line 1, field 'answer'" in result.stderr
    for words in (("qa", tmp_path / "none.jsonl"), ("mc", tmp_path / "none.csv"), ("perplexity", tmp_path / "none.txt")):
        result = bare(*words)
        assert result.exit_code == 2 and "none" in result.stderr
    result = bare("qa", wrong, "--out", tmp_path / "absent" / "x.json")
    assert result.exit_code == 2 and "there is no directory" in result.stderr
    wrong.write_text('{"question": "Which?", "answer": "this"}\n')
    result = bare("qa", wrong, "--adapter", "travel")
    assert result.exit_code == 2 and "no workspace" in result.stderr


@pytest.mark.parametrize("function", [bench.qa, bench.mc, bench.perplexity])
def test_examples_fit_a_terminal(function: Any) -> None:
    width = max(len(line) for line, _ in function.examples)
    assert all(width + len(what) + 4 <= 78 for _, what in function.examples)
    assert all(line.startswith(f"retain bench {function.__name__} ") for line, _ in function.examples)
