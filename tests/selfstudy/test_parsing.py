"""Shallow parsing: which words make the subject, the verb and the rest."""

import pytest

from retain.data.selfstudy.blocks import blocks
from retain.data.selfstudy.parsing import clauses
from retain.data.selfstudy.tagging import join, names_in, split_words, tag
from retain.data.selfstudy.verbs import base_of, gerund, guess_base, participle, past, third


def parsed(sentence: str) -> list[tuple[str, str, str]]:
    return [(join(c.subject), join(c.group), join(c.rest)) for c in clauses(tag(split_words(sentence), names_in(sentence)))]


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("Showers are on the second floor and close on Thursdays.", [("showers", "close", "on Thursdays")]),
        ("The water bill rose, because a pipe cracked.", [("a pipe", "cracked", "")]),
        (
            "The diaries, which fill 34 notebooks, record weather.",
            [("the diaries", "fill", "34 notebooks"), ("the diaries", "record", "weather")],
        ),
        ("Lamps chosen by residents attract fewer moths.", [("lamps chosen by residents", "attract", "fewer moths")]),
        ("Staff who cycle to the site may leave their bikes here.", [("staff who cycle to the site", "may leave", "their bikes here")]),
        ("In 1953 Daulatov led a party.", [("Daulatov", "led", "a party")]),
        ("Her atlas was praised for its tides but criticised by the press.", [("her atlas", "was criticised", "by the press")]),
        ("Wear the blue gloves.", [("you", "must wear", "the blue gloves")]),
        ("The judge is Ann Bell, who won the cup in 1988.", [("Ann Bell", "won", "the cup in 1988")]),
        ("He contested 63 bouts, losing only four.", [("he", "lost", "only four")]),
        ("Spawning takes place in May.", [("spawning", "takes", "place in May")]),
    ],
)
def test_clauses(sentence: str, wanted: list[tuple[str, str, str]]) -> None:
    found = parsed(sentence)
    for clause in wanted:
        assert clause in found, found


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("try", ("tries", "tried", "tried", "trying")),
        ("stop", ("stops", "stopped", "stopped", "stopping")),
        ("write", ("writes", "wrote", "written", "writing")),
        ("agree", ("agrees", "agreed", "agreed", "agreeing")),
        ("die", ("dies", "died", "died", "dying")),
        ("have", ("has", "had", "had", "having")),
        ("map", ("maps", "mapped", "mapped", "mapping")),
    ],
)
def test_verb_forms(base: str, forms: tuple[str, str, str, str]) -> None:
    assert (third(base), past(base), participle(base), gerund(base)) == forms
    assert base_of(past(base), "past") == base


@pytest.mark.parametrize(
    ("word", "base"), [("glimped", "glimp"), ("blurried", "blurry"), ("frabbed", "frab"), ("notated", "notate"), ("zonked", "zonk")]
)
def test_guessed_bases(word: str, base: str) -> None:
    assert guess_base(word) == base


def test_blocks() -> None:
    text = (
        "# Rules\n\nDr. Bell came at 9.30 a.m. today. He left.\n\n"
        "- Price: 4 euros\n- Bring a hat.\n\nNote: it is open on Mondays and we will be there all day long."
    )
    kinds = [(b.kind, b.heading) for b in blocks(text)]
    assert kinds == [("prose", "Rules"), ("prose", "Rules"), ("pair", "Rules"), ("item", "Rules"), ("prose", "Rules")]
    assert blocks(text)[2].cells == (("Price", "4 euros"),)
