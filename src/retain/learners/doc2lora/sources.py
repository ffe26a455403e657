"""What a hypernetwork is trained and measured on: texts with questions, from JSON lines or made up.

A text is a document, or in text mode the description of a task; its questions are what an adapter made from it must answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from retain.data.document import normalise, well_formed
from retain.data.errors import DataError, did_you_mean
from retain.data.readers.plain import read_text
from retain.data.readers.records import parse_json
from retain.learners.doc2lora.hypernetwork import Mode

FIELDS: dict[Mode, str] = {"document": "document", "text": "description"}


class Asked(NamedTuple):
    """A question and its answer; None where the model's own answer, with the text before it, is to be learned."""

    question: str
    answer: str | None


@dataclass(frozen=True)
class Source:
    """A text and its questions. ``origin``: the file and line that it was met in first."""

    text: str
    questions: tuple[Asked, ...]
    origin: str = ""


class Fact(NamedTuple):
    """One thing that is said of a subject: the sentence, the wordings of its question, the answer."""

    sentence: str
    questions: tuple[str, ...]
    answer: str


World: TypeAlias = Callable[[random.Random], Sequence[Fact]]
"""The facts of a new subject."""


def read_sources(path: str | Path, mode: Mode = "document", answers: bool = True) -> list[Source]:
    """The texts of a file of JSON lines {"document", "question", "answer"}, or {"description", ...} in text mode; lines with the same text
    are one source. Without ``answers`` a line may lack its answer.

    Raises:
        DataError: with file, line and field.
    """
    place = Path(path).expanduser()
    found: dict[str, tuple[str, str, list[Asked]]] = {}
    for number, line in enumerate(read_text(place, lambda note: None).split("\n"), 1):
        if line.strip():
            text, asked = _record(parse_json(line, place, number), place, number, FIELDS[mode], answers)
            found.setdefault(normalise(text), (text, f"{place}, line {number}", []))[2].append(asked)
    if not found:
        raise DataError("holds no questions", path=place)
    return [Source(text, tuple(asked), origin) for text, origin, asked in found.values()]


def _record(record: Any, path: Path, line: int, field: str, answers: bool) -> tuple[str, Asked]:
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {type(record).__name__}", path=path, line=line)
    names = (field, "question", "answer")
    for name in record:
        if name not in names and (hint := did_you_mean(name, names)):  # other fields are the user's own
            raise DataError("unknown field", path=path, line=line, field=name, fix=hint)
    needed = names if answers or record.get("answer") is not None else names[:2]
    for name in needed:
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError("missing, empty or not text", path=path, line=line, field=name)
    answer = well_formed(record["answer"]).strip() if "answer" in needed else None
    return well_formed(record[field]).strip(), Asked(well_formed(record["question"]).strip(), answer)


def held_out(sources: Sequence[Source], share: float, seed: int) -> tuple[list[Source], list[Source]]:
    """The sources to train on and those held out, at least one of each; the same for the same seed whatever their order in the file.

    Raises:
        DataError: there are fewer than two.
    """
    if len(sources) < 2:
        raise DataError(f"{len(sources)} text cannot be divided into texts to train on and texts to measure on", fix="give more, or a file")
    mixed = sorted(sources, key=lambda source: random.Random(f"{seed}/{source.text}").random())
    count = min(max(1, round(share * len(mixed))), len(mixed) - 1)
    return mixed[count:], mixed[:count]


def invented_sources(world: World, count: int, seed: int) -> list[Source]:
    """Made-up documents about one subject each, all different, asked in every wording."""
    draw = random.Random(f"{seed}/documents")
    found: dict[str, Source] = {}
    for _ in range(20 * count):
        facts = world(draw)
        text = " ".join(fact.sentence for fact in facts)
        found.setdefault(text, Source(text, tuple(Asked(wording, fact.answer) for fact in facts for wording in fact.questions), "invented"))
        if len(found) == count:
            return list(found.values())
    raise DataError(f"the world has fewer than {count} different subjects")


@dataclass(frozen=True)
class Haystack:
    """A fact in the middle of sentences about other subjects; ``depth``: 0 at the beginning, 1 at the end."""

    text: str
    fact: Fact
    depth: float


def haystacks(world: World, size: Callable[[str], int], tokens: int, depths: Iterable[float], seed: int) -> list[Haystack]:
    """For every depth a text of about ``tokens`` tokens with one fact in it that is asked for, another one for each depth."""
    found = []
    for depth in depths:
        draw = random.Random(f"{seed}/needle/{depth}")
        needle = draw.choice(list(world(draw)))
        straw: list[str] = []
        while sum(map(size, straw)) < tokens - size(needle.sentence):
            straw += [fact.sentence for fact in world(draw) if fact.sentence != needle.sentence]
        place = round(depth * len(straw))
        found.append(Haystack(" ".join([*straw[:place], needle.sentence, *straw[place:]]), needle, depth))
    return found


def invented_subject(draw: random.Random) -> list[Fact]:
    """The built-in world: a person or a building with four facts out of six."""
    person = draw.random() < 0.5
    name = f"{draw.choice(_FIRST)} {draw.choice(_LAST)}" if person else f"the {draw.choice(_LAST)} {draw.choice(_KINDS)}"
    facts = []
    for sentence, questions, values in draw.sample(_PERSON if person else _PLACE, 4):
        answer = values(draw)
        texts = [text.format(s=name, a=answer) for text in (sentence, *questions)]
        first, *asked = (text[0].upper() + text[1:] for text in texts)
        facts.append(Fact(first, tuple(asked), answer))
    return facts


_FIRST = ("Anneke", "Bodil", "Ciro", "Dorrit", "Edvin", "Fenna", "Gisle", "Hedda", "Imre", "Jonna", "Kasper", "Liva", "Matteus", "Noor")
_LAST = (
    "Abelson", "Brockway", "Cardell", "Dunmore", "Ellwood", "Farrant", "Goswick", "Haldane", "Ingleby", "Jessop", "Kirkham", "Lathom",
    "Maddern", "Norwood", "Oakden", "Penrose", "Quayle", "Rainsford", "Stanhope", "Thorley", "Underhill", "Varley", "Whitcombe", "Yelland",
)  # fmt: skip
_KINDS = ("bridge", "museum", "tower", "mill", "library", "theatre")
_TOWNS = ("Aldmoor", "Bergholt", "Castrup", "Dornach", "Eskdale", "Fallow", "Grimsby", "Hartwell", "Istead", "Kelby", "Lunden", "Marsel")
_JOBS = ("baker", "weaver", "sailor", "miller", "tailor", "potter", "smith", "teacher", "printer", "gardener", "barber", "carpenter")
_ANIMALS = ("heron", "goat", "otter", "hound", "parrot", "tortoise", "pony", "ferret", "falcon", "hen", "donkey", "rabbit")
_COLOURS = ("blue", "green", "red", "yellow", "white", "black", "grey", "brown", "purple", "orange", "pink", "golden")

Values: TypeAlias = Callable[[random.Random], str]
_Relation: TypeAlias = tuple[str, tuple[str, ...], Values]


def _one_of(values: Sequence[str], form: str = "{}") -> Values:
    return lambda draw: form.format(draw.choice(values))


def _year(draw: random.Random) -> str:
    return str(draw.randrange(1850, 2000))


def _name(draw: random.Random) -> str:
    return f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"


def _time(draw: random.Random) -> str:
    return f"{draw.randint(10, 22)}:{draw.choice(('00', '30'))}"


_PERSON: tuple[_Relation, ...] = (
    ("{s} lives in {a}.", ("Where does {s} live?", "What is the home of {s}?"), _one_of(_TOWNS)),
    ("{s} works as {a}.", ("As what does {s} work?", "What is the job of {s}?"), _one_of(_JOBS, "a {}")),
    ("{s} was born in {a}.", ("In what year was {s} born?", "When was {s} born?"), _year),
    ("{s} keeps {a}.", ("What does {s} keep?", "Which animal does {s} own?"), _one_of(_ANIMALS, "a {}")),
    ("{s} likes the colour {a} best.", ("Which colour does {s} like best?", "What is the favourite colour of {s}?"), _one_of(_COLOURS)),
    ("{s} learned the trade from {a}.", ("Who taught {s} the trade?", "From whom did {s} learn the trade?"), _one_of(_FIRST)),
)
_PLACE: tuple[_Relation, ...] = (
    ("{s} was built by {a}.", ("Who built {s}?", "By whom was {s} built?"), _name),
    ("{s} is painted {a}.", ("What colour is {s}?", "In which colour is {s} painted?"), _one_of(_COLOURS)),
    ("{s} opened in {a}.", ("In what year did {s} open?", "When did {s} open?"), _year),
    ("{s} closes at {a}.", ("At what time does {s} close?", "When does {s} close?"), _time),
    ("{s} stands in {a}.", ("In which town does {s} stand?", "Where is {s}?"), _one_of(_TOWNS)),
    ("{s} is looked after by {a}.", ("Who looks after {s}?", "By whom is {s} looked after?"), _one_of(_JOBS, "a {}")),
)
