"""Learner ``ace``: one playbook for all documents, that the base model reads before it answers (2510.04618)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from retain.adapters import Adapter
from retain.config import Config
from retain.data.document import Document
from retain.learners.ace.context import Chooser
from retain.learners.ace.course import Course
from retain.learners.ace.playbook import Playbook
from retain.learners.ace.speaker import Speaker, speaker_of
from retain.learners.base import Aid, Form, Learned, LearnerError, Lesson, Memory, Passage, Tell
from retain.lm.model import LanguageModel
from retain.training.loop import TrainingError

log = logging.getLogger(__name__)


class Playbooks:
    """Keeps what documents say as bullets of a playbook, edited by patches that are kept only while held-out answers get no worse.

    The speaker (``ace.url``) reflects on the study questions that the base model answers wrongly. Without questions, and where the base
    model itself is the speaker and cannot reflect, the document's own sentences become the bullets.
    """

    name = "ace"
    form: Form = "shared"
    studies = False
    injected = False

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError when ``ace.url`` is set and the settings of the speaker behind it are not complete."""
        speaker_of(model, config.ace)

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """The playbook of ``lesson.earlier`` with the document in it. Raises LearnerError when the speaker cannot be asked or wrote
        nothing that can be used, TrainingError when every change made held-out answers worse."""
        started = time.perf_counter()
        speaker = speaker_of(model, config.ace) if lesson.pairs else None
        earlier = _playbook([memory for _, memory in lesson.earlier if not isinstance(memory, Adapter)])
        course = Course(model, lesson, config, earlier.without(lesson.document.id), tell)
        wrong = sum(not answer for answer in course.right_before)
        if speaker and wrong:
            course.reflect(speaker)
        if speaker and not speaker.own and course.refused.total():
            reasons = ", ".join(f"{what}: {count}" for what, count in course.refused.most_common() if count)
            log.warning("of what the playbook's speaker wrote about %s some was refused (%s)", lesson.document.title, reasons)
        if not course.present and (speaker is None or speaker.own or not wrong):
            course.store_sentences()
        if not course.present:
            raise _nothing(course, speaker, lesson.document)
        answered = course.credit()
        playbook = course.playbook.limited(config.ace.strategies)
        if lesson.document.id not in playbook.documents:
            raise LearnerError(f"the playbook has no room for {lesson.document.title!r}: raise ace.strategies ({config.ace.strategies})")
        cost = {
            "training_seconds": round(time.perf_counter() - started, 3),
            "tokens": course.generator.tokens + (speaker.tokens if speaker else 0),
            "requests": speaker.requests if speaker else 0,
            "questions": len(course.asked),
            "right_before": sum(course.right_before),
            "right_after": answered,
            "held_out": len(course.held),
            "held_out_right_before": course.held_before,
            "held_out_right_after": course.held_right,
            "patches_kept": course.kept,
            "patches_dropped": course.dropped,
            "refused": course.refused.total(),
            "bullets": len(playbook.bullets),
        }
        return Learned(Memory(facts=playbook.value()), cost)

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """The bullets that bear on the question, within ``ace.context_tokens``, and within ``generate.context_tokens`` in all passages
        that say what no bullet does. Raises LearnerError when a memory is no playbook."""
        chooser, playbook = Chooser(model), _playbook(memories)
        chosen = chooser.choose(playbook, question, config.ace.context_tokens)
        return Aid(chooser.beside(playbook, chosen, question, passages, config.generate.context_tokens) or None)

    def without(self, memory: Memory, document: str) -> Memory | None:
        """The playbook without what came from a document alone, and without its votes; None when no bullet is left."""
        rest = Playbook.from_value(memory.facts).without(document)
        return Memory(facts=rest.value()) if rest.bullets else None


def _playbook(memories: Sequence[Memory]) -> Playbook:
    """The one playbook that there is; an empty one where there is none."""
    return Playbook.from_value(memories[0].facts) if memories else Playbook()


def _nothing(course: Course, speaker: Speaker | None, document: Document) -> Exception:
    """The error that says why nothing of a document came into the playbook, and what to do."""
    if course.dropped:
        return TrainingError(f"each of {course.dropped} changes of the playbook for {document.title!r} made held-out answers worse")
    if speaker and not speaker.own:
        what = f"{speaker.name} wrote nothing about {document.title!r} that can be used in {speaker.requests} replies"
        return LearnerError(f"{what}: take another ace.model, or set ace.url to null to keep the document's sentences")
    return LearnerError(f"{document.title!r} has no sentence for the playbook")
