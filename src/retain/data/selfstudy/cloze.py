"""Sentences with a gap, statements in other words, and passages: the parts of a study set that are not questions."""

import re

from .clauses import Clause
from .items import StudyItem, grounded, normalise
from .questions import dangling, shorten_names
from .subjects import Topic
from .tagging import capitalise, join

GAP = "____"


def blanked(sentence: str, answer: str) -> str | None:
    """The sentence with its one mention of the answer replaced by a gap, or None when it is not there exactly once."""
    pattern = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
    if not answer or len(pattern.findall(sentence)) != 1:
        return None
    return pattern.sub(GAP, sentence)


def cloze(statement: str, answer: str, topic: Topic) -> str | None:
    """A prompt to complete the statement where the answer is left out."""
    gapped = blanked(statement, answer)
    if gapped is None or len(gapped.split()) > 40 or len(normalise(gapped.replace(GAP, "")).split()) < 3:
        return None
    where = "" if topic.mentioned(gapped) or grounded(answer, topic.noun) else f" ({topic.noun})"
    return f"Complete{where}: {gapped}"


def stated(clause: Clause, topic: Topic, with_lead: bool = True) -> str | None:
    """The clause as a sentence of its own, naming the document's subject, or None when it would not stand alone."""
    if clause.subject[0].tag == "PRON" and clause.subject[0].low != "you":
        return None
    body = clause.text()
    if with_lead and clause.lead and clause.lead[0].tag in {"PREP", "ADV"}:
        body = f"{join(clause.lead)}, {body}"
    body = re.sub(r"\s+,", ",", body).strip(" ,;")
    body = re.sub(r",\s*,", ",", body)
    if dangling(body) or len(body.split()) < 4 or body.count('"') % 2:
        return None
    if not topic.mentioned(body):
        lead = f"At {topic.noun}, " if topic.kind == "body" else f"In the text about {topic.noun}, "
        body = lead + body
    return capitalise(shorten_names(body, topic)) + "."


def passages(topic: Topic, sentences: list[str], whole: str, size: int = 3, longest: int = 220) -> list[StudyItem]:
    """The text itself under its title: all of it, when short enough, and overlapping stretches of a few sentences."""
    items: list[StudyItem] = []
    texts: list[str] = []
    if len(whole.split()) <= longest:
        texts.append(whole.strip())
    step = max(1, size - 1)
    for start in range(0, max(1, len(sentences) - 1), step):
        texts.append(" ".join(sentences[start : start + size]))
    for text in dict.fromkeys(t for t in texts if t):
        items.append(StudyItem(None, f"{topic.title}\n\n{text}" if topic.title else text, "text", text, ""))
    return items
