"""What arrives and looks like poisoning: it contradicts what was learned, or repeats a phrase as text never does. Such a document is held
until somebody has looked at it. Both are signs, no proofs: whoever knows the rules can write around them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from retain.adapters.routing import content_words
from retain.data.document import Document
from retain.data.selfstudy import StudyItem, grounded, normalise, study_items
from retain.workspace.records import Probe

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_ADDRESS = re.compile(r"\w+://\S+|\S+@\S+")
_NUMBER = re.compile(r"\d[\d.,:]*")
_NAME = re.compile(r"\s(?:[\"'(]?[A-Z][\w-]*|\w*\d\w*)")
LEAST = 6  # times that a phrase occurs; one of up to three words, which may be a name in every sentence, twice as often
# words of a phrase -> largest share of a text that it may be, its occurrences together. In 900 texts (documentation, licences, release
# notes, the documents of the benchmarks) the largest shares were 0.20, 0.24, 0.29, 0.29, 0.24, 0.16 and 0.15, without marked-up pages.
SHARES: Mapping[int, float] = {1: 0.3, 2: 0.35, 3: 0.35, 4: 0.35, 6: 0.25, 8: 0.2, 12: 0.18}
WORDINGS = 20  # of one fact


def suspicion(documents: Sequence[Document], probes: Sequence[Probe]) -> str:
    """Why documents that arrived together should be looked at before they are learned, "" when nothing speaks against them. ``probes``: of
    what is learned.

    The reason names documents and numbers, never what a text says.
    """
    for document in documents:
        if document.kind == "text" and (times := repeated(document.text)):
            return f"held: one phrase occurs {times} times in it, far more often than in text"
    for document in documents if probes else ():  # its questions need not be written where nothing is known
        if found := contradicted(document, probes):
            facts = "1 answer contradicts" if found[1] == 1 else f"{found[1]} answers contradict"
            return f"held: {facts} what was learned from {found[0]}"
    return ""


def repeated(text: str) -> int:
    """How often the phrase occurs that makes up too much of a text, 0 when none does. Addresses do not count."""
    words = [word.casefold() for word in _WORD.findall(_ADDRESS.sub(" ", text))]
    for size, most in SHARES.items():
        needed = max(LEAST if size > 3 else 2 * LEAST, most * len(words) / size)
        for phrase, count in _counted(words, size).most_common(20):
            if count < needed:
                break
            if content_words(" ".join(phrase)):
                return count
    return 0


def _counted(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """Occurrences of each phrase that do not overlap themselves."""
    counts: Counter[tuple[str, ...]] = Counter()
    ends: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - size + 1):
        phrase = tuple(words[start : start + size])
        if ends.get(phrase, 0) <= start:
            counts[phrase] += 1
            ends[phrase] = start + size
    return counts


def contradicted(document: Document, probes: Iterable[Probe]) -> tuple[str, int] | None:
    """The learned document that another one contradicts most, and in how many answers.

    What the document answers (its own pairs, and questions that the rules write about it) is compared with the probes of what is
    learned: a question that names somebody or something, asked in the same words, whose answers have little in common. A question with
    several answers on one side, as of lists, says nothing.
    """
    mine: dict[str, set[str]] = {}
    for question, answer in _asked(document):
        mine.setdefault(normalise(question), set()).add(normalise(answer))
    learned: dict[str, dict[str, set[str]]] = {}
    for probe in probes if mine else ():
        question = normalise(probe.question)
        if probe.document not in ("", document.id) and question in mine:
            learned.setdefault(probe.document, {}).setdefault(question, set()).add(normalise(probe.answer))
    found = {
        key: len({min(mine[question]) for question, answers in questions.items() if _differ(mine[question], answers)})
        for key, questions in learned.items()
    }
    key = max(found, key=lambda name: found[name], default="")
    return (key, found[key]) if key and found[key] else None


def _asked(document: Document) -> Iterator[tuple[str, str]]:
    """Questions that name something, with what the document answers."""
    items = [StudyItem(pair.question, pair.answer, "question", pair.answer, pair.answer) for pair in document.pairs]
    if document.kind == "text":
        items += study_items(document.title, document.text, most_wordings=WORDINGS)
    for item in items:
        if item.prompt is not None and item.kind in ("question", "rewording") and _NAME.search(item.prompt):
            yield item.prompt, item.completion


def _differ(mine: set[str], learned: set[str]) -> bool:
    """One answer each; neither is a part of the other, and other numbers or few words in common."""
    if len(mine) != 1 or len(learned) != 1:
        return False
    (one,), (other,) = mine, learned
    if not one or not other or grounded(one, other) or grounded(other, one):
        return False
    numbers = [set(_NUMBER.findall(text)) for text in (one, other)]
    if all(numbers) and numbers[0] != numbers[1]:
        return True
    left, right = set(one.split()), set(other.split())
    return len(left & right) <= min(len(left), len(right)) / 2
