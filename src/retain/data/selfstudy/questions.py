"""Questions about a clause: inverted, indirect, "in place", by preposition, and with the subject of the document named."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import words as w
from .answers import Unit, chunks
from .clauses import Clause
from .gaps import Gap, gaps
from .items import normalise
from .rewordings import by_noun, other_words, variants
from .subjects import Topic
from .tagging import Token, capitalise, join, split_words, tag
from .verbs import base_of, third

_UNCLEAR = re.compile(r"\b(?:this|that|these|those|such|it|them|him|they|he|she|we|us|so|former|latter|itself)\b", re.IGNORECASE)
_UNFINISHED = re.compile(r"\b(?:and|or|the|a|an|than|as|which|who|its|his|her|their|but|not|order)[?.]$")
_STRANDED = re.compile(r"(of|from|to|with|for|about|by|in|on|at|under|into|near) (what|which [\w-]+|whom)")


@dataclass(frozen=True)
class Wording:
    """One question for an answer; `form` says how it was made: direct, told, inside, noun, stranded."""

    question: str
    answer: str
    kind: str
    form: str
    subject: bool = False
    statement: str = ""


def usable(unit: Unit) -> bool:
    """Whether a chunk can be repeated in a question without pointing to something outside it."""
    return not _UNCLEAR.search(re.sub(r"\bso that\b|, that\b", "", unit.text)) and unit.kind != "tail"


def _verb_parts(clause: Clause) -> tuple[str, str]:
    """(operator, what follows the subject) for a question: ("does", "cost"), ("may", "not be charged"), ("is", "")."""
    group = list(clause.group)
    lead = []
    while len(group) > 1 and group[0].tag == "ADV":
        lead.append(group.pop(0))
    opening = Clause(clause.subject, tuple(group), clause.rest).operator
    if opening is not None:
        rest = join((*lead, *group[1:]))
        if opening.low == "cannot":
            return "can", f"not {rest}".strip()
        return opening.low, rest
    first = group[0]
    base = base_of(first.low, "s", "past", "base") or ("have" if first.low in w.HAVE else first.low.removesuffix("s"))
    auxiliary = "did" if clause.past_tense else "do" if clause.plural else "does"
    return auxiliary, " ".join([*(t.text for t in lead), base, *(t.text for t in group[1:])])


def _joined(*parts: str) -> str:
    return re.sub(r"\s+([,;.?!'])", r"\1", " ".join(part.strip() for part in parts if part.strip()))


def _others(units: list[Unit], gap: Gap, limit: int) -> list[str]:
    """The other chunks, as many as fit; those right after the verb first."""
    kept: list[str] = []
    for index, unit in enumerate(units):
        asked = gap.unit is not None and gap.unit <= index < gap.unit + gap.size
        if asked or not usable(unit) or (unit.kind == "rate" and gap.unit is not None and index == gap.unit + 1 and gap.kind != "money"):
            continue
        if unit.kind == "sub" and (
            gap.kind in {"reason", "date", "condition"} or unit.preposition in {"although", "though", "while", "whereas", "so"}
        ):
            continue
        text = unit.text.lstrip(", ")
        if sum(len(k.split()) for k in kept) + len(text.split()) <= limit:
            kept.append(text)
    return kept


def _agreed(clause: Clause, front: str) -> str:
    """The verb group after "who", "what" or "which one": singular, except before a plural ("how many boats")."""
    first = next((t for t in clause.group if t.tag != "ADV"), clause.group[0])
    if front.startswith(("how many", "what number")) or not clause.plural:
        return join(clause.group)
    if front.startswith("which ") and w.is_plural(front.split()[-1]):
        return join(clause.group)
    swap = {"are": "is", "were": "was", "have": "has", "do": "does"}.get(first.low)
    if swap is None and first.tag == "VERB" and base_of(first.low, "base") == first.low and not clause.past_tense:
        swap = third(first.low)
    return join([Token(swap, t.space, t.tag) if t is first and swap else t for t in clause.group])


def _of_subject(clause: Clause, gap: Gap, units: list[Unit]) -> Iterator[tuple[str, str]]:
    rest = _others(units, gap, 16)
    for number, front in enumerate(gap.fronts):
        yield ("direct" if number == 0 else "noun"), _joined(front, _agreed(clause, front), *rest)
    front = gap.fronts[0] if gap.fronts else gap.inside
    if not gap.fronts:
        yield "inside", _joined(gap.inside, join(clause.group), *rest)
        return
    yield "told", _joined(front, _agreed(clause, front), *rest)
    plural = clause.plural
    match = re.fullmatch(r"which ([\w-]+)", gap.fronts[-1])
    if match:
        yield "named", _joined(f"the {match[1]} that", _agreed(clause, gap.fronts[-1]), *rest)
    elif gap.kind == "person" and not plural:
        yield "named", _joined("the person who", _agreed(clause, "who"), *rest)
    if len(rest) > 1 and clause.base not in w.CATENATIVES:
        yield "short", _joined(front, _agreed(clause, front), rest[0])


def _of_rest(clause: Clause, gap: Gap, units: list[Unit]) -> Iterator[tuple[str, str]]:
    subject = join(clause.subject)
    operator, verb = _verb_parts(clause)
    rest = _others(units, gap, 14)
    if gap.unit == 0 and clause.base == "be" and gap.kind in {"thing", "person", "role"} and units[0].kind == "np":
        rest = []  # what follows belongs to the description that is asked for
    early = [unit.text.lstrip(", ") for unit in units[: gap.unit or 0] if gap.ending]
    early = [text for text in rest if text in early]
    kept = [text for text in rest if text not in early]
    verb = _joined(verb, *early, gap.ending)
    statement = _joined(join(clause.group), *early, gap.ending)
    for number, front in enumerate(gap.fronts):
        yield ("direct" if number == 0 else "noun"), _joined(front, operator, subject, verb, *kept)
    pieces = []
    for index, unit in enumerate(units):
        if index == gap.unit:
            pieces.append(gap.inside)
        elif not (gap.unit is not None and gap.unit < index < gap.unit + gap.size) and usable(unit) and unit.text.lstrip(", ") in rest:
            pieces.append(unit.text)
    if gap.kind not in {"role", "statement"}:
        yield "inside", _joined(subject, join(clause.group), *pieces)
    if gap.fronts:
        yield "told", _joined(gap.fronts[0], subject, statement, *kept)
        match = re.fullmatch(r"(?:(\w+) )?which ([\w-]+)", gap.fronts[-1])
        if match and clause.base != "be":
            yield "named", _joined(f"the {match[2]}", f"{match[1]} which" if match[1] else "that", subject, join(clause.group), *kept)
        strand = _STRANDED.fullmatch(gap.fronts[-1])
        if strand and gap.kind not in {"date", "reason", "place"} and (not kept or (len(kept) == 1 and units[0].kind == "np")):
            yield "stranded", _joined("who" if strand[2] == "whom" else strand[2], operator, subject, verb, *kept, strand[1])
        if len(kept) > 1 and not gap.ending and not (units and units[0].kind == "np" and units[0].text not in kept[:1] and gap.unit != 0):
            yield "short", _joined(gap.fronts[0], operator, subject, verb, kept[0])


def raw_wordings(clause: Clause, people: frozenset[str]) -> Iterator[tuple[Gap, str, str]]:
    """(gap, form, question words) for every answer of one clause."""
    units = chunks(clause.rest)
    lead = [unit for unit in chunks(clause.lead) if unit.kind in {"pp", "sub"} and len(unit.tokens) <= 12]
    if any(unit.kind == "tail" for unit in units):
        last = next(i for i, unit in enumerate(units) if unit.kind == "tail")
        units = [*units[:last], *lead, *units[last:]]
    else:
        units = [*units, *lead]
    for gap in gaps(clause, units, people):
        forms = _of_subject(clause, gap, units) if gap.unit is None else _of_rest(clause, gap, units)
        for form, question in forms:
            yield gap, form, question
        for question in by_noun(clause, gap, units):
            yield gap, "attribute", question


def dangling(question: str, strict: bool = True) -> bool:
    """Whether a question has a pronoun that points outside it; unless strict, a noun before "it" or "they" is taken for what it means."""
    tokens = tag(split_words(question))
    for index, token in enumerate(tokens):
        low = token.low
        if low in {"he", "she", "they", "him", "them", "we", "us", "our", "these", "those", "i", "my"}:
            named = any(t.tag in {"NAME", "NOUN"} for t in tokens[2:index])
            outside = strict or low in {"we", "us", "our", "i", "my"} or not named
            if outside:
                return True
        if low in {"former", "latter"} and (index + 1 == len(tokens) or tokens[index + 1].tag not in {"NOUN", "NAME", "ADJ", "MOD"}):
            return True
        if low == "it" and not strict and any(t.tag in {"NAME", "NOUN"} for t in tokens[2:index]):
            continue
        if low == "it" and not re.search(
            r"\b(?:is|was|it|has been|were) (?:it )?(?:\w+ly )?(?:agreed|decided|that|who|resolved|likely|possible)",
            question,
            re.IGNORECASE,
        ):
            return True
        if low in {"his", "her", "its", "their"} and not any(t.tag in {"NAME", "NOUN"} for t in tokens[1:index]):
            return True
        if low in {"this", "that"} and (index == 0 or token.tag == "DET" or tokens[index - 1].tag in {"PREP", "PUNCT"}):
            following = tokens[index + 1].low if index + 1 < len(tokens) else ""
            if following not in {"year", "month", "week", "season"} or low == "that":
                return True
    return False


def acceptable(question: str, answer: str, strict: bool = True) -> bool:
    """Whether a question is fit to be asked: short, with content words, without its own answer, unbalanced marks or dangling pronouns."""
    if re.match(r"(?:this|that|these|those|them|he|she)\b|(?:it|they)$", answer, re.IGNORECASE):
        return False
    asked, wanted = f" {normalise(question)} ", normalise(answer)
    size = len(question.split())
    if not wanted or not 3 <= size <= 30 or f" {wanted} " in asked:
        return False
    tail = re.sub(r"^(?:by|to|in|on|at|after|before|if|when|until|about|only|over|under|up to|at least|just over|more than) ", "", wanted)
    if f" {tail} " in asked:
        return False
    marks = question.count('"') % 2 or question.count("“") != question.count("”") or question.count("(") != question.count(")")
    content = [token for token in split_words(question) if re.search(r"\w", token.text) and token.low not in w.STOP]
    return not marks and len(content) >= 2 and not dangling(question, strict) and not _UNFINISHED.search(question)


def shorten_names(question: str, topic: Topic) -> str:
    """Say the full name of a person once: later mentions become "his" or "her"."""
    if topic.kind != "person":
        return question
    first = question.find(topic.name)
    if first < 0:
        return question
    head, tail = question[: first + len(topic.name)], question[first + len(topic.name) :]
    own = "his" if topic.pronoun == "he" else "her"
    tail = re.sub(rf"\b{re.escape(topic.name)}'s?\b", own, tail)
    return head + tail


def anchored(question: str, topic: Topic, turn: int) -> str:
    """The question (without a capital or question mark) with the document's subject named, if it is not named already."""
    question = shorten_names(question, topic)
    if topic.mentioned(question):
        if topic.kind == "person" and topic.name not in question and turn % 2 == 0:
            for key in sorted(topic.key_words, key=topic.name.find, reverse=True):
                if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", question) and topic.name.endswith(key):
                    return re.sub(
                        rf"(?:(?:{'|'.join(map(re.escape, topic.name.split()))}) )*(?<![\w-]){re.escape(key)}(?![\w-])",
                        topic.name,
                        question,
                        count=1,
                    )
        return question
    noun = topic.noun
    if topic.kind == "person":
        forms = (f"in the life of {noun}, {question}", f"in the text about {noun}, {question}", f"in the story of {noun}, {question}")
    elif topic.kind == "body":
        forms = (f"at {noun}, {question}", f"{question} at {noun}", f"for {noun}, {question}")
    else:
        forms = (f"for {noun}, {question}", f"in the text about {noun}, {question}", f"in the case of {noun}, {question}")
    return forms[turn % len(forms)]


_ASKS = ("Tell me", "Say", "Can you tell me", "Please tell me")


def wordings(clause: Clause, topic: Topic, turn: int = 0) -> list[Wording]:
    """All usable wordings of all questions about a clause, and about the same clause in other words."""
    found: list[Wording] = []
    for version, variant in enumerate([clause, *variants(clause)]):
        for gap, form, text in raw_wordings(variant, topic.people):
            if version and form in {"told", "short", "named", "inside"}:
                continue
            plain = clause.base == "be" and clause.group[-1].tag == "BE"
            enough = 1 if plain and (clause.subject[0].low == "the" or gap.kind not in {"thing", "role"}) else 2
            if len([t for t in split_words(text) if re.search(r"\w", t.text) and t.low not in w.STOP]) < enough or (
                form != "stranded" and text.endswith(" to")
            ):
                continue
            turn += 1
            question = _finish(text, form, topic, turn)
            found.append(Wording(question, gap.answer, gap.kind, form if not version else "other", gap.unit is None))
            changed = other_words(text) if form == "direct" else None
            if changed is not None:
                found.append(Wording(_finish(changed, "direct", topic, turn + 1), gap.answer, gap.kind, "other", gap.unit is None))
    return [wording for wording in found if acceptable(wording.question, wording.answer)]


def _finish(text: str, form: str, topic: Topic, turn: int) -> str:
    if form == "told":
        ask = _ASKS[turn % len(_ASKS)]
        text = f"{ask} {text}"
        if topic.mentioned(shorten_names(text, topic)):
            return capitalise(anchored(text, topic, turn)) + ("?" if ask.startswith("Can") else ".")
        noun = topic.noun
        about = f"at {noun}" if topic.kind == "body" else f"in the text about {noun}"
        return (
            f"{text}, {about}" + ("?" if ask.startswith("Can") else ".")
            if topic.kind != "body"
            else f"{text} {about}" + ("?" if ask.startswith("Can") else ".")
        )
    if form == "named":
        if topic.mentioned(text):
            return capitalise(f"Name {anchored(text, topic, turn)}.")
        return f"Name {text} ({topic.noun})."
    if form == "inside":
        if topic.mentioned(text) and turn % 2:
            return capitalise(anchored(text, topic, turn)) + "?"
        source = f"the text about {topic.noun}" if topic.title == topic.name else f"“{topic.title}”"
        return f"According to {source}, {shorten_names(text, topic)}?"
    return capitalise(anchored(text, topic, turn)) + "?"
