"""Multiple-choice questions: from files and data sets, and the prompt in which a model answers with a letter.

Files: JSON lines (``question``, ``choices``, ``answer``, optionally ``subject``); MMLU's CSV (question, options, letter; no header);
BIG-bench's ``task.json`` (``target_scores`` with one best option, 2206.04615). The letter prompt is MMLU's (Hendrycks et al.
2009.03300) in the exact bytes of EleutherAI's lm-evaluation-harness, so that scores can be compared with published ones.
"""

from __future__ import annotations

import csv
import io
import random
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retain.data.chat import Tokenizer
from retain.data.document import well_formed
from retain.data.errors import DataError, Note, did_you_mean
from retain.data.examples import Example
from retain.data.readers.plain import read_text
from retain.data.readers.records import parse_json

LETTERS = string.ascii_uppercase
MMLU_SUBJECTS = tuple(
    re.findall(
        r"\w+",
        """abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry college_computer_science
    college_mathematics college_medicine college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry high_school_computer_science
    high_school_european_history high_school_geography high_school_government_and_politics high_school_macroeconomics
    high_school_mathematics high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence logical_fallacies
    machine_learning management marketing medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions""",
    )
)
_FIELDS = ("question", "choices", "answer", "subject")
_SPLIT = re.compile(r"(?P<name>.+)_(?P<split>test|val|dev)")
_DEV = ("dev", "validation", "train")  # where few-shot examples come from, the first that there is
_MMLU_HUB = "cais/mmlu"

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question; ``correct`` is the index of the right one of the ``options``; ``subject``: what it is about, or ""."""

    question: str
    options: tuple[str, ...]
    correct: int
    subject: str = ""

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not 0 <= self.correct < len(self.options):
            raise DataError(f"option {self.correct} of {len(self.options)} cannot be the right one of a choice")

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[self.correct]


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """Questions to ask (``items``), questions to show before them with their answers (``examples``), and whether the set is one that is
    answered with ``letters`` by custom."""

    name: str
    items: tuple[Choice, ...]
    examples: tuple[Choice, ...] = ()
    letters: bool = False

    def shots(self, choice: Choice, count: int) -> tuple[Choice, ...]:
        """The first ``count`` examples of the question's subject, the question itself left out. Raises DataError when there are fewer."""
        found = tuple(item for item in self.examples if item.subject == choice.subject and item != choice)[:count]
        if len(found) < count:
            about = f" about {choice.subject}" if choice.subject else ""
            fix = "put NAME_dev beside NAME_test, or ask for fewer shots"
            raise DataError(f"{self.name} has {len(found)} few-shot examples{about}, not {count}", field="shots", fix=fix)
        return found


def load_choices(source: str | Path, data: str | Path | None = None) -> ChoiceSet:
    """The questions of a file, of MMLU, or of a data set of the Hugging Face hub.

    source: a ``.csv``, ``.json`` or ``.jsonl`` file; "mmlu:SUBJECT" or "mmlu" for all 57 subjects; "hub:NAME", "hub:NAME:CONFIG" or
    "hub:NAME:CONFIG:SPLIT". data: folder with MMLU's ``SUBJECT_test.csv`` (or dev/, val/ and test/ with them); without it MMLU comes
    from the hub. Few-shot examples of a file NAME_test.* are those of NAME_dev.* beside it or in ../dev.

    Raises:
        DataError: with file, line and field where there is a mistake.
    """
    name = str(source)
    if (name == "mmlu" or name.startswith("mmlu:")) and not Path(name).exists():
        return _mmlu(name.partition(":")[2], data)
    if name.startswith("hub:"):
        return _hub(*name.split(":")[1:])
    path = Path(source).expanduser()
    beside = _partner(path, "dev")
    return ChoiceSet(path.name, tuple(read_choices(path)), tuple(read_choices(beside)) if beside else (), path.suffix.lower() == ".csv")


def read_choices(path: Path, subject: str | None = None) -> list[Choice]:
    """The questions of one file, in its order. Raises DataError."""
    text = read_text(path, _ignore)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        found = list(_csv(text, path, _named(path)[0] if subject is None else subject))
    elif suffix == ".json" and isinstance(value := parse_json(text, path, None), dict) and "question" not in value:
        found = list(_big_bench(value, path))
    elif suffix == ".json":
        records = value if isinstance(value, list) else [value]
        found = [parse_choice(record, path, field=f"[{number}].") for number, record in enumerate(records)]
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        found = [parse_choice(parse_json(line, path, number), path, number) for number, line in lines]
    if not found:
        raise DataError("holds no multiple-choice question", path=path)
    return found


def parse_choice(record: Any, path: str | Path, line: int | None = None, field: str = "") -> Choice:
    """A record {"question", "choices": [...], "answer", "subject"?}; the answer is an option's index from 0, its text, or its letter."""

    def wrong(what: str, name: str, fix: str = "") -> DataError:
        return DataError(what, path=path, line=line, field=(field + name).rstrip("."), fix=fix)

    if not isinstance(record, Mapping):
        raise wrong(f"expected a JSON object, found {type(record).__name__}", "")
    for name in _FIELDS[:3]:
        if record.get(name) in (None, "", []):
            near = next((key for key in record if key not in _FIELDS and did_you_mean(str(key), (name,))), "")
            raise wrong("missing or empty", name, f"there is '{near}'" if near else "")
    question, options, answer = (record[name] for name in _FIELDS[:3])
    if not isinstance(question, str) or not question.strip():
        raise wrong("not text", "question")
    if not isinstance(options, Sequence) or isinstance(options, str) or len(options) < 2:
        raise wrong("not a list of two options or more", "choices")
    if len(options) > len(LETTERS):
        raise wrong(f"{len(options)} options, at most {len(LETTERS)} have a letter", "choices")
    for number, option in enumerate(options):
        if not isinstance(option, str) or not option.strip():
            raise wrong("not text", f"choices[{number}]")
    subject = record.get("subject") or ""
    if not isinstance(subject, str):
        raise wrong("not text", "subject")
    place = _place(answer, options)
    if place is None:
        fix = f"an index from 0 to {len(options) - 1}, a letter A to {LETTERS[len(options) - 1]}, or the option's text"
        raise wrong(f"{answer!r} is no option", "answer", fix)
    return Choice(well_formed(question), tuple(map(well_formed, options)), place, well_formed(subject).strip())


def mmlu_subject(name: str) -> str:
    """A subject of MMLU by its name, spaces for underscores allowed. Raises DataError with the nearest name for an unknown one."""
    wanted = name.strip().lower().replace(" ", "_").replace("-", "_")
    if wanted not in MMLU_SUBJECTS:
        raise DataError(f"MMLU has no subject {name!r}", field="subject", fix=did_you_mean(wanted, MMLU_SUBJECTS) or "for example anatomy")
    return wanted


def draw(items: Sequence[Item], limit: int | None, seed: int = 0) -> tuple[Item, ...]:
    """At most ``limit`` of the items (None: all), drawn at random by ``seed``, in their order. Raises DataError for a limit below 1."""
    if limit is not None and limit < 1:
        raise DataError(f"a benchmark of {limit} questions", field="limit")
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[place] for place in sorted(random.Random(seed).sample(range(len(items)), limit)))


def letter_prompt(choice: Choice, examples: Sequence[Choice] = ()) -> str:
    """The prompt whose next word is the letter of an option: MMLU's as lm-evaluation-harness 0.4 writes it, byte for byte."""
    about = f" about {' '.join(choice.subject.replace('_', ' ').split())}" if choice.subject else ""
    shown = "".join(f"{_lettered(item)} {LETTERS[item.correct]}\n\n" for item in examples)
    return f"The following are multiple choice questions (with answers){about}.\n\n{shown}{_lettered(choice)}"


def letter_tokens(tokenizer: Tokenizer, choice: Choice, examples: Sequence[Choice] = ()) -> tuple[list[int], list[list[int]]]:
    """The tokens of the letter prompt, and those of each letter after it: prompt and letter are tokenised together and cut after the
    prompt's tokens, as the harness does."""
    prompt = letter_prompt(choice, examples)
    context = encode(tokenizer, prompt)
    letters = [encode(tokenizer, f"{prompt} {letter}")[len(context) :] for letter in LETTERS[: len(choice.options)]]
    if not all(letters):
        raise DataError("the model's tokenizer joins the prompt and the letter in one token", fix="score the options instead")
    return context, letters


def letter_example(tokenizer: Tokenizer, choice: Choice, examples: Sequence[Choice] = (), *, max_tokens: int | None = None) -> Example:
    """The letter prompt with the right letter, which alone is learned. Raises DataError for more than ``max_tokens`` tokens."""
    context, letters = letter_tokens(tokenizer, choice, examples)
    tokens = [*context, *letters[choice.correct]]
    if max_tokens is not None and len(tokens) > max_tokens:
        raise DataError(f"question and options have {len(tokens)} tokens, the window {max_tokens}", field="question", fix="shorten them")
    return Example(tuple(tokens), tuple(place >= len(context) for place in range(len(tokens))), kind="choice")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text as the tokenizer makes them by default, with its bos unless the text begins with one already."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begun = first is not None and text.startswith(str(tokenizer.decode([first])) or "\0")
    options = {"add_special_tokens": False} if begun else {}
    return [int(token) for token in tokenizer(text, verbose=False, **options)["input_ids"]]


def _lettered(choice: Choice) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, choice.options, strict=False))
    return f"{choice.question.strip()}{options}\nAnswer:"


def _place(answer: Any, options: Sequence[str]) -> int | None:
    """Which option an answer names: by index, by its text, or by its letter, in this order."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(options) else None
    if not isinstance(answer, str):
        return None
    if options.count(answer) == 1:
        return options.index(answer)
    letter = answer.strip().rstrip(".)").upper()
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < len(options) else None


def _csv(text: str, path: Path, subject: str) -> Iterator[Choice]:
    """MMLU's layout: question, options, the right one's letter. A line of column names is passed over."""
    reader = csv.reader(io.StringIO(text, newline=""))
    line = 1
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row) or (start == 1 and row[-1].strip().lower() == "answer"):
                continue
            if len(row) < 4:
                raise DataError(f"{len(row)} columns instead of question, options, answer", path=path, line=start)
            question, *options, answer = row
            place = LETTERS.find(answer.strip()) if len(answer.strip()) == 1 else -1
            if not 0 <= place < len(options):
                last = LETTERS[min(len(options), len(LETTERS)) - 1]
                raise DataError(f"{answer.strip()!r} is not one of the letters A to {last}", path=path, line=start, field="answer")
            if not question.strip():
                raise DataError("missing or empty", path=path, line=start, field="question")
            yield Choice(well_formed(question), tuple(map(well_formed, options)), place, subject)
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", path=path, line=reader.line_num) from error


def _big_bench(value: Mapping[str, Any], path: Path) -> Iterator[Choice]:
    examples = value.get("examples")
    if not isinstance(examples, list) or not examples:
        fix = "a BIG-bench task.json, a list of records, or JSON lines with question, choices, answer"
        raise DataError("missing or empty", path=path, field="examples", fix=fix)
    name = str(value.get("name") or path.parent.name)
    for number, item in enumerate(examples):
        field = f"examples[{number}]"
        scores = item.get("target_scores") if isinstance(item, Mapping) else None
        if not isinstance(scores, Mapping) or not all(isinstance(score, int | float) for score in scores.values()):
            raise DataError("missing, or not options with numbers", path=path, field=f"{field}.target_scores")
        best = [place for place, score in enumerate(scores.values()) if score == max(scores.values())]
        if len(best) != 1:
            fix = "only tasks with a single correct answer can be asked"
            raise DataError(f"{len(best)} options have the highest score", path=path, field=f"{field}.target_scores", fix=fix)
        yield parse_choice(
            {"question": item.get("input"), "choices": list(scores), "answer": best[0], "subject": name}, path, field=f"{field}."
        )


def _mmlu(wanted: str, data: str | Path | None) -> ChoiceSet:
    subjects = (mmlu_subject(wanted),) if wanted not in ("", "all") else MMLU_SUBJECTS
    name = f"mmlu:{subjects[0]}" if len(subjects) == 1 else "mmlu"
    items: list[Choice] = []
    examples: list[Choice] = []
    for subject in subjects:
        if data is None:
            found = _hub(_MMLU_HUB, subject, subject=subject, fix=f"--data DIR names a folder with {subject}_test.csv")
            items, examples = items + list(found.items), examples + list(found.examples)
            continue
        path = find_mmlu(data, subject, "test")
        if path is None:
            raise DataError(f"holds no {subject}_test.csv", path=data, fix="the folder of MMLU's data, with dev, val and test")
        items += read_choices(path, subject)
        dev = find_mmlu(data, subject, "dev")
        examples += read_choices(dev, subject) if dev else []
    return ChoiceSet(name, tuple(items), tuple(examples), letters=True)


def find_mmlu(data: str | Path, subject: str, split: str) -> Path | None:
    """The file of a subject and split (test, val, dev) in a folder of MMLU's data."""
    folder = Path(data).expanduser()
    name = f"{subject}_{split}.csv"
    places = (folder / name, folder / split / name, folder / "data" / name, folder / "data" / split / name)
    return next((path for path in places if path.is_file()), None)


def _named(path: Path) -> tuple[str, str]:
    """Subject and split of a file NAME_test.csv; the whole name and "" for another."""
    found = _SPLIT.fullmatch(path.stem)
    return (found["name"], found["split"]) if found else (path.stem, "")


def _partner(path: Path, split: str) -> Path | None:
    """The file of another split of the same data: beside a file, or in a folder of that split beside the file's."""
    name, own = _named(path)
    if not own or own == split:
        return None
    wanted = f"{name}_{split}{path.suffix}"
    return next((place for place in (path.with_name(wanted), path.parent.parent / split / wanted) if place.is_file()), None)


def _hub(name: str, config: str = "", split: str = "", subject: str | None = None, fix: str = "") -> ChoiceSet:
    """A data set of the Hugging Face hub: its test split, or the validation split where there is no test."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: the library 'datasets' is missing", fix=fix or "pip install datasets, or give a file") from error
    try:
        found: Any = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises whatever the network and the hub's scripts raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"the data set {name} cannot be had from the hub: {reason}", fix=fix or "give a file instead") from error
    chosen = split or next((key for key in ("test", "validation", "train") if key in found), "")
    if chosen not in found:
        raise DataError(f"the data set {name} has no split {chosen!r}", field="split", fix=f"splits: {', '.join(found)}")
    shown = next((key for key in _DEV if key in found and key != chosen), "")
    place = f"hub:{name}"
    items = _hub_items(found[chosen], f"{place}, split {chosen}", subject)
    examples = _hub_items(found[shown].select(range(min(32, len(found[shown])))), f"{place}, split {shown}", subject) if shown else ()
    return ChoiceSet(f"{place}:{config}" if config else place, tuple(items), tuple(examples), letters=name.endswith("mmlu"))


def _hub_items(rows: Iterable[Any], place: str, subject: str | None) -> list[Choice]:
    """Rows in the usual columns: question, choices (a list, or ARC's text and label), answer or answerKey."""
    found = []
    for number, row in enumerate(rows, 1):
        record = dict(row)
        options, answer = record.get("choices"), record.get("answer", record.get("answerKey"))
        if isinstance(options, Mapping) and {"text", "label"} <= options.keys():
            labels = list(options["label"])
            options, answer = list(options["text"]), labels.index(answer) if answer in labels else answer
        about = record.get("subject") or "" if subject is None else subject
        found.append(
            parse_choice({"question": record.get("question"), "choices": options, "answer": answer, "subject": about}, place, number)
        )
    return found


def _ignore(note: Note) -> None:
    """Repaired encodings are not told here."""
