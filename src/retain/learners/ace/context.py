"""What of a playbook goes into a prompt: the bullets that bear on a question, and passages for what they do not speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from retain.adapters.routing import Surprise, content_words, telling
from retain.data.chunking import chunks
from retain.data.selfstudy.blocks import Block, blocks
from retain.learners.ace.playbook import LONGEST, Bullet, Playbook
from retain.learners.base import Passage
from retain.lm.model import LanguageModel

NEAR = 0.5  # share of the best bullet's information from which another one bears on the question too
VOTES = 3  # a vote weighs a bit of information, up to so many
BULLET_WORDS = 40  # sentences that stand together make one bullet up to so many words
LABEL_WORDS = 2  # a sentence so short ("Penalties.") belongs to what follows it


class Chosen(NamedTuple):
    """The bullets for a question, in reading order, and the text that they make ("" without any)."""

    bullets: tuple[Bullet, ...]
    text: str


class Chooser:
    """Chooses bullets and passages for the questions that a model is asked."""

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer, self._surprise = model.tokenizer, Surprise(model.tokenizer)

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)

    def bearing(self, playbook: Playbook, question: str) -> list[Bullet]:
        """The bullets that share telling words with a question, best first.

        Their rank is the information that they share, in bits, a document's title included, plus helpful - harmful, held within ±3.
        One that shares less than half of what the best shares is left out.
        """
        wanted = {key: bits for key, (_, bits) in telling(question, self._surprise).items()}
        shared = {b.id: sum(bits for key, bits in wanted.items() if key in _words(b, playbook)) for b in playbook.bullets}
        least = max(NEAR * max(shared.values(), default=0.0), 1e-9)
        found = [bullet for bullet in playbook.bullets if shared[bullet.id] >= least]
        return sorted(found, key=lambda b: (-shared[b.id] - max(-VOTES, min(VOTES, b.score)), b.number))

    def choose(self, playbook: Playbook, question: str, room: int) -> Chosen:
        """The best bullets for a question whose text fits ``room`` tokens."""
        chosen = Chosen((), "")
        for bullet in self.bearing(playbook, question):
            more = tuple(sorted((*chosen.bullets, bullet), key=lambda b: b.number))
            if self.size(text := _laid_out(more, playbook)) <= room:
                chosen = Chosen(more, text)
        return chosen

    def beside(self, playbook: Playbook, chosen: Chosen, question: str, passages: Sequence[Passage], room: int) -> str:
        """The text of the bullets and, within ``room`` tokens in all, passages with telling words of the question that no bullet has;
        without a bullet the first passages."""
        missing = set(telling(question, self._surprise)).difference(*(_words(bullet, playbook) for bullet in chosen.bullets))
        text = chosen.text
        for passage in passages:
            words = _content(f"{passage.heading}\n{passage.text}")
            more = "\n\n".join(part for part in (text, f"{passage.heading}\n\n{passage.text}") if part)
            if (not chosen.bullets or missing & words) and self.size(more) <= room:
                text, missing = more, missing - words
        return text


def _laid_out(bullets: Sequence[Bullet], playbook: Playbook) -> str:
    """Bullets under the titles of their documents, a line each."""
    groups: dict[str, list[str]] = {}
    for bullet in bullets:
        groups.setdefault(bullet.documents[-1], []).append(bullet.text)
    return "\n\n".join(f"{playbook.titles[document]}\n\n" + "\n".join(texts) for document, texts in groups.items())


def _words(bullet: Bullet, playbook: Playbook) -> frozenset[str]:
    """Stems of the content words of a bullet and of its documents' titles."""
    return _content("\n".join([*(playbook.titles[document] for document in bullet.documents), bullet.text]))


@lru_cache(maxsize=4096)
def _content(text: str) -> frozenset[str]:
    return frozenset(content_words(text))


def document_bullets(title: str, passages: Sequence[Passage]) -> list[str]:
    """The sentences of a document as texts of bullets: those that stand together under a heading, up to 40 words; rows of tables as "row:
    value"; the heading before them, unless it is the title or they name it. Nothing of the document is left out but headings alone."""
    found: list[str] = []
    for passage in passages:
        heading = "" if passage.heading == title else passage.heading
        gathered: list[Block] = []
        for block in (*blocks(passage.text), None):
            together = [*gathered, block] if block else []
            apart = not block or (gathered and block.heading != gathered[0].heading)
            if gathered and (apart or len(_joined(together).split()) > BULLET_WORDS):
                label = [] if apart or len(gathered) == 1 or len(gathered[-1].source.split()) > LABEL_WORDS else [gathered.pop()]
                found += _pieces(_headed(gathered[0].heading or heading, title, _joined(gathered)))
                gathered = label
            gathered += [block] if block else []
    return list(dict.fromkeys(found))


def _joined(members: Sequence[Block]) -> str:
    return " ".join(_sentence(block) for block in members)


def _sentence(block: Block) -> str:
    if block.kind != "row":
        return block.source
    values = [value if len(block.cells) == 1 else f"{key} {value}" for key, value in block.cells]
    return f"{block.row}: {', '.join(values)}."


def _headed(heading: str, title: str, text: str) -> str:
    named = not heading or heading == title or _content(heading) <= _content(text)
    return text if named else f"{heading}: {text}"


def _pieces(text: str) -> list[str]:
    """A text whole, or in pieces that a bullet has room for."""
    size: Callable[[str], int] = len
    return [piece.text for piece in chunks(text, size, LONGEST) if any(map(str.isalnum, piece.text))]
