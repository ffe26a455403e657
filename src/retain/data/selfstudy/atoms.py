"""Boundaries within a sentence: commas, conjunctions, relative and subordinating words cut it into atoms."""

import itertools
from dataclasses import dataclass, replace

from .clauses import finite, list_end
from .tagging import SAYING, Token, Tokens
from .verbs import base_of, has_form

INTRANSITIVE = {
    "die",
    "live",
    "go",
    "come",
    "remain",
    "become",
    "return",
    "retire",
    "begin",
    "stay",
    "arrive",
    "emigrate",
    "fall",
    "happen",
    "have",
}


def prepared(tokens: Tokens) -> Tokens:
    """Mark participles of reduced relative clauses, so that they are not taken for the main verb."""
    result = list(tokens)
    positions = [i for i in range(len(tokens)) if finite(tokens, i)]
    for this, later in itertools.pairwise(positions):
        token, between = tokens[this], tokens[this + 1 : later]
        if token.tag == "VERB" and this and has_form(token.low, "part") and result[this - 1].tag in {"NOUN", "NAME"}:
            following = tokens[this + 1] if this + 1 < len(tokens) else None
            blocked = any(t.tag in {"REL", "SUB", "CONJ"} or t.text in {",", ";", ":", "–", "—"} for t in between)
            if not blocked and following is not None and following.tag in {"PREP", "ADV", "NAME", "NOUN", "NUM", "INF"}:
                result[this] = replace(token, tag="PART")
    for index, token in enumerate(result[:-1]):
        alone = index > 0 and tokens[index - 1].tag in {"NOUN", "NAME"} and finite(tokens, index)
        if (
            alone
            and token.tag == "VERB"
            and tokens[index + 1].low == "by"
            and has_form(token.low, "part")
            and base_of(token.low, "part") not in INTRANSITIVE
        ):
            result[index] = replace(token, tag="PART")
    for index, token in enumerate(result):
        if token.tag == "VERB" and index and tokens[index - 1].text == "," and has_form(token.low, "part") and has_form(token.low, "past"):
            following = tokens[index + 1] if index + 1 < len(tokens) else None
            before = any(finite(result, i) for i in range(index))
            stop = next((i for i in range(index + 1, len(tokens)) if tokens[i].text == ","), None)
            resumed = stop is not None and any(finite(tokens, i) for i in range(stop + 1, min(stop + 3, len(tokens))))
            if following is not None and (following.tag in {"PREP", "ADV", "PUNCT", "INF"}) and (before or resumed):
                result[index] = replace(token, tag="PART")
    return tuple(result)


@dataclass(frozen=True)
class Atom:
    """A stretch between boundaries: what kind of boundary opened it, its opening word, and the words after that."""

    kind: str
    intro: Tokens
    tokens: Tokens
    comma: bool

    def finites(self) -> list[int]:
        return [i for i in range(len(self.tokens)) if finite(self.tokens, i)]


def atoms(tokens: Tokens) -> list[Atom]:
    found: list[Atom] = []
    kind, comma = "plain", False
    intro: Tokens = ()
    current: list[Token] = []

    def close(next_kind: str, next_intro: Tokens, after_comma: bool) -> None:
        nonlocal kind, intro, current, comma
        if current or intro:
            found.append(Atom(kind, intro, tuple(current), comma))
        kind, intro, current, comma = next_kind, next_intro, [], after_comma

    depth = listed = 0
    for index, token in enumerate(tokens):
        following = next((i for i in range(index + 1, len(tokens)) if tokens[i].tag != "ADV"), None)
        if token.text in {'"', "“", "”"}:
            depth = 0 if token.text == "”" else (1 if token.text == "“" else 1 - depth)
        if depth:
            current.append(token)
        elif token.text == "," and current and current[-1].tag in {"NOUN", "NAME"} and _is_list(tokens, index):
            current.append(token)
            listed = list_end(tokens, index) or 0
        elif index < listed:
            current.append(token)
        elif token.text in {",", ";", ":", "—"} or (token.text in {"-", "–"} and token.space):
            close("plain", (), True)
            if token.text in {";", ":"}:
                found.append(Atom("break", (), (), True))
        elif token.tag == "REL":
            lead: Tokens = ()
            if current and current[-1].tag == "PREP":
                lead = (current.pop(),)
            verbs = [base_of(t.low, "past", "s", "base", "part") for t in current if t.tag == "VERB"]
            that = (
                token.low == "that"
                and bool(current)
                and (current[-1].tag == "VERB" or (current[-1].tag == "NUM" and verbs and verbs[-1] in SAYING))
            )
            if token.low == "that" and current and current[-1].low == "so":
                close("sub", (current.pop(), token), comma and not current)
            else:
                close("that" if that else "rel", (*lead, token), not current and (comma or index == 0))
        elif token.tag == "SUB" and following is not None:
            close("sub", (token,), not current and comma)
        elif token.tag == "CONJ" and following is not None:
            now = bool(current) and any(finite(current, i) for i in range(len(current)))
            if finite(tokens, following) and (now or not current):
                close("vp", (token,), not current)
            else:
                stop = next(
                    (
                        i
                        for i in range(following, len(tokens))
                        if tokens[i].text in {",", ";", ":"} or tokens[i].tag in {"REL", "SUB", "CONJ"}
                    ),
                    len(tokens),
                )
                own = [i for i in range(following, stop) if finite(tokens, i)]
                if own and (now or not current):
                    close("and", (token,), not current)
                else:
                    current.append(token)
        else:
            current.append(token)
    close("plain", (), False)
    return found


def _is_list(tokens: Tokens, comma: int) -> bool:
    """Whether the comma stands in a list of nouns, and no verb follows the list as if it were a subject with an addition."""
    end = list_end(tokens, comma)
    if end is None:
        return False
    inner = tokens[comma + 1 : end]
    single = not any(t.text == "," for t in inner)
    roles = bool(inner) and inner[0].low in {"the", "a", "an"} and tokens[comma - 1].tag == "NAME"
    return not roles and not (single and tokens[comma - 1].tag == "NAME" and inner[0].tag != "NAME")
