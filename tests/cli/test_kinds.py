"""config schema, validate and example: the files of every command, told apart, described, and to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retain.cli.kinds import KINDS, examples, kind_of
from retain.config import parse_yaml

EXAMPLES = {name: file.read_text(encoding="utf-8") for name, file in examples().items()}
COMMANDS = {"pretrain": "pretrain", "distill": "distill"}  # examples of other commands than train


def schema_of(run: Any, kind: str) -> Any:
    from jsonschema import Draft202012Validator

    made = json.loads(run("config", "schema", kind).stdout)
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_there_is_one_for_every_kind_of_work() -> None:
    assert {"text", "security", "multilabel", "ner", "pretrain", "distill"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_and_says_how_to_use_it(name: str, run: Any, tmp_path: Path) -> None:
    command, text = COMMANDS.get(name, "train"), EXAMPLES[name]
    assert f"retain {command} {name}.yaml --dry-run" in text and text.startswith("# ")
    assert run("config", "example", name).stdout == text
    file = tmp_path / f"{name}.yaml"
    assert run("config", "example", name, "--out", file).exit_code == 0 and file.read_text() == text
    found = json.loads(run("config", "validate", file, "--json").stdout)
    assert found["kinds"] == [command]
    assert schema_of(run, command).is_valid(parse_yaml(text))
    again = run("config", "example", name, "--out", file)
    assert again.exit_code == 2 and "is there already" in again.stderr


def test_examples_are_listed(run: Any) -> None:
    listed = run("config", "example").stdout
    assert all(name in listed for name in EXAMPLES)
    assert set(json.loads(run("config", "example", "--json").stdout)) == set(EXAMPLES)
    wrong = run("config", "example", "txt")
    assert wrong.exit_code == 2 and "text" in wrong.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_refuses_what_retain_refuses(kind: str, run: Any) -> None:
    schema = schema_of(run, kind)
    assert not schema.is_valid({"nonsense": 1})
    assert kind in ("train",) or schema.is_valid({})


def test_the_schema_of_experiments_knows_every_kind(run: Any) -> None:
    from retain.multitask import BACKBONES, CALLBACKS, TASKS

    schema = schema_of(run, "train")
    for registry, what in ((BACKBONES, "backbone"), (TASKS, "task")):
        assert {f"{what}-{kind}" for kind in registry} <= set(schema.schema["$defs"])
    assert set(schema.schema["$defs"]["TrainingConfig"]["properties"]["callbacks"]["properties"]) == set(CALLBACKS)
    good = {"backbone": {"kind": "text", "model": "m", "input": "text"}, "tasks": {"t": {"kind": "classification", "label": "l"}}}
    assert schema.is_valid(good)
    for part, wrong in (
        ("backbone", {"kind": "text", "model": "m", "hidden": [3]}),  # a key of another kind
        ("backbone", {"kind": "texts", "model": "m"}),
        ("tasks", {"t": {"kind": "classification", "labl": "l"}}),
        ("tasks", {}),
        ("training", {"epochs": 0}),
        ("training", {"callbacks": {"early-stoping": {}}}),
    ):
        assert not schema.is_valid({**good, part: wrong}), wrong


def test_a_kind_is_known_by_its_sections() -> None:
    for kind, text in {
        "workspace": "learn: {rank: 4}", "train": "taks: {}\nbackbone: {}\ntraining: {}", "pretrain": "corpus: {}\ntraining: {}",
        "distill": "corpus: {}\nteacher: {}", "hypernetwork": "network: {}\ndata: {}",
    }.items():  # fmt: skip
        assert kind_of(parse_yaml(text)) == kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backbone:\n  kind: text\n  model: m\n  max_lenght: 9\ntasks:\n  t: {kind: ner}\n", ":4: backbone: max_lenght: unknown key"),
        ("backbone: {kind: text, model: m}\ntasks:\n  t:\n    kind: classifcation\n", ":4: tasks.t: kind: there is no kind of task"),
        ("backbone: {kind: text, model: m}\ntasks:\n  t: {kind: ner}\ntraining:\n\n  epohs: 3\n", "did you mean training.epochs?"),
        ("backbone: {kind: text, model: m}\ntasks:\n  t: {kind: ner}\ntraining:\n\n  epochs: 0\n", ":6: training.epochs: must be"),
        ("corpus: {paths: a}\ntraining: {epochs: 1}\nmodel: {preset: 6m}\n", ": there is no preset '6m'"),
        ("corpus: {paths: a}\nteacher: {modle: a}\nloss: {alpha: 0.5}\n", ":2: teacher.modle: unknown key; did you mean teacher.model?"),
        ("learn:\n  rank: 4\n  alpa: 3\n", ":3: learn.alpa: unknown key"),
        ("learn: {rank: 4\n", "not valid YAML"),
        ("- a\n", "must hold sections"),
    ],
)
def test_a_mistake_has_its_line(text: str, words: str, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    result = run("config", "validate", file)
    assert result.exit_code == 2 and words in result.stderr and str(file) in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
