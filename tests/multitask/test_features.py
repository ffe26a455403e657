"""Features of a table: fitted on training records only, saved as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.multitask.conftest import write

from retain.data.errors import DataError
from retain.multitask import assemble
from retain.multitask.features import FAR, Categorical, Features, Numeric
from retain.multitask.records import rows_of

ROWS = rows_of([
    {"size": 1.0, "colour": "red", "empty": None, "id": "a"},
    {"size": "3", "colour": "blue", "empty": 5.0, "id": "b"},
    {"size": 5.0, "colour": "red", "empty": None, "id": "c"},
    {"size": 7.0, "colour": None, "empty": 7.0, "id": "d"},
])  # fmt: skip


def test_columns_are_scaled_and_encoded() -> None:
    features = Features.fit(ROWS, None, None, exclude=["id"])
    size, empty, colour = features.columns
    assert size == Numeric("size", 4.0, 5.0**0.5, False) and empty == Numeric("empty", 6.0, 1.0, True)
    assert colour == Categorical("colour", ("blue", "red"), False) and features.width == 5
    made = features.vectors(ROWS)
    assert torch.allclose(made[:, 0], torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5.0**0.5)
    assert made[:, 1:3].tolist() == [[0, 1], [-1, 0], [0, 1], [1, 0]]  # a missing value is 0, and marked
    assert made[:, 3:].tolist() == [[0, 1], [1, 0], [0, 1], [0, 0]]


def test_a_word_among_numbers_is_a_mistake() -> None:
    records = [{"size": str(number)} for number in range(20)]
    with pytest.raises(DataError, match="'n/a' is no number, and nearly all others") as raised:
        Features.fit(rows_of([*records, {"size": "n/a"}]), None, None)
    assert raised.value.line == 21 and raised.value.field == "size"
    (column,) = Features.fit(rows_of([*records[:4], {"size": "n/a"}]), None, None).columns
    assert isinstance(column, Categorical)


def test_what_was_never_seen() -> None:
    features = Features.fit(ROWS, None, None, exclude=["id"])
    new = rows_of([{"size": None, "colour": "green", "empty": 1e9}, {"size": -1e9, "colour": "red", "empty": None}])
    made = features.vectors(new)
    assert made[0].tolist() == [0, FAR, 0, 0, 0]  # no value was missing in training; green has no place; far is cut off
    assert made[1].tolist() == [-FAR, 0, 1, 0, 1]
    assert features.unseen(new) == {"colour": 1}


def test_rare_categories_share_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.multitask.features.MOST", 2)
    rows = rows_of([{"c": name} for name in "aaabbcd"])
    features = Features.fit(rows, None, ["c"])
    assert features.columns == [Categorical("c", ("a", "b"), True)]
    assert features.vectors(rows_of([{"c": name} for name in "acz"])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("scaling", ["standard", "robust", "none"])
def test_saved_as_json(scaling: Any) -> None:
    features = Features.fit(ROWS, ["size", "empty"], ["colour"], scaling=scaling)
    again = Features.restore(json.loads(json.dumps(features.state())))
    assert again.columns == features.columns and torch.equal(again.vectors(ROWS), features.vectors(ROWS))


def test_robust_scaling_is_not_moved_by_an_outlier() -> None:
    rows = rows_of([{"x": float(value)} for value in [*range(100), 1e6]])
    (robust,), (standard,) = (Features.fit(rows, ["x"], None, scaling=way).columns for way in ("robust", "standard"))
    assert isinstance(robust, Numeric) and isinstance(standard, Numeric)
    assert robust.scale < 50 and standard.scale > 9e4


def test_a_constant_column_and_mistakes() -> None:
    assert Features.fit(rows_of([{"x": 3.0}] * 3), ["x"], None).vectors(rows_of([{"x": 3.0}, {"x": 4.0}])).tolist() == [[0.0], [1.0]]
    for numeric, categorical, message in (
        (["colour"], None, "line 1, field 'colour': must be a number"),
        (["sise"], None, "field 'sise': there is no such column (did you mean 'size'?)"),
        (["size"], ["size"], "is named twice"),
        ([], [], "there are no feature columns"),
    ):
        with pytest.raises(DataError) as caught:
            Features.fit(ROWS, numeric, categorical)
        assert message in str(caught.value)
    with pytest.raises(DataError, match="holds lists or objects"):
        Features.fit(rows_of([{"x": [1]}]), None, None)


def test_only_training_records_are_fitted(tmp_path: Path, experiment: Any) -> None:
    rows = [{"x": float(number), "c": "ab"[number % 2], "label": "yn"[number % 2]} for number in range(40)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "dev.csv", [{"x": 1000.0, "c": "z", "label": "y"}, {"x": 0.5, "c": "a", "label": "n"}])
    data = {"train": ["train.csv"], "validation": ["dev.csv"]}
    made = assemble(experiment({"kind": "sequential"}, {"t": {"kind": "classification"}}, data=data))
    columns: Any = made.network.backbone.features.columns
    assert columns[0].centre == 19.5 and columns[1].categories == ("a", "b")
    assert made.parts["t"]["validation"].inputs[0].inputs["features"].tolist() == [FAR, 0, 0]


def test_a_label_is_no_feature(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.csv", [{"x": float(number), "other": 1.5 * number, "label": "yn"[number % 2]} for number in range(20)])
    tasks = {"t": {"kind": "classification"}, "o": {"kind": "regression", "label": "other"}}
    made = assemble(experiment({"kind": "sequential"}, tasks, data={"train": ["t.csv"]}))
    assert [column.name for column in made.network.backbone.features.columns] == ["x"]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="other is a label of a task, and so no feature"):
        assemble(experiment({"kind": "sequential", "numeric": ["x", "other"]}, tasks, data={"train": ["t.csv"]}))
