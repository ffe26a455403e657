"""Is an answer right: exact match and F1 as SQuAD defines them, and containment of the expected words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”„«»…–—")
_DASHES = str.maketrans(dict.fromkeys("-/–—", " "))


def normalise(text: str) -> str:
    """Lower case, without punctuation, without the articles a, an, the, single spaces (SQuAD v1.1, ``normalize_answer``).

    Typographic quotes and dashes are punctuation here too; SQuAD's script knows those of ASCII only.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer equals one of the golds after normalisation (SQuAD, 1606.05250, section 6.1)."""
    found = normalise(answer)
    return any(found == normalise(gold) for gold in golds)


def f1(answer: str, golds: Sequence[str]) -> float:
    """Largest F1 between the answer's bag of words and a gold's (SQuAD, section 6.1).

    Where nothing is left of a gold or of the answer, 1.0 when both are empty and otherwise 0.0 (SQuAD 2.0's script).
    """
    return max((_f1(normalise(answer).split(), normalise(gold).split()) for gold in golds), default=0.0)


def contains(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer has the words of one of the golds, whole and in a row, after normalisation. A gold of which
    normalisation leaves nothing ("A", "+") must be the whole answer.

    A hyphen or slash may stand for a space or for nothing: "twenty-one" holds "twenty one", and "co-op" holds "coop".
    """
    texts = {f" {normalise(answer)} ", f" {_spaced(answer)} "}
    forms = {form for gold in golds for form in (normalise(gold), _spaced(gold)) if form}
    return any(f" {form} " in text for form in forms for text in texts) or any(
        answer.strip().rstrip(".").casefold() == gold.strip().casefold() for gold in golds if gold.strip() and not normalise(gold)
    )


def _spaced(text: str) -> str:
    return normalise(text.translate(_DASHES))


def _f1(found: list[str], gold: list[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    common = sum((Counter(found) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)
