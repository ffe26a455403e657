"""Other words for the same question: verbs and nouns with a near synonym, passive and active, and questions by a noun ("the price of")."""

import re
from collections.abc import Iterator
from dataclasses import replace

from .answers import Unit, chunks, core
from .clauses import Clause, agreeing, head, plural_phrase
from .gaps import Gap
from .synonyms import BY_NOUN, DOERS, KEEP_OPEN, PHRASES, VERBS
from .tagging import Token, Tokens, join, spaced
from .verbs import gerund, has_form, participle, past, readings, third

_INTRANSITIVE_USE = {
    "be",
    "have",
    "become",
    "cost",
    "weigh",
    "last",
    "remain",
    "need",
    "take",
    "lack",
    "contain",
    "fit",
    "comprise",
    "mean",
    "seem",
    "appear",
    "get",
    "die",
    "live",
    "want",
    "resemble",
    "let",
    "stay",
    "go",
    "come",
    "begin",
    "stop",
    "start",
    "own",
    "join",
    "enter",
    "leave",
    "reach",
}


def inflect(base: str, form: str) -> str:
    """One form of a verb; a particle ("put off") stays behind."""
    first, _, particle = base.partition(" ")
    made = {"base": first, "s": third(first), "past": past(first), "part": participle(first), "ing": gerund(first)}[form]
    return f"{made} {particle}" if particle else made


def with_synonym(clause: Clause) -> Clause | None:
    """The clause with another verb of the same meaning, if the list has one."""
    main, base = clause.main, clause.base
    other = VERBS.get(base)
    if other is None or base in KEEP_OPEN or main.tag != "VERB" or clause.group[-1] is not main:
        return None
    first = next((t for t in clause.group if t.tag != "ADV"), main)
    wanted = (
        ("s", "past", "base")
        if main is first
        else ("base",)
        if first.tag in {"MODAL", "DO"} and len([t for t in clause.group if t.tag in {"BE", "HAVE"}]) == 0
        else ("part", "ing")
    )
    form = next((reading.form for want in wanted for reading in readings(main.low) if reading.form == want and reading.base == base), None)
    if form is None:
        return None
    verb, _, particle = inflect(other, form).partition(" ")
    changed = tuple(replace(t, text=verb) if t is main else t for t in clause.group)
    return replace(clause, group=(*changed, Token(particle, True, "PREP")) if particle else changed)


def passive(clause: Clause, units: list[Unit]) -> Clause | None:
    """The passive of a clause whose verb has an object right after it: "a fire destroyed the roof" -> "the roof was destroyed by ..."."""
    if (
        not units
        or units[0].kind != "np"
        or clause.passive
        or clause.base in _INTRANSITIVE_USE
        or clause.main.tag != "VERB"
        or len(units[0].tokens) > 8
    ):
        return None
    target, first = units[0].tokens, clause.group[0]
    top = head(target)
    if (
        top is None
        or top.tag in {"PRON", "NUM"}
        or any(t.tag == "PRON" for t in target)
        or target[0].tag == "POSS"
        or clause.subject[0].low == "you"
    ):
        return None
    if (len(clause.group) > 1 and first.tag != "MODAL") or any(t.tag == "ADV" for t in clause.group) or len(clause.group) > 2:
        return None
    be = (
        "be"
        if first.tag == "MODAL"
        else ("were" if plural_phrase(target) else "was")
        if clause.past_tense
        else ("are" if plural_phrase(target) else "is")
    )
    group: Tokens = (*((first,) if first.tag == "MODAL" else ()), Token(be, True, "BE"), Token(participle(clause.base), True, "VERB"))
    agent = (Token("by", True, "PREP"), *spaced(clause.subject))
    rest = tuple(t for unit in units[1:] if unit.kind in {"pp", "sub"} for t in spaced(unit.tokens))
    return Clause(spaced(target), group, (*agent, *rest), clause.lead, derived=True)


def active(clause: Clause, units: list[Unit]) -> Clause | None:
    """The active of a passive clause with an agent: "it was found by Ann" -> "Ann found it"."""
    index = next(
        (
            i
            for i, unit in enumerate(units)
            if unit.kind == "pp" and unit.preposition == "by" and unit.phrase and unit.phrase[0].tag in {"NAME", "DET"}
        ),
        None,
    )
    if not clause.passive or index is None or index > 1 or clause.group[0].tag != "BE" or len(clause.group) != 2:
        return None
    agent = units[index].phrase
    if (any(t.tag == "NUM" for t in agent) and not any(t.tag == "NAME" for t in agent)) or clause.base == "bear":
        return None
    verb = Token(agreeing(clause.base, plural_phrase(agent), clause.past_tense), True, "VERB")
    rest = tuple(t for number, unit in enumerate(units) if number != index and unit.kind != "tail" for t in unit.tokens)
    return Clause(core(agent), (verb,), (*spaced(clause.subject), *rest), clause.lead, derived=True)


def by_noun(clause: Clause, gap: Gap, units: list[Unit]) -> Iterator[str]:
    """Questions with a noun in place of the verb: "What is the price of ...", "Who was the founder of ..."."""
    subject = join(clause.subject)
    was = "was" if clause.past_tense else "is"
    plural = plural_phrase(clause.subject)
    if gap.unit is None:
        if clause.base in DOERS and gap.kind == "person" and units and units[0].kind == "np":
            yield f"who {was} the {DOERS[clause.base]} of {join(core(units[0].tokens))}"
        return
    if clause.subject[0].low == "you" or any(t.tag == "ADV" and t.low in {"not", "never"} for t in clause.group):
        return
    for form in BY_NOUN.get((clause.base, gap.kind), ()):
        if clause.base == "take" and gap.kind in {"place", "date"} and not (units and units[0].text == "place"):
            continue
        if clause.base in {"hold", "make"} and gap.kind in {"date", "place", "thing"} and not clause.passive:
            continue
        if clause.base == "bear" and not any(t.low == "born" for t in clause.group):
            continue
        if clause.base == "be" and (gap.unit != 0 or clause.group[-1].tag != "BE"):
            continue
        text = form.format(s=subject)
        if was == "was":
            text = text.replace(" is the ", " was the ", 1)
        yield re.sub(
            r"\b(how (?:heavy|expensive|high)) is\b", rf"\1 {'were' if plural and was == 'was' else 'are' if plural else was}", text
        )
    top = head(clause.subject)
    if gap.unit == 0 and top is not None and len(clause.subject) < 9:
        noun = {
            "money": "what amount of money",
            "percent": "what percentage",
            "duration": "what length of time",
            "date": "what date",
            "time": "what hour",
        }.get(gap.kind)
        if noun and clause.base in {"be", "reach", "cost", "last", "take", "stand", "total"}:
            yield f"{noun} is given for {subject}"


def other_words(question: str) -> str | None:
    """The question with one noun or phrase replaced by another of the same meaning, or None."""
    for pattern, other in PHRASES:
        match = re.search(rf"(?<![\w-]){pattern}(?![\w-])", question)
        if match is None or (other in {"roughly"} and not re.search(r"\babout \d", question)):
            continue
        plural = match.group().endswith("s") and pattern.endswith("s?")
        following = re.match(r"\s+[A-ZÀ-Þ]", question[match.end() :]) is not None
        if match.group()[0].isupper() or following:
            continue
        article = re.search(r"\b(a|an) $", question[: match.start()], re.IGNORECASE)
        word = other + "s" if plural else other
        start = question[: match.start()]
        if article is not None:
            right = "an " if word[0] in "aeiou" else "a "
            start = start[: article.start()] + right
        return start + word + question[match.end() :]
    return None


def variants(clause: Clause) -> list[Clause]:
    """The clause with a synonym for its verb, and in the other voice."""
    units = chunks(clause.rest)
    found = [with_synonym(clause), passive(clause, units), active(clause, units)]
    return [variant for variant in found if variant is not None and not has_form(variant.subject[0].low, "ing")]
