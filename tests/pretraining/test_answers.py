"""A teacher behind an API: prompts become answers, answers training data, training data a student; over a real server that misbehaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.learners.server import Asked, Said, Server, chat, refusal
from tests.pretraining.material import TOWNS, TRAINING
from tests.pretraining.networks import tiny_network

from retain.data import DataError, endpoint
from retain.pretraining import DistillConfig, PretrainingError, Watch, distill, plan_distillation, read_config
from retain.pretraining.config import FilterConfig
from retain.pretraining.distillation.answers import answer_problem, read_prompts

QUESTIONS = {f"What does {town} sell?": f"{town} sells {goods}, as every trader on the river knows." for town, goods in TOWNS.items()}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)


def answering(asked: Asked) -> Said:
    return chat(QUESTIONS[asked.body["messages"][1]["content"]])


def asking(folder: Path, server: Server, out: str = "run", **sections: Any) -> DistillConfig:
    values: dict[str, Any] = {
        "teacher": {"url": server.url, "model": "big", "timeout": 0.5, "retries": 2, "key_env": None, "max_tokens": 50},
        "student": None,
        "corpus": {"prompts": "prompts.jsonl", "validation": 0.2},
        "training": {**TRAINING, "steps": 30},
        "checks": {"every": 15},
    }
    for section, given in sections.items():
        values[section] = {**(values.get(section) or {}), **given} if isinstance(given, dict) else given
    if not (folder / "prompts.jsonl").exists():
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    (folder / "asking.yaml").write_text(yaml.safe_dump(values))
    return read_config(DistillConfig, folder / "asking.yaml", {"out": str(folder / out)})


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_become_a_student(tmp_path: Path, server: Server) -> None:
    """From prompts to a model that was trained on the answers; its tokenizer is its own."""
    server.script = answering
    student = tiny_network(tmp_path / "student", "gpt2")
    told: list[dict[str, Any]] = []
    results = distill(asking(tmp_path, server, student={"model": str(student)}), watch=Watch(check=told.append))
    assert results is not None and results["prompts"] == results["answered"] == len(TOWNS) == results["filter"]["kept"]
    assert lines(tmp_path / "run" / "data.jsonl") == [{"prompt": asked, "completion": said} for asked, said in QUESTIONS.items()]
    assert len(server.asked) == len(TOWNS) and server.asked[0].body["max_tokens"] == 50
    assert server.asked[0].body["messages"][0]["content"].startswith("Answer the user's message")
    assert told[-1]["nll"] < told[0]["nll"] and (Path(results["model"]) / "model.safetensors").is_file()
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "One more?"}\n')
    again = distill(asking(tmp_path, server, student={"model": str(student)}), resume=True)  # it is being learned: nothing more is asked
    assert again is not None and len(server.asked) == len(TOWNS) and again["validation"] == results["validation"]


def test_busy_late_and_broken_answers_are_asked_again(tmp_path: Path, server: Server) -> None:
    """429 with Retry-After, a timeout, a 500: the answer comes in the end, once for every prompt."""
    trouble = [refusal(429, "slow down", Retry_After="1"), Said(late=True), refusal(500, "oh"), refusal(503)]

    def script(asked: Asked) -> Said:
        return trouble.pop(0) if trouble and len(server.asked) % 2 else answering(asked)

    server.script = script
    results = distill(asking(tmp_path, server))
    assert results is not None and results["answered"] == len(TOWNS) and not trouble and results["failed"] == 0
    assert len(server.asked) == len(TOWNS) + 4


def test_rubbish_stops_with_one_line_and_nothing_is_asked_twice(tmp_path: Path, server: Server) -> None:
    answered = 0

    def script(asked: Asked) -> Said:
        nonlocal answered
        if answered == 5:
            return Said(200, b"<html>rubbish</html>")
        answered += 1
        return answering(asked)

    server.script = script
    with pytest.raises(PretrainingError, match="does not answer as an OpenAI-compatible API") as caught:
        distill(asking(tmp_path, server))
    assert "\n" not in str(caught.value) and len(server.asked) == 5 + 3  # three in a row, then it gives up
    place = tmp_path / "run" / "answers.jsonl"
    assert len(lines(place)) == 5
    with place.open("a") as file:
        file.write('{"prompt": "What does Kel')  # torn by a power cut
    assert plan_distillation(asking(tmp_path, server)).answered == 5
    server.asked.clear()
    server.script = answering
    with pytest.raises(PretrainingError, match="--resume goes on with it"):
        distill(asking(tmp_path, server))
    results = distill(asking(tmp_path, server), resume=True)
    assert results is not None and len(server.asked) == len(TOWNS) - 5 and results["filter"]["kept"] == len(TOWNS)
    assert not {asked.body["messages"][1]["content"] for asked in server.asked} & set(list(QUESTIONS)[:5])


def test_one_prompt_that_fails_is_left_for_later(tmp_path: Path, server: Server) -> None:
    bad = "What does Dun sell?"
    server.script = lambda asked: refusal(400, "content policy") if asked.body["messages"][1]["content"] == bad else answering(asked)
    results = distill(asking(tmp_path, server, teacher={"parallel": 4}))
    assert results is not None and (results["answered"], results["failed"]) == (len(TOWNS) - 1, 1)
    assert bad not in {line["prompt"] for line in lines(tmp_path / "run" / "data.jsonl")}
    server.script = answering
    again = distill(asking(tmp_path, server, teacher={"parallel": 4}), resume=True)
    assert again is not None and again["answered"] == len(TOWNS)
    assert [line["prompt"] for line in lines(tmp_path / "run" / "data.jsonl")] == list(QUESTIONS)  # in the order of the prompts


def test_the_filter_counts_its_reasons(tmp_path: Path, server: Server) -> None:
    refused = ["I'm sorry, but I can't help with that.", "As an AI language model, I have no opinion."]
    said = ["", *refused, "What does Dun sell?", "and so on " * 40, "word " * 60]
    given = dict(zip(QUESTIONS, said, strict=False))
    server.script = lambda asked: chat(given.get(asked.body["messages"][1]["content"], "It sells what all of them sell, day after day."))
    results = distill(asking(tmp_path, server, filter={"max_words": 150, "near_duplicate": 0.4}))
    assert results is not None
    assert results["filter"] == {
        "empty": 1, "refusal": 2, "repeats the prompt": 1, "repetitive": 2, "near-duplicate": len(TOWNS) - 7, "kept": 1,
    }  # fmt: skip
    dropped = lines(tmp_path / "run" / "filtered.jsonl")
    assert len(dropped) == len(TOWNS) - 1 and all(line["reason"] for line in dropped)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("42", ""),
        ("Sorry is the name of a board game.", ""),
        ("I can tell you: tin.", ""),
        ("I cannot answer that question.", "refusal"),
        ("Unfortunately, I can't say.", "refusal"),
        ("I’m really sorry about this.", "refusal"),
        ("what does arn sell", "repeats the prompt"),
        ("one two three four", "too long: 4 words"),
        ("?!?! ... ###", "too short: 0 letters, at least 1 are needed"),
    ],
)
def test_answers_and_reasons(answer: str, reason: str) -> None:
    limit = 3 if reason.startswith("too long") else 400
    assert answer_problem("What does Arn sell?", answer, FilterConfig(max_words=limit)) == reason


def test_nothing_left_is_an_error(tmp_path: Path, server: Server) -> None:
    server.says(chat("I cannot do that."))
    with pytest.raises(PretrainingError, match=r"no answer of the teacher is left after the filter \(refusal 12\)"):
        distill(asking(tmp_path, server))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"teacher": {"model": None}}, "teacher.model: is not set"),
        ({"student": {"preset": "5m"}}, "student.model: is not set: an API has no tokenizer"),
        ({"corpus": {"prompts": None}}, "corpus.prompts: names no file"),
        ({"corpus": {"prompts": "bad.jsonl"}}, "bad.jsonl, line 2, field 'prompt': expected text"),
        ({"corpus": {"prompts": "none.txt"}}, "cannot be read"),
    ],
)
def test_mistakes_before_anything_is_asked(tmp_path: Path, server: Server, sections: dict[str, Any], words: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Good?"}\n{"question": "Bad?"}\n')
    with pytest.raises((PretrainingError, DataError, ValueError), match=words):
        distill(asking(tmp_path, server, **sections))
    assert not server.asked


def test_prompts_from_text(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\n\n Two? \nOne?\n")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["One?", "Two?"]


def test_a_plan_asks_nothing(tmp_path: Path, server: Server) -> None:
    found = plan_distillation(asking(tmp_path, server, student={"model": str(tiny_network(tmp_path / "s", "gpt2"))}))
    assert (found.prompts, found.answered, found.steps, server.asked) == (len(TOWNS), 0, None, [])
