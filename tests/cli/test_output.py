"""JSON and numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from retain.cli.adapters import sites
from retain.cli.certificates import title_list, updates_table
from retain.cli.output import amount, change, data_size, duration, loss_of, percent, shorten, signed_percent, to_json, to_plain, when, words


@dataclass
class Record:
    path: Path
    data: bytes
    score: float


def test_plain_values() -> None:
    assert to_plain(Record(Path("/x"), b"raw", float("nan"))) == {"path": "/x", "score": None}
    assert to_plain({"a": (1, True, None), "b": {"z", "y"}}) == {"a": [1, True, None], "b": ["y", "z"]}
    assert json.loads(to_json([{"é": float("inf")}])) == [{"é": None}] and "é" in to_json("é")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.923), "92 %"),
        (percent(None), "–"),
        (percent("nan"), "–"),
        (percent(-0.0001, 1), "0.0 %"),
        (signed_percent(0.0016, 2), "+0.16 %"),
        (amount(12_345), "12,345"),
        (amount(134_515_008), "134.5 M"),
        (data_size(2_432_000), "2.4 MB"),
        (data_size(None), "–"),
        (duration(1.42), "1.4 s"),
        (duration(200), "3 min 20 s"),
        (duration(3900), "1 h 5 min"),
        (words({"learning_rate": 1e-3, "on": True, "list": [1, 2]}), "learning rate 0.001, on yes, list 1, 2"),
        (shorten("a  b\nc"), "a b c"),
        (shorten("x" * 50, 10), "x" * 9 + "…"),
        (when("not a time"), "not a time"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_colours_say_better_or_worse() -> None:
    def style(text: object) -> str:
        return str(text.spans[-1].style) if text.spans else str(text.style)  # type: ignore[attr-defined]

    assert style(change(0.1, 0.9)) == "green" and style(change(0.9, 0.1)) == "red" and change(None, None).plain == "–"
    assert str(loss_of(0.2, 0.05).style) == "red" and str(loss_of(0.01, 0.05).style) == "" and str(loss_of(-0.01, 0.05).style) == "green"


def test_an_empty_certificate_is_shown_too() -> None:
    update = SimpleNamespace(
        id="u1", sequence=1, kind="merge", status="committed", documents=["d1"], created_at="", certificate={}, reason=""
    )  # fmt: skip
    assert title_list(update, {}) == ["d1"]  # type: ignore[arg-type]
    assert updates_table([update], {}, 120).row_count == 1  # type: ignore[list-item]


def test_sites_in_few_words() -> None:
    assert sites(["model.layers.3.mlp.up_proj"]) == "model.layers.3.mlp.up_proj"
    assert sites(["model.layers.3.mlp.up_proj", "model.layers.9.mlp.up_proj"]) == "2: up_proj in layers 3 to 9"
    assert sites(12) == "12"
