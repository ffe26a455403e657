"""Questions written by a language model: the prompt and completion format, a tolerant reader, and a strict filter.

The same format trains a question-writer adapter on a corpus (`writer_examples`) and asks it afterwards (`write_items`):

    Title: Brindlekit H2 Camp Stove
    Before: The Brindlekit H2 is a folding stove for two to three people.
    Sentence: Its body is pressed titanium and weighs 312 grams without the pouch.
    Q: How heavy is the Brindlekit H2 without its pouch?
    A: 312 grams
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator

from .blocks import Block, blocks
from .corpus import StudyPassage
from .items import StudyItem, grounded, normalise
from .questions import acceptable
from .words import STOP

Generate = Callable[[list[str], int, int], list[list[str]]]
"""generate(prompts, n, seed): n completions for every prompt."""

_PAIR = re.compile(r"\s*(?:Q\s*\d*\s*[:.)]\s*)?(?P<question>[^\n]+?)\s*(?:\n\s*)?\bA(?:nswer)?\s*\d*\s*:\s*(?P<answer>[^\n]+)")
_STOP_ANSWER = re.compile(r"\s*(?:\n|\bQ\s*\d*\s*:|<\||</s>|\bTitle:|\bSentence:|\bBefore:).*", re.DOTALL)


def writer_prompt(title: str, context: str, sentence: str) -> str:
    """What the model is given: the title, the sentence before (may be empty), the sentence, and the start of a question."""
    lines = [f"Title: {_line(title)}"]
    if context.strip():
        lines.append(f"Before: {_line(context)}")
    return "\n".join([*lines, f"Sentence: {_line(sentence)}", "Q:"])


def writer_completion(question: str, answer: str) -> str:
    """What the model should write after `writer_prompt`."""
    return f" {_line(question)}\nA: {_line(answer)}\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def parse_completion(completion: str) -> list[tuple[str, str]]:
    """Every (question, answer) of a completion, whether or not it repeats "Q:"; text without an answer gives nothing."""
    found = []
    for part in re.split(r"(?:^|\n|\s)Q\s*\d*\s*[:.)]\s*", completion):
        match = _PAIR.match(part)
        if match is None:
            continue
        question, answer = _line(match["question"]), _line(_STOP_ANSWER.sub("", match["answer"]))
        answer = answer.strip(" \"'“”").rstrip(".,;:") if not re.search(r"\b(?:Inc|Ltd|Mr|Dr)\.$", answer) else answer
        if question and answer:
            found.append((question, answer))
    return found


def _content(text: str) -> frozenset[str]:
    return frozenset(word for word in normalise(text).split() if word not in STOP)


def near_duplicate(one: str, other: str, threshold: float = 0.85) -> bool:
    """Whether two questions have nearly the same content words and the same question word."""
    left, right = _content(one), _content(other)
    if not left or not right:
        return normalise(one) == normalise(other)
    return len(left & right) / len(left | right) >= threshold and normalise(one).split()[:1] == normalise(other).split()[:1]


def usable_pair(question: str, answer: str, sentence: str, passage: str) -> bool:
    """Whether a written pair is worth training on: a real question, with a short answer found word for word in the text."""
    words = question.split()
    if not question.endswith("?") and not re.match(r"(?:Name|Tell|State|Say|Give|Give me|Describe|List)\b", question):
        return False
    if not 4 <= len(words) <= 30 or len(answer.split()) > 15 or not acceptable(question, answer, strict=False):
        return False
    if not (grounded(answer, sentence) or grounded(answer, passage)):
        return False
    return bool(_content(question) & _content(passage)) and normalise(question) != normalise(sentence)


def _sources(text: str) -> Iterator[tuple[str, Block]]:
    before = ""
    for block in blocks(text):
        yield before, block
        before = block.source


def write_items(generate: Generate, title: str, text: str, *, per_sentence: int = 4, seed: int = 0) -> list[StudyItem]:
    """Ask a model for questions about each sentence, keep those that pass the filter.

    The first question for an answer is a "question", each later one a "rewording" of it. Questions that nearly repeat an earlier one
    are dropped, whatever their answer: two answers to one question cannot both be learnt.
    """
    sources = [(before, block) for before, block in _sources(text) if len(block.source.split()) >= 3]
    if not sources or per_sentence < 1:
        return []
    prompts = [writer_prompt(title, before, block.source) for before, block in sources]
    answers = generate(prompts, per_sentence, seed)
    if len(answers) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts got {len(answers)} lists of completions")
    items: list[StudyItem] = []
    asked: list[str] = []
    facts: set[tuple[str, str]] = set()
    for (_, block), completions in zip(sources, answers, strict=True):
        for completion in completions:
            for question, answer in parse_completion(completion):
                if not usable_pair(question, answer, block.source, text) or any(near_duplicate(question, other) for other in asked):
                    continue
                source = block.source if grounded(answer, block.source) else _containing(answer, sources) or block.source
                known = (source, normalise(answer)) in facts
                facts.add((source, normalise(answer)))
                asked.append(question)
                items.append(StudyItem(question, answer, "rewording" if known else "question", source, answer))
    return items


def _containing(answer: str, sources: Iterable[tuple[str, Block]]) -> str | None:
    return next((block.source for _, block in sources if grounded(answer, block.source)), None)


def writer_examples(passages: Iterable[StudyPassage], *, seed: int = 0) -> list[tuple[str, str]]:
    """(prompt, completion) pairs that teach a model to write questions, both wordings of each, in shuffled order."""
    examples = []
    for passage in passages:
        sources = list(_sources(passage.text))
        for question in passage.questions:
            found = next(((b, s) for b, s in sources if normalise(s.source) == normalise(question.evidence)), None)
            found = found or next(((b, s) for b, s in sources if grounded(question.answer, s.source)), None)
            if found is None:
                continue
            prompt = writer_prompt(passage.title, found[0], found[1].source)
            examples += [
                (prompt, writer_completion(wording, question.answer)) for wording in (question.question, question.reworded) if wording
            ]
    random.Random(seed).shuffle(examples)
    return examples
