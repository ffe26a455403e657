"""Tables: rows of numbers with a class each, in a form that training and every retention method understand.

An example of a table has two tokens, the number of its row and its class; the class is the one that is predicted. A buffer of examples,
a Fisher estimate or a stored logit then means the same for a table as for text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retain.data.errors import DataError, did_you_mean
from retain.data.examples import Example

DIGITS_TASKS = 5
DIGITS_TEST = 0.2  # share of the images that no training sees


@dataclass(frozen=True)
class TableTask:
    """A task of a table: its name, its examples, the row numbers [n] of its test set, the classes that occur in it."""

    name: str
    examples: tuple[Example, ...]
    test: Tensor
    classes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TableStream:
    """Tasks over one table: ``features`` [rows, width] float32, ``labels`` [rows] int64."""

    name: str
    features: Tensor
    labels: Tensor
    tasks: tuple[TableTask, ...]

    @property
    def classes(self) -> int:
        """How many classes there are in all."""
        return int(self.labels.max()) + 1


def table_task(name: str, labels: Tensor, train: Sequence[int], test: Sequence[int]) -> TableTask:
    """The task of these rows. Examples of one class of one task belong together: they share the name of a document."""
    values = labels.tolist()
    examples = tuple(Example((row, values[row]), (False, True), f"{name}/{values[row]}", "row") for row in train)
    return TableTask(name, examples, torch.tensor(list(test)), tuple(sorted({values[row] for row in (*train, *test)})))


def permuted_digits(seed: int, tasks: int = DIGITS_TASKS) -> TableStream:
    """Ten digits in every task, the pixels in another fixed order in each; the first task has them as they are (1312.6211, section 3)."""
    images, labels, train, test = _digits(seed)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(images.shape[1]), *(torch.randperm(images.shape[1], generator=generator) for _ in range(tasks - 1))]
    size, repeated = len(images), labels.repeat(tasks)
    found = [
        table_task(f"order {number + 1}", repeated, [row + number * size for row in train], [row + number * size for row in test])
        for number in range(tasks)
    ]
    return TableStream("permuted-digits", torch.cat([images[:, order] for order in orders]), repeated, tuple(found))


def split_digits(seed: int, tasks: int = DIGITS_TASKS) -> TableStream:
    """Two new digits in every task, in a random order of the digits; all ten are told apart at the end (1703.04200, section 4.1)."""
    images, labels, train, test = _digits(seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    found = []
    for group in order.chunk(tasks):
        chosen = set(group.tolist())
        rows = [[row for row in part if int(labels[row]) in chosen] for part in (train, test)]
        found.append(table_task("digits " + " ".join(map(str, sorted(chosen))), labels, *rows))
    return TableStream("split-digits", images, labels, tuple(found))


def _digits(seed: int) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """The 1,797 images of 8 by 8 pixels in 0..1, their labels, and the rows to train and to test on, every digit in both alike."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install 'retain[experiments]'") from error
    data = load_digits()
    rows = np.arange(len(data.target))
    train, test = train_test_split(rows, test_size=DIGITS_TEST, stratify=data.target, random_state=seed)
    return torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target), sorted(train.tolist()), sorted(test.tolist())


_STREAMS: dict[str, Callable[[int], TableStream]] = {"permuted-digits": permuted_digits, "split-digits": split_digits}


def table_streams() -> tuple[str, ...]:
    """Names of the streams that need no file."""
    return tuple(_STREAMS)


def load_table_stream(name: str, seed: int) -> TableStream:
    """The stream of that name; the seed decides on the split, and on the orders of pixels or digits. Raises DataError."""
    if name not in _STREAMS:
        raise DataError(f"there is no task sequence {name!r}: {did_you_mean(name, _STREAMS) or 'there are ' + ', '.join(_STREAMS)}")
    return _STREAMS[name](seed)
