"""Study sets: what the user's own questions become."""

from __future__ import annotations

from typing import Any

from retain.config import StudyConfig
from retain.data.document import Document, QuestionAnswer
from retain.learners.study import StudySet, build_study

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
