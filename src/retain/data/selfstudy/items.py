"""What a study set is made of, and how two texts are compared."""

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " "})
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class StudyItem:
    """One thing to train on: plain text (`prompt` is None), or a prompt and the completion wanted for it.

    `source` is the sentence of the document that says so, `fact` the span of it that is asked for; the two together name a fact.
    `written` by the model that learns, so that the answer may be wrong although it stands in the text.
    """

    prompt: str | None
    completion: str
    kind: str
    source: str
    fact: str
    held_out: bool = False
    written: bool = False


def normalise(text: str) -> str:
    """Lower-case words without punctuation, articles and thousands separators, for comparing answers and questions."""
    plain = unicodedata.normalize("NFKC", text).translate(_QUOTES).lower()
    plain = re.sub(r"(?<=\d),(?=\d\d\d)", "", plain)
    plain = re.sub(r"(?<!\d)[.:]|[.:](?!\d)|[^\w.:%$€£'+]+|_|'(?!\w)|(?<!\w)'", " ", plain)
    return " ".join(word for word in plain.split() if word not in _ARTICLES)


def grounded(answer: str, text: str) -> bool:
    """Whether the text contains the answer, word by word."""
    wanted = normalise(answer)
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "


_WORDINGS = ("question", "rewording")


def _repeats(prompt: str, asked: set[str]) -> bool:
    """Whether a prompt is one of the questions, or begins with one (a question answered in a full sentence)."""
    return prompt in asked or prompt.removesuffix(" answer in full sentence") in asked


def _overlap(one: StudyItem, other: StudyItem) -> float:
    """Share of words that two prompts have in common."""
    left, right = set(normalise(one.prompt or "").split()), set(normalise(other.prompt or "").split())
    return len(left & right) / max(1, len(left | right))


def hold_out(items: Sequence[StudyItem], fraction: float = 0.5, seed: int = 0) -> list[StudyItem]:
    """Mark one question wording of a share of the facts as held out, among the facts that have at least two wordings.

    The wording that is least like the others is chosen, so that it asks for more than the memory of a sentence.
    Items of other kinds that ask in the very same words (a question answered with a sentence) are dropped, so that a held-out wording
    is never trained on. What is marked already stays held out.
    """
    held = {index for index, item in enumerate(items) if item.held_out}
    wordings: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        if item.kind in _WORDINGS and item.prompt is not None and index not in held:
            wordings.setdefault((item.source, normalise(item.fact)), []).append(index)
    rng = random.Random(seed)
    facts = [indices for indices in wordings.values() if len({normalise(items[i].prompt or "") for i in indices}) >= 2]
    chosen = rng.sample(range(len(facts)), min(len(facts), round(fraction * len(facts))))
    for number in sorted(chosen):
        indices = facts[number]
        rewordings = [i for i in indices if items[i].kind == "rewording"] or indices
        rng.shuffle(rewordings)
        held.add(min(rewordings, key=lambda i: max(_overlap(items[i], items[j]) for j in indices if j != i)))
    asked = {normalise(items[i].prompt or "") for i in held}
    kept: list[StudyItem] = []
    for index, item in enumerate(items):
        if index in held:
            kept.append(replace(item, held_out=True))
        elif item.prompt is None or not _repeats(normalise(item.prompt), asked):
            kept.append(replace(item, held_out=False))
    return kept
