"""What a document is about, and whom its pronouns stand for."""

import itertools
import re
from dataclasses import dataclass, field, replace

from . import words as w
from .clauses import Clause, head, plural_phrase
from .tagging import Token, Tokens, split_words, tag
from .verbs import has_form, readings
from .words import listed

_DOCUMENT_WORDS = listed(
    """
    minutes memo notice procedure summary status report policy rules guide handbook manual draft update note notes faq letter
    press release specification sheet briefing bulletin progress terms overview runbook agenda announcement agreement contract
    lease plan programme program checklist instructions
    """
)

_FORGET = 3  # sentences after which a pronoun no longer points to a subject
_GENERIC = listed(
    """
    battle siege war treaty peace convention raid ambush skirmish revolt incident festival regatta model annual new old great the
    and
    """
)

_WITH_ARTICLE = w.BODIES - listed(
    """
    textiles assurance pottery estates university college ltd inc gmbh plc llc church parish
    """
)


@dataclass(frozen=True)
class Topic:
    """The subject of a document.

    `name` is short, `noun` is how the text itself refers to it ("the Brindlekit H2"), `kind` is person, body or thing.
    """

    title: str
    name: str
    noun: str
    kind: str
    pronoun: str = ""
    key_words: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()

    def mentioned(self, question: str) -> bool:
        """Whether a question says what it is about."""
        return any(token.text.removesuffix("'s").removesuffix("’s") in self.key_words for token in split_words(question))


def _trim(part: str) -> str:
    return re.sub(r"^[\s.,:;–—#*-]+|[\s.,:;–—#*-]+$", "", part)


def _main_part(title: str, text: str) -> str:
    """The part of a title that names its subject: "Status Memo: Footpath Lighting" -> "Footpath Lighting"."""
    parts = [p for p in re.split(r"\s*[:|]\s+|\s+[-–—]\s+", title) if _trim(p)]
    if len(parts) > 1:
        about = [p for p in parts if not any(word.lower() in _DOCUMENT_WORDS for word in p.split())]
        known = [sum(word[:1].isupper() and f" {word}" in f" {text}" for word in part.split() if len(word) > 3) for part in about]
        title = max(zip(known, range(len(about)), about, strict=True))[2] if about else parts[-1]
    pieces = [_trim(p) for p in title.split(",") if _trim(p)]
    dated = [p for p in pieces if not (re.search(r"\d", p) or p.lower() in w.MONTHS)]
    if len(dated) > 1 and dated[0].split()[-1].lower() in _DOCUMENT_WORDS:
        return dated[-1]
    if len(dated) > 1 and re.search(r"\b(of|for|on|to)\b|[Rr]ules|[Pp]olicy", dated[0]):
        return dated[-1]
    return dated[0] if dated else _trim(title)


def topic_of(title: str, text: str) -> Topic:
    """Work out the subject of a document from its title and how its text begins."""
    main = re.sub(r"^(?:The|A|An) ", "", _main_part(title, text)) or "the document"
    name = main
    action = re.match(r"(\w+ing) (?:the |a |an )?(\S.*)", main)
    if action and has_form(action[1].lower(), "ing"):
        name = main = action[2]
    action = re.search(r"\b(?:for|on|of|to) (\w+ing) (?:the |a )?([A-Z].*)", main)
    if action and has_form(action[1].lower(), "ing"):
        name = main = action[2]
    match = re.search(r"\b(?:at|between|of|for|in|with|about)\s+(?:the\s+)?([A-ZÀ-Þ0-9].*)$", main)
    if match and not re.search(rf"\b{re.escape(main)}\b", text):
        name = match[1]
        inner = re.match(r"[A-Z]\w+s (?:of|at) (?:the )?(.+)", name)
        name = inner[1] if inner else name
    opening = text[:400]
    kind = "thing"
    person = re.match(rf"\W*{re.escape(name)}\b[^.]{{0,60}}?\b(?:was|is|\()", text) is not None and not re.match(r"(The|A)\b", name)
    he, she = len(re.findall(r"\b(?:he|his|him)\b", text, re.IGNORECASE)), len(re.findall(r"\b(?:she|her)\b", text, re.IGNORECASE))
    its = len(re.findall(r"\b(?:it|its)\b", opening, re.IGNORECASE))
    pronoun = ""
    if person and max(he, she) > 0 and max(he, she) >= its and len(name.split()) <= 5:
        kind, pronoun = "person", "he" if he > she else "she"
    elif name.split()[-1].lower().strip(".") in w.BODIES and not re.search(r" (of|between|for) ", name):
        kind = "body"
    keys = _keys(name, text)
    return Topic(title.strip(), name, name if kind == "person" else _noun(name, title, text, keys), kind, pronoun, keys)


def _keys(name: str, text: str) -> frozenset[str]:
    """The words of the name that tell this document from others: capitals and codes that are no everyday words."""
    capital = [t.text for t in split_words(name) if (t.text[:1].isupper() and len(t.text) > 2) or any(c.isdigit() for c in t.text)]
    keys = {re.sub(r"['’]s?$", "", word) for word in capital}
    listed = w.BODIES | w.PLACES | _GENERIC | _DOCUMENT_WORDS
    plain = {
        k for k in keys if k.lower() in listed or w.is_number(k) or (re.search(rf"\b{re.escape(k.lower())}s?\b", text) and not k.isupper())
    }
    return frozenset({k for k in keys - plain if not readings(k.lower())} or keys - plain or keys or {name})


def _noun(name: str, title: str, text: str, keys: frozenset[str]) -> str:
    """How the text refers to its subject: the longest beginning of the name found there, with its article."""
    parts = name.split()
    common = re.search(rf"\b(the |an? )?{re.escape(name)}\b", text, re.IGNORECASE)
    if common and name not in text and (name[:1] + common.group()[-len(name) + 1 :]) == name:
        return ("the " if common[1] else "") + name[:1].lower() + name[1:]
    if "'s " in name or name[:1].isdigit():
        return f"the {name}" if name[:1].isdigit() else name
    for count in range(len(parts), 0, -1):
        start = " ".join(parts[:count])
        found = re.search(rf"\b([Tt]he )?{re.escape(start)}\b" + ("(?! [A-ZÀ-Þ0-9])" if count == 1 < len(parts) else ""), text)
        if found and any(key in start for key in keys) and (found[1] or parts[-1].lower() not in _WITH_ARTICLE):
            bare = re.search(rf"(?<![Tt]he )\b{re.escape(start)}\b(?! [a-z]+ )", text)
            return ("the " if found[1] and not bare else "") + start
    if parts[-1].lower() in _WITH_ARTICLE and "'" not in name:
        return f"the {name}"
    return f"the {name}" if re.search(rf"\b[Tt]he {re.escape(name)}", title) else name


def _copy(phrase: str, first: Token) -> Tokens:
    tokens = tag(split_words(phrase), frozenset(t.text for t in split_words(phrase) if t.text[:1].isupper()))
    opening = replace(tokens[0], space=first.space)
    if first.text[:1].isupper() and opening.tag != "NAME":
        opening = replace(opening, text=opening.text[:1].upper() + opening.text[1:])
    return (opening, *tokens[1:])


def _possessive(phrase: Tokens) -> Tokens:
    ending = "'" if phrase[-1].text.endswith("s") and phrase[-1].tag != "NAME" else "'s"
    return (*phrase, Token(ending, False, "POS"))


@dataclass
class Resolver:
    """Replaces pronouns that point back to earlier sentences, sentence after sentence."""

    topic: Topic
    subject: Tokens = field(default=())
    plural: Tokens = field(default=())
    age: int = 0
    plural_age: int = 0

    def _people(self, tokens: Tokens) -> bool:
        """Whether another person than the topic is named in these words."""
        for first, second in itertools.pairwise(tokens):
            if (
                first.tag == "NAME"
                and second.tag == "NAME"
                and first.text not in self.topic.name
                and (first.low.rstrip(".") in w.HONORIFICS or second.text not in self.topic.name)
            ):
                return True
        return False

    def _for_it(self) -> Tokens:
        if self.subject and not plural_phrase(self.subject):
            return self.subject
        if not self.subject and not self.plural and self.topic.kind != "person":
            return _copy(self.topic.noun, Token("", True))
        return ()

    def resolve(self, tokens: Tokens) -> Tokens:
        """The sentence with pronouns replaced where it is clear what they stand for; expletive "it" and all unclear ones stay."""
        result: list[Token] = []
        own = False  # a full subject has been seen in this sentence
        for index, token in enumerate(tokens):
            low, after = token.low, tokens[index + 1] if index + 1 < len(tokens) else None
            opens = index == 0 or tokens[index - 1].tag in {"SUB", "CONJ"} or tokens[index - 1].text in {",", ";", ":", "—", "–"}
            replacement: Tokens = ()
            personal = self.topic.kind == "person" and low in ({"he", "his", "him"} if self.topic.pronoun == "he" else {"she", "her"})
            if personal and not self._people(tokens[:index]):
                replacement = _copy(self.topic.name, token)
                noun_next = after is not None and after.tag in {"NOUN", "ADJ", "MOD", "NUM", "NAME", "ADV", "GER"} and low != "him"
                if low == "his" or (low == "her" and noun_next):
                    replacement = _possessive(replacement)
            elif low in {"he", "she"} and opens and not own and self.subject and self.subject[0].tag == "NAME":
                replacement = self.subject
            elif low in {"it", "its"} and opens and not own and not self._expletive(tokens[index:]):
                replacement = self._for_it()
                replacement = _possessive(replacement) if replacement and low == "its" else replacement
            elif low in {"they", "their"} and opens and not own and self.plural:
                replacement = self.plural if low == "they" else _possessive(self.plural)
            elif low in {"we", "our", "us"}:
                group = self.topic.noun if self.topic.kind == "body" else f"the {self.topic.name} team"
                group = group if self.topic.kind != "body" or group.startswith("the ") else f"the {group}"
                replacement = _copy(group, token)
                replacement = _possessive(replacement) if low == "our" else replacement
            if replacement:
                first = replacement[0]
                text = first.text
                if first.tag != "NAME":
                    text = text[:1].upper() + text[1:] if index == 0 else text[:1].lower() + text[1:]
                result.extend((replace(first, space=token.space, text=text), *replacement[1:]))
            else:
                result.append(token)
            own = own or token.tag in {"BE", "VERB", "MODAL", "HAVE"}
        return tuple(result)

    def _expletive(self, tokens: Tokens) -> bool:
        """Whether "it" is followed by a verb of deciding or an adjective and then "to" or "that"."""
        if tokens[0].low != "it" or len(tokens) < 3 or tokens[1].tag not in {"BE", "MODAL", "VERB"}:
            return False
        lows = [t.low for t in tokens[1:14]]
        decided = {
            "agreed",
            "decided",
            "said",
            "thought",
            "believed",
            "likely",
            "possible",
            "necessary",
            "important",
            "known",
            "reported",
            "noted",
            "resolved",
            "takes",
            "took",
        }
        return any(word in decided for word in lows[:5]) and ("to" in lows or "that" in lows)

    def note(self, phrase: Tokens) -> None:
        """Remember a phrase that a sentence is about although it is not the subject of a parsed clause."""
        if plural_phrase(phrase):
            self.plural, self.plural_age = phrase, 0

    def update(self, found: list[Clause]) -> None:
        """Remember the subject of the sentence just read."""
        self.age, self.plural_age = self.age + 1, self.plural_age + 1
        if self.age > _FORGET:
            self.subject = ()
        if self.plural_age > _FORGET:
            self.plural = ()
        main = next((c for c in found if not c.derived), None)
        if main is None or main.subject[0].tag == "PRON" or head(main.subject) is None:
            return
        subject = main.subject
        stop = next((i for i, t in enumerate(subject) if t.tag in {"REL", "PART"} and i), len(subject))
        stop = next((i for i, t in enumerate(subject[:stop]) if t.tag == "PREP" and t.low != "of" and i), stop)
        subject = subject[:stop]
        if subject[0].low in {"a", "an"}:
            subject = (Token("the", True, "DET"), *subject[1:])
        if plural_phrase(subject):
            self.plural, self.plural_age = subject, 0
        else:
            self.subject, self.age = subject, 0
