"""jitrl: nothing is trained; a question is answered with passages in the prompt and a bias of the logits toward their rare words.

Just-in-time reinforcement learning (JitRL, 2601.18510) adds to a frozen model's logits what a memory of earlier experience says for each
action, ``z' = z + A / beta``. Here the memory is a document's words and the advantage of a word its rarity (inverse document frequency),
halved each time that it is written, and zero for what everybody says; ``jitrl.bias`` is 1 / beta.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retain.adapters.routing import COMMON_BITS, Surprise, content_words
from retain.config import Config
from retain.data.chat import tokenise
from retain.learners.base import Aid, Form, Guide, Learned, Lesson, Memory, Passage, Tell
from retain.learners.retrieval import by_vectors, context_of, dense_vectors, key_of, passage_tokens, places_of
from retain.lm.model import LanguageModel
from retain.training.loop import TrainingError

DECAY = 0.5  # of a word's weight each time that it is written
LEAST_RARITY = 0.4  # rarer than this share of the rarest a word must be to be raised at all
_WORD = re.compile(r"\w+(?:[-'’.:]\w+)*")


@dataclass
class _Node:
    """A place in the tree of the words' tokens: the tokens that go on from here, each with the largest weight behind it."""

    after: dict[int, _Node] = field(default_factory=dict)
    weight: float = 0.0


class WordBias:
    """A guide that raises the logits of words' tokens: of the first token of each word, and, once that is written, of the rest.

    ``words``: tokens of every word and its weight in [0, 1]; ``barred``: tokens that may not be raised at the beginning of a word, because
    by themselves they are common; ``strength``: logits that a weight of 1 adds. The beginning of a word counts half as much each time
    that it was written. It keeps what was written, so it serves one answer at a time and begins anew when no token was written yet."""

    def __init__(self, words: Iterable[tuple[Sequence[int], float]], barred: frozenset[int], strength: float) -> None:
        self.root, self.barred, self.strength = _Node(), barred, strength
        for tokens, weight in words:
            node = self.root
            for token in tokens:
                node = node.after.setdefault(token, _Node())
                node.weight = max(node.weight, weight)
        self.open: list[_Node] = []  # words that have been begun and could go on
        self.used: Counter[int] = Counter()

    def __call__(self, hidden: Tensor, logits: Tensor, last: int | None) -> Tensor:
        """The logits [V] of the next token with the bias added; ``hidden`` is not looked at."""
        if last is None:
            self.open, self.used = [], Counter()
        else:
            self.open = [node.after[last] for node in (*self.open, self.root) if last in node.after]
            self.used[last] += 1
        found = self.raised()
        if not found or self.strength == 0.0:
            return logits
        tokens = torch.tensor(list(found), device=logits.device)
        added = torch.tensor(list(found.values()), dtype=logits.dtype, device=logits.device)
        return logits.index_add(0, tokens, added * self.strength)

    def raised(self) -> dict[int, float]:
        """What is added now, before the strength: token -> weight."""
        found = {token: node.weight * DECAY ** self.used[token] for token, node in self.root.after.items() if token not in self.barred}
        for begun in self.open:
            for token, node in begun.after.items():
                found[token] = max(found.get(token, 0.0), node.weight)
        return found


class Passages:
    """The learner ``jitrl``: the passages of the workspace's index in the prompt, and a bias toward their words."""

    name = "jitrl"
    form: Form = "document"
    studies = False
    injected = False

    def check(self, model: LanguageModel, config: Config) -> None:
        """It works with every model."""

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """Note the rare words of every passage. Tensors: ``tokens`` int32, the tokens of all words one after another; ``ends`` int32, where
        each word ends; ``weights`` float16; ``passage`` int32, whose word it is; ``barred`` int32, first tokens that are common by
        themselves; with ``jitrl.dense`` ``vectors`` [P, width] float16.

        Raises TrainingError when the document gives no passage."""
        started = time.perf_counter()
        if not lesson.passages:
            raise TrainingError(f"{lesson.document.title or lesson.document.id} gives no passage to retrieve: it has no text")
        rarity = Rarity(model)
        words = passage_words(model, lesson.passages, rarity)
        rows = [(tokens, weight, number) for number, found in enumerate(words) for tokens, weight in found]
        tensors = {
            "tokens": torch.tensor([token for tokens, _, _ in rows for token in tokens], dtype=torch.int32),
            "ends": torch.tensor([len(tokens) for tokens, _, _ in rows], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            "weights": torch.tensor([weight for _, weight, _ in rows], dtype=torch.float16),
            "passage": torch.tensor([number for _, _, number in rows], dtype=torch.int32),
            "barred": torch.tensor(sorted({tokens[0] for tokens, _, _ in rows if rarity.common(tokens[0])}), dtype=torch.int32),
        }
        vectors = dense_vectors(model, lesson.passages, config)
        tell("indexing passages", len(lesson.passages), len(lesson.passages), {"words": len(rows)})
        facts = {
            "document": lesson.document.id, "title": lesson.document.title, "passages": [key_of(passage) for passage in lesson.passages],
        }  # fmt: skip
        cost = {
            "training_seconds": time.perf_counter() - started,
            "tokens": sum(map(len, passage_tokens(model, lesson.passages))) if vectors else 0,
            "passages": len(lesson.passages), "words": len(rows),
            "bytes": sum(tensor.nbytes for tensor in (tensors | vectors).values()),
        }  # fmt: skip
        return Learned(Memory(tensors | vectors, facts), cost)

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """The best passages as context, and the bias toward their words; with ``jitrl.dense`` the passages are ranked anew first."""
        ranked = by_vectors(model, question, memories, passages) if config.jitrl.dense else list(passages)
        best = ranked[: config.jitrl.passages]
        context, _ = context_of(model, question, best, memories, config.jitrl.context_tokens, config.generate.max_tokens)
        return Aid(context, word_guide(model, question, memories, best, config.jitrl.bias))

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Nothing: every document has a memory of its own."""
        return None


def word_guide(
    model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], strength: float
) -> Guide | None:
    """The bias toward the rare words of ``passages``; those of the question itself are left out. None when nothing is left."""
    places, asked = places_of(memories), set(content_words(question))
    words: list[tuple[list[int], float]] = []
    barred: set[int] = set()
    for passage in passages:
        if (place := places.get(key_of(passage))) is None or strength == 0.0:
            continue
        tensors = memories[place[0]].tensors
        barred.update(tensors["barred"].tolist())
        ends, tokens = tensors["ends"].tolist(), tensors["tokens"].tolist()
        for number in (tensors["passage"] == place[1]).nonzero()[:, 0].tolist():
            word = tokens[ends[number - 1] if number else 0 : ends[number]]
            if asked.isdisjoint(content_words(model.tokenizer.decode(word))):
                words.append((word, float(tensors["weights"][number])))
    return WordBias(words, frozenset(barred), strength) if words else None


def passage_words(model: LanguageModel, passages: Sequence[Passage], rarity: Rarity) -> list[list[tuple[tuple[int, ...], float]]]:
    """The rare words of every passage as tokens, each as it begins a text and as it follows a space, with their weights in (0, 1].

    The weight is the word's rarity in general text, by :class:`retain.adapters.routing.Surprise`, less for a word that many of the
    passages have: ``log((P + 1) / (n + 1)) / log((P + 1) / 2)`` for n of P, but at least a half, as what a document keeps coming back
    to is not common elsewhere."""
    found = [rarity.words(f"{passage.heading}\n{passage.text}") for passage in passages]
    having = Counter(word for words in found for word in words)
    share = {word: max(0.5, math.log((len(found) + 1) / (count + 1)) / math.log((len(found) + 1) / 2)) if len(found) > 1 else 1.0
             for word, count in having.items()}  # fmt: skip
    return [[(tokens, rare * share[word]) for word, rare in words.items() for tokens in spellings(model, word)] for words in found]


def spellings(model: LanguageModel, word: str) -> list[tuple[int, ...]]:
    """The tokens of a word after a space and at the beginning of a text."""
    return list(dict.fromkeys(tuple(tokenise(model.tokenizer, form, literal=True)) for form in (f" {word}", word)))


class Rarity:
    """How rare words are in general text, from 0 for those that everybody uses to 1."""

    def __init__(self, model: LanguageModel) -> None:
        self.tokenizer = model.tokenizer
        self.surprise = Surprise(model.tokenizer)
        self.most = math.log2(2 + len(model.tokenizer)) + 2

    def words(self, text: str) -> dict[str, float]:
        """The rare words of a text as they are written there."""
        found: dict[str, float] = {}
        for word in _WORD.findall(text):
            if word not in found and (value := self.of(word)) > 0:
                found[word] = value
        return found

    def common(self, token: int) -> bool:
        """Whether a token by itself is a common word, a single character or a mark."""
        return self.of(str(self.tokenizer.decode([token])).strip()) == 0.0

    def of(self, word: str) -> float:
        """0 for words of grammar and others up to ``LEAST_RARITY`` of the rarest; single characters say nothing."""
        if len(word) < 2 or not content_words(word):
            return 0.0
        value = (self.surprise.bits(word) - COMMON_BITS) / (self.most - COMMON_BITS)
        return min(value, 1.0) if value > LEAST_RARITY else 0.0
