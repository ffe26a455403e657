"""Documents as examples for each kind of network, and examples as a stream for the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retain.data import Document, Example, dialogue_examples, question_example, text_examples
from retain.data.chat import affixes, tokenise
from retain.data.errors import DataError, Note
from retain.pretraining.corpus import Told, speaks
from retain.pretraining.distillation.networks import Kind
from retain.pretraining.errors import PretrainingError


def examples_of(documents: Sequence[Document], tokenizer: Any, kind: Kind, context: int, told: Told) -> list[Example]:
    """Examples of at most ``context`` tokens. For a causal model: every token of a text, and of conversations and pairs what the assistant
    says. For an encoder-decoder: prompts (source) with completions (target). For an encoder: texts; which tokens it has to guess is drawn
    when they are learned. What does not fit is told and left out. Raises PretrainingError when nothing is left."""
    make = {"causal": _causal, "seq2seq": _seq2seq, "encoder": _encoder}[kind]
    found: list[Example] = []
    reason = ""
    for document in documents:
        try:
            found += make(document, tokenizer, context)
        except DataError as error:
            reason = error.what
            told(Note(document.source, f"left out: {reason}"))
    if not found:
        raise PretrainingError(f"corpus.paths: no document has anything that the student, which is {kind}, could learn: {reason}")
    return found


def _causal(document: Document, tokenizer: Any, context: int) -> list[Example]:
    if document.kind == "pairs":
        return [question_example(tokenizer, pair.question, pair.answer, max_tokens=context) for pair in document.pairs]
    if document.kind == "dialogue" and speaks(document):
        return dialogue_examples(tokenizer, document.messages, context)
    return text_examples(tokenizer, document.text, context)


def _seq2seq(document: Document, tokenizer: Any, context: int) -> list[Example]:
    if not document.pairs:
        raise DataError("no pairs of prompt and completion")
    found = []
    for pair in document.pairs:
        source, target = (tokenizer(text, verbose=False)["input_ids"] for text in (pair.question, pair.answer))
        if len(source) > context or len(target) > context:
            raise DataError(f"{len(source)} tokens of prompt and {len(target)} of completion, the window {context}")
        found.append(Example((*source, *target), (False,) * len(source) + (True,) * len(target), kind="pair"))
    return found


def _encoder(document: Document, tokenizer: Any, context: int) -> list[Example]:
    before, after = affixes(tokenizer)
    body, room = tokenise(tokenizer, document.text, literal=True), context - len(before) - len(after)
    parts = [body[first : first + room] for first in range(0, len(body), room)]
    marks = [(False,) * len(before) + (True,) * len(part) + (False,) * len(after) for part in parts]
    tokens = [(*before, *part, *after) for part in parts]
    if not before:
        marks = [(False, *mark[1:]) for mark in marks]
    return [Example(text, mark, document.id) for text, mark in zip(tokens, marks, strict=True) if any(mark)]


def masked(example: Example, share: float, random: np.random.Generator) -> Example:
    """The example with a ``share`` of its supervised tokens, at least one, left supervised: those that an encoder has to guess."""
    places = np.flatnonzero(example.supervised)
    chosen = set(random.permutation(places)[: max(1, round(share * len(places)))].tolist())
    return replace(example, supervised=tuple(number in chosen for number in range(len(example))))


class ExampleStream:
    """Examples for the training loop, in an order that depends on the seed and the epoch alone.

    ``batch``: examples of a step, all processes together; ``accumulation``: pieces of a process's share; ``mask``: the share of tokens that
    an encoder guesses, None for other kinds. Raises PretrainingError when there are fewer examples than a batch takes.
    """

    def __init__(
        self, learned: Sequence[Example], held: Sequence[Example], batch: int, accumulation: int, seed: int, check_tokens: int,
        mask: float | None = None,
    ) -> None:  # fmt: skip
        if len(learned) < batch:
            raise PretrainingError(
                f"the corpus has {len(learned)} example{'' if len(learned) == 1 else 's'} to learn, fewer than the {batch} of a batch: "
                "add texts, or lower training.batch"
            )
        self.learned, self.batch, self.accumulation, self.seed, self.mask = learned, batch, accumulation, seed, mask
        lengths = np.cumsum([len(example) for example in held])
        self.held = list(held[: max(1, int(np.searchsorted(lengths, check_tokens, side="right")))])
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, on average."""
        return round(self.batch * sum(map(len, self.learned)) / len(self.learned))

    def pieces(self, step: int, rank: int, world: int) -> list[tuple[list[Example], float]]:
        """Examples for this process, with their shares of the step's supervised tokens; the shares of all processes sum to 1."""
        chosen = [self._example(place) for place in range(step * self.batch, (step + 1) * self.batch)]
        total, own = sum(example.n_supervised() for example in chosen), chosen[rank::world]
        size = len(own) // self.accumulation
        parts = [own[first : first + size] for first in range(0, len(own), size)]
        return [(part, sum(example.n_supervised() for example in part) / total) for part in parts]

    def _example(self, place: int) -> Example:
        """The example at a place of the endless sequence of epochs."""
        epoch, number = divmod(place, len(self.learned))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.learned))
        example = self.learned[int(self._order[number])]
        return example if self.mask is None else masked(example, self.mask, np.random.default_rng([self.seed, 1, place]))

    def checks(self) -> list[tuple[list[Example], int]]:
        """Examples that are held out, a few at a time, with the number of their targets."""
        held = self.held
        if self.mask is not None:
            held = [masked(example, self.mask, np.random.default_rng([self.seed, 2, number])) for number, example in enumerate(held)]
        size = max(1, self.batch // self.accumulation)
        parts = [held[first : first + size] for first in range(0, len(held), size)]
        return [(part, sum(example.n_supervised() for example in part)) for part in parts]
