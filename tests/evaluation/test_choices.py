"""Multiple choice: files are read or refused with the place, prompts are MMLU's to the byte, scores are the direct computation."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tiny_models import gpt2

from retain.adapters import AdapterInjection, inject_trainable, new_lora, select_sites
from retain.data import DataError, Example, Message, prompt_tokens
from retain.data.choices import (
    MMLU_SUBJECTS,
    Choice,
    ChoiceSet,
    draw,
    encode,
    letter_example,
    letter_prompt,
    letter_tokens,
    load_choices,
    parse_choice,
)
from retain.data.tasks import TaskItem
from retain.evaluation import choice_scores, choose, continuation_scores, grade_choices, measure_task, ratio_interval, text_windows
from retain.evaluation.probes import option_tokens
from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed, targets

FOUR = ("the sea", "a hill", "tea", "bread")
CHOICES = [Choice(f"What is baked on day {n}?", FOUR, n % 4, "kitchen" if n % 2 else "garden") for n in range(8)]
RECORD = {"question": "Which?", "choices": ["one", "two", "three"], "answer": 1}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def mmlu(folder: Path, subject: str, split: str, rows: list[list[str]], flat: bool = False) -> Path:
    place = folder if flat else folder / split
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"{subject}_{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return place / f"{subject}_{split}.csv"


def trained(model: DecoderLM, examples: list[Example], steps: int = 60) -> AdapterInjection:
    """An adapter trained on the supervised tokens of some examples."""
    sites = select_sites(model)
    params = {name: value.requires_grad_() for name, value in new_lora(model, sites, rank=4, alpha=8.0, seed=0).items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    packed = Packed.of([example.tokens for example in examples])
    positions, labels = targets(packed, [example.supervised for example in examples])
    for _ in range(steps):
        optimizer.zero_grad()
        injection = inject_trainable(params, sites, 2.0, model.dtype)
        F.cross_entropy(model.logits(model.hidden(packed, injection)[positions]), labels).backward()
        optimizer.step()
    return inject_trainable({name: value.detach() for name, value in params.items()}, sites, 2.0, model.dtype)


# --- prompts


def test_the_prompt_is_mmlu_to_the_byte() -> None:
    asked = Choice(" Which body cavity holds the pituitary gland?\n", ("Abdominal", "Cranial", "Pleural", "Spinal"), 1, "anatomy")
    assert letter_prompt(asked) == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Which body cavity holds the pituitary gland?\nA. Abdominal\nB. Cranial\nC. Pleural\nD. Spinal\nAnswer:"
    )
    shown = [Choice("Who?\nThey?", ("x", "y ", "z", "w"), 3, "us_foreign_policy"), Choice("Where?", ("1", "2", "3", "4"), 0)]
    assert letter_prompt(Choice("Why?", ("p", "q", "r", "s"), 0, "us_foreign_policy"), shown) == (
        "The following are multiple choice questions (with answers) about us foreign policy.\n\n"
        "Who?\nThey?\nA. x\nB. y \nC. z\nD. w\nAnswer: D\n\n"
        "Where?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\n"
        "Why?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    )
    assert letter_prompt(Choice("Why?", ("p", "q"), 0)) == (
        "The following are multiple choice questions (with answers).\n\nWhy?\nA. p\nB. q\nAnswer:"
    )
    assert len(MMLU_SUBJECTS) == len(set(MMLU_SUBJECTS)) == 57


def test_the_letter_is_the_only_target(model: DecoderLM) -> None:
    context, letters = letter_tokens(model.tokenizer, CHOICES[2])
    assert model.tokenizer.decode(context) == letter_prompt(CHOICES[2])
    assert [model.tokenizer.decode(letter) for letter in letters] == [" A", " B", " C", " D"]
    example = letter_example(model.tokenizer, CHOICES[2])
    learned = [token for token, marked in zip(example.tokens, example.supervised, strict=True) if marked]
    assert list(example.tokens) == context + letters[2] and learned == letters[2]
    with pytest.raises(DataError, match="the window 9"):
        letter_example(model.tokenizer, CHOICES[2], max_tokens=9)


# --- files


def test_json_lines_take_an_index_a_letter_or_the_text(tmp_path: Path) -> None:
    answers = [1, "B", "two", "b."]
    found = load_choices(jsonl(tmp_path / "a.jsonl", *({**RECORD, "answer": answer, "level": 3} for answer in answers)))
    assert [item.correct for item in found.items] == [1, 1, 1, 1] and not found.letters
    assert parse_choice({**RECORD, "choices": ["B", "A"], "answer": "A"}, "x").correct == 1  # the text goes before the letter
    (tmp_path / "a.json").write_text(json.dumps([RECORD, {**RECORD, "subject": "law"}]))
    assert [item.subject for item in load_choices(tmp_path / "a.json").items] == ["", "law"]


@pytest.mark.parametrize(
    ("change", "field", "what"),
    [
        ({"answer": 3}, "answer", "3 is no option (an index from 0 to 2, a letter A to C"),
        ({"answer": "four"}, "answer", "'four' is no option"),
        ({"answer": True}, "answer", "True is no option"),
        ({"answer": None}, "answer", "missing or empty"),
        ({"choices": ["one"]}, "choices", "not a list of two options"),
        ({"choices": "one"}, "choices", "not a list of two options"),
        ({"choices": ["one", 2]}, "choices[1]", "not text"),
        ({"question": " "}, "question", "not text"),
        ({"question": None, "qestion": "x"}, "question", "there is 'qestion'"),
    ],
)
def test_a_wrong_record_is_told_with_its_place(tmp_path: Path, change: dict[str, Any], field: str, what: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", RECORD, {**RECORD, **change})
    with pytest.raises(DataError) as caught:
        load_choices(path)
    assert (caught.value.path, caught.value.line, caught.value.field) == (str(path), 2, field) and what in str(caught.value)


def test_mmlu_files(tmp_path: Path) -> None:
    rows = [['Which "one"?\nThis line too', "a", "b, c", "d", "e", "C"], ["Who?", "1", "2", "3", "4", "A"]]
    dev = [[f"Dev {n}?", "a", "b", "c", "d", "B"] for n in range(5)]
    for flat in (True, False):
        folder = tmp_path / str(flat)
        path = mmlu(folder, "us_foreign_policy", "test", rows, flat)
        mmlu(folder, "us_foreign_policy", "dev", dev, flat)
        for found in (load_choices("mmlu:US Foreign Policy", folder), load_choices(path)):
            assert found.letters and [item.correct for item in found.items] == [2, 0]
            assert found.items[0].question == 'Which "one"?\nThis line too' and found.items[0].options[1] == "b, c"
            assert {item.subject for item in (*found.items, *found.examples)} == {"us_foreign_policy"} and len(found.examples) == 5
    with pytest.raises(DataError, match=r"did you mean 'us_foreign_policy'\?"):
        load_choices("mmlu:us_foriegn_policy", folder)
    with pytest.raises(DataError, match=r"holds no anatomy_test\.csv"):
        load_choices("mmlu:anatomy", folder)


@pytest.mark.parametrize(
    ("row", "line", "what"),
    [
        (["Who?", "1", "2", "3", "4", "E"], 4, "'E' is not one of the letters A to D"),
        (["Who?", "1", "A"], 4, "3 columns"),
        (["", "1", "2", "3", "4", "A"], 4, "question"),
    ],
)
def test_a_wrong_csv_row_is_told_with_its_line(tmp_path: Path, row: list[str], line: int, what: str) -> None:
    good = ["Two\nlines?", "1", "2", "3", "4", "A"]
    path = mmlu(tmp_path, "anatomy", "test", [["question", "A", "B", "C", "D", "answer"], good, row], flat=True)
    with pytest.raises(DataError) as caught:
        load_choices(path)
    assert caught.value.line == line and what in str(caught.value) and str(path) in str(caught.value)


def test_big_bench(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    examples = [{"input": "How many legs has a horse?", "target_scores": {"four": 1, "two": 0, "six": 0}}]
    path.write_text(json.dumps({"name": "legs", "keywords": [], "examples": examples}))
    assert load_choices(path).items == (Choice("How many legs has a horse?", ("four", "two", "six"), 0, "legs"),)
    for wrong, what in (
        ({"input": "x", "target_scores": {"a": 1, "b": 1}}, "2 options have the highest score"),
        ({"input": "x", "target": "a"}, "missing, or not options"),
        ({"input": "", "target_scores": {"a": 1, "b": 0}}, "missing or empty"),
    ):
        path.write_text(json.dumps({"name": "legs", "examples": [*examples, wrong]}))
        with pytest.raises(DataError, match=what) as caught:
            load_choices(path)
        assert caught.value.field.startswith("examples[1].")
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(DataError, match="BIG-bench"):
        load_choices(path)


def test_few_shot_examples_are_of_the_subject_and_never_the_question() -> None:
    found = ChoiceSet("set", tuple(CHOICES), tuple(CHOICES))
    shots = found.shots(CHOICES[1], 3)
    assert [item.subject for item in shots] == ["kitchen"] * 3 and CHOICES[1] not in shots
    with pytest.raises(DataError, match="3 few-shot examples about kitchen, not 4"):
        found.shots(CHOICES[1], 4)


def test_drawing_is_by_seed_and_in_order() -> None:
    assert draw(CHOICES, None) == tuple(CHOICES) == draw(CHOICES, 99)
    one, two = draw(CHOICES, 3, 1), draw(CHOICES, 3, 2)
    assert one == draw(CHOICES, 3, 1) and one != two and sorted(one, key=CHOICES.index) == list(one)
    with pytest.raises(DataError, match="0 questions"):
        draw(CHOICES, 0)


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[Any]):
        def select(self, places: Any) -> Any:
            return Rows(self[place] for place in places)

    arc = {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    plain = {"question": "Q?", "choices": ["x", "y"], "answer": 0}

    def load(name: str, config: str | None) -> Any:
        if name == "down":
            raise ConnectionError("no\nnetwork")
        return {"train": Rows([plain]), "test": Rows([arc, plain])} if name == "arc" else {"test": Rows([{**plain, "answer": 7}])}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    found = load_choices("hub:arc:easy")
    assert [item.correct for item in found.items] == [1, 0] and len(found.examples) == 1 and found.name == "hub:arc:easy"
    with pytest.raises(DataError, match=r"hub:bad, split test, line 1, field 'answer'"):
        load_choices("hub:bad")
    with pytest.raises(DataError, match=r"no split 'dev'.*train, test"):
        load_choices("hub:arc:easy:dev")
    with pytest.raises(DataError, match="no network"):
        load_choices("hub:down")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="library 'datasets' is missing"):
        load_choices("hub:arc")
    with pytest.raises(DataError, match=r"--data DIR names a folder with virology_test\.csv"):
        load_choices("mmlu:virology")


# --- scores


def direct(model: Any, context: list[int], continuation: list[int], injection: Any = None) -> tuple[float, bool]:
    logits = model.logits(model.hidden(Packed.of([[*context, *continuation]]), injection)).double()
    rows = torch.log_softmax(logits[len(context) - 1 : -1], -1)
    chosen = rows.gather(1, torch.tensor(continuation)[:, None]).sum().item()
    return chosen, rows.argmax(-1).tolist() == continuation


def test_continuations_are_the_direct_computation(model: DecoderLM, injection: AdapterInjection) -> None:
    long = list(range(40, 110))
    pairs = [(long, [5]), (long, [6]), ([*long, 7], [8, 9]), (long, [7, 8]), ([3, 4], [5, 6, 7]), ([9], [1]), (long[:50], [2, 3])]
    greedy = int(model.logits(model.hidden(Packed.of([long])))[-1].argmax())
    pairs.append((long, [greedy]))
    for active in (None, injection):
        found = continuation_scores(model, pairs, active)
        expected = [direct(model, *pair, active) for pair in pairs]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
        assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert continuation_scores(model, pairs)[-1][1]
    with pytest.raises(ValueError, match="something before it"):
        continuation_scores(model, [([], [1])])


def test_what_is_too_long_loses_its_left(model: DecoderLM) -> None:
    context = [3 + n % 90 for n in range(300)]
    states = model.hidden(Packed.of([context[-model.context :]]))  # the continuation itself is only predicted
    expected = float(torch.log_softmax(model.logits(states)[-1].double(), -1)[7])
    assert continuation_scores(model, [(context, [7])])[0][0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="longer than the model's context"):
        continuation_scores(model, [([1], [2] * (model.context + 1))])


def test_models_through_transformers_score_the_same_way() -> None:
    model = gpt2()
    long = [3 + n % 50 for n in range(40)]
    pairs = [(long, [5]), (long, [6, 7]), ([3, 4], [5])]
    assert [value for value, _ in continuation_scores(model, pairs)] == pytest.approx(
        [direct(model, *pair)[0] for pair in pairs], rel=1e-5
    )  # fmt: skip


@pytest.fixture
def passed(model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every pass through the model."""
    sizes: list[int] = []
    inner: Callable[..., Any] = model.hidden

    def hidden(packed: Packed, *rest: Any, **options: Any) -> Any:
        sizes.append(packed.total)
        return inner(packed, *rest, **options)

    monkeypatch.setattr(model, "hidden", hidden)
    return sizes


def test_all_letters_come_from_one_prompt(model: DecoderLM, passed: list[int]) -> None:
    prompts = [letter_tokens(model.tokenizer, choice)[0] for choice in CHOICES]
    found = choice_scores(model, CHOICES, score="letters")
    assert sum(passed) <= sum(map(len, prompts)) and len(passed) <= 4
    shared = sum(passed)
    for choice, scores in zip(CHOICES[:2], found, strict=False):
        prompt, letters = letter_tokens(model.tokenizer, choice)
        assert scores == pytest.approx([direct(model, prompt, letter)[0] for letter in letters], rel=1e-5)
    assert shared < sum(map(len, prompts))  # what all prompts begin with ran once


def test_options_of_a_question_share_a_pass_over_it(model: DecoderLM, passed: list[int]) -> None:
    choices = [replace(choice, question=choice.question + " Say it in one word that everybody knows.") for choice in CHOICES]
    pairs = [option_tokens(model, choice.question, option) for choice in choices for option in choice.options]
    choice_scores(model, choices, score="options")
    assert sum(passed) < 0.6 * sum(len(context) + len(continuation) for context, continuation in pairs)


def test_shots_are_turns_before_and_the_oldest_go_when_there_is_no_room(model: DecoderLM) -> None:
    turns = [Message("user", "What is a?"), Message("assistant", "b"), Message("user", "What is c?"), Message("assistant", "d")]
    context, continuation = option_tokens(model, "What is e?", "f", turns)
    assert context == list(prompt_tokens(model.tokenizer, "What is e?", history=turns))
    assert model.tokenizer.decode(continuation) == "f<|im_end|>"
    crowded = [Message("user", "What is tea? " * 30), Message("assistant", "no"), *turns[2:]]
    assert option_tokens(model, "What is e?", "f", crowded)[0] == list(prompt_tokens(model.tokenizer, "What is e?", history=turns[2:]))
    with pytest.raises(DataError, match="question and option have"):
        option_tokens(model, "What is tea? " * 60, "f")


@pytest.mark.parametrize("score", ["letters", "options"])
def test_a_model_trained_on_the_answers_is_right_where_the_untrained_is_not(model: DecoderLM, score: Any) -> None:
    items = [TaskItem(choice.question, (choice.answer,), choice=choice, letters=score == "letters") for choice in CHOICES]
    injection = trained(model, [item.example(model.tokenizer) for item in items])
    before, after = measure_task(model, items), measure_task(model, items, injection)
    assert after["by"] == score and after["score"] == after["accuracy"] >= 0.75 > before["score"] + 0.2
    assert after["note"] == "" and after["chance"] == 0.25
    assert set(after["subjects"]) == {"kitchen", "garden"} and after["subjects"]["kitchen"]["n"] == 4
    json.dumps(after, allow_nan=False)


def test_answers_of_a_task_are_measured_in_words(model: DecoderLM) -> None:
    items = [TaskItem(f"What is baked on day {n}?", (("the bread", "tea")[n % 2],)) for n in range(4)]
    injection = trained(model, [item.example(model.tokenizer) for item in items])
    before, after = measure_task(model, items), measure_task(model, items, injection)
    assert before["score"] == 0.0 and after["score"] == after["contains"] == 1.0 and after["by"] == "contains"


def test_guessing_is_called_guessing() -> None:
    scores = [[0.0, -1.0, -2.0, -3.0]] * 8  # always the first
    found = grade_choices(CHOICES, scores)
    assert found["accuracy"] == 0.25 and "the interval includes chance, 25.0%" in found["note"]
    perfect = grade_choices(CHOICES, [[float(place == choice.correct) for place in range(4)] for choice in CHOICES])
    assert perfect["accuracy"] == 1.0 and perfect["note"] == ""
    assert math.isnan(grade_choices([], [])["accuracy"])


def test_an_injection_by_row_is_refused(model: DecoderLM) -> None:
    with pytest.raises(ValueError, match="the same for all"):
        choose(model, CHOICES, SimpleNamespace(by_row=True))  # type: ignore[arg-type]


def test_progress_counts_what_was_scored(model: DecoderLM) -> None:
    told: list[tuple[int, int, int]] = []
    choice_scores(model, CHOICES, tell=lambda done, total, tokens: told.append((done, total, tokens)))
    assert told[-1][:2] == (32, 32) and told[-1][2] > 0 and told == sorted(told)


def test_windows_carry_what_perplexity_and_divergence_are_made_of(model: DecoderLM, injection: AdapterInjection) -> None:
    texts = ["The ferry has nine cabins and a bell.", "Bread is baked in the morning, tea comes later."]
    windows = text_windows(model, texts, injection, 8)
    assert {window.text for window in windows} == {0, 1} and all(window.kl > 0 for window in windows)
    plain = text_windows(model, texts, None, 8)
    assert [window.base for window in plain] == pytest.approx([window.base for window in windows], rel=1e-6)
    assert all(window.adapted == window.base and window.kl == 0.0 for window in plain)
    low, high = ratio_interval([window.base for window in windows], [window.tokens for window in windows])
    mean = sum(window.base for window in windows) / sum(window.tokens for window in windows)
    assert low < mean < high and math.isnan(ratio_interval([1.0], [1.0])[0])


def test_encoding_adds_the_beginning_once(model: DecoderLM) -> None:
    assert encode(model.tokenizer, "tea") == model.tokenizer("tea")["input_ids"]
