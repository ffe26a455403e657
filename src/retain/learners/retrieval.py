"""What the learners that retrieve share: names of passages, a budgeted context, hidden-state vectors of texts, and joining of rankings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.config import Config
from retain.data.chat import tokenise
from retain.data.examples import prompt_tokens
from retain.learners.base import Memory, Passage
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

RANK_OFFSET = 60  # of reciprocal rank fusion, as in its source
PASS_TOKENS = 2048
DENSE_LAYERS = 0.8  # of the layers, for vectors of texts


def key_of(passage: Passage) -> str:
    """16 hexadecimal digits that name a passage by its content."""
    return hashlib.sha256("\0".join((passage.document, passage.heading, passage.text)).encode()).hexdigest()[:16]


def places_of(memories: Sequence[Memory]) -> dict[str, tuple[int, int]]:
    """Where the passages of memories are: key -> (number of the memory, number of the passage in it)."""
    return {key: (number, place) for number, memory in enumerate(memories) for place, key in enumerate(memory.facts["passages"])}


def reading_order(passages: Iterable[Passage], memories: Sequence[Memory]) -> list[Passage]:
    """Passages as they stand in their documents, the documents in the order of the memories; unknown ones come last."""
    places = places_of(memories)
    return sorted(passages, key=lambda passage: places.get(key_of(passage), (len(memories), 0)))


def context_of(model: LanguageModel, question: str, passages: Sequence[Passage], memories: Sequence[Memory], limit: int, answer: int) -> (
    tuple[str | None, list[Passage]]
):  # fmt: skip
    """A text for the prompt, and the passages in it: of ``passages``, best first, those that fit into ``limit`` tokens and into what the
    question and ``answer`` tokens leave of the model's context. The question is never shortened: passages give way, the worst first; when
    not even the best fits whole, it loses words at its end."""
    free = model.context - answer - len(prompt_tokens(model.tokenizer, question))
    limit = min(limit, free - 8)  # the template may put a few tokens between
    chosen: list[Passage] = []
    for passage in passages:
        if _size(model, _written(reading_order([*chosen, passage], memories), memories)) <= limit:
            chosen.append(passage)
    if chosen:
        return _written(reading_order(chosen, memories), memories), chosen
    if limit < 16 or not passages:
        return None, []
    best = passages[0]
    tokens = tokenise(model.tokenizer, _written([best], memories), literal=True)[:limit]
    text = str(model.tokenizer.decode(tokens, skip_special_tokens=True))
    return text.rpartition(" ")[0] or text, [best]


def _written(passages: Sequence[Passage], memories: Sequence[Memory]) -> str:
    titles = {str(memory.facts["document"]): str(memory.facts["title"]) for memory in memories}
    parts = []
    for document, members in groupby(passages, lambda passage: passage.document):
        group = list(members)
        parts.append("\n\n".join(text for text in (titles.get(document, group[0].heading), "\n".join(p.text for p in group)) if text))
    return "\n\n".join(parts)


def _size(model: LanguageModel, text: str) -> int:
    return len(tokenise(model.tokenizer, text, literal=True))


def dense_vectors(model: LanguageModel, passages: Sequence[Passage], config: Config) -> dict[str, Tensor]:
    """The vectors of passages, {"vectors": [P, width] float16}; empty unless ``jitrl.dense``."""
    return {"vectors": text_vectors(model, passage_tokens(model, passages)).half()} if config.jitrl.dense else {}


def passage_tokens(model: LanguageModel, passages: Sequence[Passage]) -> list[list[int]]:
    """The tokens of passages under their headings."""
    return [tokenise(model.tokenizer, f"{passage.heading}\n{passage.text}", literal=True) for passage in passages]


def text_vectors(model: LanguageModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """The mean hidden state after ``DENSE_LAYERS`` of the layers of every text (tokens), [N, width] float32 on the CPU; of a long text its
    first ``PASS_TOKENS`` tokens. The first token, whose state is an outlier in most models, is left out."""
    rest, found = [list(text[: min(PASS_TOKENS, model.context)]) or [0] for text in texts], []
    while rest:
        count = max(1, min(len(rest), PASS_TOKENS // max(len(row) for row in rest)))
        batch, rest = rest[:count], rest[count:]
        with torch.inference_mode():
            states = model.hidden(Packed.of(batch, model.device), stop=max(1, round(model.layers * DENSE_LAYERS))).float()
        found += [(part[1:] if len(part) > 1 else part).mean(0).cpu() for part in states.split([len(row) for row in batch])]
    return torch.stack(found)


def cosines(query: Tensor, keys: Tensor, centre: Tensor) -> Tensor:
    """Cosine similarity of ``query`` [..., width] with ``keys`` [N, width], [..., N], both seen from ``centre`` [width]: hidden states
    share a large common part, which would make all of them alike."""
    return F.normalize(query - centre, dim=-1) @ F.normalize(keys - centre, dim=-1).T


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking from several, best first: each gives an item 1 / (60 + rank) (reciprocal rank fusion, Cormack et al. 2009)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda item: -scores[item])  # stable: what ties stays as in the first ranking


def by_vectors(model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage]) -> list[Passage]:
    """Passages in the order that joins theirs with that of their vectors' similarity to the question's."""
    places = places_of(memories)
    held = [(n, places[key_of(passage)]) for n, passage in enumerate(passages) if key_of(passage) in places]
    held = [(n, place) for n, place in held if "vectors" in memories[place[0]].tensors]
    if len(held) < 2:
        return list(passages)
    vectors = torch.stack([memories[memory].tensors["vectors"][place] for _, (memory, place) in held]).float().cpu()
    query = text_vectors(model, [tokenise(model.tokenizer, question, literal=True)])[0]
    order = cosines(query, vectors, vectors.mean(0)).argsort(descending=True).tolist()
    return [passages[n] for n in fused([range(len(passages)), [held[place][0] for place in order]])]
