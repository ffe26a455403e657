"""Context distillation: what the model says with the document before it, as soft labels for the model that has to know it by heart.

A question that the model wrote about a document comes with an answer that is sometimes wrong; the model that reads the document while it
answers is right more often, and where it is not sure its probabilities say so. The labels of a question become a mixture of the written
answer and of the reader's next-token probabilities at the same places (Snell et al., 2209.15189; soft labels: Hinton et al., 1503.02531).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from retain.adapters import Adapter, inject
from retain.data.chunking import chunks
from retain.data.document import Document
from retain.data.examples import Example, question_example
from retain.data.selfstudy import StudyItem, normalise
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, common_prefix, targets

TOP = 20  # tokens of the reader's distribution that are kept; the rest is shared among them
CONTEXT_TOKENS = 448  # of the document before a question
PASS_TOKENS = 2048


def read_labels(
    model: LanguageModel, skill: Adapter | None, document: Document, items: Sequence[StudyItem], examples: Sequence[Example],
    weight: float,
) -> list[Example]:  # fmt: skip
    """The ``examples`` of question ``items`` with soft labels from the model, the study ``skill`` on it, that reads the document.

    ``weight`` from 0 to 1 is the reader's share of a label. Questions that the model did not write keep their labels, which are right
    more often than the reader; so does one whose sentence is not found in the document.
    """

    def size(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    injection = inject([(skill, 1.0)], model.dtype, model.device) if skill else None
    pieces = [(piece.text, normalise(piece.text)) for piece in chunks(document.text, size, CONTEXT_TOKENS)]
    places: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        source = normalise(item.source)
        place = next((place for place, (_, text) in enumerate(pieces) if source in text), None)
        if item.written and item.prompt and place is not None:
            places.setdefault(place, []).append(number)
    found = list(examples)
    for place, numbers in places.items():
        context = f"{document.title}\n\n{pieces[place][0]}"
        asked = [(items[n].prompt or "", items[n].completion) for n in numbers]
        readings = [question_example(model.tokenizer, *pair, context, max_tokens=model.context) for pair in asked]
        for number, soft in zip(numbers, _likely(model, injection, readings, weight), strict=True):
            found[number] = replace(found[number], soft=soft)
    return found


def _likely(
    model: LanguageModel, injection: Injection | None, readings: Sequence[Example], weight: float
) -> Iterator[tuple[tuple[tuple[int, float], ...], ...]]:
    """For each reading the ``TOP`` likeliest tokens at each target, their probabilities summing to ``weight``."""
    asked = min(reading.supervised.index(True) for reading in readings)  # the state before the first target is needed
    shared = min(common_prefix([reading.tokens for reading in readings]), asked - 1)
    rest: list[Example] = list(readings)
    while rest:
        count = max(1, PASS_TOKENS // max(len(reading) - shared for reading in rest))
        batch, rest = rest[:count], rest[count:]
        tails, masks = [reading.tokens[shared:] for reading in batch], [reading.supervised[shared:] for reading in batch]
        positions, _ = targets(Packed.of(tails, model.device), masks)
        with torch.inference_mode():
            hidden = model.hidden_after(batch[0].tokens[:shared], tails, injection)[positions]
            best = [torch.softmax(model.logits(part), -1).topk(min(TOP, model.vocabulary), 1) for part in hidden.split(128)]
            tokens, shares = torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])
            shares *= weight / shares.sum(1, keepdim=True)
        rows = [tuple(zip(*pair, strict=True)) for pair in zip(tokens.tolist(), shares.tolist(), strict=True)]
        for reading in batch:
            yield tuple(rows[: reading.n_supervised()])
            rows = rows[reading.n_supervised() :]
