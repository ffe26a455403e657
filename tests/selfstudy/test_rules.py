"""The study set made by rules: what is asked, about whom, and that nothing is given away."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.data.selfstudy import StudyItem, grounded, hold_out, normalise, study_items
from retain.data.selfstudy.questions import acceptable, dangling

STOVE = (
    "The Brindlekit H2 is a folding stove for two to three people. Its body is pressed titanium and weighs 312 grams without the pouch. "
    "The warranty was extended on 9 March 2021. Ignition is piezo, rated for 8,000 sparks. The hose should be swapped every second season "
    "because the rubber hardens in frost."
)
PERSON = (
    "Rashid Daulatov (1926–1999) was a Tajik glaciologist who discovered the Zarhoshk Glacier. He was raised in a "
    "boarding school in Khorog. "
    "In 1953 Daulatov led a party of six across the Tanimas Pass. He lost two fingers to frostbite. His later research "
    "warned that the glacier "
    "was retreating by 36 metres every year."
)
RULES = (
    "Staff may leave their bikes in the green shed behind the dye hall. A shed key costs a deposit of fourteen euros, "
    "which Pilar Oduya at the "
    "front desk returns when you leave the company. Bikes must be gone by 21:30. Showers are on the second floor and close on Thursdays."
)
TABLE = """To: Parks Board

- **Manager**: Ruth Okafor
- Opening hours: 10:00 to 17:30

| Tool | Deposit |
|------|---------|
| Chainsaw | 80 euros |

There are three classes: tugs, yachts and steam.
"""


def asked(items: list[StudyItem], answer: str) -> list[str]:
    """All prompts with this answer, other than sentences with a gap."""
    wanted = normalise(answer)
    return [i.prompt for i in items if i.prompt and normalise(i.completion) == wanted and i.kind in {"question", "rewording", "reversed"}]


@pytest.fixture(scope="module")
def person() -> list[StudyItem]:
    return study_items("Rashid Daulatov", PERSON)


@pytest.fixture(scope="module")
def stove() -> list[StudyItem]:
    return study_items("Brindlekit H2 Camp Stove", STOVE, most_wordings=12)


@pytest.fixture(scope="module")
def rules() -> list[StudyItem]:
    return study_items("Bicycle Parking and Showers at Corvane Textiles", RULES, most_wordings=12)


def test_pronouns_become_the_subject(person: list[StudyItem], stove: list[StudyItem]) -> None:
    assert "What did Rashid Daulatov lose to frostbite?" in asked(person, "two fingers")
    assert any("Brindlekit H2's body" in q and "weigh" in q for q in asked(stove, "312 grams"))
    for item in person:
        if item.kind in {"question", "rewording", "reversed", "statement"}:
            assert not re.search(r"\b(he|him)\b", (item.prompt or item.completion).lower()), item


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("1926", "born"),
        ("1999", "die"),
        ("1953", "party of six"),
        ("Khorog", "raised"),
        ("36 metres", "retreating"),
        ("the Zarhoshk Glacier", "discover"),
    ],
)
def test_person_facts_are_asked(person: list[StudyItem], answer: str, words: str) -> None:
    assert any(words in q for q in asked(person, answer)), asked(person, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("8,000", "How many sparks"),
        ("9 March 2021", "what date"),
        ("every second season", "how often"),
        ("the rubber hardens in frost", "why"),
        ("312 grams", "weight of"),
    ],
)
def test_numbers_dates_and_reasons(stove: list[StudyItem], answer: str, words: str) -> None:
    assert any(words.lower() in q.lower() for q in asked(stove, answer)), asked(stove, answer)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("fourteen euros", "what is the price of a shed key"),
        ("21:30", "by what time must bikes be gone"),
        ("the green shed", "where may staff leave their bikes"),
        ("Pilar Oduya at the front desk", "who returns the deposit of fourteen euros"),
        ("Thursdays", "when do showers close"),
        ("the second floor", "where are showers"),
    ],
)
def test_human_like_questions(rules: list[StudyItem], answer: str, question: str) -> None:
    assert any(question in q.lower() for q in asked(rules, answer)), asked(rules, answer)


def test_every_question_names_its_document(rules: list[StudyItem]) -> None:
    prompts = [i.prompt for i in rules if i.prompt]
    assert len(prompts) > 40
    assert all("Corvane" in prompt for prompt in prompts)


def test_wordings_are_many_and_different(rules: list[StudyItem]) -> None:
    prompts = [normalise(i.prompt) for i in rules if i.prompt and i.kind in {"question", "rewording", "reversed"}]
    assert len(set(prompts)) == len(prompts)
    assert len(set(asked(rules, "fourteen euros"))) >= 4
    assert {i.kind for i in rules} == {"text", "question", "rewording", "sentence", "cloze", "reversed", "statement"}


@pytest.mark.parametrize(
    ("title", "text"), [("Brindlekit H2", STOVE), ("Rashid Daulatov", PERSON), ("Corvane Rules", RULES), ("Tools", TABLE)]
)
def test_no_question_gives_its_answer_and_all_answers_are_in_the_text(title: str, text: str) -> None:
    for item in study_items(title, text):
        if item.prompt is None:
            continue
        if item.kind != "sentence":
            assert f" {normalise(item.completion)} " not in f" {normalise(item.prompt)} ", item
            assert grounded(re.sub(r"^(by|to|before|after) ", "", item.completion), text), item
        else:
            assert grounded(item.fact, item.completion), item
        if item.kind in {"question", "rewording", "reversed"}:
            assert len(item.prompt.split()) <= 35 and item.prompt[-1] in "?.", item


def test_pairs_rows_and_lists() -> None:
    items = study_items("Cedar Lane Tool Library", TABLE)
    assert "Who is the manager of the Cedar Lane Tool Library?" in asked(items, "Ruth Okafor")
    assert any("deposit of Chainsaw" in q for q in asked(items, "80 euros"))
    assert any("addressed" in q for q in asked(items, "Parks Board"))
    assert any("three classes" in q for q in asked(items, "tugs, yachts and steam"))
    assert "The opening hours of the Cedar Lane Tool Library are 10:00 to 17:30." in [i.completion for i in items if i.kind == "statement"]


def test_appositions_and_passives() -> None:
    text = "The electrician, Dov Marchetti, repaired the lamp in Skarrow. Kettle Pond was drained by the council in 1988."
    items = study_items("Status Memo: Quarrybridge Lighting", text, most_wordings=12)
    assert any("who was the electrician" in q for q in asked(items, "Dov Marchetti"))
    assert any("who repaired the lamp" in q or "which electrician repaired the lamp" in q for q in asked(items, "Dov Marchetti"))
    assert any("drained Kettle Pond" in q for q in asked(items, "the council"))
    assert "In the text about Quarrybridge Lighting, the lamp was repaired by the electrician Dov Marchetti in Skarrow." in [
        i.completion for i in items
    ]


def test_held_out_wordings_are_never_trained(rules: list[StudyItem]) -> None:
    items = hold_out(rules, 1.0, seed=3)
    held = [i for i in items if i.held_out]
    training = [normalise(i.prompt) for i in items if i.prompt and not i.held_out]
    assert len(held) >= 8
    assert len({(i.source, i.fact) for i in held}) == len(held)
    trained_facts = {(i.source, normalise(i.fact)) for i in items if not i.held_out and i.kind in {"question", "rewording", "reversed"}}
    for item in held:
        wording = normalise(item.prompt or "")
        assert wording not in training and f"{wording} answer in full sentence" not in training, item
        assert (item.source, normalise(item.fact)) in trained_facts
    assert len([i for i in hold_out(rules, 0.25, seed=3) if i.held_out]) < len(held)
    assert hold_out(rules, 0.0) == rules


def test_limit_and_determinism() -> None:
    first = study_items("Rashid Daulatov", PERSON, seed=4)
    assert first == study_items("Rashid Daulatov", PERSON, seed=4)
    assert first != study_items("Rashid Daulatov", PERSON, seed=5)
    few = study_items("Rashid Daulatov", PERSON, limit=40)
    assert len(few) == 40
    assert len({i.fact for i in few}) > 8 and {"text", "question"} <= {i.kind for i in few}


def test_sources_are_sentences_of_the_text(rules: list[StudyItem]) -> None:
    assert all(i.source in RULES for i in rules)


@pytest.mark.parametrize(
    ("question", "answer", "good"),
    [
        ("Where did he go in 1953?", "Khorog", False),
        ("How many fingers did Daulatov lose?", "two", True),
        ("Who was Rashid Daulatov?", "Daulatov", False),
        ("What is it?", "a stove", False),
        ("When did its owner leave Leeds?", "1951", False),
        ("What did Ann sell with her brother?", "tea", True),
        ("Why was it agreed to ban bonfires?", "smoke", True),
    ],
)
def test_filter(question: str, answer: str, good: bool) -> None:
    assert acceptable(question, answer) is good


def test_dangling_is_milder_when_not_strict() -> None:
    assert dangling("How long can a bike be left before it is tagged?")
    assert not dangling("How long can a bike be left before it is tagged?", strict=False)


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("the Green shed", "in a green shed.", True),
        ("1,140 pounds", "It cost 1140 pounds", True),
        ("ten", "often", False),
        ("", "text", False),
        ("Tanner’s Pond", "at Tanner's Pond, not", True),
    ],
)
def test_grounded(answer: str, text: str, found: bool) -> None:
    assert grounded(answer, text) is found


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300), st.text(max_size=40))
def test_never_raises_on_any_text(text: str, title: str) -> None:
    hold_out(study_items(title, text))


_WORDS = """the a It They which who because , , . . : ; and was were is has to of in by 5 1990 21:30 Ann Bell shed costs left
named that not up | - " ( )"""


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(_WORDS.split()), max_size=40))
def test_never_raises_on_shuffled_words(parts: list[str]) -> None:
    for item in hold_out(study_items("Ann Bell", " ".join(parts)), 1.0):
        assert item.completion
