"""Answers: the phrases of a clause that can be asked for, and the question words that ask for each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import words as w
from .clauses import NOMINAL, head, list_end
from .tagging import Token, Tokens, join
from .verbs import PERSONAL, has_form
from .words import listed

_SCALES = listed(
    """
    late early long wide high tall deep old thick away heavy ahead broad apart short fast
    """
)
_LOOSE = frozenset(["in", "on", "over", "off", "up", "down", "along", "out", "away"])
_COMPOUND = listed(
    """
    instead together ahead because according owing due thanks along apart away prior
    """
)
_DEGREE = (
    ("up", "to"),
    ("no", "more", "than"),
    ("more", "than"),
    ("less", "than"),
    ("fewer", "than"),
    ("at", "least"),
    ("at", "most"),
    ("just", "over"),
    ("just", "under"),
    ("about",),
    ("around",),
    ("nearly",),
    ("almost",),
    ("over",),
    ("under",),
    ("only",),
    ("exactly",),
    ("some",),
    ("roughly",),
    ("approximately",),
    ("close", "to"),
    ("barely",),
    ("longer", "than"),
    ("minus",),
)


@dataclass(frozen=True)
class Unit:
    """A chunk of the words after the verb: np, pp (with its preposition), inf, sub, ger, adj, adv or tail (from a comma on)."""

    kind: str
    tokens: Tokens
    preposition: str = ""
    phrase: Tokens = ()

    @property
    def text(self) -> str:
        """The words of the chunk."""
        return join(self.tokens)


def degree(tokens: Sequence[Token], start: int) -> int:
    """How many words of "about", "up to", "at least" and so on stand before a number at this place."""
    lows = [t.low for t in tokens[start : start + 5]]
    for words in _DEGREE:
        size = len(words)
        if (
            tuple(lows[:size]) == words
            and len(tokens) > start + size
            and (tokens[start + size].tag == "NUM" or tokens[start + size].low in {"a", "half"})
        ):
            return size if tokens[start + size].tag == "NUM" else 0
    return 0


def _noun_phrase(tokens: Tokens, start: int) -> int:
    """The end of the noun phrase that starts here, with "of" phrases, coordinated parts and restrictive additions."""
    index = start + degree(tokens, start)
    while index < len(tokens):
        token, after = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else None
        fresh = index > start
        if token.tag in {"DET", "POSS"} and fresh and tokens[index - 1].tag in {"NOUN", "NAME", "NUM"}:
            break
        if token.tag == "PRON" and fresh:
            break
        if (
            token.tag in NOMINAL
            or token.text in {"&", '"', "“", "”", "#", "/"}
            or (token.tag == "ADV" and after is not None and after.tag in {"ADJ", "MOD", "NUM"})
        ):
            index += 1
        elif token.low == "of" and fresh and after is not None:
            index += 1 + degree(tokens, index + 1)
        elif token.text == "," and fresh and list_end(tokens, index) is not None:
            index = list_end(tokens, index) or index + 1
        elif (token.tag == "CONJ" and token.low in {"and", "or"} and fresh and after is not None and after.tag in NOMINAL) or (
            token.low == "to" and fresh and tokens[index - 1].tag == "NUM" and after is not None and after.tag == "NUM"
        ):
            index += 1
        elif fresh and (
            token.tag in {"PART", "REL"}
            or (token.tag == "VERB" and has_form(token.low, "part"))
            or (token.tag == "PREP" and after is not None and after.tag == "REL")
        ):
            stop = next((i for i in range(index, len(tokens)) if tokens[i].text == "," or tokens[i].tag == "SUB"), len(tokens))
            return stop
        else:
            break
    return index


def chunks(tokens: Tokens) -> list[Unit]:
    """Cut the words after a verb into chunks."""
    units: list[Unit] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        comma = next((i for i in range(index + 1, len(tokens)) if tokens[i].text == ","), len(tokens))
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        if token.text == ",":
            inner = tokens[index + 1 :]
            if (
                inner
                and inner[0].tag == "SUB"
                and inner[0].low in {"because", "since", "as", "until", "unless", "if", "when", "before", "after", "provided", "so"}
            ):
                units.append(Unit("sub", inner, inner[0].low, inner[1:]))
            else:
                units.append(Unit("tail", tokens[index:]))
            break
        if token.tag == "CONJ" and units:
            units.append(Unit("tail", tokens[index:]))
            break
        purpose = token.low == "in" and [t.low for t in tokens[index + 1 : index + 3]] == ["order", "to"]
        if token.tag == "SUB":
            end = comma
            units.append(Unit("sub", tokens[index:end], token.low, tokens[index + 1 : end]))
        elif purpose or (token.tag == "PREP" and token.low == "to" and after is not None and after.tag == "INF"):
            end = next((i for i in range(index + 1, len(tokens)) if tokens[i].text == "," or tokens[i].tag == "SUB"), len(tokens))
            units.append(Unit("inf", tokens[index:end], "in order to" if purpose else "to", tokens[index + (3 if purpose else 1) : end]))
        elif degree(tokens, index) == 0 and (token.tag == "PREP" or (token.low in _COMPOUND and after is not None and after.tag == "PREP")):
            inner_start = index + 1
            if (
                token.low in _LOOSE
                and after is not None
                and after.tag == "PREP"
                and after.low not in {"of", "to", "than"}
                and degree(tokens, index + 1) == 0
            ):
                units.append(Unit("adv", (token,), "", (token,)))
                index += 1
                continue
            while inner_start < len(tokens) and tokens[inner_start].tag in {"PREP"} and degree(tokens, inner_start) == 0:
                inner_start += 1
            extra = degree(tokens, inner_start)
            if inner_start < len(tokens) and tokens[inner_start].tag == "ADV" and not extra:
                inner_start += 1
            end = _noun_phrase(tokens, inner_start)
            kind = "pp" if end > inner_start else "adv"
            end = max(end, inner_start)
            if end < len(tokens) and inner_start < end and tokens[inner_start].tag == "GER":
                end = next((i for i in range(end, len(tokens)) if tokens[i].text == "," or tokens[i].tag == "SUB"), len(tokens))
            units.append(Unit(kind, tokens[index:end], join(tokens[index:inner_start]).lower(), tokens[inner_start:end]))
        elif token.tag == "GER":
            end = next((i for i in range(index + 1, len(tokens)) if tokens[i].text == "," or tokens[i].tag == "SUB"), len(tokens))
            units.append(Unit("ger", tokens[index:end], "", tokens[index:end]))
        elif token.tag == "REL":
            end = next((i for i in range(index + 1, len(tokens)) if tokens[i].text == ","), len(tokens))
            units.append(Unit("that", tokens[index:end], "", tokens[index + 1 : end]))
        else:
            end = _noun_phrase(tokens, index)
            nominal = end > index and head(tokens[index:end]) is not None
            if nominal:
                previous = units[-1] if units else None
                rate = previous is not None and token.low in {"a", "an", "each", "every"} and any(t.tag == "NUM" for t in previous.tokens)
                units.append(Unit("rate" if rate else "np", tokens[index:end], "", tokens[index:end]))
            else:
                end = max(end, index + 1)
                units.append(Unit("adj" if token.tag in {"ADJ", "MOD", "VERB"} else "adv", tokens[index:end], "", tokens[index:end]))
        index = max(end, index + 1)
    return units


def core(phrase: Tokens) -> Tokens:
    """The phrase without a restrictive clause or participle phrase after it."""
    stop = next((i for i, t in enumerate(phrase) if i and t.tag in {"REL", "PART", "SUB"}), len(phrase))
    return phrase[:stop]


def clean(tokens: Sequence[Token]) -> str:
    """The answer as text, without quotation marks around all of it."""
    text = join(tokens).strip(" ,;:.")
    if len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not re.search(r'["“”]', text[1:-1]):
        return text[1:-1].strip(" ,.")
    return text


def person_like(phrase: Tokens, base: str = "", subject: bool = False, people: frozenset[str] = frozenset()) -> bool:
    """Whether a phrase seems to name a person."""
    top = head(phrase)
    if top is None:
        return False
    lows = [t.low.rstrip(".") for t in phrase]
    names = [t for t in phrase if t.tag == "NAME"]
    if any(low in w.HONORIFICS for low in lows) and names and not any(t.low in w.BODIES for t in phrase):
        return True
    if top.low in w.ROLES or w.singular(top.low) in w.ROLES or (top.tag == "NAME" and any(low in w.ROLES for low in lows)):
        return True
    if top.tag == "NAME" and top.low not in w.BODIES | w.PLACES | w.MONTHS | w.DAYS and phrase[0].tag == "NAME":
        return top.text in people or (subject and base in PERSONAL)
    return top.low in {
        "people",
        "men",
        "women",
        "man",
        "woman",
        "child",
        "children",
        "visitors",
        "staff",
        "guests",
        "members",
        "residents",
        "anyone",
        "everyone",
        "parents",
    }


def _number_at(phrase: Tokens) -> int | None:
    stop = next(
        (i for i, t in enumerate(phrase) if t.tag in {"PREP", "REL"} and t.low not in {"to"} and degree(phrase, i) == 0 and i), len(phrase)
    )
    return next(
        (
            i
            for i, t in enumerate(phrase[:stop])
            if t.tag == "NUM" and not (i and phrase[i - 1].tag == "NAME" and phrase[i - 1].low not in w.MONTHS)
        ),
        None,
    )


def numeric(phrase: Tokens, preposition: str) -> tuple[str, str, tuple[str, ...], Tokens] | None:
    """(kind, answer, question phrases, span asked for) of a phrase with a number or a date, else None."""
    lows = [t.low for t in phrase]
    pre = f"{preposition} " if preposition else ""
    if lows[0] in {"every", "each"} and not preposition and any(low in w.TIME_UNITS | w.DAYS | w.MONTHS | w.SEASONS for low in lows):
        return "frequency", clean(phrase), ("how often", "at what interval"), phrase
    if (
        any(low in w.MONTHS for low in lows)
        and phrase[0].tag in {"NAME", "NUM", "DET"}
        and all(t.tag in {"NAME", "NUM", "DET"} or t.text == "," or t.low == "of" for t in phrase)
    ):
        day = any(t.tag == "NUM" and not w.YEAR.fullmatch(t.low) for t in phrase)
        what = f"{pre or 'on '}what date" if day else f"{pre or 'in '}which month"
        fronts = ("when", what) if preposition in {"on", "in", ""} else (what, f"{pre}when")
        return "date", clean(phrase), fronts, phrase
    if any(w.singular(low) in w.DAYS or low in w.DAYS for low in lows):
        return "date", clean(phrase), (("when", f"{pre or 'on '}which day") if preposition in {"on", ""} else (f"{pre}which day",)), phrase
    number = _number_at(phrase)
    if number is None:
        return None
    if lows[number] in {"half", "quarter"} and len(lows) > number + 1 and lows[number + 1] in {"past", "to"}:
        return "time", clean(phrase), (f"{pre or 'at '}what time", "when") if preposition in {"at", ""} else (f"{pre}what time",), phrase
    token = phrase[number]
    if w.CLOCK.fullmatch(token.low) or (
        preposition == "at"
        and len(phrase) - number <= 2
        and len(phrase) <= 3
        and (lows[-1] in {"sharp", "o'clock"} or number == len(phrase) - 1)
    ):
        return "time", clean(phrase), ((f"{pre or 'at '}what time", "when") if preposition in {"at", ""} else (f"{pre}what time",)), phrase
    if (
        w.YEAR.fullmatch(token.low)
        and number == len(phrase) - 1
        and preposition in {"in", "since", "until", "by", "from", "before", "after", "during", "till"}
        and len(phrase) <= 2
    ):
        return (
            "date",
            clean(phrase),
            ((f"{pre}what year", "when") if preposition in {"in", "during"} else (f"{pre}what year", f"{pre}which year")),
            phrase,
        )
    if preposition in {"between", "from"} and sum(t.tag == "NUM" for t in phrase) > 1 and any(w.YEAR.fullmatch(low) for low in lows):
        return "date", clean(phrase), ("when", f"{pre}which years"), phrase
    if w.YEAR.fullmatch(token.low) and number and phrase[number - 1].tag in {"DET", "POSS"} and number + 1 < len(phrase):
        return None
    start = number
    while (start and phrase[start - 1].tag in {"ADV", "PREP"}) or (
        start and phrase[start - 1].low in {"more", "less", "fewer", "some", "than", "longer", "no"}
    ):
        start -= 1
    end = number + 1
    while end < len(phrase) and (
        phrase[end].tag == "NUM" or (phrase[end].low in {"to", "or", "and"} and end + 1 < len(phrase) and phrase[end + 1].tag == "NUM")
    ):
        end += 1
    following = phrase[end:]
    unit = following[0].low if following else ""
    if len(following) > 1 and following[0].tag in {"ADJ", "MOD", "NOUN"} and following[1].low in w.TIME_UNITS | w.CURRENCIES:
        unit = following[1].low
    symbol = token.text[0] in "$€£¥"
    if unit in w.CURRENCIES or symbol:
        stop = end if symbol else end + [t.low for t in following].index(unit) + 1
        return (
            "money",
            clean(phrase[start:stop]),
            (f"{pre}how much", *(() if symbol else (f"{pre}how many {unit}",)), f"{pre}what sum"),
            phrase[start:stop],
        )
    if unit in w.TIME_UNITS:
        stop = end + [t.low for t in following].index(unit) + 1
        plural = unit if w.is_plural(unit) else unit + "s"
        long = ("how long", f"for how many {plural}") if preposition in {"for", ""} else (f"{pre}how many {plural}",)
        return "duration", clean(phrase[start:stop]), long, phrase[start:stop]
    if unit in w.UNITS or token.low.endswith("%"):
        if unit in {"percent", "per cent"} or token.low.endswith("%"):
            stop = end + (1 if unit in {"percent", "per cent"} else 0)
            return "percent", clean(phrase[start:stop]), (f"{pre}what percentage",), phrase[start:stop]
        if preposition in {"of", "to", "", "by", "at", "with", "from", "than", "in", "for", "within", "below", "above", "under"}:
            return (
                "measure",
                clean(phrase[start : end + 1]),
                (f"{pre}how many {unit if w.is_plural(unit) or len(unit) < 3 or unit.endswith('z') else unit + 's'}",),
                phrase[start : end + 1],
            )
    if following and following[0].low == "of":
        return "count", clean(phrase[start:end]), (f"{pre}how many {join(following)}",), phrase
    noun_end = next((i for i, t in enumerate(following) if t.tag not in {"NOUN", "ADJ", "MOD", "NAME"}), len(following))
    if (
        following
        and noun_end
        and token.low not in {"one", "1"}
        and not any(t.tag == "DET" for t in phrase[:number] if t.low not in {"the", "some", "all"})
    ):
        lead = "the " if any(t.low == "the" for t in phrase[:number]) else ""
        rest = join(following)
        return (
            "count",
            clean(phrase[start:end]),
            (f"{pre}how many {'of the ' if lead else ''}{rest}", f"{pre}what number of {rest}"),
            phrase,
        )
    if not following and start == 0:
        return "count", clean(phrase), (f"{pre}how many", f"{pre}what number"), phrase
    return None
