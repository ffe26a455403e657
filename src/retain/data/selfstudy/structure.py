"""Facts that are not in clauses: "Key: value" pairs, table rows, lists after a colon, brackets."""

import re
from collections.abc import Iterator

from .answers import numeric
from .blocks import Block
from .clauses import Clause
from .questions import Wording
from .subjects import Topic
from .tagging import Token, Tokens, join, names_in, split_words, tag
from .words import is_plural

_BRACKET = re.compile(r"\s*\(([^()]{1,80})\)")
_ADDRESS = {
    "from": ("Who is {t} from", "Who wrote {t}", "Name the sender of {t}"),
    "to": ("To whom is {t} addressed", "Who receives {t}", "Name the recipient of {t}"),
    "author": ("Who is the author of {t}", "Who wrote {t}", "Name the author of {t}"),
    "date": ("What is the date of {t}", "When was {t} written", "What date does {t} carry"),
    "subject": ("What is the subject of {t}", "What is {t} about"),
    "re": ("What is the subject of {t}", "What is {t} about"),
}


def _words(text: str, names: frozenset[str] = frozenset()) -> Tokens:
    return tag(split_words(text), names | names_in("x " + text))


def brackets(sentence: str) -> tuple[str, list[tuple[str, str]]]:
    """The sentence without its brackets, and what each bracket stood after: [("... Sharapan", "1898-1952")]."""
    found = [(sentence[: match.start()], match[1].strip()) for match in _BRACKET.finditer(sentence)]
    return _BRACKET.sub("", sentence), [(_BRACKET.sub("", before), inner) for before, inner in found]


def bracket_clauses(found: list[tuple[str, str]], topic: Topic, names: frozenset[str]) -> Iterator[Clause]:
    """Clauses for brackets after a name: years of birth and death, a role, a year of publication."""
    for before, inner in found:
        match = re.search(r"((?:[A-ZÀ-Þ][\w'’.-]*\s+(?:of the |of |and |de |da |van |von )?)*[A-ZÀ-Þ0-9][\w'’.-]*)$", before)
        if match is None:
            continue
        if not re.search(r"[^\W\d_]", match[1]):
            continue
        name = _words(match[1], names | {word for word in match[1].split() if word[:1].isupper()})
        life = re.fullmatch(r"(?:(?:b\.|born)\s+)?(\d{4}|\d{1,2} \w+ \d{4})\s*[-–—]\s*(\d{4}|\d{1,2} \w+ \d{4})", inner)
        born = re.fullmatch(r"(?:born|b\.)\s+(?:in |on )?(\d{4}|\d{1,2} \w+ \d{4})", inner)
        if (life or born) and topic.kind == "person" and match[1] in topic.name:
            start = (life or born)[1]  # type: ignore[index]
            yield _made(name, "was born", f"{'on' if ' ' in start else 'in'} {start}")
            if life:
                yield _made(name, "died", f"{'on' if ' ' in life[2] else 'in'} {life[2]}")
        elif re.fullmatch(r"\d{4}", inner):
            yield _made(name, "dates", f"from {inner}")
        elif re.fullmatch(r"[a-z][\w -]{2,40}", inner) and len(inner.split()) <= 4 and not re.search(r"\d|\bsee\b", inner):
            yield _made(name, "is", f"the {inner}" if not re.match(r"(the|a|an|in|at|on|for|from|by|to|up)\b", inner) else inner)


def _made(name: Tokens, group: str, rest: str) -> Clause:
    verbs = tuple(Token(word, True, "BE" if word in {"was", "is"} else "VERB") for word in group.split())
    return Clause(name, verbs, _words(rest), derived=True)


def _lowered(key: str) -> str:
    return key[:1].lower() + key[1:] if key[1:] == key[1:].lower() else key


def _typed(value: str) -> str:
    """The question word for a value."""
    tokens = _words(value)
    found = numeric(tokens, "") if tokens else None
    if found is not None and found[0] in {"date", "time"}:
        return "when"
    if found is not None and found[0] == "money":
        return "how much"
    return "who" if re.fullmatch(r"(?:(?:Mr|Mrs|Ms|Dr|Prof)\.? )?[A-ZÀ-Þ][\w'’-]+(?: [A-ZÀ-Þ][\w'’-]+){1,2}", value) else "what"


def pair_wordings(block: Block, topic: Topic) -> Iterator[tuple[str, list[Wording], str]]:
    """(answer, wordings, statement) for every key and value of a pair or table row."""
    for key, value in block.cells:
        name = re.sub(r"\s*\([^)]*\)$", "", key)
        low, answer = _lowered(name), value
        person = re.match(r"([A-ZÀ-Þ][\w'’-]+(?: [A-ZÀ-Þ][\w'’-]+)+), [a-z]", value)
        if person:
            answer = person[1]
        if len(answer.split()) > 25:
            continue
        owner = block.row or topic.noun
        kind = _typed(answer)
        title = f"“{topic.title}”"
        if not block.row and low in _ADDRESS:
            texts = [form.format(t=title) + ("?" if not form.startswith("Name") else ".") for form in _ADDRESS[low]]
            texts.append(f"What stands after “{name}” in {title}?")
        else:
            context = "" if not block.row or topic.mentioned(owner) else f" ({topic.noun})"
            opening = {"who": "Who is", "what": "What is", "how much": "How much is", "when": "When is"}[kind]
            if kind == "when" and re.search(r"date|year|time|day|hour", low):
                opening = "What is"
            many = is_plural(low) and kind != "who"
            opening = opening.replace(" is", " are") if many else opening
            texts = [
                f"{opening} the {low} of {owner}{context}?",
                f"What is given as the {low} for {owner}{context}?",
                f"Tell me the {low} of {owner}{context}.",
                f"Which {low} is listed for {owner}{context}?",
                f"According to {title}, what {'are' if many else 'is'} the {low}{f' of {owner}' if block.row else ''}?",
                f"Under “{name}”, what is stated for {owner}{context}?",
            ]
        if re.search(r" (by|for|in|from|at|with|of|to|on)$", low) and low not in _ADDRESS:
            texts = [
                f"What is {owner} {low}?",
                f"According to {title}, {owner} is {low} whom or what?",
                f"Under “{name}”, what is stated for {owner}?",
            ]
        under = f" under “{block.heading}”" if block.heading and not block.row and topic.mentioned(block.heading) else ""
        preposition = re.search(r" (by|for|in|from|at|with|of|to|on)$", low) is not None
        statement = (
            f"{owner[:1].upper()}{owner[1:]} is {low} {value}."
            if preposition
            else f"The {low} of {owner}{under} {'are' if is_plural(low) else 'is'} {value}."
        )
        wordings = [Wording(text, answer, kind, "direct" if number == 0 else "noun") for number, text in enumerate(texts)]
        yield answer, wordings, statement
        if block.row and len(value.split()) <= 8:
            about = f" ({topic.noun})" if not topic.mentioned(value) else ""
            yield block.row, [Wording(f"What has {value} as its {low}{about}?", block.row, "thing", "direct", True)], statement


def list_wordings(sentence: str, topic: Topic) -> Iterator[tuple[str, list[Wording]]]:
    """(answer, wordings) for "There are three classes: tugs, yachts and steam."."""
    match = re.fullmatch(
        r"(?:There (?:are|were)|[A-Z][\w ]* (?:includes?|are|were|has|have|offers|contains)) ((?:the )?[\w -]{3,50}): (.{3,160}?)[.]?",
        sentence.strip(),
    )
    if match is None or not re.search(r",| and ", match[2]) or len(match[2].split()) > 25:
        return
    what, answer = match[1].removeprefix("the "), match[2].strip()
    yield (
        answer,
        [
            Wording(f"What are the {what} of {topic.noun}?", answer, "list", "direct"),
            Wording(f"Name the {what} mentioned for {topic.noun}.", answer, "list", "noun"),
            Wording(f"In the text about {topic.noun}, which {what} are there?", answer, "list", "noun"),
            Wording(f"According to “{topic.title}”, what are the {what}?", answer, "list", "inside"),
        ],
    )
    for part in re.split(r",\s*(?:and |or )?|\s+and\s+", answer):
        part = part.strip()
        if part and len(answer.split()) > 2:
            others = join(tuple(Token(t.text, t.space) for t in split_words(answer)))
            gap = others.replace(part, "____", 1)
            yield part, [Wording(f"Complete the list of {what} for {topic.noun}: {gap}", part, "list", "cloze")]
