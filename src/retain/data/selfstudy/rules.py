"""The study set of a document, by rules only: passages, questions in several wordings, sentences with gaps and statements."""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from . import words as w
from .answers import chunks, core, person_like
from .blocks import Block, blocks
from .clauses import Clause, head, plural_phrase
from .cloze import cloze, passages, stated
from .items import StudyItem, grounded, normalise
from .leftovers import leftovers
from .parsing import clauses
from .questions import Wording, acceptable, wordings
from .rewordings import variants
from .structure import bracket_clauses, brackets, list_wordings, pair_wordings
from .subjects import Resolver, Topic, topic_of
from .tagging import Token, Tokens, join, names_in, spaced, split_words, tag
from .verbs import PERSONAL

_ORDER = {"direct": 0, "attribute": 1, "noun": 2, "other": 3, "stranded": 4, "told": 5, "inside": 6, "short": 7, "named": 8}
_REPEATED = {"direct": 2, "attribute": 2, "noun": 2, "other": 3}  # at most this many wordings of a form for one fact, else one


@dataclass
class Fact:
    """An answer in one sentence, the wordings that ask for it, and the statements that hold it."""

    source: str
    answer: str
    wordings: list[Wording] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    clause: bool = True


@dataclass
class _Sentence:
    block: Block
    clauses: list[Clause]
    resolved: Tokens = ()


def _existential(tokens: Tokens) -> list[Clause]:
    """ "There are twelve lockers in the hall" as "twelve lockers are in the hall"."""
    if len(tokens) < 5 or tokens[0].low != "there" or tokens[1].tag != "BE":
        return []
    body = tokens[2:]
    while body and body[-1].tag == "PUNCT":
        body = body[:-1]
    units = chunks(body)
    if len(units) < 2 or units[0].kind != "np" or units[1].kind != "pp":
        return []
    rest = body[len(units[0].tokens) :]
    return [Clause(units[0].tokens, (replace(tokens[1], text=tokens[1].low),), rest)]


def _with_objects(parsed: list[Clause], last: Tokens) -> tuple[list[Clause], Tokens]:
    """Put the last object in place of "it" and "them" right after a verb ("... the request, and send it to ..."), or drop the clause."""
    kept: list[Clause] = []
    for clause in parsed:
        first = clause.rest[0] if clause.rest else None
        if first is not None and first.tag == "PRON" and first.low in {"it", "them"}:
            if not last or plural_phrase(last) != (first.low == "them") or normalise(join(last)) == normalise(join(clause.subject)):
                continue
            clause = replace(clause, rest=(*spaced(last), *clause.rest[1:]))
        elif first is not None and not clause.derived:
            unit = chunks(clause.rest)[0]
            noun = core(unit.tokens) if unit.kind == "np" and clause.base != "be" else ()
            last = (
                (Token("the", True, "DET"), *noun[1:])
                if noun and noun[0].low in {"a", "an"}
                else noun
                if noun and noun[0].tag in {"DET", "POSS", "NAME", "NOUN"}
                else ()
            )
        kept.append(clause)
    return kept, last


def _read(title: str, text: str) -> tuple[Topic, list[_Sentence]]:
    """Parse the whole text: its topic (with the people in it) and the clauses of each sentence."""
    names = names_in(text)
    topic = topic_of(title, text)
    if topic.kind == "person" or re.search(rf"\b{re.escape(topic.name)}\b", text):
        names |= {word for word in topic.name.split() if word[:1].isupper() and not re.search(rf"\b{re.escape(word.lower())}\b", text)}
    resolver = Resolver(topic)
    found: list[_Sentence] = []
    last_object: Tokens = ()
    for block in blocks(text):
        if block.kind not in {"prose", "item"}:
            found.append(_Sentence(block, []))
            continue
        plain, inner = brackets(block.source)
        tokens = resolver.resolve(tag(split_words(plain), names))
        parsed, last_object = _with_objects(_existential(tokens) or clauses(tokens), last_object)
        resolver.update(parsed)
        if len(tokens) > 3 and tokens[0].low == "there" and tokens[1].tag == "BE":
            named = chunks(tokens[2:])[0]
            if named.kind == "np":
                resolver.note((Token("the", True, "DET"), *(replace(t, space=True) for t in core(named.phrase))))
        found.append(_Sentence(block, [*parsed, *bracket_clauses(inner, topic, names)], tokens))
    people = set(_people(topic, [c for s in found for c in s.clauses]))
    alone = {
        s.resolved[0].text
        for s in found
        if len(s.resolved) > 1 and s.resolved[0].tag == "NAME" and s.resolved[1].tag in {"VERB", "MODAL", "HAVE"}
    }
    for sentence in found:
        for first, last in _full_names(sentence.resolved):
            if last in people or first in alone or first.rstrip(".").lower() in w.HONORIFICS:
                people |= {first, last}
    return replace(topic, people=frozenset(people)), found


def _people(topic: Topic, parsed: Iterable[Clause]) -> frozenset[str]:
    """Names that do what people do, or that are said to be an electrician, a pastor and so on."""
    people = set(topic.name.split()) if topic.kind == "person" else set()
    for clause in parsed:
        phrase, top = clause.subject, head(clause.subject)
        if (
            top is not None
            and top.tag == "NAME"
            and phrase[0].tag == "NAME"
            and top.low not in w.BODIES | w.PLACES
            and clause.base in PERSONAL
        ):
            people.add(top.text)
        if clause.base == "be" and clause.group[-1].tag == "BE":
            for one, other in ((phrase, clause.rest), (clause.rest, phrase)):
                name, role = head(one), head(other)
                if name is not None and role is not None and name.tag == "NAME" and role.low in w.ROLES:
                    people.add(name.text)
        for unit in chunks(clause.rest):
            name = head(unit.phrase) if unit.phrase else None
            if name is not None and name.tag == "NAME" and person_like(unit.phrase):
                people.add(name.text)
    return frozenset(people)


def _full_names(tokens: Tokens) -> Iterator[tuple[str, str]]:
    """First and last word of every name of two or three words that is not a place, a body or after "the"."""
    index = 0
    while index < len(tokens):
        end = index
        while end < len(tokens) and tokens[end].tag == "NAME":
            end += 1
        span = tokens[index:end]
        listed = w.BODIES | w.PLACES | w.MONTHS | w.DAYS
        if 2 <= len(span) <= 3 and not any(t.low in listed for t in span) and not (index and tokens[index - 1].tag in {"DET", "PREP"}):
            yield span[0].text, span[-1].text
        index = max(end, index + 1)


def _clause_facts(sentence: _Sentence, topic: Topic, turn: int) -> Iterator[Fact]:
    for clause in sentence.clauses:
        if clause.subject[0].low == "you" and clause.derived:
            continue
        turn += 1
        statement = stated(clause, topic)
        for wording in wordings(clause, topic, turn):
            if grounded(wording.answer, sentence.block.source) or grounded(
                re.sub(r"^(?:by|to|before|after) ", "", wording.answer), sentence.block.source
            ):
                known = replace(wording, statement=statement or "")
                yield Fact(sentence.block.source, wording.answer, [known], [statement] if statement else [])


def _leftover_facts(sentence: _Sentence, topic: Topic, known: list[str]) -> Iterator[Fact]:
    comma = Token(",", False, "PUNCT")
    parts = [((*c.lead, comma) if c.lead else ()) + (*spaced(c.subject), *spaced(c.group), *spaced(c.rest)) for c in sentence.clauses]
    for answer, asked, statement in leftovers(sentence.resolved, [part for part in parts if len(part) > 4], topic, known):
        if grounded(answer, sentence.block.source):
            yield Fact(sentence.block.source, answer, asked, [statement], clause=False)


def _facts(topic: Topic, sentences: list[_Sentence]) -> list[Fact]:
    """Every fact, with the wordings of all clauses that ask for the same answer put together."""
    found: dict[tuple[str, str], Fact] = {}
    by_source: dict[str, list[Fact]] = {}

    def add(new: Fact) -> None:
        key = (new.source, normalise(new.answer))
        if key not in found:
            found[key] = Fact(new.source, new.answer)
            by_source.setdefault(new.source, []).append(found[key])
        fact = found[key]
        asked = {wording.question for wording in fact.wordings}
        fact.wordings += [wording for wording in new.wordings if wording.question not in asked]
        fact.clause = fact.clause and new.clause
        fact.statements += [statement for statement in new.statements if statement not in fact.statements]

    for number, sentence in enumerate(sentences):
        block = sentence.block
        for answer, asked, statement in pair_wordings(block, topic):
            add(Fact(block.source, answer, [wording for wording in asked if acceptable(wording.question, answer)], [statement]))
        for answer, asked in list_wordings(block.source, topic):
            add(Fact(block.source, answer, asked))
        for fact in _clause_facts(sentence, topic, number):
            add(fact)
        known = [normalise(fact.answer) for fact in by_source.get(block.source, [])]
        for fact in _leftover_facts(sentence, topic, known):
            add(fact)
    return list(found.values())


def _chosen(fact: Fact, most: int, rng: random.Random, used: set[str]) -> list[Wording]:
    """A few different wordings: the plain one first, then other forms; no wording that another fact has."""
    ranked = sorted(fact.wordings, key=lambda wording: (_ORDER.get(wording.form, 9), rng.random()))
    kept: list[Wording] = []
    counts: dict[str, int] = {}
    for wording in ranked:
        asked = normalise(wording.question)
        if wording.form == "cloze" or asked in used or counts.get(wording.form, 0) >= _REPEATED.get(wording.form, 1):
            continue
        counts[wording.form] = counts.get(wording.form, 0) + 1
        used.add(asked)
        kept.append(wording)
    if len(kept) > most:
        kept = [kept[0], *sorted(rng.sample(kept[1:], most - 1), key=kept.index)]
    return kept


def _fact_items(fact: Fact, topic: Topic, most: int, rng: random.Random, used: set[str]) -> list[StudyItem]:
    items: list[StudyItem] = []

    def item(prompt: str, completion: str, kind: str) -> None:
        items.append(StudyItem(prompt, completion, kind, fact.source, fact.answer))

    chosen = _chosen(fact, most, rng, used)
    for number, wording in enumerate(chosen):
        reverse = wording.subject and number == 0 and len(chosen) > 2
        item(
            wording.question,
            wording.answer,
            "reversed" if reverse else "question" if number == 0 or (number == 1 and chosen[0].subject) else "rewording",
        )
    statement = next((text for text in fact.statements if grounded(fact.answer, text)), None)
    if statement is None:
        return items
    if chosen and chosen[0].statement and grounded(fact.answer, chosen[0].statement):
        statement = chosen[0].statement
    if chosen and normalise(statement) not in used and fact.clause:
        used.add(normalise(statement))
        item(f"{chosen[0].question} Answer in a full sentence.", statement, "sentence")
    gapped = cloze(statement, fact.answer, topic)
    if gapped is not None and normalise(gapped) not in used:
        used.add(normalise(gapped))
        item(gapped, fact.answer, "cloze")
    for wording in fact.wordings:
        if wording.form == "cloze":
            item(wording.question, wording.answer, "cloze")
    return items


def _statements(topic: Topic, sentences: list[_Sentence]) -> list[StudyItem]:
    items: list[StudyItem] = []
    seen: set[str] = set()
    for sentence in sentences:
        texts = [text for _, _, text in pair_wordings(sentence.block, topic)]
        for clause in sentence.clauses:
            if clause.subject[0].low == "you" and clause.derived:
                continue
            made = [stated(version, topic) for version in (clause, *variants(clause))]
            texts += [text for text in made if text is not None]
        for text in texts:
            if normalise(text) not in seen and normalise(text) != normalise(sentence.block.source):
                seen.add(normalise(text))
                items.append(StudyItem(None, text, "statement", sentence.block.source, ""))
    return items


def study_items(title: str, text: str, *, limit: int | None = None, seed: int = 0, most_wordings: int = 5) -> list[StudyItem]:
    """Everything to learn a document from, made by rules.

    With `limit`, facts that can be asked for in several ways come first and further wordings are added round by round; passages and
    statements get about a quarter of the places. `most_wordings` bounds the wordings of one fact.
    """
    rng = random.Random(seed)
    title = " ".join(title.split())
    topic, sentences = _read(title, text)
    used: set[str] = set()
    per_fact = [_fact_items(fact, topic, most_wordings, rng, used) for fact in _facts(topic, sentences)]
    plain = passages(topic, [sentence.block.source for sentence in sentences], text)
    statements = _statements(topic, sentences)
    if limit is None:
        return [*plain, *(item for items in per_fact for item in items), *statements]
    chosen = plain[: max(1, limit // 8)]
    statements = statements[: limit // 6]
    rng.shuffle(per_fact)
    per_fact.sort(key=lambda items: len(items) < 4)  # facts that only the words of the sentence ask for come last
    rounds = max((len(items) for items in per_fact), default=0)
    queue = [items[number] for number in range(rounds) for items in per_fact if number < len(items)]
    chosen += queue[: max(0, limit - len(chosen) - len(statements))]
    return [*chosen, *statements][:limit]
