"""Words of a sentence with a guess at what each one is, from word lists and its neighbours."""

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from . import words as w
from .verbs import PERSONAL, base_of, has_form, readings
from .words import listed

SAYING = listed(
    """
    show say report notice discover find claim argue warn believe declare note state announce demonstrate prove rule agree decide
    """
)
_TOKEN = re.compile(
    r"per cent\b|\d+(?:[.,]\d+)*-[a-z]+|[$€£¥]?\d+(?:[.,:/]\d+)*(?:%|st\b|nd\b|rd\b|th\b|s\b|am\b|pm\b)?"
    r"|(?:Mr|Mrs|Ms|Dr|Prof|St|No|Capt|Col|Gen)\.|(?:[A-Z]\.)+(?=\s|[A-Z]|$)"
    r"|[^\W_]+(?:[-'’&.–][^\W_]+)*['’]?(?<![^s]['’])|[^\w\s]|_+"
)


@dataclass(frozen=True)
class Token:
    """A word or a punctuation mark; `space` says whether white space comes before it; `tag` is the guess at its class."""

    text: str
    space: bool
    tag: str = "NOUN"

    @property
    def low(self) -> str:
        """The word in lower case."""
        return self.text.lower()


Tokens = tuple[Token, ...]


def split_words(text: str) -> list[Token]:
    """Cut a text into untagged tokens."""
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        tokens.append(Token(match.group(), match.start() > end))
        end = match.end()
    return tokens


def join(tokens: Sequence[Token]) -> str:
    """The text of the tokens, with the white space they had."""
    text = "".join((" " if token.space else "") + token.text for token in tokens)
    return text.strip()


def names_in(text: str) -> frozenset[str]:
    """Words that the text writes with a capital within a sentence: they are names at the start of one too."""
    found: set[str] = set()
    tokens = split_words(text)
    for previous, token in itertools.pairwise(tokens):
        if previous.text not in {".", "!", "?", ":", '"', "“", "”", "|", "-", "•", "*", "#"} and token.space and token.text[:1].isupper():
            found.add(token.text)
    return frozenset(found)


def _closed(low: str) -> str | None:
    for tag, members in (
        ("MODAL", w.MODALS),
        ("BE", w.BE),
        ("HAVE", w.HAVE),
        ("DO", w.DO),
        ("POSS", w.POSSESSIVES),
        ("REL", w.RELATIVES),
        ("DET", w.DETERMINERS),
        ("PRON", w.PRONOUNS),
        ("SUB", w.SUBORDINATORS),
        ("CONJ", w.CONJUNCTIONS),
        ("PREP", w.PREPOSITIONS),
        ("ADV", w.ADVERBS),
    ):
        if low in members:
            return tag
    return None


def _first_guess(token: Token, initial: bool, following: Token | None, names: Collection[str]) -> str:
    text, low = token.text, token.low
    if not re.search(r"\w", text):
        return "PUNCT"
    if text in {"'s", "’s"}:
        return "POS"
    if w.is_number(low):
        return "NUM"
    if text == "May" and not initial and following is not None and not has_form(following.low, "base"):
        return "NAME"
    closed = _closed(low)
    if closed is not None and (text.islower() or initial or text == "I"):
        return closed
    if text[:1].isupper():
        if (
            low in w.MONTHS
            or low in w.DAYS
            or not initial
            or (low.rstrip(".") in w.HONORIFICS and following is not None and following.text[:1].isupper())
        ):
            return "NAME"
        base = re.sub(r"['’]s?$", "", text)
        if text in names or base in names or (not text.islower() and not text.istitle() and any(c.isupper() for c in text[1:])):
            return "NAME"
        next_is_name = following is not None and following.space and following.text[:1].isupper() and following.text not in {"I"}
        if next_is_name and not readings(low) and low not in w.ADJECTIVES and not w.is_plural(low):
            return "NAME"
    if low in w.ADJECTIVES:
        return "ADJ"
    if (
        low.endswith("ly")
        and len(low) > 4
        and low not in {"july", "family", "supply", "assembly", "reply", "italy", "fly", "ally", "rely", "apply", "multiply", "weekly"}
    ):
        return "ADV"
    if readings(low):
        return "VERB"
    if (
        re.search(r"(ous|ful|less|ible|able|ical|ish|ic|ive|ant|ent)$", low)
        and len(low) > 5
        and not low.endswith(("ment", "table", "vegetable"))
    ):
        return "ADJ"
    return "NOUN"


def _comma(tokens: Sequence[Token], index: int) -> int:
    return next((i for i in range(index, len(tokens)) if tokens[i].text == ","), len(tokens))


def _verb_or_noun(tokens: Sequence[Token], tags: Sequence[str], index: int) -> str:
    """Decide between verb and noun by the neighbours of a word that may be both."""
    low = tokens[index].low
    before = next((i for i in range(index - 1, -1, -1) if tags[i] != "ADV"), None)
    left = tags[before] if before is not None else "START"
    left_low = tokens[before].low if before is not None else ""
    right = tags[index + 1] if index + 1 < len(tags) else "END"
    bare, third = has_form(low, "base"), has_form(low, "s")
    past, ing = has_form(low, "past", "part"), has_form(low, "ing")
    if low in w.ADJECTIVE_VERBS:
        if left_low == "to":
            return "INF"
        if low == "close" and index + 1 < len(tags) and tokens[index + 1].low == "to":
            return "ADV"
        verbal = (
            left in {"MODAL", "DO", "PRON"}
            or (left in {"NOUN", "NAME", "CONJ"} and right != "NOUN")
            or (left == "START" and right in {"DET", "POSS"})
        )
        return "VERB" if verbal else "ADJ"
    if left == "DET" and left_low in {"this", "that"} and third and not bare and right in {"DET", "POSS", "NAME", "PRON", "PREP", "NUM"}:
        return "VERB"
    if left in {"DET", "POSS", "ADJ", "NUM", "POS"}:
        named = left == "NUM" and before is not None and before > 0 and tags[before - 1] in {"NOUN", "NAME"}
        if left == "NUM" and past and (w.YEAR.fullmatch(left_low) or named):
            return "VERB"
        if left in {"NUM", "ADJ"} and past and not bare and right in {"DET", "POSS", "NUM", "PREP"}:
            return "VERB"
        return "MOD" if (past or ing) and right in {"NOUN", "NAME", "VERB", "ADJ"} else "NOUN"
    if left_low == "to":
        return "INF" if bare else ("NOUN" if not (past or ing) else "MOD")
    if left == "PREP":
        return "GER" if ing else ("MOD" if past and right in {"NOUN", "VERB"} else ("NOUN" if not past or bare else "PART"))
    if left in {"MODAL", "DO"}:
        return "VERB"
    if left in {"BE", "HAVE"}:
        return "VERB" if past or (ing and left == "BE") else "NOUN"
    if left in {"PRON", "REL"}:
        return "VERB"
    if ing:
        return "MOD" if right in {"NOUN"} and left in {"START", "PUNCT", "CONJ"} and not third else "GER"
    if past and not bare:
        return "PART" if left == "START" else "VERB"
    plural = before is not None and left in {"NOUN", "NAME"} and w.is_plural(left_low)
    if third and not bare:
        following = tokens[index + 1].low if index + 1 < len(tokens) else ""
        verb_next = (
            right == "VERB"
            and following not in {"place", "part", "care", "note", "charge", "effect", "hold", "time", "shape", "up"}
            and has_form(following, "base", "past")
            and not has_form(following, "ing")
        )
        if (
            right in {"BE", "MODAL", "HAVE"}
            or (right == "REL" and left != "NAME" and following != "that")
            or (verb_next and following != "close")
        ):
            return "NOUN"
        earlier = next((t for t in reversed(tags[:index]) if t in {"VERB", "BE", "PUNCT", "CONJ", "REL", "SUB", "MODAL", "HAVE"}), "")
        if earlier == "VERB" and right in {"PUNCT", "END", "PREP", "CONJ"}:
            return "NOUN"
        if left == "PUNCT" and right not in {"PUNCT", "END", "CONJ", "VERB", "SUB"} and index > 2:
            return "VERB"
        return (
            "VERB" if left in {"NOUN", "NAME", "CONJ", "GER"} and not (plural and left == "NOUN" and right in {"PUNCT", "END"}) else "NOUN"
        )
    if left in {"START", "PUNCT", "CONJ", "SUB"} or left_low in {"please", "then", "first"}:
        starts = right in {"DET", "POSS", "NUM", "ADV", "PREP", "PRON", "GER"} or (
            right in {"NOUN", "NAME", "ADJ"} and left_low in {"", "please", "then", "first"}
        )
        if left == "PUNCT" and index > 3:
            conditional = tags[0] == "SUB" and not any(t in {"BE", "MODAL", "HAVE"} for t in tags[index + 1 :])
            starts = right in ({"DET", "POSS", "PRON", "NAME", "NOUN", "NUM", "ADV"} if conditional else {"DET", "POSS", "PRON"})
        if (
            left == "START"
            and right in {"NOUN", "NAME"}
            and index + 2 < len(tags)
            and any(t in {"BE", "MODAL", "HAVE"} for t in tags[index + 1 : _comma(tokens, index)])
        ):
            starts = False
        return (
            "VERB"
            if starts
            and right != "END"
            and not (left == "START" and right == "PREP" and not past and any(t in {"BE", "MODAL"} for t in tags))
            else "NOUN"
        )
    if past:
        return "VERB" if right in {"DET", "POSS", "NUM", "PREP", "PRON", "ADV"} else "NOUN"
    return (
        "VERB"
        if plural and right in {"DET", "POSS", "NUM", "PREP", "PRON", "ADV", "NAME", "ADJ", "SUB", "NOUN", "END", "PUNCT", "CONJ"}
        else "NOUN"
    )


def _first_name(tokens: Sequence[Token], names: Collection[str]) -> Collection[str]:
    """Take the first word for a name when what follows is something that people do ("Timo will call ...")."""
    if len(tokens) < 3 or not tokens[0].text.istitle() or w.is_plural(tokens[0].low) or _closed(tokens[0].low) or readings(tokens[0].low):
        return names
    verb = tokens[2] if tokens[1].low in w.MODALS else tokens[1]
    if any(base_of(verb.low, form) in PERSONAL for form in ("base", "s", "past")) and not re.search(
        r"(ness|ment|ion|ity|ing|ist|er|or|ship)$", tokens[0].low
    ):
        return {*names, tokens[0].text}
    return names


def _subordinators(tokens: Sequence[Token], tags: list[str]) -> None:
    """Words like "after" open a clause when a verb follows before the next comma, else a phrase."""
    for index, token in enumerate(tokens):
        if tags[index] in {"SUB", "PREP"} and token.low in {"as", "until", "after", "before", "since", "so"}:
            stop = next((i for i in range(index + 1, len(tokens)) if tokens[i].text in {",", ";"}), len(tokens))
            right = tags[index + 1] if index + 1 < len(tags) else "END"
            verbal = any(tags[i] in {"BE", "MODAL", "HAVE", "DO", "VERB"} for i in range(index + 1, stop))
            subject = next(
                (
                    i
                    for i in range(index + 2, stop)
                    if tokens[i].low in {"you", "he", "she", "it", "they", "we"} and tags[i - 1] in {"NOUN", "NAME", "NUM"}
                ),
                None,
            )
            dated = any(w.YEAR.fullmatch(tokens[i].low) and tags[i + 1] in {"DET", "ADJ", "POSS"} for i in range(index, stop - 1))
            verbal = (
                verbal
                and not (subject is not None and not any(tags[i] in {"BE", "MODAL", "VERB"} for i in range(index, subject)))
                and not dated
            )
            tags[index] = "SUB" if verbal and right != "VERB" else ("CONJ" if token.low == "so" else "PREP")


def _promote(tokens: Sequence[Token], tags: list[str]) -> None:
    """A sentence without a verb gets one: the first noun after a noun that can be a verb and has an object after it."""
    for index in range(1, len(tokens) - 1):
        if (
            tags[index] in {"NOUN", "MOD"}
            and tags[index - 1] in {"NOUN", "NAME"}
            and tags[index + 1] in {"DET", "POSS", "NUM", "PREP", "ADV"}
        ) and has_form(tokens[index].low, "base", "s", "past"):
            tags[index] = "VERB"
            return


def tag(tokens: Sequence[Token], names: Collection[str] = ()) -> Tokens:
    """Give each token its class: DET, NOUN, NAME, NUM, VERB (finite or part of a verb group), INF, GER, MOD, PREP, BE, MODAL and so on."""
    tags: list[str] = []
    names = _first_name(tokens, names)
    for index, token in enumerate(tokens):
        initial = index == 0 or all(not re.search(r"\w", t.text) for t in tokens[:index]) or tokens[index - 1].text in {".", ":", "!", "?"}
        tags.append(_first_guess(token, initial, tokens[index + 1] if index + 1 < len(tokens) else None, names))
    for index in range(len(tokens) - 1):
        if tokens[index].low == "at" and tokens[index + 1].low in {"last", "first", "once", "least", "most"}:
            tags[index] = tags[index + 1] = "ADV"
        if (
            tags[index] in {"DET", "POSS"}
            and tags[index + 1] == "ADV"
            and tokens[index + 1].low in {"first", "last", "best", "most", "long", "very", "only", "far", "next"}
        ):
            tags[index + 1] = "ADJ"
        if tokens[index].low == "because" and tokens[index + 1].low == "of":
            tags[index] = "PREP"
        if (
            tokens[index].low in {"half", "quarter"}
            and tokens[index + 1].low in {"past", "to"}
            and w.is_number(tokens[min(index + 2, len(tokens) - 1)].low)
        ):
            tags[index] = tags[index + 1] = "NUM"
        if tokens[index].low == "half" and tokens[index + 1].low in {"a", "an"}:
            tags[index] = tags[index + 1] = "NUM"
        if tokens[index].low == "no" and tokens[index + 1].low == "longer":
            tags[index] = tags[index + 1] = "ADV"
        if tags[index] in {"MODAL"} and tags[index + 1] == "NOUN" and tokens[index + 1].text.islower():
            tags[index + 1] = "VERB"
    for index, token in enumerate(tokens):
        low = token.low
        right = tags[index + 1] if index + 1 < len(tags) else "END"
        if tags[index] == "VERB":
            tags[index] = _verb_or_noun(tokens, tags, index)
        elif tags[index] in {"REL", "PRON", "DET"} and low == "that":
            previous = tags[index - 1] if index else "START"
            said = any(base_of(t.low, "past", "s", "base") in SAYING for t in tokens[max(0, index - 4) : index])
            if previous == "PREP" and right in {"NOUN", "ADJ", "VERB", "NAME", "NUM", "MOD"}:
                tags[index] = "DET"
                continue
            tags[index] = (
                "REL"
                if (previous == "NUM" and said) or (previous in {"NOUN", "NAME", "VERB"} and index)
                else ("DET" if right in {"NOUN", "ADJ"} else "PRON")
            )
        elif low == "like" and index and tags[index - 1] in {"PRON", "MODAL"}:
            tags[index] = "VERB"
    _subordinators(tokens, tags)
    if not any(t in {"BE", "HAVE", "DO", "MODAL", "VERB"} for t in tags):
        _promote(tokens, tags)
    for index in range(len(tags) - 1):
        if (
            tags[index] in {"BE", "HAVE"}
            and tags[index + 1] == "NOUN"
            and has_form(tokens[index + 1].low, "part")
            and base_of(tokens[index + 1].low, "part")
        ):
            tags[index + 1] = "VERB" if tags[index + 2 : index + 3] not in (["NOUN"], ["NAME"]) else tags[index + 1]
        after = tags[index + 2 : index + 4]
        naming = base_of(tokens[index + 1].low, "part") in {
            "elect",
            "name",
            "appoint",
            "make",
            "call",
            "crown",
            "consider",
            "award",
            "give",
            "pay",
            "rename",
        }
        if (
            tags[index] == "BE"
            and tags[index + 1] == "VERB"
            and after[:1] == ["NOUN"]
            and after[1:] in ([], ["PUNCT"], ["CONJ"])
            and not naming
        ):
            tags[index + 1] = "MOD"
    return tuple(Token(token.text, token.space, kind) for token, kind in zip(tokens, tags, strict=True))


def promotions(tokens: Tokens) -> list[Tokens]:
    """The sentence with one of its nouns read as a verb after all, in every way that its neighbours allow."""
    found = []
    for index in range(1, len(tokens) - 1):
        token, left, right = tokens[index], tokens[index - 1], tokens[index + 1]
        fits = (
            token.tag in {"NOUN", "MOD"}
            and has_form(token.low, "base", "s", "past")
            and left.tag in {"NOUN", "NAME", "PUNCT", "NUM", "PRON"}
        )
        if fits and right.tag in {"DET", "POSS", "NUM", "PREP", "ADV", "NOUN", "NAME", "ADJ", "MOD", "INF"}:
            found.append((*tokens[:index], Token(token.text, token.space, "VERB"), *tokens[index + 1 :]))
    return found[:4]


def lower_first(tokens: Tokens) -> Tokens:
    """The tokens as they would stand within a sentence: the first one loses its capital unless it is a name."""
    if tokens and tokens[0].tag not in {"NAME"} and tokens[0].text != "I" and tokens[0].text[1:] == tokens[0].text[1:].lower():
        return (Token(tokens[0].low, tokens[0].space, tokens[0].tag), *tokens[1:])
    return tokens


def spaced(tokens: Tokens) -> Tokens:
    """The tokens with white space before the first."""
    return (Token(tokens[0].text, True, tokens[0].tag), *tokens[1:]) if tokens else tokens


def capitalise(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]
