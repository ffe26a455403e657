"""Phrases that no other question asks for: asked in the words of the sentence itself, with the answer left out."""

import re
from collections.abc import Iterator, Sequence

from . import words as w
from .answers import clean
from .clauses import head
from .gaps import which
from .items import normalise
from .questions import Wording, acceptable, dangling
from .subjects import Topic
from .tagging import Token, Tokens, join
from .verbs import has_form

_INNER = {"DET", "POSS", "NUM", "ADJ", "MOD", "NOUN", "NAME", "POS"}
_LINKS = {"and", "of", "but", "the", "de", "da", "von", "van", "der", "&"}


def phrases(tokens: Tokens) -> Iterator[tuple[int, int]]:
    """Start and end of every plain noun phrase, number and name."""
    index = 0
    while index < len(tokens):
        if tokens[index].text in {'"', "“"}:
            close = next((i for i in range(index + 1, len(tokens)) if tokens[i].text in {'"', "”"}), None)
            if close is not None and close > index + 1:
                yield index + 1, close
                index = close + 1
                continue
        end = index
        while end < len(tokens):
            token = tokens[end]
            linked = (
                end > index
                and token.low in _LINKS
                and tokens[end - 1].tag == "NAME"
                and end + 1 < len(tokens)
                and tokens[end + 1].tag == "NAME"
            )
            opens = token.tag in {"DET", "POSS"} and end > index
            if not (linked or (token.tag in _INNER and not opens)):
                break
            end += 1
        if end > index and any(t.tag in {"NOUN", "NAME", "NUM"} for t in tokens[index:end]):
            yield index, end
        index = max(end, index + 1)


def _question_word(phrase: Tokens, after: Sequence[Token], topic: Topic) -> str:
    top = head(phrase)
    if phrase[-1].tag == "NUM":
        return "how many" if after and after[0].tag in {"NOUN", "ADJ", "MOD"} else "what number"
    if top is not None and (top.text in topic.people or top.low in w.ROLES):
        return "whom" if not after else "who"
    noun = which(phrase)
    return f"which {noun}" if noun else "what"


def _replaced(text: Tokens, start: int, end: int, word: str) -> str:
    if start and end < len(text) and text[start - 1].text in {'"', "“"} and text[end].text in {'"', "”"}:
        start, end = start - 1, end + 1
    return re.sub(r"\s+,", ",", join((*text[:start], Token(word, bool(start)), *text[end:]))).strip(" .!?;,")


def _find(inside: Tokens, phrase: Tokens) -> int | None:
    wanted = [t.low for t in phrase]
    lows = [t.low for t in inside]
    found = [i for i in range(len(lows) - len(wanted) + 1) if lows[i : i + len(wanted)] == wanted]
    return found[0] if len(found) == 1 else None


def leftovers(sentence: Tokens, parts: Sequence[Tokens], topic: Topic, known: Sequence[str]) -> Iterator[tuple[str, list[Wording], str]]:
    """(answer, wordings, statement) for phrases of the sentence that are not in `known`; `parts` are its clauses, which are shorter."""
    taken = set(known)
    for start, end in phrases(sentence):
        phrase = sentence[start:end]
        answer, top = clean(phrase), head(phrase)
        plain = normalise(answer)
        covered = plain in taken or any(f" {plain} " in f" {k} " and len(k.split()) <= 3 for k in taken)
        verbal = (
            end < len(sentence)
            and sentence[end].tag in {"PREP", "DET", "REL", "NAME"}
            and has_form(phrase[-1].low, "s")
            and len(phrase) > 1
            and phrase[-2].tag in {"NAME", "NOUN", "GER"}
        )
        bare = end < len(sentence) and sentence[end].low == "of" and top is not None and top.tag == "NOUN"
        if (
            not plain
            or covered
            or verbal
            or bare
            or phrase[0].low == "such"
            or top is None
            or top.low in {"thing", "one", "time", "way", "part", "use", "case", "order", "turn"}
            or answer in topic.name
        ):
            continue
        if phrase[0].low in {"this", "that", "these", "those", "such", "its", "his", "her", "their"}:
            phrase, start = phrase[1:], start + 1
            answer = clean(phrase)
            if not phrase or len(answer) < 3 or normalise(answer) in taken:
                continue
        places = [
            (part, spot)
            for part in (*sorted(parts, key=len), sentence)
            if (spot := _find(part, phrase)) is not None and len(part) > len(phrase) + 2
        ]
        if not places:
            continue
        text, spot = places[0]
        taken.add(normalise(answer))
        question = _replaced(text, spot, spot + len(phrase), _question_word(phrase, text[spot + len(phrase) :], topic))
        statement = join(text).strip(" .!?;,") + "."
        source = f"the text about {topic.noun}" if topic.title == topic.name else f"“{topic.title}”"
        opening = question[:1].lower() + question[1:] if text[0].tag != "NAME" else question
        asked = f"According to {source}, {opening}?"
        if not acceptable(asked, answer) or dangling(statement):
            asked = _window(sentence, *(start, end) if start < end else (start, start + 1), source)
        fit = f" {normalise(answer)} " not in f" {normalise(asked)} "
        yield answer, [Wording(asked, answer, "thing", "inside")] if fit else [], statement[:1].upper() + statement[1:]


def _window(sentence: Tokens, start: int, end: int, source: str) -> str:
    """Ask for the gap in the nearest words of a long sentence."""
    first, last = max(0, start - 12), min(len(sentence), end + 8)
    before = next((i + 1 for i in range(start - 4, first, -1) if sentence[i].text in {",", ";", ":"}), first)
    after = next((i for i in range(end, last) if sentence[i].text in {",", ";", ":", "."}), last)
    text = join((*sentence[before:start], Token("____", start > before), *sentence[end:after])).strip(" ,;.!?")
    text = text.replace('"', "").replace("“", "").replace("”", "")
    return f"In {source}, what is missing here: {'… ' if before else ''}{text}{' …' if after < len(sentence) - 1 else ''}?"
