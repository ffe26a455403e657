"""Shallow parsing: the simple clauses that a sentence is made of, by boundaries (commas, conjunctions, relative words) and finite verbs."""

from dataclasses import replace

from . import words as w
from .atoms import INTRANSITIVE, Atom, atoms, prepared
from .clauses import Clause, agreeing, finite, head, noun_phrase_start, plural_phrase, verb_group
from .tagging import Token, Tokens, lower_first, promotions, spaced
from .verbs import base_of, has_form

_FOCUS = {"only", "about", "nearly", "almost", "just", "over", "approximately", "roughly"}
_SHIFTED = {"now", "then", "also", "never", "already", "still", "often", "always", "usually", "later", "just"}


def _sound(clause: Clause) -> bool:
    """Whether the subject looks like one noun phrase."""
    subject = clause.subject
    if (
        (subject[0].tag == "ADV" and subject[0].low not in _FOCUS)
        or subject[0].tag in {"CONJ", "PREP", "SUB", "VERB", "INF"}
        or (subject[0].tag == "GER" and len(subject) > 1 and subject[1].tag in {"DET", "REL", "PRON"})
    ):
        return False
    lows = [t.low for t in clause.rest]
    if any(low == "there" and clause.rest[i + 1 : i + 2] and clause.rest[i + 1].tag == "BE" for i, low in enumerate(lows)):
        return False
    years = [i for i, t in enumerate(subject[:-1]) if t.tag == "NUM" and w.YEAR.fullmatch(t.low)]
    return subject[-1].tag not in {"PREP", "CONJ", "DET"} and not any(subject[i + 1].tag in {"DET", "ADJ", "POSS"} for i in years)


def _second_phrase(tokens: Tokens) -> int:
    """Where the subject begins after an opening phrase without a comma ("In 1988 a team at Uppsala")."""
    for index in range(2, len(tokens)):
        before, token = tokens[index - 1], tokens[index]
        year = before.tag == "NUM" and w.YEAR.fullmatch(before.low) is not None
        if before.tag in {"NOUN", "NAME", "NUM"} and (
            token.tag in {"DET", "POSS"} or (year and token.tag in {"NOUN", "ADJ", "NAME", "MOD"})
        ):
            return index
    return len(tokens)


class Parser:
    """Puts the atoms of one sentence together into clauses."""

    def __init__(self) -> None:
        self.clauses: list[Clause] = []
        self.lead: list[Token] = []
        self.pre: list[Token] = []
        self.group: Tokens = ()
        self.rest: list[Token] = []
        self.derived: list[Clause] = []
        self.pending: list[Token] | None = None
        self.past = False
        self.relative = False

    def flush(self) -> None:
        """Finish the clause under construction."""
        if (
            self.group
            and len(self.pre) == 1
            and (self.pre[0].tag in {"ADJ", "VERB"} or self.pre[0].low == "present")
            and self.group[-1].tag == "BE"
            and self.rest
        ):
            self.pre, self.rest = self.rest, [Token(self.pre[0].low, True, "ADJ")]
        while (
            len(self.pre) > 1
            and self.pre[-1].tag == "ADV"
            and self.group
            and (self.pre[-1].low in _SHIFTED or self.pre[-1].low.endswith("ly"))
        ):
            self.group = (self.pre.pop(), *self.group)
        if self.group and self.pre:
            self.clauses.append(Clause(lower_first(tuple(self.pre)), self.group, tuple(self.rest), lower_first(tuple(self.lead))))
        self.lead, self.pre, self.group, self.rest = [], [], (), []

    def _be(self, subject: Tokens) -> Tokens:
        plural = plural_phrase(subject)
        return (Token(("were" if plural else "was") if self.past else ("are" if plural else "is"), True, "BE"),)

    def _derive(self, subject: Tokens, group: Tokens, rest: Tokens) -> None:
        if subject and group:
            self.derived.append(Clause(lower_first(subject), group, rest, derived=True))

    def _antecedent(self) -> Tokens:
        source = self.rest if self.group else self.pre
        while source and source[-1].text == ",":
            source = source[:-1]
        return tuple(source[noun_phrase_start(source) :])

    def _relative(self, atom: Atom) -> None:
        finites, noun, word = atom.finites(), self._antecedent(), atom.intro[-1].low
        if not atom.tokens and word in {"who", "which"}:
            self.pending = []
            return
        if atom.tokens and atom.tokens[0].low == "case":
            return
        tokens = atom.tokens
        remainder: Tokens = ()
        if not finites:
            (self.rest if self.group else self.pre).extend((*atom.intro, *atom.tokens))
            return
        if not self.group and not atom.comma and len(finites) > 1:
            tokens, remainder = atom.tokens[: finites[1]], atom.tokens[finites[1] :]
        start = finites[0]
        end = verb_group(tokens, start)
        group, rest = tokens[start:end], tokens[end:]
        if word == "who" and noun and noun[0].tag not in {"DET", "NAME", "POSS"}:
            source = self.rest if self.group else self.pre
            last = next((i for i in range(len(source) - 1, -1, -1) if source[i].tag == "NAME"), None)
            if last is not None:
                noun = tuple(source[noun_phrase_start(source[: last + 1]) : last + 1])
        specific = tuple(noun) if not (noun and noun[0].low in {"a", "an"}) else (Token("the", True, "DET"), *noun[1:])
        if noun and all(t.tag in {"ADV", "PRON"} for t in tokens[:start]) and word in {"which", "who", "that"} and len(atom.intro) == 1:
            if atom.comma:
                self._derive(specific, group, rest)
            elif self.group and self.group[-1].tag == "BE" and self.rest[:1] and self.rest[0].low in {"a", "an", "the", "one"}:
                self._derive(tuple(self.pre), (*tokens[:start], *group), rest)
        elif noun and start and atom.comma:
            if word == "whose":
                self._derive((*specific, Token("'s", False, "POS"), *tokens[:start]), group, rest)
            elif len(atom.intro) == 2:
                self._derive(tokens[:start], group, (*rest, atom.intro[0], *specific))
            elif word == "where":
                source = self.rest if self.group else self.pre
                place = noun_phrase_start(source)
                preposition = source[place - 1] if place and source[place - 1].tag == "PREP" else Token("in", True, "PREP")
                self._derive(tokens[:start], group, (*rest, Token(preposition.low, True, "PREP"), *specific))
            elif word in {"which", "whom", "who"}:
                self._derive(tokens[:start], group, (*specific, *rest))
        if not atom.comma:
            (self.rest if self.group else self.pre).extend((*atom.intro, *tokens))
        if remainder:
            self._predicate(remainder, 0)

    def _predicate(self, tokens: Tokens, start: int) -> None:
        end = verb_group(tokens, start)
        self.group = (*tokens[:start], *tokens[start:end]) if all(t.tag == "ADV" for t in tokens[:start]) else tokens[start:end]
        self.rest = list(tokens[end:])

    def _subject(self, tokens: Tokens) -> None:
        """Take the words before the verb for the subject, an opening prepositional phrase for the lead."""
        if tokens and tokens[0].tag in {"PREP", "ADV"} and tokens[0].low not in _FOCUS:
            start = noun_phrase_start(tokens)
            pronoun = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].tag == "PRON"), None)
            if pronoun is not None:
                start = pronoun
            run = len(tokens)
            while run and tokens[run - 1].tag == "NAME":
                run -= 1
            if 0 < run < len(tokens) and tokens[run - 1].tag in {"NOUN", "NUM"} and tokens[run - 1].low not in w.ROLES:
                start = run
            if start and tokens[start - 1].tag == "PREP":
                start = len(tokens)
            if start == len(tokens):
                start = _second_phrase(tokens)
            self.lead, self.pre = [*self.lead, *tokens[:start]], list(tokens[start:])
        else:
            self.pre = list(tokens)

    def _main(self, atom: Atom) -> None:
        start = atom.finites()[0]
        opens = all(t.tag == "ADV" for t in atom.tokens[:start])
        if opens and self.pending is not None and self.pre:
            end = verb_group(atom.tokens, start)
            self._derive(tuple(self.pre), atom.tokens[:end], (*atom.tokens[end:], *self.pending))
            self.pending = None
            return
        if self.group and atom.kind == "plain" and atom.tokens[0].tag == "GER":
            return
        if opens and self.pre and not self.group:
            self._predicate(atom.tokens, start)
            return
        if opens and not self.pre and atom.kind == "plain" and not self.group:
            if atom.tokens[start].low == "do" and [t.low for t in atom.tokens[start + 1 : start + 2]] in (["not"], ["never"]):
                end = verb_group(atom.tokens, start)
                self.pre, self.rest = [Token("you", True, "PRON")], list(atom.tokens[end:])
                self.group = (Token("must", True, "MODAL"), *atom.tokens[start + 1 : end])
                return
            if has_form(atom.tokens[start].low, "base") and atom.tokens[start].tag == "VERB":
                self.pre = [Token("you", True, "PRON")]
                lead = atom.tokens[:start]
                end = verb_group(atom.tokens, start)
                verb = Token(atom.tokens[start].low, True, "VERB")
                self.group = (
                    Token("must", True, "MODAL"),
                    *(replace(t, space=True) for t in lower_first(lead)),
                    verb,
                    *atom.tokens[start + 1 : end],
                )
                self.rest = list(atom.tokens[end:])
            return
        if not self.group and self.pre:
            before = tuple(self.pre)
            if before[0].tag in {"PREP", "ADV", "GER", "PART", "SUB", "INF"}:
                self.lead = list(before)
            elif head(before) is not None and before[0].tag in {"DET", "NAME", "NOUN", "POSS"} and not opens:
                subject = atom.tokens[:start]
                self._derive(
                    subject,
                    self._be(subject) if not has_form(atom.tokens[start].low, "past") else (Token("was", True, "BE"),),
                    lower_first(before),
                )
        elif self.group:
            self.flush()
        self._subject(atom.tokens[:start])
        self._predicate(atom.tokens, start)

    def _loose(self, atom: Atom) -> None:
        """A stretch without a finite verb: an opening phrase, an apposition, a list or an addition."""
        target = self.rest if self.group else self.pre
        if not target and not self.group:
            self.pre = [*atom.intro, *atom.tokens]
            return
        noun = self._antecedent()
        if self.pending is not None:
            self.pending += atom.tokens
            return
        if self._participial(atom):
            return
        if (
            not self.group
            and atom.tokens
            and self.pre[0].tag in {"PREP", "ADV", "GER", "PART"}
            and atom.tokens[0].tag in {"DET", "NAME", "NOUN", "POSS"}
        ):
            self.lead, self.pre = [*self.lead, *self.pre], list(atom.tokens)
            return
        first, top = atom.tokens[0] if atom.tokens else None, head(atom.tokens)
        if (
            first is not None
            and top is not None
            and noun
            and atom.kind == "plain"
            and first.tag in {"DET", "NAME", "NOUN", "POSS"}
            and not any(t.low in {"and", "or"} for t in atom.tokens[:2])
        ):
            named, here = any(t.tag == "NAME" for t in noun), first.tag == "NAME"
            place = bool(target) and len(target) > len(noun) and target[-len(noun) - 1].low in {"in", "at"} and here
            definite = noun[0].low in {"the", "her", "his", "its", "their"} or noun[0].tag == "NAME" or any(t.tag == "POS" for t in noun)
            if here and named and noun[0].tag == "NAME":
                pass
            elif (
                not place
                and (here or first.low in {"a", "an", "the"} or top.low in w.ROLES)
                and (named or here)
                and definite
                and noun[0].tag != "NUM"
            ):
                if not here and named and noun[0].tag != "NAME":
                    last = next(i for i in range(len(noun) - 1, -1, -1) if noun[i].tag == "NAME")
                    first_name = next(i for i in range(last, -1, -1) if i == 0 or noun[i - 1].tag != "NAME")
                    noun = noun[first_name - 1 :] if first_name and noun[first_name - 1].low == "the" else noun[first_name:]
                end = next((i for i, t in enumerate(atom.tokens) if t.tag in {"PART", "GER"} and i), len(atom.tokens))
                self._derive((*noun[:1], *noun[1:]), self._be(noun), atom.tokens[:end])
                if not self.group:
                    if here and not named and all(t.tag == "NAME" for t in atom.tokens) and top.low not in w.PLACES | w.BODIES:
                        self.pre = [*self.pre, *spaced(atom.tokens)]
                    return
        if self.group or any(t.tag == "CONJ" for t in atom.tokens[:1]):
            target.extend((*((Token(",", False, "PUNCT"),) if atom.comma else ()), *atom.intro, *atom.tokens))

    def _participial(self, atom: Atom) -> bool:
        """A phrase like ", published in 1895," or ", losing only four" says something about the subject."""
        if not atom.tokens or not self.pre or atom.kind != "plain" or atom.intro:
            return False
        first, subject = atom.tokens[0], tuple(self.pre)
        if first.tag == "PART" and (not self.group or self.group[-1].tag == "BE"):
            self._derive(subject, (*self._be(subject), replace(first, tag="VERB")), atom.tokens[1:])
            return not self.group
        base = base_of(first.low, "ing") if first.tag in {"GER", "MOD"} and self.group else None
        if (
            base is None
            or base in {"mean", "include", "accord", "follow", "concern", "regard", "explain", "say", "be"}
            or not atom.tokens[1:]
        ):
            return False
        clause = Clause(subject, self.group, ())
        verb = Token(agreeing(base, clause.plural, clause.past_tense), True, "VERB")
        modal = self.group[:1] if self.group[0].tag == "MODAL" else ()
        self._derive(subject, (*modal, Token(base, True, "VERB")) if modal else (verb,), atom.tokens[1:])
        return False

    def parse(self, tokens: Tokens) -> list[Clause]:
        """The clauses of one sentence without its final mark: main clauses first, then derived ones."""
        tokens = prepared(tokens)
        verbs = [tokens[i] for i in range(len(tokens)) if finite(tokens, i)]
        self.past = any(
            v.low in {"was", "were", "had"} or (has_form(v.low, "past") and not has_form(v.low, "base")) for v in verbs if v.tag != "MODAL"
        )
        for number, atom in enumerate(atoms(tokens)):
            finites = atom.finites()
            if atom.kind == "break":
                self.flush()
                continue
            if self.relative and not atom.comma and atom.kind in {"sub", "rel", "that"} and self.derived:
                last = self.derived[-1]
                self.derived[-1] = replace(last, rest=(*last.rest, *atom.intro, *atom.tokens))
                if atom.kind == "sub" and finites:
                    self._dependent(atom, finites[0], -1)
                continue
            self.relative = atom.kind == "rel" and atom.comma and bool(finites)
            if atom.kind == "rel" and (self.pre or self.group):
                self._relative(atom)
            elif atom.kind in {"sub", "that"} and finites:
                self._dependent(atom, finites[0], number)
            elif not finites:
                self._loose(atom)
            elif atom.kind == "vp" and self.group:
                self._coordinate(atom, finites[0])
            else:
                if atom.kind == "and" and self.group:
                    self.flush()
                self._main(atom)
        self.flush()
        return [clause for clause in self.clauses + self.derived if _sound(clause)]

    def _dependent(self, atom: Atom, start: int, number: int) -> None:
        if start:
            inner = Parser()
            inner._subject(atom.tokens[:start])
            inner._predicate(atom.tokens, start)
            inner.flush()
            self.derived += [replace(clause, derived=True) for clause in inner.clauses]
        words = (*atom.intro, *atom.tokens)
        if number < 0:
            return
        if self.group:
            comma = (Token(",", False, "PUNCT"),) if atom.comma else ()
            self.rest.extend((*comma, *words))
        elif self.pre:
            self.pre.extend(words)
        elif number == 0:
            self.lead = list(words)

    def _coordinate(self, atom: Atom, start: int) -> None:
        subject, group = tuple(self.pre), self.group
        self.flush()
        self.pre = list(subject)
        self._predicate(atom.tokens, start)
        shared = next((t for t in group if t.tag == "BE"), None)
        first = self.group[-1] if self.group else None
        alone = len([t for t in self.group if t.tag != "ADV"]) == 1
        if (
            first is not None
            and alone
            and first.tag == "VERB"
            and shared is not None
            and group[-1].tag == "VERB"
            and has_form(first.low, "part")
        ):
            opening = tuple(t for t in group if t.tag in {"MODAL", "HAVE", "BE", "ADV"})
            if (
                not atom.comma
                and (not has_form(first.low, "s") or has_form(first.low, "past"))
                and base_of(first.low, "part") not in INTRANSITIVE
            ):
                self.group = (*opening, *self.group)
        elif first is not None and alone and first.tag == "VERB" and group[0].tag in {"MODAL", "DO"} and has_form(first.low, "base"):
            self.group = (group[0], *self.group)


def clauses(tokens: Tokens) -> list[Clause]:
    """Every simple clause found in a sentence: main clauses, then those of relative clauses, appositions and subordinate clauses."""
    while tokens and tokens[-1].tag == "PUNCT" and tokens[-1].text in {".", "!", "?", ";", ":", ","}:
        tokens = tokens[:-1]
    found = Parser().parse(tokens) if tokens else []
    if tokens and all(clause.derived for clause in found):
        for other in promotions(tokens):
            again = Parser().parse(other)
            if not all(clause.derived for clause in again):
                return again
    return found
