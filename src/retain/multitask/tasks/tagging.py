"""Named entities: a tag for each token, aligned with words or characters by offsets; entities as the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Names
from retain.data.errors import DataError, did_you_mean
from retain.multitask.backbones.base import Backbone, Encoded
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import IGNORED, TASKS, Outputs, Targets, Task, View
from retain.multitask.tasks.metrics import Span, entity_scores, spans_of

METRICS = ("f1", "macro_f1", "precision", "recall")


class NerConfig(TaskConfig):
    """Entities in a text, by characters or by words."""

    entities: str | None = Field(None, description="Column with a list of {start, end, label}, in characters of the input text")
    words: str | None = Field(None, description="Column with a list of words, in place of a text")
    tags: str | None = Field(None, description="Column with a tag for each word: O, B-KIND, I-KIND")
    types: Names | None = Field(None, description="The kinds of entities; null takes those of the training records")


class Truth(NamedTuple):
    """The entities of a record: kind, first and last character (``spans``); ``words``: first and last character of each word, where
    words are what is tagged."""

    spans: tuple[Span, ...]
    words: tuple[tuple[int, int], ...]


@TASKS.register("ner")
class Ner(Task):
    """Named entities by BIO tags. A record has a text with entities by characters, or words with tags. Words are joined by spaces and
    the tag of a word is that of its first token; in a text every token is tagged: B where an entity begins, I where it goes on.

    An entity counts as found where kind and both ends are right, ends in characters; what was cut off from a long text is never found.
    """

    Config: ClassVar[type[TaskConfig]] = NerConfig
    needs = frozenset({"tokens", "offsets"})
    reads = "tokens"

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, NerConfig)
        self.settings: NerConfig = config
        self.by_words = config.words is not None
        if self.by_words != (config.tags is not None) or self.by_words == (config.entities is not None):
            raise ConfigError(f"tasks.{name}: give entities (by characters), or words and tags, and not both")
        self.tags: list[str] = ["O"]

    def columns(self) -> list[str]:
        return [column for column in (self.settings.entities, self.settings.tags) if column is not None]

    def fit(self, rows: Sequence[Row]) -> None:
        check_columns(rows, [*self.columns(), *([self.settings.words] if self.settings.words else [])])
        asked, path = self.settings.types, rows[0].path if rows else ""
        self.tags = []  # every kind is allowed while they are looked for
        counts = Counter(kind for row in rows if (truth := self.truth(row)) is not None for kind, _, _ in truth.spans)
        kinds = sorted(counts) if asked is None else asked
        if not counts:
            raise DataError("no training record has an entity", path=path, field=self.columns()[0])
        without = [kind for kind in kinds if not counts[kind]]
        if without:
            raise DataError(f"no training record has an entity {without[0]!r}", path=path, field=self.columns()[0])
        self.tags = ["O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]
        for row in rows:
            self.truth(row)

    def truth(self, row: Row) -> Truth | None:
        found = self._of_words(row) if self.by_words else self._of_text(row)
        for kind, _, _ in found.spans if found else ():
            if self.tags and f"B-{kind}" not in self.tags:
                known = [tag[2:] for tag in self.tags[1::2]]
                hint = did_you_mean(kind, known) or f"there is {', '.join(known)}"
                raise row.error(f"the kind {kind!r} is not in the list", self.columns()[0], hint)
        return found

    def _of_words(self, row: Row) -> Truth | None:
        assert self.settings.words is not None and self.settings.tags is not None
        words, column = _words(row, self.settings.words), self.settings.tags
        if row.missing(column):
            return None
        tags = [str(tag) for tag in row.listed(column)]
        if len(tags) != len(words):
            raise row.error(f"{len(tags)} tags for {len(words)} words", column)
        for tag in tags:
            if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
                raise row.error(f"the tag {tag!r} is neither O nor B-KIND nor I-KIND", column)
        places = _places(words)
        return Truth(tuple((kind, places[first][0], places[last][1]) for kind, first, last in spans_of(tags)), places)

    def _of_text(self, row: Row) -> Truth | None:
        column = self.settings.entities
        assert column is not None
        if row.values.get(column) in (None, ""):
            return None
        found: list[Span] = []
        for entry in row.listed(column):
            try:
                start, end, kind = int(entry["start"]), int(entry["end"]), str(entry["label"])
            except (TypeError, KeyError, ValueError):
                raise row.error("an entity is {start, end, label}, with numbers of characters", column) from None
            found.append((kind, start, end))
        found.sort(key=lambda span: span[1:])
        for (_, _, before), (_, start, _) in pairwise(found):
            if start < before:
                raise row.error(f"two entities overlap at character {start}", column)
        return Truth(tuple(found), ())

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        seen = Counter(kind for truth in truths for kind, _, _ in truth.spans)
        return {tag[2:]: seen[tag[2:]] for tag in self.tags[1::2]}

    def show(self, truth: Any) -> str:
        return ", ".join(f"{kind} {start}-{end}" for kind, start, end in truth.spans) or "(none)"

    def inputs(self, backbone: Backbone) -> list[str]:
        return [self.settings.words] if self.settings.words is not None else super().inputs(backbone)

    def raw(self, row: Row, backbone: Backbone) -> Any:
        if self.settings.words is not None:
            return (" ".join(_words(row, self.settings.words)),)
        texts = backbone.read(row, self.config.input)
        if len(texts) != 1:
            raise ConfigError(f"tasks.{self.name}.input: entities are looked for in one text, not in a pair")
        return texts

    def check(self, row: Row, truth: Any, raw: Any) -> None:
        for _, start, end in truth.spans:
            if not 0 <= start < end <= len(raw[0]):
                inside = f"the entity from {start} to {end} is not inside the text, which has {len(raw[0])} characters"
                raise row.error(inside, self.columns()[0])

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        tags = torch.full((encoded.length,), IGNORED)
        begun: set[Span] = set()
        for place, (first, last) in self._units(encoded.offsets, truth.words):
            tags[place] = 0
            for span in truth.spans:
                if first < span[2] and span[1] < last:
                    tags[place] = self.tags.index(f"{'I' if span in begun else 'B'}-{span[0]}")
                    begun.add(span)
        return {"tags": tags}

    @staticmethod
    def _units(offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
        """What is tagged: the place of a token, and the characters that its tag stands for."""
        tokens = [(place, span) for place, span in enumerate(offsets) if span[1] > span[0]]
        if not words:
            return tokens
        found, number, taken = [], 0, -1
        for place, (first, last) in tokens:
            while number < len(words) and words[number][1] <= first:
                number += 1
            if number < len(words) and last > words[number][0] and taken < number:
                found.append((place, words[number]))
                taken = number
        return found

    def collate(self, targets: Sequence[Targets]) -> Targets:
        return {"tags": pad_sequence([target["tags"] for target in targets], batch_first=True, padding_value=float(IGNORED))}

    def head(self, backbone: Backbone) -> nn.Module:
        return _Tags(backbone.width, len(self.tags), self.config.dropout)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        known = targets["tags"] != IGNORED
        logits = outputs["tags"].float()
        return F.cross_entropy(logits[known], targets["tags"][known]) if bool(known.any()) else logits.sum() * 0.0

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        shares, tags = (values.cpu().numpy() for values in torch.softmax(outputs["tags"].double(), -1).max(-1))
        return [(tags[number, : item.length], shares[number, : item.length], item.offsets) for number, item in enumerate(encoded)]

    def found(self, result: Any, words: Sequence[tuple[int, int]]) -> list[tuple[Span, float]]:
        """The entities that a result holds, each with the mean probability of its tags."""
        tags, shares, offsets = result
        places = {unit: place for place, unit in self._units(offsets, words)}
        order = list(words or places)  # a word without a token has no entity
        entities = []
        for kind, first, last in spans_of([self.tags[tags[places[unit]]] if unit in places else "O" for unit in order]):
            inside = [float(shares[places[unit]]) for unit in order[first : last + 1]]
            entities.append(((kind, order[first][0], order[last][1]), sum(inside) / len(inside)))
        return entities

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        words = _places(_words(row, self.settings.words)) if self.settings.words is not None else ()
        found = [
            {"label": kind, "start": start, "end": end, "text": raw[0][start:end], "probability": share}
            for (kind, start, end), share in self.found(result, words)
        ]
        return {"entities": found}

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        return dict.fromkeys(METRICS, True)

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        found = [[span for span, _ in self.found(result, truth.words)] for result, truth in zip(results, truths, strict=True)]
        return entity_scores([truth.spans for truth in truths], found)

    def main(self) -> str:
        return "f1"

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        return "" if any(truth.spans for truth in truths) else "no validation record has an entity"

    def state(self) -> dict[str, Any]:
        return {"tags": self.tags}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tags = list(state["tags"])

    def outcomes(self) -> int:
        return len(self.tags)

    def labels(self, target: Targets) -> tuple[int, ...]:
        return tuple(target["tags"][target["tags"] != IGNORED].tolist())

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        return outputs["tags"].float(), targets["tags"] != IGNORED


class _Tags(nn.Module):
    def __init__(self, width: int, tags: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(width, tags)

    def forward(self, view: View) -> Outputs:
        return {"tags": self.linear(self.dropout(view.states))}


def _words(row: Row, column: str) -> list[str]:
    words = row.listed(column)
    for word in words:
        if not isinstance(word, str) or not word.strip() or word != word.strip():
            raise row.error(f"a word is a text without spaces around it, not {word!r}", column)
    if not words:
        raise row.error("holds no words", column)
    return words


def _places(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """First and last character of each word in the text that they are joined to."""
    found, start = [], 0
    for word in words:
        found.append((start, start + len(word)))
        start += len(word) + 1
    return tuple(found)
