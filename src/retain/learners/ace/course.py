"""How one document comes into the playbook: rounds of answering, reflecting and curating, and a check of every patch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from retain.config import Config
from retain.data.selfstudy import grounded, normalise
from retain.learners.ace.context import document_bullets
from retain.learners.ace.playbook import Add, Patch, Playbook
from retain.learners.ace.roles import Case, Curator, Generator, Insight, Reflector, right, supports
from retain.learners.ace.speaker import Speaker
from retain.learners.base import Lesson, Tell
from retain.lm.model import LanguageModel

HELD_OUT, MOST_HELD_OUT = 0.25, 8  # share of the pairs that patches are checked by, and how many at most
TOGETHER = 4  # insights that the curator gets at once
TRIALS = 2  # questions without an insight that can be read, after which a speaker is taken to be unable to reflect

Pair = tuple[str, str]


def split(pairs: Sequence[Pair], most: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(held out, asked) from the pairs of a lesson: a quarter of them, at most 8, and at most ``most`` of the others. Both are drawn;
    no question is in both, and none twice. With one pair nothing is held out."""
    drawn = list({normalise(question): (question, answer) for question, answer in pairs}.values())
    random.Random(seed).shuffle(drawn)
    held = min(round(HELD_OUT * len(drawn)), MOST_HELD_OUT) or int(len(drawn) > 1)
    return drawn[:held], drawn[held : held + most]


class Course:
    """The way of a document into a playbook. ``playbook`` is what has been reached; counters say what happened on the way."""

    def __init__(self, model: LanguageModel, lesson: Lesson, config: Config, playbook: Playbook, tell: Tell) -> None:
        self.lesson, self.config, self.playbook, self._tell = lesson, config.ace, playbook, tell
        self.generator = Generator(model, lesson.skill, config.ace.context_tokens)
        self.held, self.asked = split(lesson.pairs, config.ace.questions, lesson.seed)
        self.refused: Counter[str] = Counter()
        self.kept = self.dropped = 0
        text = [lesson.document.title, lesson.document.text, *(part for pair in lesson.pairs for part in pair)]
        self._supported = supports("\n".join(text))
        self.right_before = [right(*pair) for pair in self._answered(self.asked, playbook)]
        self.held_before = self.held_right = self._held_right(playbook)

    @property
    def present(self) -> bool:
        """Whether the playbook says something of the document."""
        return self.lesson.document.id in self.playbook.documents

    def reflect(self, speaker: Speaker) -> None:
        """Ask, reflect on what is answered wrongly, curate; ``ace.loops`` times, or until nothing is wrong or a round changes nothing."""
        reflector = Reflector(speaker, self.generator, self.config.reflections, self.refused)
        curator = Curator(speaker, self.generator.chooser, self.refused)
        able = False
        for loop in range(self.config.loops):
            answers = self._answered(self.asked, self.playbook)
            wrong = [(pair, answer) for pair, (answer, expected) in zip(self.asked, answers, strict=True) if not right(answer, expected)]
            kept, insights = self.kept, list[Insight]()
            for number, (pair, answer) in enumerate(wrong):
                self._say(f"reflecting, round {loop + 1} of {self.config.loops}", number, len(wrong))
                if insight := reflector.reflect(self._case(pair, answer), self.playbook):
                    self.playbook = self.playbook.tagged(self.lesson.document.id, insight.helpful, insight.harmful)
                    insights.append(insight)
                able = able or bool(insights)
                if not able and number + 1 >= TRIALS:
                    return
                if len(insights) == TOGETHER or (insights and number + 1 == len(wrong)):
                    self.propose(curator.patches(self.playbook, insights, self.lesson.document.title, self._supported))
                    insights = []
            if self.kept == kept:
                return

    def propose(self, patches: Sequence[Patch]) -> bool:
        """Keep patches together when the held-out questions are answered no worse with them than before; whether they were kept."""
        if not patches:
            return False
        candidate = self.playbook.apply(patches, self.lesson.document.id, self.lesson.document.title)
        found = self._held_right(candidate)
        if found < self.held_right:
            self.dropped += 1
            return False
        self.playbook, self.held_right = candidate, found
        self.kept += 1
        return True

    def store_sentences(self) -> None:
        """Take the document's own sentences in: all at once, or, where that makes held-out answers worse, passage by passage. Of more
        than the playbook holds, those go first that say the answer of no question."""
        title, most = self.lesson.document.title, self.config.strategies
        parts = [document_bullets(title, [passage]) for passage in self.lesson.passages]
        stating = Counter({text: sum(grounded(answer, text) for _, answer in self.asked) for part in parts for text in part})
        best = set(sorted(stating, key=lambda text: -stating[text])[:most])
        patches = [[Add(text=text) for text in part if text in best] for part in parts]
        self._say("taking its sentences in", 0, len(patches))
        if self.propose([patch for part in patches for patch in part]):
            return
        for number, part in enumerate(patches):
            self._say("checking sentences", number, len(patches))
            self.propose(part)

    def credit(self) -> int:
        """Ask all once more and vote by rule: a bullet that states the answer, seen where the answer is right, helped; bullets seen that
        do not state it where it is wrong now and was right before, harmed. How many are right."""
        helpful, harmful = list[str](), list[str]()
        answers = [right(*pair) for pair in self._answered(self.asked, self.playbook)]
        for (question, expected), now, before in zip(self.asked, answers, self.right_before, strict=True):
            seen = self.generator.sees(self.playbook, question).bullets
            helpful += [bullet.id for bullet in seen if now and grounded(expected, bullet.text)]
            harmful += [bullet.id for bullet in seen if before and not now and not grounded(expected, bullet.text)]
        self.playbook = self.playbook.tagged(self.lesson.document.id, helpful, harmful)
        return sum(answers)

    def _answered(self, pairs: Sequence[Pair], playbook: Playbook) -> list[Pair]:
        """(answer, what was expected) for pairs."""
        answers = self.generator.answers([question for question, _ in pairs], playbook)
        return [(answer, expected) for answer, (_, expected) in zip(answers, pairs, strict=True)]

    def _held_right(self, playbook: Playbook) -> int:
        return sum(right(*pair) for pair in self._answered(self.held, playbook))

    def _case(self, pair: Pair, answer: str) -> Case:
        """A question with the passage that says its answer; among several the one with most of the question's words."""
        question, expected = pair
        texts = [passage.text for passage in self.lesson.passages]
        words = set(normalise(question).split())
        stating = [text for text in texts if grounded(expected, text)] or texts
        passage = max(stating, key=lambda text: len(words & set(normalise(text).split())), default="")
        return Case(question, expected, answer, self.generator.sees(self.playbook, question), passage)

    def _say(self, doing: str, done: int, total: int) -> None:
        self._tell(doing, done, total, {"kept": self.kept, "dropped": self.dropped, "refused": self.refused.total()})
