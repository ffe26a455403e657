"""A bounded memory of examples: what stays when it is full, and what is drawn from it.

Scores (the rubric): 1.0 for examples marked by the user (importance of 0.9 and above), 0.8 for a high loss (the top quarter of its task),
0.7 for an example unlike those stored (nearest cosine similarity below 0.5), 0.5 for one of the latest task, 0.3 for any other. The highest
that applies counts.

Strategies, all with the same expected cost per example:
- "reservoir": every example offered so far is stored with the same probability (Vitter 1985, algorithm R).
- "importance": a weighted reservoir (Efraimidis & Spirakis 2006, A-Res): as if drawn without replacement in proportion to the score at
  the time of the offer, where scores are those of marks and losses.
- "diversity": an example replaces one of the two most alike, when it is less like the others than they are like each other.
- "hybrid": the weighted reservoir with the whole rubric, diversity included.
- "balanced": every document (every class of every task, for tables) keeps as many places as the others; an example takes the place of
  one of the document that has most, or of one of its own by the rule of the reservoir (Chrysakis & Moens 2020, algorithm 1).
Drawing is uniform for reservoir, diversity and balanced, in proportion to the scores for importance and hybrid; always without replacement.
Recency passes, so it counts when examples are drawn; it does not push the examples of earlier tasks out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retain.data.examples import Example
from retain.retention.positions import Key, key_of
from retain.retention.registry import RetentionError
from retain.retention.state import random_state, restore_random
from retain.retention.sumtree import SumTree

Strategy = Literal["reservoir", "importance", "diversity", "hybrid", "balanced"]
MARKED, HIGH_LOSS, DIVERSE, RECENT, RANDOM = 1.0, 0.8, 0.7, 0.5, 0.3
MARK, UNLIKE, FEATURES = 0.9, 0.5, 64


class ReplayBuffer:
    """At most ``capacity`` examples; ``seen`` counts those ever offered (an example that is stored already is not offered again).

    Only stored examples are remembered: one that was rejected may be offered again and gets a new chance.
    """

    def __init__(self, capacity: int = 10_000, strategy: Strategy = "hybrid", seed: int = 0) -> None:
        if capacity < 1 or strategy not in get_args(Strategy):
            known = ", ".join(get_args(Strategy))
            raise RetentionError(f"a replay buffer of {capacity} with strategy {strategy!r}: the strategies are {known}")
        self.capacity, self.strategy = capacity, strategy
        self.items: list[Example] = []
        self.seen = 0
        self.latest = ""  # the task whose examples are recent
        self._tasks: list[str] = []
        self._random = np.random.default_rng(seed)
        self._slots: dict[Key, int] = {}
        self._hidden: set[int] = set()
        self._visible: list[int] | None = None  # the places that are not hidden; None when something changed
        self._scores = np.zeros(capacity)  # without recency
        self._unlike = np.zeros(capacity, dtype=bool)
        self._ranks = np.zeros(capacity)  # A-Res: log(u) / score, the lowest leaves
        self._features = np.zeros((capacity, FEATURES), dtype=np.float32) if self._compares else np.zeros((0, FEATURES), dtype=np.float32)
        self._alike = np.full(capacity, -1.0, dtype=np.float32)  # similarity to the nearest other, "diversity" only
        self._nearest = np.full(capacity, -1, dtype=np.int64)
        self._members: dict[str, set[int]] = {}  # the places of every document
        self._offered: dict[str, int] = {}  # how many of its examples were ever offered, "balanced" only
        self._tree = SumTree(capacity)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, example: Example) -> bool:
        return key_of(example) in self._slots

    @property
    def _compares(self) -> bool:
        return self.strategy in ("diversity", "hybrid")

    @property
    def _weighted(self) -> bool:
        return self.strategy in ("importance", "hybrid")

    def add(self, examples: Sequence[Example], task: str, losses: Sequence[float] | Tensor | None = None) -> int:
        """Offer the examples of a finished task; ``losses`` are their mean losses. Returns how many were stored for good."""
        values = np.zeros(len(examples)) if losses is None else np.asarray(losses, dtype=np.float64)
        self.latest = task
        for example, high in zip(examples, (values > _high(values)).tolist(), strict=True):
            self._offer(example, task, high)
        self._weigh(range(len(self.items)))
        return sum(example in self for example in examples)

    def sample(self, count: int) -> list[Example]:
        """Up to ``count`` different stored examples, none of them hidden."""
        if count <= 0:
            return []
        if not self._weighted:  # all alike: no tree is needed
            if self._visible is None:
                self._visible = [slot for slot in range(len(self.items)) if slot not in self._hidden]
            places = self._random.choice(len(self._visible), min(count, len(self._visible)), replace=False, shuffle=False)
            return [self.items[self._visible[place]] for place in places.tolist()]
        return [self.items[slot] for slot in self._tree.sample(count, self._random).tolist()]

    def hide(self, examples: Iterable[Example], task: str | None = None) -> None:
        """Until the next call, do not draw these examples, nor any of this task (those that are being learned right now)."""
        before = self._hidden
        self._hidden = {self._slots[key] for key in map(key_of, examples) if key in self._slots}
        self._hidden |= {slot for slot, name in enumerate(self._tasks) if name == task}
        self._weigh(before ^ self._hidden)

    def scores(self) -> NDArray[np.float64]:
        """The rubric's score of every stored example, as it is now."""
        recent = np.array([RECENT if task == self.latest else RANDOM for task in self._tasks])
        return np.maximum(self._scores[: len(self.items)], recent)

    def rescore(self, losses: Sequence[float] | Tensor) -> None:
        """Take new losses of all stored examples, in the order of ``items``: the highest quarter counts as high."""
        values = np.asarray(losses, dtype=np.float64)
        if len(values) != len(self.items):
            raise ValueError(f"{len(values)} losses for {len(self.items)} examples")
        high = values > _high(values)
        for slot, example in enumerate(self.items):
            self._scores[slot] = self._score(example, bool(high[slot]), bool(self._unlike[slot]))
        self._weigh(range(len(self.items)))

    def remove(self, document: str) -> int:
        """Take out every example of a document; returns how many. Free places are filled by the next examples that are offered."""
        kept = [slot for slot, example in enumerate(self.items) if example.document != document]
        removed = len(self.items) - len(kept)
        if removed:
            for array in (self._scores, self._unlike, self._ranks, *([self._features] if self._compares else [])):
                array[: len(kept)] = array[kept]
            self._fill([self.items[slot] for slot in kept], [self._tasks[slot] for slot in kept])
            if self.strategy == "diversity":
                self._alike[:], self._nearest[:] = -1.0, -1
                for slot in range(len(kept)):
                    self._compare(slot)
        return removed

    def _offer(self, example: Example, task: str, high_loss: bool) -> None:
        if key_of(example) in self._slots:
            return
        features = _features(example) if self._compares else None
        alike = self._features[: len(self.items)] @ features if features is not None else np.zeros(0, dtype=np.float32)
        unlike = features is not None and (not alike.size or float(alike.max()) < UNLIKE)
        score = self._score(example, high_loss, unlike)
        rank = float(np.log1p(-self._random.random()) / max(score, RECENT)) if self._weighted else 0.0
        slot = self._slot_for(example, rank, alike)
        self.seen += 1
        if self.strategy == "balanced":
            self._offered[example.document] = self._offered.get(example.document, 0) + 1
        if slot is None:
            return
        if slot == len(self.items):
            self.items.append(example)
            self._tasks.append(task)
        else:
            del self._slots[key_of(self.items[slot])]
            self._members[self.items[slot].document].discard(slot)
            self.items[slot], self._tasks[slot] = example, task
            self._hidden.discard(slot)
        self._slots[key_of(example)] = slot
        self._members.setdefault(example.document, set()).add(slot)
        self._scores[slot], self._unlike[slot], self._ranks[slot] = score, unlike, rank
        if features is not None:
            self._features[slot] = features
            if self.strategy == "diversity":
                self._compare(slot)

    def _score(self, example: Example, high_loss: bool, unlike: bool) -> float:
        if example.importance >= MARK:
            return MARKED
        if high_loss and self.strategy in ("importance", "hybrid"):
            return HIGH_LOSS
        return DIVERSE if unlike else RANDOM

    def _slot_for(self, example: Example, rank: float, alike: NDArray[np.float32]) -> int | None:
        """Where an offered example goes, or None when it is rejected."""
        if len(self.items) < self.capacity:
            return len(self.items)
        if self.strategy == "reservoir":
            place = int(self._random.integers(0, self.seen, endpoint=True))  # [0, seen], `seen` not counting this one
            return place if place < self.capacity else None
        if self.strategy == "balanced":
            return self._balanced_slot(example.document)
        if self._weighted:
            lowest = int(self._ranks.argmin())
            return lowest if rank > self._ranks[lowest] else None
        closest = int(self._alike.argmax())
        return closest if float(alike.max()) < self._alike[closest] else None

    def _balanced_slot(self, document: str) -> int | None:
        own = self._members.get(document, set())
        largest = max([(len(slots), name) for name, slots in self._members.items()])[1]
        if len(own) < len(self._members[largest]):
            return sorted(self._members[largest])[int(self._random.integers(len(self._members[largest])))]
        place = int(self._random.integers(0, self._offered.get(document, 0), endpoint=True))
        return sorted(own)[place] if place < len(own) else None

    def _compare(self, slot: int) -> None:
        """Bring the nearest neighbours up to date after ``slot`` was written."""
        count = len(self.items)
        for other in [slot, *np.flatnonzero(self._nearest[:count] == slot).tolist()]:
            alike = self._features[:count] @ self._features[other]
            alike[other] = -1.0
            self._nearest[other], self._alike[other] = int(alike.argmax()), float(alike.max())
        alike = self._features[:count] @ self._features[slot]
        alike[slot] = -1.0
        closer = np.flatnonzero(alike > self._alike[:count])
        self._nearest[closer], self._alike[closer] = slot, alike[closer]

    def _fill(self, items: list[Example], tasks: list[str]) -> None:
        """These examples in this order and no others; the arrays are in their order already."""
        self.items, self._tasks, self._hidden = items, tasks, set()
        self._slots = {key_of(item): slot for slot, item in enumerate(items)}
        self._members = {}
        for slot, item in enumerate(items):
            self._members.setdefault(item.document, set()).add(slot)
        self._tree = SumTree(self.capacity)
        self._weigh(range(len(items)))

    def _weigh(self, slots: Iterable[int]) -> None:
        self._visible = None
        index = np.array([slot for slot in slots if slot < len(self.items)], dtype=np.int64)
        if index.size:
            weights = self.scores() if self._weighted else np.ones(len(self.items))
            weights[[slot for slot in self._hidden if slot < len(self.items)]] = 0.0
            self._tree.set(index, weights[index])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values; the hidden examples are not part of it (they belong to a running task)."""
        count = len(self.items)
        return {
            "tokens": torch.tensor([token for item in self.items for token in item.tokens], dtype=torch.int32),
            "supervised": torch.tensor([flag for item in self.items for flag in item.supervised], dtype=torch.bool),
            "lengths": torch.tensor([len(item.tokens) for item in self.items], dtype=torch.int64),
            "scores": torch.from_numpy(self._scores[:count].copy()),
            "unlike": torch.from_numpy(self._unlike[:count].copy()),
            "ranks": torch.from_numpy(self._ranks[:count].copy()),
            "alike": torch.from_numpy(self._alike[:count].copy()),
            "nearest": torch.from_numpy(self._nearest[:count].copy()),
            "soft_rows": torch.tensor([len(item.soft) for item in self.items], dtype=torch.int32),
            "soft_sizes": torch.tensor([len(row) for item in self.items for row in item.soft], dtype=torch.int32),
            "soft": torch.tensor([pair for item in self.items for row in item.soft for pair in row], dtype=torch.float64).view(-1, 2),
            "about": [[item.document, item.kind, item.importance, task] for item, task in zip(self.items, self._tasks, strict=True)],
            "seen": self.seen,
            "offered": dict(self._offered),
            "latest": self.latest,
            "random": random_state(self._random),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. Raises RetentionError when it does not fit into the capacity."""
        lengths = state["lengths"].tolist()
        if len(lengths) > self.capacity:
            raise RetentionError(f"{len(lengths)} saved examples do not fit into a replay buffer of {self.capacity}")
        examples, tasks = [], []
        parts = zip(state["tokens"].split(lengths), state["supervised"].split(lengths), state["about"], strict=True)
        soft = (tuple((int(token), share) for token, share in row.tolist()) for row in state["soft"].split(state["soft_sizes"].tolist()))
        for (tokens, supervised, (document, kind, importance, task)), rows in zip(parts, state["soft_rows"].tolist(), strict=True):
            teacher = tuple(next(soft) for _ in range(rows))
            examples.append(Example(tuple(tokens.tolist()), tuple(supervised.tolist()), document, kind, importance, teacher))
            tasks.append(task)
        self._scores[: len(examples)], self._ranks[: len(examples)] = state["scores"].numpy(), state["ranks"].numpy()
        self._unlike[: len(examples)] = state["unlike"].numpy()
        self._alike[:], self._nearest[:] = -1.0, -1
        self._alike[: len(examples)], self._nearest[: len(examples)] = state["alike"].numpy(), state["nearest"].numpy()
        if self._compares and examples:
            self._features[: len(examples)] = [_features(example) for example in examples]
        self.seen, self.latest = int(state["seen"]), str(state["latest"])
        self._offered = {str(document): int(count) for document, count in state.get("offered", {}).items()}
        restore_random(self._random, state["random"])
        self._fill(examples, tasks)


def _high(losses: NDArray[np.float64]) -> float:
    """The loss above which an example belongs to the highest quarter."""
    return float(np.quantile(losses, 0.75)) if len(losses) else 0.0


def _features(example: Example) -> NDArray[np.float32]:
    """Hashed counts of tokens and of pairs of neighbours, centred signs, length 1: a cheap stand-in for an embedding."""
    tokens = np.array(example.tokens, dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes = np.concatenate([tokens, tokens[:-1] * np.uint64(1_000_003) + tokens[1:] + np.uint64(1)]) * np.uint64(0x9E3779B97F4A7C15)
    places = (hashes >> np.uint64(40)) % np.uint64(FEATURES)
    signs = np.where((hashes >> np.uint64(60)) & np.uint64(1), 1.0, -1.0)
    vector = np.bincount(places.astype(np.int64), weights=signs, minlength=FEATURES).astype(np.float32)
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector
