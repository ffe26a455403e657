"""Records: what is wrong with them is told with file, line and field, before any training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.multitask.conftest import entity_rows, table, topic_rows, write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import assemble, read_rows
from retain.multitask.records import rows_of, split_rows

TABLE = {"kind": "sequential", "hidden": [4]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2: not JSON: Expecting value at column 7"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "a.jsonl, line 3: must be an object with fields, not a list"),
        ("a.jsonl", "\n", "a.jsonl: holds no records"),
        ("a.json", '{"a": 1}', "must be a list of objects"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv, line 3: has 1 cells, the first line 2"),
        ("a.csv", "a,a\n1,2\n", "the column 'a' is there twice"),
        ("a.txt", "a", "it must end with .jsonl"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert message in str(caught.value)


def test_a_missing_file_has_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"no such file or directory \(did you mean 'train\.jsonl'\?\)"):
        read_rows(tmp_path / "trian.jsonl")
    assert [row.values for row in read_rows(tmp_path / "train.jsonl")] == [{}]


def test_every_kind_of_file_gives_the_same_records(tmp_path: Path) -> None:
    rows = [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z\nw"}]
    write(tmp_path / "a.csv", rows)
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.tsv").write_text('a\tb\n1\tx, y\n2\t"z\nw"\n')
    (tmp_path / "a.json").write_text(str(rows).replace("'", '"').replace("\\n", "\\n"))
    found = [[dict(row.values) for row in read_rows(tmp_path / f"a.{ending}")] for ending in ("csv", "jsonl", "tsv", "json")]
    assert found == [rows] * 4


def wrong(change: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    rows = table("wine")
    change(rows)
    return rows


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ({"kind": "classification", "label": "lable"}, lambda rows: None, "field 'lable': there is no such column (did you mean 'label'?)"),
        ({"kind": "classification"}, lambda rows: rows[6].update(label=None), "line 7, field 'label': has no label"),
        ({"kind": "classification"}, lambda rows: rows[6].update(label=["x"]), "line 7, field 'label': must be a label"),
        ({"kind": "classification", "labels": ["class_0", "class_1"]}, lambda rows: None, "the label 'class_2' is not in the list"),
        ({"kind": "classification", "labels": "class_0,class_1,class_2,class_3"}, lambda rows: None, "no training record has the label"),
        ({"kind": "classification"}, lambda rows: [row.update(label="a") for row in rows], "has 1 labels, which is nothing to tell apart"),
        ({"kind": "regression", "label": "c0"}, lambda rows: rows[3].update(c0="high"), "line 4, field 'c0': must be a number"),
        ({"kind": "regression", "label": "c0"}, lambda rows: [row.update(c0=1.0) for row in rows], "has one value only"),
        ({"kind": "classification"}, lambda rows: rows[9].update(c1="x"), "line 10, field 'c1': must be a number"),
        ({"kind": "multihead", "heads": {"label": {}, "other": {}}}, lambda rows: None, "field 'other': there is no such column"),
        ({"kind": "multilabel", "columns": ["c0", "c1"]}, lambda rows: None, "must be 0 or 1, not"),
        ({"kind": "classification", "class_weights": {"class_9": 2.0}}, lambda rows: None, "there is no label 'class_9'"),
        ({"kind": "classification", "positive": "class_1"}, lambda rows: None, "must be one of two labels"),
        ({"kind": "anomaly", "label": "label", "normal": ["class_0", "class_1", "class_2"]}, lambda rows: None, "hold no anomaly"),
        ({"kind": "classification", "data": {"train": "t.jsonl", "validation_share": 0}}, lambda rows: None, "no validation records"),
        ({"kind": "classification", "data": {"train": "t.jsonl", "validation_share": 0.6, "test_share": 0.4}}, lambda rows: None, "leave"),
        ({"kind": "classification", "input": ["c0"]}, lambda rows: None, "one set of columns for all tasks"),
        ({"kind": "ner", "words": "c0", "tags": "c1"}, lambda rows: None, "must be a list"),
    ],
)  # fmt: skip
def test_wrong_labels_stop_before_training(task: dict[str, Any], change: Any, message: str, tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", wrong(change))
    backbone = {**TABLE, "numeric": [f"c{number}" for number in range(1, 5)]}
    with pytest.raises((DataError, ConfigError)) as caught:
        assemble(experiment(backbone, {"t": task}, data={"train": ["t.jsonl"], "validation_share": 0.1}))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["O"]}, "tags for"),
        ({"tags": ["O", "Q", "O", "O", "O", "O"]}, "tags for"),
        ({"words": ["a"], "tags": ["person"]}, "the tag 'person' is neither O nor B-KIND nor I-KIND"),
        ({"words": ["a b "], "tags": ["O"]}, "a word is a text without spaces around it"),
        ({"words": [], "tags": []}, "holds no words"),
    ],
)
def test_wrong_tags(change: dict[str, Any], message: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = entity_rows(20)
    rows[4] |= change
    write(tmp_path / "t.jsonl", rows)
    backbone = {"kind": "text", "model": str(bert), "max_length": 32}
    with pytest.raises(DataError) as caught:
        assemble(experiment(backbone, {"t": {"kind": "ner", "words": "words", "tags": "tags"}}, data={"train": ["t.jsonl"]}))
    assert message in str(caught.value) and "line 5" in str(caught.value)


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([{"start": 0, "end": 900, "label": "person"}], "is not inside the text"),
        ([{"start": 0, "end": 4, "label": "person"}, {"start": 2, "end": 5, "label": "person"}], "two entities overlap at character 2"),
        ([{"start": 0, "label": "person"}], "an entity is {start, end, label}"),
        ("none", "must be a list"),
    ],
)
def test_wrong_entities(entities: Any, message: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = entity_rows(20)
    rows[4]["entities"] = entities
    write(tmp_path / "t.jsonl", rows)
    backbone = {"kind": "text", "model": str(bert), "max_length": 32}
    with pytest.raises(DataError) as caught:
        assemble(experiment(backbone, {"t": {"kind": "ner", "entities": "entities"}}, data={"train": ["t.jsonl"]}))
    assert message in str(caught.value) and "line 5" in str(caught.value)


@pytest.mark.parametrize(("value", "message"), [(None, "is missing"), (7, "must be a text, not a number"), ("  ", "is empty")])
def test_wrong_texts(value: Any, message: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = topic_rows(20)
    rows[2]["text"] = value
    write(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError) as caught:
        assemble(
            experiment(
                {"kind": "text", "model": str(bert), "max_length": 32},
                {"t": {"kind": "classification", "label": "topic"}},
                data={"train": ["t.jsonl"]},
            )
        )
    assert f"line 3, field 'text': {message}" in str(caught.value)


def test_the_same_input_is_never_on_both_sides() -> None:
    rows = rows_of([{"text": f"text {number % 40}", "label": number} for number in range(200)])
    train, validation, test = split_rows(rows, [0.2, 0.1], seed=1, ignored=["label"])
    sides = [{row.values["text"] for row in part} for part in (train, validation, test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert len(train) + len(validation) + len(test) == 200 and 40 <= len(validation) <= 45 and 20 <= len(test) <= 25
    assert split_rows(rows, [0.2, 0.1], seed=1, ignored=["label"])[1] == validation
    assert split_rows(rows, [0.2, 0.1], seed=2, ignored=["label"])[1] != validation


def test_tasks_on_one_file_share_its_parts(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", [{**row, "size": row["c0"]} for row in table("wine")])
    backbone = {**TABLE, "numeric": ["c1", "c2"]}
    made = assemble(
        experiment(backbone, {"a": {"kind": "classification"}, "b": {"kind": "regression", "label": "size"}}, data={"train": ["t.jsonl"]})
    )
    for split in ("train", "validation"):
        assert [row.line for row in made.parts["a"][split].rows] == [row.line for row in made.parts["b"][split].rows]


def test_records_that_were_learned_are_told(tmp_path: Path, experiment: Any) -> None:
    rows = table("wine")
    write(tmp_path / "train.jsonl", rows[10:])
    write(tmp_path / "dev.jsonl", rows[:20])
    made = assemble(
        experiment(
            TABLE,
            {"t": {"kind": "classification"}},
            data={"train": ["train.jsonl"], "validation": ["dev.jsonl"]},
            training={"metric": "loss"},
        )
    )
    assert any("10 of 20 validation records are among the training records" in note for note in made.notes)


def test_records_without_label_can_be_left_out(tmp_path: Path, experiment: Any) -> None:
    rows = table("wine")
    for row in rows[::10]:
        row["label"] = None
    write(tmp_path / "t.jsonl", rows)
    made = assemble(experiment(TABLE, {"t": {"kind": "classification", "unlabelled": "skip"}}, data={"train": ["t.jsonl"]}))
    assert sum(len(part) for part in made.parts["t"].values()) == len(rows) - len(rows[::10])
    assert any("have no label and are left out" in note for note in made.notes)
