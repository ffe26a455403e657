"""Extractive question answering: the part of a text that answers a question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Count
from retain.data.answers import exact_match, f1
from retain.data.errors import DataError
from retain.multitask.backbones.base import Backbone, Encoded, Inputs
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import NEVER, TASKS, Outputs, Targets, Task, View
from retain.multitask.tasks.metrics import mean

if TYPE_CHECKING:
    from retain.multitask.network import MultitaskNetwork

CONTEXT = "context"  # inputs: [windows, L] bool, tokens that can be in an answer
EDGES = ("start", "end")


class QaConfig(TaskConfig):
    """A question about a text, and where the text answers it."""

    question: str = Field("question", description="Column with the question")
    context: str = Field("context", description="Column with the text")
    answers: str = Field("answers", description="Column with a list of {text, start}; an empty list has no answer")
    answer: str | None = Field(None, description="Column with one answer's text, in place of a list")
    answer_start: str = Field("answer_start", description="Column with its first character, counted from 0")
    unanswerable: bool = Field(
        False, description="Whether some questions have no answer; when to say so is tuned on the validation records"
    )
    overlap: Count | None = Field(None, description="Tokens that two windows of a long text share; null is a quarter of max_length")
    max_answer: Count = Field(30, description="Longest answer in tokens")


class Truth(NamedTuple):
    """The right answers to a question: texts, each with its first character; none for a question without answer."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]
    context: str


class Found(NamedTuple):
    """The best answer: its first and last character, the logarithm of its probability in its window, and by how much it is likelier there
    than no answer, in nats."""

    start: int
    end: int
    score: float
    margin: float


@dataclass(frozen=True, slots=True, eq=False)
class Windows(Encoded):
    """A record as windows of its text that overlap, each with the question."""

    parts: tuple[Encoded, ...] = ()


@TASKS.register("qa")
class QuestionAnswering(Task):
    """The first and last token of the answer (Devlin et al., 1810.04805, section 4.2). A long text is read in windows that overlap; a
    window without the answer learns to say so, with a logit from the mean of its states. An answer is the span with the highest
    probability in any window, cut from the text by its characters.

    With ``unanswerable`` a question has no answer where the best span is not likelier than none by a margin (as 1810.04805, section 4.3),
    the one with the best F1 on the validation records.
    """

    Config: ClassVar[type[TaskConfig]] = QaConfig
    needs = frozenset({"tokens", "offsets"})
    reads = "tokens"

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, QaConfig)
        self.settings: QaConfig = config
        if config.input is not None:
            raise ConfigError(f"tasks.{name}.input: the columns of qa are named by question and context: leave input out")
        self.threshold = 0.0
        self.places = 0  # tokens of a window, once there is a network

    def columns(self) -> list[str]:
        return [self.settings.answers] if self.settings.answer is None else [self.settings.answer, self.settings.answer_start]

    def fit(self, rows: Sequence[Row]) -> None:
        check_columns(rows, [*self.columns(), self.settings.question, self.settings.context])
        truths = [self.truth(row) for row in rows]
        if not any(truth is not None and truth.texts for truth in truths):
            raise DataError("no training record has an answer", path=rows[0].path if rows else "", field=self.columns()[0])

    def truth(self, row: Row) -> Truth | None:
        context, listed = row.text(self.settings.context), self._listed(row)
        if listed is None:
            return None
        if not listed and not self.settings.unanswerable:
            fix = f"tasks.{self.name}.unanswerable: true learns such questions"
            raise row.error("has no answer", self.columns()[0], fix)
        for text, start in listed:
            if context[start : start + len(text)] != text or start < 0:
                places = [place for place in range(len(context)) if context.startswith(text, place)]
                there = f"it stands at {', '.join(map(str, places[:3]))}" if places else "nor anywhere else in it"
                raise row.error(f"the answer {text[:40]!r} does not stand at character {start} of the context", self.columns()[0], there)
        return Truth(tuple(text for text, _ in listed), tuple(start for _, start in listed), context)

    def _listed(self, row: Row) -> list[tuple[str, int]] | None:
        """The answers of a record, without those that are there twice; None where the column is empty."""
        single, column = self.settings.answer, self.columns()[0]
        if single is not None:
            if row.values.get(single) is None:
                return None
            if row.missing(single):
                return []
            start = row.number(self.settings.answer_start)
            if start is None or start != int(start):
                raise row.error("must be the number of a character", self.settings.answer_start)
            return [(row.text(single), int(start))]
        if row.values.get(column) in (None, ""):
            return None
        value = row.values[column]
        if isinstance(value, Mapping):  # a column of texts and one of starts, as the library datasets has them
            starts = value.get("answer_start", value.get("start"))
            if not isinstance(value.get("text"), list) or not isinstance(starts, list) or len(starts) != len(value["text"]):
                raise row.error("answers are {text: [...], answer_start: [...]} of the same length", column)
            entries: list[Any] = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
        else:
            entries = row.listed(column)
        found = []
        for entry in entries:
            try:
                text, start = entry["text"], entry["start"] if "start" in entry else entry["answer_start"]
            except (TypeError, KeyError):
                text, start = None, None
            if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
                raise row.error("an answer is {text, start}: a text and the number of its first character", column)
            found.append((text, start))
        return list(dict.fromkeys(found))

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        answered = sum(bool(truth.texts) for truth in truths)
        return {"answered": answered, **({"no answer": len(truths) - answered} if self.settings.unanswerable else {})}

    def show(self, truth: Any) -> str:
        unique = dict.fromkeys(truth.texts)
        return " / ".join(unique) or "(no answer)"

    def inputs(self, backbone: Backbone) -> list[str]:
        return [self.settings.question, self.settings.context]

    def raw(self, row: Row, backbone: Backbone) -> Any:
        return row.text(self.settings.question).strip(), row.text(self.settings.context)

    def encode(self, backbone: Backbone, raws: Sequence[Any]) -> list[Encoded]:
        longest = int(backbone.config.max_length)  # type: ignore[union-attr, arg-type]
        overlap = longest // 4 if self.settings.overlap is None else self.settings.overlap
        windows: list[list[Encoded]] = backbone.windows(raws, overlap)  # type: ignore[operator]
        return [
            Windows({}, sum(part.length for part in parts), (), any(part.truncated for part in parts), tuple(parts)) for parts in windows
        ]

    def target(self, truth: Any, encoded: Encoded) -> Targets:
        assert isinstance(encoded, Windows)
        places = [_span_of(truth, part.offsets) for part in encoded.parts]
        return {edge: torch.tensor([place[number] for place in places]) for number, edge in enumerate(EDGES)}

    def remarks(self, truths: Sequence[Any], targets: Sequence[Targets]) -> list[str]:
        lost = sum(bool(truth.texts) and not bool(target["end"].any()) for truth, target in zip(truths, targets, strict=True))
        return [f"{lost} of {len(truths)} answers are whole in no window: they are not learned; a larger overlap helps"] if lost else []

    def batch(self, backbone: Backbone, encoded: Sequence[Encoded], targets: Sequence[Targets] | None) -> tuple[Inputs, Targets | None]:
        parts = [part for item in encoded for part in item.parts]  # type: ignore[attr-defined]
        inputs = backbone.collate(parts)
        inside = [torch.tensor([last > first for first, last in part.offsets]) for part in parts]
        inputs[CONTEXT] = pad_sequence(inside, batch_first=True)
        return inputs, None if targets is None else self.collate(targets)

    def collate(self, targets: Sequence[Targets]) -> Targets:
        """Windows one after another; ``windows`` [B]: how many each record has."""
        counts = torch.tensor([len(target["start"]) for target in targets])
        return {"windows": counts, **{edge: torch.cat([target[edge] for target in targets]) for edge in EDGES}}

    def head(self, backbone: Backbone) -> nn.Module:
        self.places = int(backbone.config.max_length)  # type: ignore[union-attr, arg-type]
        return _Edges(backbone.width, self.config.dropout)

    def run(self, network: MultitaskNetwork, inputs: Inputs) -> Outputs:
        view = network.view(self, {name: value for name, value in inputs.items() if name != CONTEXT})
        found: Outputs = network.head(self)(view, inputs[CONTEXT])
        return found

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return torch.stack([F.cross_entropy(outputs[edge].float(), targets[edge]) for edge in EDGES]).mean()

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        starts, ends = (torch.log_softmax(outputs[edge].double(), -1).cpu().numpy() for edge in EDGES)
        found, number = [], 0
        for item in encoded:
            assert isinstance(item, Windows)
            best = Found(0, 0, -math.inf, -math.inf)
            for part in item.parts:
                best = max(best, self._best(starts[number], ends[number], part.offsets), key=lambda one: one.score)
                number += 1
            found.append(best)
        return found

    def _best(self, start: Any, end: Any, offsets: Sequence[tuple[int, int]]) -> Found:
        """The likeliest span of a window; place 0 is no answer."""
        inside = np.array([last > first for first, last in offsets])
        length = len(inside)
        pairs = start[:length, None] + end[None, :length]
        allowed = inside[:, None] & inside[None] & np.triu(np.ones((length, length), bool)) & ~np.triu(
            np.ones((length, length), bool), self.settings.max_answer
        )  # fmt: skip
        if not allowed.any():
            return Found(0, 0, -math.inf, -math.inf)
        first, last = divmod(int(np.where(allowed, pairs, -np.inf).argmax()), length)
        score = float(pairs[first, last])
        return Found(offsets[first][0], offsets[last][1], score, score - float(start[0] + end[0]))

    def answered(self, result: Found) -> bool:
        """Whether the question has an answer."""
        return not self.settings.unanswerable or result.margin >= self.threshold

    def text(self, result: Found, context: str) -> str:
        """The answer, cut from its text; empty for none."""
        return context[result.start : result.end] if self.answered(result) else ""

    def tune(self, results: Sequence[Any], truths: Sequence[Any]) -> None:
        """The margin with the best mean F1, in the middle between two records."""
        if not self.settings.unanswerable or not results:
            return
        order = sorted(range(len(results)), key=lambda number: -results[number].margin)
        golds = [truths[number].texts or ("",) for number in order]
        spans = [truths[number].context[results[number].start : results[number].end] for number in order]
        gains = np.cumsum([f1(span, gold) - f1("", gold) for span, gold in zip(spans, golds, strict=True)])
        margins = [results[number].margin for number in order]
        ends = np.append(np.diff(margins) != 0.0, True)  # margins that are equal are decided alike
        place = int(np.argmax(np.where(ends, gains, -np.inf)))
        if gains[place] < 0.0:
            self.threshold = margins[0] + 1.0  # nothing is better left unsaid
        else:
            self.threshold = (margins[place] + margins[place + 1]) / 2 if place + 1 < len(margins) else margins[place]

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        if not self.answered(result):
            return {"answer": "", "start": None, "end": None, "probability": None, "margin": result.margin - self.threshold}
        span = {"answer": self.text(result, raw[1]), "start": result.start, "end": result.end, "probability": math.exp(result.score)}
        return {**span, "margin": result.margin - self.threshold} if self.settings.unanswerable else span

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        assert isinstance(config, QaConfig)
        return dict.fromkeys(("f1", "exact", *(("answered_f1", "silent") if config.unanswerable else ())), True)

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        """SQuAD's exact match and F1 (1606.05250), an empty text where there is no answer; with ``unanswerable`` also the F1 on questions
        with an answer, and of those without the share that was left unanswered."""
        texts = [self.text(result, truth.context) for result, truth in zip(results, truths, strict=True)]
        golds = [truth.texts or ("",) for truth in truths]
        scores = [f1(text, gold) for text, gold in zip(texts, golds, strict=True)]
        exact = [float(exact_match(text, gold)) for text, gold in zip(texts, golds, strict=True)]
        found = {"f1": mean(scores), "exact": mean(exact)}
        if self.settings.unanswerable:
            found["answered_f1"] = mean([score for score, truth in zip(scores, truths, strict=True) if truth.texts])
            found["silent"] = mean([score for score, truth in zip(scores, truths, strict=True) if not truth.texts])
        return found

    def main(self) -> str:
        return "f1"

    def undefined(self, metric: str, truths: Sequence[Any]) -> str:
        if metric == "answered_f1" and not any(truth.texts for truth in truths):
            return "no validation record has an answer"
        return "every validation record has an answer" if metric == "silent" and all(truth.texts for truth in truths) else ""

    def state(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.threshold = float(state["threshold"])

    def outcomes(self) -> int:
        return self.places

    def labels(self, target: Targets) -> tuple[int, ...]:
        return tuple(torch.stack([target[edge] for edge in EDGES], 1).flatten().tolist())

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        both = torch.stack([outputs[edge].float() for edge in EDGES], 1)  # [windows, 2, L]
        counts = targets["windows"]
        rows = [part.flatten(0, 1) for part in both.split(counts.tolist())]
        known = torch.arange(2 * int(counts.max()), device=both.device)[None] < 2 * counts[:, None]
        return pad_sequence(rows, batch_first=True), known


class _Edges(nn.Module):
    """Logits of the first and last token of an answer over the tokens of a window; place 0, which is never in a text, is no answer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.tokens, self.none = nn.Dropout(dropout), nn.Linear(width, 2), nn.Linear(width, 2)

    def forward(self, view: View, context: Tensor) -> Outputs:
        weights = view.mask.to(view.states.dtype)[:, :, None]
        none = self.none(self.dropout((view.states * weights).sum(1) / weights.sum(1)))
        logits = self.tokens(self.dropout(view.states)).masked_fill(~context[:, :, None], NEVER)
        logits = torch.cat([none[:, None], logits[:, 1:]], 1)
        return {edge: logits[:, :, number] for number, edge in enumerate(EDGES)}


def _span_of(truth: Truth, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of the first answer in a window; (0, 0) where not all of it is there."""
    if not truth.texts:
        return 0, 0
    text, start = truth.texts[0], truth.starts[0]
    first, last = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    inside = [place for place, (begin, end) in enumerate(offsets) if end > begin and begin < last and first < end]
    whole = bool(inside) and offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last
    return (inside[0], inside[-1]) if whole else (0, 0)
