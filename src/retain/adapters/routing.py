"""Which adapters a prompt needs: the documents whose rare words it speaks of, or none, and then the bare base answers.

The score of a document is the share of the prompt's information that the document covers: every content word of the prompt weighs its
surprise, -log2 of how common the word is in general text, estimated from its rank in the tokenizer's vocabulary (byte-pair merges
are learned in order of frequency, so the id of a word's token orders words by frequency; Zipf's law turns rank into probability).
A prompt that shares only common words with a document, such as a general question, stays with the base, unless they are what the
document is about: words of its title, or words that it keeps coming back to.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

COMMON_BITS = 9.0  # up to this surprise a word is one that everybody uses: it carries nothing
OFTEN = 3  # a word that a document has so many times is one of its topics
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_FUNCTION = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "down",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "hers",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "me",
        "more",
        "most",
        "my",
        "name",
        "no",
        "nor",
        "not",
        "of",
        "off",
        "on",
        "once",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "please",
        "same",
        "say",
        "she",
        "should",
        "so",
        "some",
        "such",
        "tell",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
        "give",
        "kind",
        "many",
        "much",
        "long",
        "state",
        "describe",
        "list",
        "explain",
        "write",
        "one",
        "two",
    ]
)


@dataclass(frozen=True)
class Match:
    """A document with its ``score`` in [0, 1] (covered share of the prompt's information), ``bits`` (what is covered) and ``topic`` (the
    part of it that is covered by words of the document's first line, its title, or by words that it has ``OFTEN`` times)."""

    document: str
    score: float
    bits: float
    topic: float = 0.0


@dataclass(frozen=True)
class Route:
    """The router's decision: ``documents`` that speak to the prompt, best first (empty: the base answers), and why."""

    documents: tuple[str, ...]
    matches: tuple[Match, ...]


def stem(word: str) -> str:
    """A light stem, so that "repaired" meets "repair" and "ferries" meets "ferry"."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    for ending, instead in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)] + instead
    return word


def content_words(text: str) -> dict[str, str]:
    """Stems of the content words of a text, each with the form that it was found in."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        if word.lower() not in _FUNCTION:
            found.setdefault(stem(word), word)
            for part in re.split(r"[-.]", word) if re.search(r"[-.]", word) else ():
                if part and part.lower() not in _FUNCTION:
                    found.setdefault(stem(part), part)
    return found


class Surprise:
    """Bits of surprise of a word, from the vocabulary of a tokenizer: about 5 for common words, 17 and more for names it never saw."""

    def __init__(self, tokenizer: Any) -> None:
        size = len(tokenizer)

        @lru_cache(maxsize=65_536)
        def bits(word: str) -> float:
            if word.isdigit():
                return 9.0 + 2.0 * len(word) if len(word) > 2 else 0.0  # "2" says nothing, "1972" something
            pieces = min((tokenizer(f" {form}", add_special_tokens=False).input_ids for form in {word, word.lower()}), key=len)
            if len(pieces) == 1:
                return math.log2(2 + pieces[0]) + 2  # Zipf: p(rank) ~ 1 / (rank ln V), ln V about 4
            return max(17.0, math.log2(2 + size) + 2) + min(8.0, 2.0 * (len(pieces) - 1))

        self.bits: Callable[[str], float] = bits


def telling(prompt: str, surprise: Surprise) -> dict[str, tuple[str, float]]:
    """The words of a prompt that say what it is about: stem -> (word, bits above those of words that everybody uses)."""
    found = {key: (form, surprise.bits(form) - COMMON_BITS) for key, form in content_words(prompt).items()}
    return {key: (form, bits) for key, (form, bits) in found.items() if bits > 0}


def match(prompt: str, candidates: Mapping[str, str], surprise: Surprise) -> list[Match]:
    """Score candidate documents (id -> text, whose first line is the title) for a prompt, best first."""
    weights = {key: bits for key, (_, bits) in telling(prompt, surprise).items()}
    total = sum(weights.values())
    if total == 0:
        return []
    found = []
    for document, text in candidates.items():
        present, topics = _stems(text)
        covered = sum(weight for key, weight in weights.items() if key in present)
        topic = sum(weight for key, weight in weights.items() if key in topics)
        found.append(Match(document, covered / total, covered, topic))
    return sorted(found, key=lambda item: (-item.bits, -item.topic, item.document))


@lru_cache(maxsize=512)
def _stems(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Stems of the content words of a document, which is looked at for many prompts, and of those that are its topics."""
    title = text.partition("\n")[0]
    often = Counter(key for word in _WORD.findall(text) for key in content_words(word))
    return frozenset(content_words(text)), frozenset(content_words(title)) | {key for key, count in often.items() if count >= OFTEN}


def route(matches: Sequence[Match], *, threshold: float, margin: float, most: int, least_bits: float = 12.0,
          topic_bits: float = 6.0, topic_threshold: float = 0.45) -> Route:  # fmt: skip
    """Choose documents: the best must cover at least ``threshold`` of the prompt's information and ``least_bits`` in all, or
    ``topic_threshold`` of it and ``topic_bits`` by its topics; others join when they are within ``margin`` (as a share of the best) of
    it, up to ``most``."""
    chosen: list[str] = []
    for item in matches:
        speaks = item.score >= threshold and item.bits >= least_bits
        speaks = speaks or (item.score >= topic_threshold and item.topic >= topic_bits)
        if not speaks or len(chosen) >= most:
            break
        if chosen and item.bits < (1 - margin) * matches[0].bits:
            break
        chosen.append(item.document)
    return Route(tuple(chosen), tuple(matches[:5]))
