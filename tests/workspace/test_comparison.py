"""The comparison on a small model: fresh states, the same questions, what was reached and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import TINY_SETTINGS, tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.errors import DataError
from retain.data.streams import Question
from retain.evaluation.report import write_report
from retain.evaluation.runs import Run
from retain.learners.base import LearnerError
from retain.workspace.comparison import Asked, arms_of, assign_questions, run_comparison
from retain.workspace.comparison.arms import log_likelihood


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(
        None,
        {
            **TINY_SETTINGS,
        },
    )


DOCUMENTS = [Document.from_text(text, title) for title, text in tiny_documents()[:2]]


def questions() -> list[Question]:
    return [
        Question(item.wordings[-1], item.answer, document=DOCUMENTS[number].title) for number in (0, 1) for item in tiny_questions(number)
    ]


def test_learning_beats_the_baselines_and_a_run_goes_on(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    asked = assign_questions(DOCUMENTS, questions(), "q.jsonl")
    config = {"documents": [document.id for document in DOCUMENTS]}
    told: list[Any] = []

    class Stop(Exception):
        pass

    def stop(at: Any) -> None:
        told.append(at)
        if at.arm == "lora":
            raise Stop

    arms = arms_of("lora")
    assert arms == ["nothing", "context", "plain", "lora"]
    with pytest.raises(Stop), Run.create(tmp_path / "run", config) as run:
        run_comparison(DOCUMENTS, asked, arms, 1, tiny_model, settings, run, stop)
    assert [at.arm for at in told] == ["nothing"] * 2 + ["context"] * 2 + ["plain"] * 2 + ["lora"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".lora")], "the interrupted state was left behind"
    again: list[Any] = []
    with Run.create(tmp_path / "run", config, resume=True) as run:
        results = run_comparison(DOCUMENTS, asked, arms, 1, tiny_model, settings, run, again.append)
    assert {at.arm for at in again} == {"lora"} and again[-1].done == again[-1].total == 8

    table = results["comparison"]
    assert list(table) == ["nothing", "context", "plain", "lora", "lora+passages"]
    assert table["nothing"]["contains"] < 0.3 < table["lora"]["contains"]
    assert table["lora"]["contains"] > table["plain"]["contains"]
    assert table["lora"]["log_likelihood"] > table["nothing"]["log_likelihood"] + 0.5
    assert table["lora"]["forgetting"] == 0 and table["lora"]["control_lost"] is None  # the small model knows none of it
    assert table["plain"]["forgetting"] > 0.1 or table["plain"]["contains"] < 0.2
    assert table["plain"]["perplexity_rise"] > 0.1 > abs(table["lora"]["perplexity_rise"])
    assert all(row["answer_seconds"] > 0 for row in table.values())
    assert table["nothing"]["tokens"] == 0 < table["lora"]["tokens"] and table["lora"]["bytes_per_document"] > 1000
    rows = results["methods"]["lora"]["seeds"]["0"]["matrix"]
    assert len(rows) == 3 and rows[1][1] != rows[1][1], "a document that was not learned yet was given a score"
    items = results["methods"]["lora"]["seeds"]["0"]["items"]
    assert len(items) == len(asked) and {"question", "said", "contains", "f1"} <= set(items[0])

    page = write_report(tmp_path / "run")
    text = page.html.read_text()
    assert "Ways of learning" in text and "lora+passages" in text and page.finished


def test_questions_find_their_documents() -> None:
    asked = assign_questions(DOCUMENTS, questions(), "q.jsonl")
    assert {one.document for one in asked} == {document.id for document in DOCUMENTS}
    word = next(item.answer for item in tiny_questions(0) if item.answer.lower() not in DOCUMENTS[1].text.lower())
    other = next(item.answer for item in tiny_questions(1) if item.answer.lower() not in DOCUMENTS[0].text.lower())
    both = [Question("q?", word, reworded="r?"), Question("s?", other)]
    assert [one.document for one in assign_questions(DOCUMENTS, both, "q")] == [DOCUMENTS[0].id] * 2 + [DOCUMENTS[1].id]
    with pytest.raises(DataError, match="question 1: no document holds its answer 'zzz'"):
        assign_questions(DOCUMENTS, [Question("q?", "zzz")], "q.jsonl")
    with pytest.raises(DataError, match="question 1 is about 'nowhere', which is not among the documents"):
        assign_questions(DOCUMENTS, [Question("q?", "a", document="nowhere")], "q.jsonl")
    with pytest.raises(DataError, match="there is no question about"):
        assign_questions(DOCUMENTS, [both[0]], "q.jsonl")


def test_names_of_arms() -> None:
    assert arms_of("all")[:4] == ["nothing", "context", "plain", "lora"] and "jitrl-full" in arms_of("all")
    with pytest.raises(LearnerError, match="unknown learner 'jitlr': did you mean 'jitrl'"):
        arms_of("lora,jitlr")
    with pytest.raises(LearnerError, match="nothing to compare"):
        arms_of(" , ")


def test_a_guide_counts_in_the_likelihood(tiny_model: Any) -> None:
    from retain.learners.base import Aid

    asked = Asked("", "Who built the bridge?", ("Bram Holt",))
    plain = log_likelihood(tiny_model, asked, None)
    same = log_likelihood(tiny_model, asked, None, None, Aid(guide=lambda hidden, logits, last: logits))
    flat = log_likelihood(tiny_model, asked, None, None, Aid(guide=lambda hidden, logits, last: logits * 0))
    assert plain == pytest.approx(same) and flat == pytest.approx(-__import__("math").log(tiny_model.vocabulary), rel=1e-4)


def test_the_command(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from retain.cli.main import app

    monkeypatch.chdir(tmp_path)
    title, text = tiny_documents()[0]
    (tmp_path / "a.md").write_text(f"# {title}\n\n{text}\n")
    lines = [json.dumps({"question": item.wordings[-1], "answer": item.answer}) for item in tiny_questions(0)[:3]]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    runner = CliRunner()
    words = ["compare", "a.md", "--questions", "q.jsonl", "--learners", "nothing", "--model", str(tiny_model_dir)]
    plan = runner.invoke(app, [*words, "--dry-run", "--json"], prog_name="retain")
    assert json.loads(plan.stdout)["questions"] == 3
    done = runner.invoke(app, words, prog_name="retain")
    assert done.exit_code == 0, done.output
    assert "context" in done.stdout and "plain" in done.stdout and (tmp_path / "runs").is_dir()
    (tmp_path / "q.jsonl").write_text('{"question": "a?", "answer": "b"}\n{"question": ')
    wrong = runner.invoke(app, words, prog_name="retain")
    assert wrong.exit_code == 2 and "line 2" in wrong.output and wrong.output.count("error:") == 1
    wrong = runner.invoke(app, [*words[:4], "--learners", "lroa"], prog_name="retain")
    assert wrong.exit_code == 2 and "did you mean 'lora'" in wrong.output
