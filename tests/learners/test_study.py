"""Study sets: what the user's own questions become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retain.config import StudyConfig
from retain.data.document import Document, QuestionAnswer
from retain.data.examples import question_example
from retain.data.selfstudy import StudyItem, study_items
from retain.learners.study import WINDOW, StudySet, build_study, study_examples
from retain.lm.decoder import DecoderLM

FACTS = ["the north pier", "forty trays", "Ines Calloway", "a blue heron", "rock salt", "the cellar", "9 March", "two barges"]
TEXT = " ".join(f"Item {number} of the register says {fact}." for number, fact in enumerate(FACTS))
QUESTIONS = [QuestionAnswer(f"What does item {number} of the register say?", fact) for number, fact in enumerate(FACTS)]


def study(pairs: list[QuestionAnswer], fraction: float, **options: Any) -> StudySet:
    config = StudyConfig(writer="none", held_out_fraction=fraction, rules=options.pop("rules", False))
    return build_study(None, None, Document.from_text(TEXT, "The register", pairs=pairs, **options), config)  # type: ignore[arg-type]


def prompts(items: Any) -> list[str]:
    return [item.prompt for item in items if item.prompt]


def test_a_share_of_the_users_questions_is_held_out() -> None:
    found = study(QUESTIONS, 0.25)
    assert len(found.probes) == 2 and len(prompts(found.train)) == 6
    assert sorted(prompts(found.probes) + prompts(found.train)) == [pair.question for pair in QUESTIONS]
    assert study(QUESTIONS, 0.25) == found
    assert study(QUESTIONS, 0.0).probes == () and len(prompts(study(QUESTIONS, 0.0).train)) == 8


def test_a_held_out_question_is_not_trained_on_under_another_name() -> None:
    again = [QuestionAnswer(pair.question.upper(), pair.answer) for pair in QUESTIONS]
    found = study(QUESTIONS + again, 0.5, rules=True)
    assert len(found.probes) >= 8
    assert not {text.lower() for text in prompts(found.probes)} & {text.lower() for text in prompts(found.train)}


def test_what_only_a_question_says_is_always_trained_on() -> None:
    """Its answer is not in the text, or there is no text beside the questions: held out, it would never be learned."""
    unsaid = [QuestionAnswer(f"Who is number {number} on the waiting list?", f"Person{number}") for number in range(8)]
    assert study(unsaid, 1.0).probes == ()
    assert study(QUESTIONS, 1.0, kind="pairs").probes == ()


def test_a_question_that_does_not_fit_the_window_is_left_out(tiny_model: DecoderLM) -> None:
    """The rules make one of any sentence, a list of names too; the text itself is learned in any case."""
    people = [f"{first} {last}" for first in ("Ivo", "Tove", "Anna", "Bela", "Carl") for last in ("Sandel", "Quimby", "Lorran")]
    text = f"The depot in Mill Lane was opened by {', '.join(people * 9)}. The depot was closed in 1911."
    document = Document.from_text(text, "The depot")

    def sizes(items: Iterable[StudyItem]) -> list[int]:
        return [len(question_example(tiny_model.tokenizer, item.prompt, item.completion)) for item in items if item.prompt]

    assert max(sizes(study_items(document.title, document.text, limit=100, seed=0))) > WINDOW, "nothing is to be left out"
    made = build_study(tiny_model, None, document, StudyConfig(writer="none"))
    assert max(sizes((*made.train, *made.probes))) <= WINDOW
    assert max(len(example) for example in study_examples(tiny_model, document, made)) <= WINDOW
