"""The playbook: a value of bullets with counters, edited by small patches and never written anew (2510.04618, section 3.1).

What a bullet says and how it was judged is kept by document. So forgetting a document takes away exactly what came from it: its wordings
and its votes, and a bullet as a whole when no other document has said the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from retain.data.document import well_formed
from retain.data.duplicates import shingles
from retain.data.selfstudy import normalise
from retain.learners.base import LearnerError

VERSION: Final = 1  # of the JSON
LONGEST = 500  # characters of a bullet
ALIKE = 0.8  # share of common phrases of five words from which two bullets say the same
_LEAD = re.compile(r"\s*\[b\d+\]\s*(?:helpful=\d+\s+harmful=\d+)?\s*(?:::)?\s*")


def _line(text: object) -> object:
    """A text as one line without marks that cannot be printed, and without a bullet's id and counters before it."""
    if not isinstance(text, str):
        return text
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in well_formed(text)).split())
    return line[lead.end() :] if (lead := _LEAD.match(line)) else line


def _says_something(text: str) -> str:
    if not any(map(str.isalnum, text)):
        raise ValueError("has no words")
    return text


Text = Annotated[str, BeforeValidator(_line), Field(min_length=1, max_length=LONGEST), AfterValidator(_says_something)]
Id = Annotated[str, Field(pattern=r"^b[1-9][0-9]{0,8}$")]


class Value(BaseModel):
    """Something that does not change once it is made, with no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Add(Value):
    """A patch: a new bullet."""

    op: Literal["add"] = "add"
    text: Text


class Update(Value):
    """A patch: another wording for a bullet."""

    op: Literal["update"] = "update"
    id: Id
    text: Text


class Remove(Value):
    """A patch: a bullet goes; where other documents support it, it gets a vote against it instead."""

    op: Literal["remove"] = "remove"
    id: Id


Patch: TypeAlias = Annotated[Add | Update | Remove, Field(discriminator="op")]


class Share(Value):
    """What one document has in a bullet: a wording that it supports (None: it only judged), and the votes of its questions."""

    document: str = Field(min_length=1)
    text: Text | None = None
    helpful: int = Field(0, ge=0)
    harmful: int = Field(0, ge=0)


class Bullet(Value):
    """A bullet and the documents' shares in it, the latest wording last."""

    id: Id
    shares: tuple[Share, ...]

    @model_validator(mode="after")
    def _whole(self) -> Bullet:
        if not self.documents:
            raise ValueError("no document says it")
        if len({share.document for share in self.shares}) < len(self.shares):
            raise ValueError("a document has two shares in it")
        return self

    @property
    def text(self) -> str:
        """The wording in use: the latest."""
        return next(share.text for share in reversed(self.shares) if share.text)

    @property
    def documents(self) -> tuple[str, ...]:
        """The documents that say it."""
        return tuple(share.document for share in self.shares if share.text)

    @property
    def helpful(self) -> int:
        return sum(share.helpful for share in self.shares)

    @property
    def harmful(self) -> int:
        return sum(share.harmful for share in self.shares)

    @property
    def score(self) -> int:
        """Votes for it less votes against it."""
        return self.helpful - self.harmful

    @property
    def number(self) -> int:
        """Its place in the order of making."""
        return int(self.id[1:])

    def __str__(self) -> str:
        return f"[{self.id}] helpful={self.helpful} harmful={self.harmful} :: {self.text}"


class Playbook(Value):
    """Bullets, the ``titles`` of the documents that they came from, and the number of the ``next`` bullet. Edits give a new value."""

    version: Literal[1] = VERSION
    next: int = Field(1, ge=1)
    titles: Mapping[str, str] = Field(default_factory=dict)
    bullets: tuple[Bullet, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Playbook:
        if len({bullet.id for bullet in self.bullets}) < len(self.bullets):
            raise ValueError("two bullets have one id")
        if any(bullet.number >= self.next for bullet in self.bullets):
            raise ValueError("the number of the next bullet is taken")
        if not self.documents <= self.titles.keys():
            raise ValueError("a document has no title")
        return self

    @property
    def documents(self) -> frozenset[str]:
        """The documents that say something in it."""
        return frozenset(document for bullet in self.bullets for document in bullet.documents)

    def ranked(self) -> list[Bullet]:
        """The bullets by helpful - harmful, best first; equal ones in the order of making."""
        return sorted(self.bullets, key=lambda bullet: (-bullet.score, bullet.number))

    def rendered(self) -> str:
        """A line for each bullet, ``[id] helpful=x harmful=y :: text``, best first."""
        return "\n".join(str(bullet) for bullet in self.ranked())

    def apply(self, patches: Iterable[Patch], document: str, title: str) -> Playbook:
        """The playbook after edits in the name of a document; bullets that then say the same are one. KeyError for an unknown id."""
        bullets, number = {bullet.id: bullet for bullet in self.bullets}, self.next
        for patch in patches:
            if isinstance(patch, Add):
                bullets[f"b{number}"] = Bullet(id=f"b{number}", shares=(Share(document=document, text=patch.text),))
                number += 1
            elif isinstance(patch, Update):
                bullets[patch.id] = _reworded(bullets[patch.id], document, patch.text)
            elif (rest := _removed(bullets[patch.id], document)) is not None:
                bullets[patch.id] = rest
            else:
                del bullets[patch.id]
        return self._with(_merged(bullets.values()), number, {**self.titles, document: " ".join(title.split())})

    def tagged(self, document: str, helpful: Iterable[str] = (), harmful: Iterable[str] = ()) -> Playbook:
        """With a document's votes on bullets, each id as often as it is named; ids that there are not are passed over."""
        votes, against = Counter(helpful), Counter(harmful)
        return self._with([_voted(bullet, document, votes[bullet.id], against[bullet.id]) for bullet in self.bullets])

    def limited(self, most: int) -> Playbook:
        """The ``most`` best bullets by helpful - harmful, where every document keeps its fair share, ``most`` // documents, of its best:
        a document whose questions were all right before would otherwise crowd out one that has just come. Equal ones go from the
        document that has most, the last added first."""
        fair = most // max(1, len(self.documents))
        kept = list(self.bullets)
        while len(kept) > most:
            crowd = Counter(document for bullet in kept for document in bullet.documents)
            spare = [bullet for bullet in kept if all(crowd[document] > fair for document in bullet.documents)] or kept
            kept.remove(min(spare, key=lambda bullet: (bullet.score, -max(crowd[name] for name in bullet.documents), -bullet.number)))
        return self._with(kept)

    def without(self, document: str) -> Playbook:
        """As if the document had never been there: its wordings and votes go, and bullets that no other document says."""
        bullets = []
        for bullet in self.bullets:
            shares = tuple(share for share in bullet.shares if share.document != document)
            if any(share.text for share in shares):
                bullets.append(Bullet(id=bullet.id, shares=shares))
        return self._with(bullets)

    def _with(self, bullets: Sequence[Bullet], number: int | None = None, titles: Mapping[str, str] | None = None) -> Playbook:
        found = {document for bullet in bullets for document in bullet.documents}
        kept = {document: title for document, title in (titles or self.titles).items() if document in found}
        return Playbook(next=number or self.next, titles=kept, bullets=tuple(bullets))

    def value(self) -> dict[str, Any]:
        """The playbook as JSON values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The playbook as JSON: equal playbooks give equal texts."""
        return json.dumps(self.value(), ensure_ascii=False, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Playbook:
        """Inverse of :meth:`to_json`. Raises LearnerError, one line, when it is something else."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LearnerError(f"this is no playbook: not JSON ({error})") from None
        return cls.from_value(value)

    @classmethod
    def from_value(cls, value: Any) -> Playbook:
        """Inverse of :meth:`value`. Raises LearnerError, one line, when it is something else."""
        version = value.get("version") if isinstance(value, Mapping) else None
        if isinstance(version, int) and version > VERSION:
            raise LearnerError(f"a playbook of version {version}; this retain reads version {VERSION}: use a newer one")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise LearnerError(f"this is no playbook: {place + ': ' if place else ''}{' '.join(str(first['msg']).split())}") from None


def alike(one: str, other: str) -> bool:
    """Whether two texts say the same: equal words, or nearly the same phrases with equal numbers."""
    (words, left), (others, right) = _phrases(one), _phrases(other)
    return words == others or (len(left & right) >= ALIKE * len(left | right) and numbers(one) == numbers(other))


@lru_cache(maxsize=1024)
def _phrases(text: str) -> tuple[str, frozenset[str]]:
    """The words of a text, and its runs of five."""
    return normalise(text), frozenset(shingles(text))


def numbers(text: str) -> frozenset[str]:
    """The words of a text that have a digit in them."""
    return frozenset(word for word in normalise(text).split() if any(map(str.isdigit, word)))


def _reworded(bullet: Bullet, document: str, text: str) -> Bullet:
    mine = next((share for share in bullet.shares if share.document == document), Share(document=document))
    others = [share for share in bullet.shares if share.document != document]
    return Bullet(id=bullet.id, shares=(*others, mine.model_copy(update={"text": text})))


def _removed(bullet: Bullet, document: str) -> Bullet | None:
    """What is left of a bullet that a document does not want; nobody but its own documents can take it away."""
    others = tuple(share for share in bullet.shares if share.document != document)
    if not any(share.text for share in others):
        return None
    rest = _voted(bullet, document, harmful=1)
    return Bullet(id=bullet.id, shares=tuple(s.model_copy(update={"text": None}) if s.document == document else s for s in rest.shares))


def _voted(bullet: Bullet, document: str, helpful: int = 0, harmful: int = 0) -> Bullet:
    if not helpful and not harmful:
        return bullet
    known = any(share.document == document for share in bullet.shares)
    shares = bullet.shares if known else (*bullet.shares, Share(document=document))
    change = {share.document: {"helpful": share.helpful + helpful, "harmful": share.harmful + harmful} for share in shares}
    return Bullet(id=bullet.id, shares=tuple(s.model_copy(update=change[document]) if s.document == document else s for s in shares))


def _merged(bullets: Iterable[Bullet]) -> list[Bullet]:
    """Bullets that say the same as one, under the id of the first."""
    kept: list[Bullet] = []
    for bullet in bullets:
        place = next((place for place, other in enumerate(kept) if alike(other.text, bullet.text)), None)
        if place is None:
            kept.append(bullet)
        else:
            kept[place] = _joined(kept[place], bullet)
    return kept


def _joined(one: Bullet, other: Bullet) -> Bullet:
    shares = {share.document: share for share in one.shares}
    for share in other.shares:
        if mine := shares.pop(share.document, None):
            votes = {"helpful": mine.helpful + share.helpful, "harmful": mine.harmful + share.harmful}
            share = share.model_copy(update={"text": share.text or mine.text, **votes})
        shares[share.document] = share
    return Bullet(id=one.id, shares=tuple(shares.values()))
