"""A simple clause (subject, verb group, rest) and what can be told about its parts."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import words as w
from .tagging import Token, Tokens, join
from .verbs import base_of, has_form, past, third

_FINITE = {"MODAL", "DO"}
NOMINAL = {"DET", "POSS", "NUM", "ADJ", "MOD", "NOUN", "NAME", "POS", "PRON", "GER"}
_PARTICLES = {"up", "off", "out", "down", "away", "back"}


@dataclass(frozen=True)
class Clause:
    """`lead` + `subject` + `group` + `rest`.

    `operator` is the auxiliary that goes before the subject in a question, None where "do" is needed.
    """

    subject: Tokens
    group: Tokens
    rest: Tokens
    lead: Tokens = ()
    derived: bool = False

    @property
    def operator(self) -> Token | None:
        """The auxiliary or copula, if the group begins with one that can be inverted."""
        first = self.group[0]
        if first.tag in {"MODAL", "BE", "DO"} or (first.tag == "HAVE" and self.main is not first):
            return first
        return None

    @property
    def main(self) -> Token:
        """The main verb (or the copula)."""
        return next((t for t in reversed(self.group) if t.tag in {"VERB", "BE", "HAVE", "DO"}), self.group[0])

    @property
    def base(self) -> str:
        """The base form of the main verb; "be" for the copula."""
        main = self.main
        if main.tag == "BE":
            return "be"
        if main.tag == "HAVE":
            return "have"
        form = ("part", "past", "ing", "s", "base") if main is not self.group[0] else ("s", "past", "base", "part")
        return base_of(main.low, *form) or main.low

    @property
    def passive(self) -> bool:
        """Whether a form of be stands before a past participle."""
        main = self.main
        before = [t for t in self.group if t.tag in {"BE", "VERB", "HAVE"}]
        return main.tag == "VERB" and len(before) > 1 and before[-2].tag == "BE" and has_form(main.low, "part")

    @property
    def past_tense(self) -> bool:
        """Whether the finite verb is in the past."""
        first = next((t for t in self.group if t.tag != "ADV"), self.group[0])
        if first.low in {"was", "were", "had", "did"} or first.tag != "VERB":
            return first.low in {"was", "were", "had", "did"}
        same = has_form(first.low, "base") and not plural_phrase(self.subject) and self.subject[0].tag != "PRON"
        return has_form(first.low, "past") and (same or not has_form(first.low, "base"))

    @property
    def plural(self) -> bool:
        """Whether the subject is plural."""
        first = next((t for t in self.group if t.tag != "ADV"), self.group[0])
        if first.low in {"are", "were", "have", "do"}:
            return True
        if first.low in {"is", "was", "has", "does"} or (
            first.tag == "VERB" and has_form(first.low, "s") and not has_form(first.low, "base")
        ):
            return False
        if first.tag == "VERB" and has_form(first.low, "base") and not has_form(first.low, "past"):
            return True
        return plural_phrase(self.subject)

    def text(self) -> str:
        """The clause as a statement, without the lead."""
        return " ".join(part for part in (join(self.subject), join(self.group), join(self.rest)) if part).replace(" ,", ",")


def head(phrase: Sequence[Token]) -> Token | None:
    """The head noun of a noun phrase: the last noun before its first preposition, relative word or comma."""
    found = None
    for index, token in enumerate(phrase):
        if token.tag in {"PREP", "REL", "SUB", "INF", "PART"} or (token.tag == "PUNCT" and token.text not in {"&", '"', "“", "”"}):
            if found is not None:
                break
        elif token.tag in {"NOUN", "NAME", "NUM", "GER", "PRON"} and not (
            token.tag == "NUM" and index + 1 < len(phrase) and phrase[index + 1].tag in {"NOUN", "ADJ"}
        ):
            found = token
    return found


def plural_phrase(phrase: Sequence[Token]) -> bool:
    """Whether a noun phrase takes a plural verb."""
    lows = [t.low for t in phrase]
    if "and" in lows and not any(t.tag in {"PREP", "REL"} for t in phrase[: lows.index("and")]):
        return True
    top = head(phrase)
    if top is None:
        return False
    if top.tag == "NAME":
        return bool(lows and lows[0] == "the" and w.is_plural(top.text))
    return w.is_plural(top.text) or top.low in {"they", "we", "you"} or (top.tag == "NUM" and top.low not in {"1", "one"})


def finite(tokens: Sequence[Token], index: int) -> bool:
    """Whether the token is a finite verb: it opens a verb group."""
    token = tokens[index]
    before = next((t for t in reversed(tokens[:index]) if t.tag != "ADV"), None)
    if token.tag in _FINITE:
        return not (before is not None and before.tag in _FINITE)
    grouped = before is not None and before.tag in {"MODAL", "DO", "BE", "HAVE"}
    if token.tag in {"BE", "HAVE"}:
        return token.low in w.FINITE_AUXILIARIES and not grouped and not (before is not None and before.low == "to")
    return token.tag == "VERB" and not grouped and has_form(token.low, "past", "s", "base")


def verb_group(tokens: Sequence[Token], start: int) -> int:
    """The end of the verb group that begins at `start`, with a particle of a phrasal verb."""
    end = start + 1
    main_seen = tokens[start].tag == "VERB"
    last = start
    while end < len(tokens) and not main_seen:
        tag = tokens[end].tag
        if tag in {"BE", "HAVE", "DO"} and tokens[last].tag in {"MODAL", "HAVE", "DO", "BE"}:
            last = end
        elif tag == "VERB":
            main_seen, last = True, end
        elif tag != "ADV":
            break
        end += 1
    end = last + 1
    if main_seen and end < len(tokens) and tokens[end].low in _PARTICLES and tokens[end].tag in {"PREP", "ADV"}:
        following = tokens[end + 1] if end + 1 < len(tokens) else None
        if following is None or following.low not in {"of", "to"}:
            end += 1
    return end


def noun_phrase_start(tokens: Sequence[Token]) -> int:
    """Where the noun phrase at the end of the tokens begins."""
    index = len(tokens)
    while index > 0:
        token = tokens[index - 1]
        if token.tag in NOMINAL or token.text in {"&", "'s"} or (token.tag == "ADV" and index < len(tokens)) or token.tag == "PRON":
            index -= 1
            if token.tag in {"DET", "POSS"} and not (index > 0 and tokens[index - 1].low in {"all", "both"}):
                break
        elif token.low == "of" and index > 1:
            index -= 1
        else:
            break
    return index


def list_end(tokens: Sequence[Token], comma: int) -> int | None:
    """Where the last part begins of a list that goes on after this comma ("churches, prisons and camps"), or None."""
    for index in range(comma + 1, min(comma + 14, len(tokens))):
        token = tokens[index]
        if token.tag == "CONJ" and token.low in {"and", "or"}:
            last = index + 1 < len(tokens) and tokens[index + 1].tag in NOMINAL and tokens[index + 1].tag != "PRON"
            return index + 1 if last and index > comma + 1 else None
        if token.text != "," and token.tag not in NOMINAL and token.low != "of":
            return None
    return None


def agreeing(base: str, plural: bool, is_past: bool) -> str:
    """The finite form of a verb."""
    return past(base) if is_past else (base if plural else third(base))
