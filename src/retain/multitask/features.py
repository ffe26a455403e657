"""Records to numbers: scaled numeric columns, one place for every category, missing values marked. Fitted on training records only."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retain.data.errors import DataError
from retain.multitask.records import Row, check_columns

Scaling = Literal["standard", "robust", "none"]
FAR = 10.0  # scaled values go in no further from 0 than this: an outlier stays one, and the network stays finite
FEW = 0.1  # share of words in a column up to which they are mistakes in a column of numbers
MOST = 256  # categories of a column that have a place of their own, the frequent ones


@dataclass(frozen=True)
class Numeric:
    """A column of numbers: ``(value - centre) / scale``, 0 where missing; with ``marks`` a second place is 1 where missing."""

    name: str
    centre: float
    scale: float
    marks: bool

    @property
    def width(self) -> int:
        """How many places the column has."""
        return 1 + self.marks


@dataclass(frozen=True)
class Categorical:
    """A column of categories, one place each. ``other``: a last place for the rare ones that were pooled while fitting. A category that
    was never seen goes there, or, where nothing was pooled, to no place at all, as a missing one does."""

    name: str
    categories: tuple[str, ...]
    other: bool

    @property
    def width(self) -> int:
        """How many places the column has."""
        return len(self.categories) + self.other


class Features:
    """The columns of a table in a fixed order. :meth:`fit` makes them from training records, :meth:`state` and :meth:`restore` keep them
    as JSON values. :meth:`vectors` gives the numbers [records, width]."""

    def __init__(self, columns: Sequence[Numeric | Categorical]) -> None:
        if not columns:
            raise DataError("there are no feature columns", fix="name them in backbone.numeric and backbone.categorical")
        self.columns = list(columns)
        self._places = [{category: place for place, category in enumerate(getattr(column, "categories", ()))} for column in columns]

    @property
    def width(self) -> int:
        """How many numbers a record becomes."""
        return sum(column.width for column in self.columns)

    @property
    def slices(self) -> list[slice]:
        """The places of each column."""
        ends = [0]
        for column in self.columns:
            ends.append(ends[-1] + column.width)
        return [slice(first, last) for first, last in pairwise(ends)]

    @classmethod
    def fit(
        cls, rows: Sequence[Row], numeric: Sequence[str] | None, categorical: Sequence[str] | None, exclude: Collection[str] = (),
        scaling: Scaling = "standard",
    ) -> Features:  # fmt: skip
        """From training records. With neither kind of column named, all but the excluded are taken: those whose values are all numbers
        as numeric, the others as categories. Raises DataError for a column that is not there, or a value that is no number."""
        if numeric is None and categorical is None:
            numeric, categorical = _kinds(rows, exclude)
        named = [*(numeric or ()), *(categorical or ())]
        doubled = [name for place, name in enumerate(named) if name in named[:place]]
        if doubled:
            raise DataError("is named twice among the features", field=doubled[0])
        check_columns(rows, named)
        columns: list[Numeric | Categorical] = [_numeric(name, rows, scaling) for name in numeric or ()]
        return cls([*columns, *(_categorical(name, rows) for name in categorical or ())])

    def vectors(self, rows: Sequence[Row]) -> Tensor:
        """Float32 [rows, width]. Raises DataError with the line of a value that is no number."""
        found = np.zeros((len(rows), self.width), dtype=np.float32)
        for column, places, known in zip(self.columns, self.slices, self._places, strict=True):
            if isinstance(column, Numeric):
                read = [row.number(column.name) for row in rows]
                values = np.array([column.centre if value is None else value for value in read])
                found[:, places.start] = np.clip((values - column.centre) / column.scale, -FAR, FAR)
                if column.marks:
                    found[:, places.start + 1] = [value is None for value in read]
                continue
            other = len(known) if column.other else None
            seen = [None if label is None else known.get(label, other) for label in (row.label(column.name) for row in rows)]
            where = [number for number, place in enumerate(seen) if place is not None]
            found[where, [places.start + seen[number] for number in where]] = 1.0
        return torch.from_numpy(found)

    def unseen(self, rows: Sequence[Row]) -> dict[str, int]:
        """How many values of each categorical column were never seen while fitting."""
        found = {}
        for column, known in zip(self.columns, self._places, strict=True):
            if isinstance(column, Categorical):
                values = [row.label(column.name) for row in rows]
                found[column.name] = sum(value is not None and value not in known for value in values)
        return {name: count for name, count in found.items() if count}

    def state(self) -> list[dict[str, Any]]:
        """JSON values."""
        return [{"kind": type(column).__name__.lower(), **vars(column)} for column in self.columns]

    @classmethod
    def restore(cls, state: Sequence[Mapping[str, Any]]) -> Features:
        """Inverse of :meth:`state`."""
        columns: list[Numeric | Categorical] = []
        for entry in state:
            if entry["kind"] == "numeric":
                columns.append(Numeric(entry["name"], float(entry["centre"]), float(entry["scale"]), bool(entry["marks"])))
            else:
                columns.append(Categorical(entry["name"], tuple(entry["categories"]), bool(entry["other"])))
        return cls(columns)


def _kinds(rows: Sequence[Row], exclude: Collection[str]) -> tuple[list[str], list[str]]:
    """Columns of numbers, and all others. Raises DataError where a few words stand among numbers: as categories, every number of the column
    would be one."""
    numeric: list[str] = []
    categorical: list[str] = []
    for name in dict.fromkeys(key for row in rows for key in row.values):
        if name in exclude:
            continue
        values = [row.values[name] for row in rows if not row.missing(name)]
        if any(isinstance(value, list | tuple | dict) for value in values):
            raise DataError("holds lists or objects, which are no features", path=rows[0].path, field=name, fix="name the columns to use")
        words = [place for place, value in enumerate(values) if not _is_number(value)]
        if words and len(words) <= FEW * len(values):
            row = next(row for row in rows if row.values.get(name) == values[words[0]])
            raise row.error(
                f"{values[words[0]]!r} is no number, and nearly all others in this column are", name,
                "correct it, leave it empty, or name the column in backbone.categorical",
            )  # fmt: skip
        if values:
            (categorical if words else numeric).append(name)
    return numeric, categorical


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _numeric(name: str, rows: Sequence[Row], scaling: Scaling) -> Numeric:
    read = [row.number(name) for row in rows]
    values = sorted(value for value in read if value is not None)
    if not values:
        raise DataError("holds no number in the training records", path=rows[0].path, field=name, fix="leave the column out")
    centre, scale = 0.0, 1.0
    if scaling == "standard":
        centre = statistics.fmean(values)
        scale = statistics.fmean([(value - centre) ** 2 for value in values]) ** 0.5
    elif scaling == "robust":
        centre = statistics.median(values)
        low, high = (values[round(share * (len(values) - 1))] for share in (0.25, 0.75))
        scale = (high - low) / 1.349  # of a normal distribution, one standard deviation
    spread = max(abs(values[0] - centre), abs(values[-1] - centre))
    if scale <= 1e-12 * max(1.0, abs(centre)):  # constant, or nearly all the same
        scale = spread if spread > 0.0 else 1.0
    return Numeric(name, centre, scale, marks=len(values) < len(rows))


def _categorical(name: str, rows: Sequence[Row]) -> Categorical:
    counts = Counter(value for row in rows if (value := row.label(name)) is not None)
    if not counts:
        raise DataError("is empty in all training records", path=rows[0].path, field=name, fix="leave the column out")
    kept = [category for category, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST]]
    return Categorical(name, tuple(sorted(kept)), other=len(counts) > MOST)
