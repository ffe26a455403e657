"""Gaps: the answers of one clause, each with the question words that ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from . import words as w
from .answers import _SCALES as SCALES
from .answers import Unit, clean, core, numeric, person_like
from .clauses import Clause, head
from .tagging import Tokens, join

_REASONS = {"because of", "due to", "owing to", "thanks to"}
_NAMING = {"called", "named", "nicknamed", "titled", "entitled"}


@dataclass(frozen=True)
class Gap:
    """An answer and how to ask for it: `fronts` go before the verb, `inside` replaces the units from `unit` on (None: the subject)."""

    answer: str
    kind: str
    fronts: tuple[str, ...]
    inside: str
    unit: int | None = None
    size: int = 1
    ending: str = ""


def which(phrase: Tokens) -> str:
    """The noun to ask with "which": "the Methodist hall" -> "hall", "the weaver Larysa Hnatko" -> "weaver"; "" when there is none."""
    plain = core(phrase)
    stop = next((i for i, t in enumerate(plain) if i and (t.tag in {"PREP", "CONJ", "POS"} or t.tag == "PUNCT")), len(plain))
    plain = plain[:stop]
    if len(plain) < 2 or plain[0].tag in {"POSS", "PRON"}:
        return ""
    last = plain[-1]
    if last.tag in {"NAME", "NUM"}:
        nouns = [t for t in plain if t.tag == "NOUN"]
        if nouns and plain.index(nouns[-1]) + 1 < len(plain) and all(t.tag in {"NAME", "NUM"} for t in plain[plain.index(nouns[-1]) + 1 :]):
            return nouns[-1].low
        return last.low if last.tag == "NAME" and last.low in w.PLACES | w.BODIES else ""
    if last.tag == "NOUN" and any(t.tag in {"ADJ", "MOD", "NOUN", "NAME"} for t in plain[:-1]) and last.text.isalpha():
        return last.low
    return ""


def _name_part(phrase: Tokens) -> Tokens:
    """The name at the end of "the weaver Larysa Hnatko", or the phrase."""
    plain = core(phrase)
    index = len(plain)
    while index and plain[index - 1].tag == "NAME" and plain[index - 1].low.rstrip(".") not in w.ROLES:
        index -= 1
    return plain[index:] if 0 < index < len(plain) and plain[index - 1].tag == "NOUN" and person_like(plain) else phrase


def _called(phrase: Tokens) -> tuple[str, str, str] | None:
    """(noun, name, text before the name) of "the system named Purser"."""
    for index, token in enumerate(phrase[:-1]):
        if token.low in _NAMING and index:
            top = head(phrase[:index])
            name = clean(phrase[index + 1 :])
            if top is not None and name and len(name.split()) <= 6:
                return top.low, name, join(phrase[: index + 1])
    return None


def _of_part(phrase: Tokens, preposition: str) -> Iterator[Gap]:
    """A value after "of", "than" and the like inside a phrase: "a width of 16 centimetres"."""
    pre = f"{preposition} " if preposition else ""
    for index, token in enumerate(phrase[:-1]):
        if index and token.tag == "PREP" and token.low in {"of", "for", "between", "by", "with", "than"} and phrase[0].tag != "NUM":
            found = numeric(phrase[index + 1 :], "")
            if found is None:
                continue
            kind, answer, fronts, span = found
            top = head(phrase[:index])
            word = "how much" if kind == "money" else fronts[0] if kind in {"count", "measure"} else fronts[-1].replace("for ", "")
            start = len(join(phrase[: index + 1]))
            rest = join(phrase)[start:].replace(join(span), word, 1)
            asked = (f"{pre}what {top.low}",) if top is not None and top.low in w.MEASURE_NOUNS else ()
            yield Gap(answer, kind, asked, f"{pre}{join(phrase[: index + 1])}{rest if rest.startswith(' ') else ' ' + rest}")
            return


def phrase_gaps(
    phrase: Tokens, preposition: str, clause: Clause, subject: bool = False, people: frozenset[str] = frozenset()
) -> Iterator[Gap]:
    """The answers in a noun phrase, after its preposition if it has one."""
    pre = f"{preposition} " if preposition else ""
    top = head(core(phrase))
    if top is None or top.tag == "PRON" or top.low in {"anything", "something", "nothing", "everything", "someone", "one", "thing"}:
        return
    if preposition in {"instead of", "together with", "according to", "apart from", "along with", "except"} or any(
        t.low == "such" for t in phrase[:1]
    ):
        return
    if phrase[0].low == "aged" and len(phrase) == 2:
        yield Gap(phrase[1].text, "count", ("at what age", "how old"), "at what age")
        return
    called = _called(phrase)
    if called is not None:
        noun, name, before = called
        yield Gap(name, "name", (f"{pre}which {noun}",), f"{pre}{before} what")
        return
    plain = core(phrase)
    if (
        len(plain) > 2
        and plain[-1].low in SCALES
        and not preposition
        and (scaled := numeric(plain[:-1], "")) is not None
        and scaled[0] in {"duration", "measure"}
    ):
        yield Gap(
            scaled[1],
            scaled[0],
            (f"how {plain[-1].low}", f"how much {plain[-1].low}" if plain[-1].low == "late" else f"how {plain[-1].low}"),
            f"how {plain[-1].low}",
        )
        return
    value = numeric(core(phrase), preposition)
    if value is not None and subject and value[0] not in {"count", "percent"}:
        value = None
    if value is not None:
        kind, answer, fronts, span = value
        inside = (
            fronts[0]
            if span == core(phrase) or kind in {"date", "time"}
            else join(core(phrase)).replace(join(span), fronts[0].removeprefix(pre), 1)
        )
        if kind == "count" and preposition:
            inside = fronts[0]
        elif inside != fronts[0]:
            inside = f"{pre}{inside}"
        yield Gap(answer, kind, fronts if not subject else fronts[:2], inside)
        if kind in {"date", "time", "duration", "money", "percent", "measure", "frequency"} or (
            kind == "count" and (preposition or answer == clean(phrase))
        ):
            return
    else:
        yield from _of_part(core(phrase), preposition)
    if preposition in _REASONS:
        yield Gap(clean(phrase), "reason", ("why", "for what reason"), f"{pre}what")
        return
    if any(t.tag == "GER" for t in phrase[:1]):
        if preposition in {"by", "without"}:
            yield Gap(clean((*phrase,)) if preposition == "without" else f"by {clean(phrase)}", "manner", ("how", "in what way"), "how")
        return
    kind_noun = which(phrase)
    answer = clean(core(phrase) if len(phrase) > 12 else phrase)
    person = person_like(core(phrase), clause.base, subject, people)
    if person:
        named = _name_part(phrase)
        fronts = (f"{pre}whom",) if preposition else ("who",) if subject or clause.base == "be" else ("whom",)
        fronts = (
            (*fronts, f"{pre}which {kind_noun}")
            if (kind_noun and kind_noun != top.low) or (kind_noun and len(named) != len(phrase))
            else fronts
        )
        yield Gap(clean(named), "person", fronts, fronts[0])
        return
    place = (
        preposition.split(" ")[-1] in w.PLACE_PREPOSITIONS
        and top.low not in w.ABSTRACT
        and not any(t.low in {"age", "time", "total"} for t in phrase)
    )
    settled = (
        top.low in w.PLACES
        or (top.tag == "NAME" and preposition in {"in", "at", "near"})
        or preposition in {"behind", "beneath", "near", "beside", "inside", "outside", "opposite", "across"}
    )
    time = top.low in w.TIME_UNITS | w.SEASONS or any(
        t.low in {"meeting", "onward"} and preposition in {"before", "after", "from"} for t in phrase
    )
    if time:
        fronts = (
            ("when", f"{pre}which {top.low}")
            if preposition in {"in", "on", "at", "during"}
            else (f"{pre}what time",)
            if top.low in {"noon", "midnight"}
            else ()
        )
        if preposition in {"before", "after"}:
            yield Gap(f"{pre}{answer}", "date", ("when", "at what point"), "when")
            return
        if preposition in {"until", "from", "since", "by"}:
            fronts = (f"{pre}when",)
        if fronts:
            yield Gap(answer, "date", fronts, fronts[0])
        return
    if place and preposition in w.PLACE_PREPOSITIONS and (settled or preposition in {"in", "on", "at", "under", "below", "above"}):
        alternative = f"{pre}which {kind_noun}" if kind_noun else f"{pre}what"
        body = top.low in w.BODIES
        yield Gap(answer, "place", (alternative,) if body and kind_noun else ("where", alternative), alternative)
        return
    if preposition in {"to", "from"} and settled and top.tag == "NAME":
        yield Gap(answer, "place", (f"{pre}which {kind_noun}",) if kind_noun else (f"{pre}where",), f"{pre}where")
        return
    fronts = (f"{pre}what", f"{pre}which {kind_noun}") if kind_noun else (f"{pre}what",)
    if top.tag == "NAME" and not kind_noun and subject:
        fronts = ("who or what",)
    if preposition in {"of", "like", "than", "as", "per", "without", "unlike", "along", "out", "up"} and not kind_noun:
        fronts = (f"{pre}what",)
    yield Gap(answer, "thing", fronts, fronts[-1] if kind_noun else fronts[0])


def _unit_gaps(units: list[Unit], index: int, clause: Clause, people: frozenset[str]) -> Iterator[Gap]:
    unit = units[index]
    following = units[index + 1] if index + 1 < len(units) else None
    if unit.kind in {"np", "pp"}:
        if unit.kind == "np" and following is not None and following.text.lower() in SCALES:
            value = numeric(unit.phrase, "")
            if value is not None and value[0] in {"duration", "measure"}:
                scale = following.text.lower()
                yield Gap(f"{value[1]} {scale}", value[0], (f"how {scale}",), f"how {scale}", index, 2)
                return
        if (unit.kind == "np" and clause.base == "take" and unit.text == "place") or (
            unit.kind == "np" and any(t.tag in {"PRON"} for t in unit.phrase[:1])
        ):
            return
        for gap in phrase_gaps(unit.phrase, unit.preposition, clause, people=people):
            numbered = gap.kind in {"count", "money", "measure", "duration", "percent", "time", "date", "manner"}
            if unit.preposition == "by" and not clause.passive and not numbered:
                continue
            if index and unit.kind == "np" and gap.kind == "count" and gap.fronts[:1] == ("how many",):
                continue
            yield Gap(gap.answer, gap.kind, gap.fronts, gap.inside, index)
        if (
            unit.kind == "np"
            and clause.base == "be"
            and clause.group[-1].tag == "BE"
            and index == 0
            and unit.phrase[0].tag in {"DET", "POSS", "NOUN", "NAME"}
        ):
            named = clause.subject[0].tag == "NAME"
            if named and person_like(unit.phrase):
                yield Gap(clean(core(unit.phrase)), "role", ("who",), "what", index)
    elif unit.kind == "inf":
        verb = clean(unit.phrase)
        if unit.preposition == "to" and (clause.base in w.CATENATIVES or clause.passive):
            yield Gap(f"to {verb}", "action", ("what",), "to do what", index, ending="to do")
        elif index and len(unit.phrase) > 1:
            yield Gap(f"to {verb}", "purpose", ("why", "for what purpose"), "for what purpose", index)
    elif unit.kind == "sub":
        text = clean(unit.phrase)
        if unit.preposition in {"because", "since", "as"}:
            yield Gap(text, "reason", ("why", "for what reason"), "for what reason", index)
        elif unit.preposition in {"until", "when", "once", "before", "after", "whenever"} and unit.phrase:
            yield Gap(f"{unit.preposition} {text}", "date", ("until when",) if unit.preposition == "until" else ("when",), "when", index)
        elif unit.preposition in {"if", "unless", "provided"}:
            yield Gap(f"{unit.preposition} {text}", "condition", ("under what condition",), "under what condition", index)
    elif unit.kind == "that" and index == 0:
        yield Gap(clean(unit.phrase), "statement", ("what",), "what", index)
    elif unit.kind == "ger" and index == 0 and len(unit.phrase) > 1 and clause.base != "be":
        yield Gap(clean(unit.phrase), "action", ("what",), "doing what", index, ending="doing" if clause.base in w.CATENATIVES else "")


def gaps(clause: Clause, units: list[Unit], people: frozenset[str] = frozenset()) -> list[Gap]:
    """Every answer of the clause, the subject first, with the words that ask for it."""
    found = list(phrase_gaps(clause.subject, "", clause, subject=True, people=people))
    for index in range(len(units)):
        found.extend(_unit_gaps(units, index, clause, people))
    return [gap for gap in found if gap.answer and len(gap.answer.split()) <= 14]
