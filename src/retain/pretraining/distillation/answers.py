"""Answers of a teacher behind an OpenAI-compatible API: asked prompt by prompt, kept as they come, filtered into training data.

    answers.jsonl     one answer a line: {"prompt", "answer"}; what is here is never asked again
    filtered.jsonl    the answers that were left out, and why
    data.jsonl        the others as {"prompt", "completion"}: what a student learns from, and every tool that reads JSON lines

An answer is data and never an order: nothing that comes back is acted on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from retain.data import DataError, NearDuplicateIndex, QualityRules, quality_problem
from retain.data.document import well_formed
from retain.data.endpoint import ChatAPI, Client
from retain.pretraining.config import FilterConfig, TeacherSource
from retain.pretraining.durable import Lines, write_lines
from retain.pretraining.errors import PretrainingError

GIVE_UP = 3  # requests that failed one after another
ANSWERS, DATA, FILTERED = "answers.jsonl", "data.jsonl", "filtered.jsonl"
_REFUSAL = re.compile(
    r"""(?ix) ^\W* (?: (?:i['’]?\s?a?m|we['’]?\s?a?re) \s (?:very \s|really \s)? sorry \b | sorry, | (?:unfortunately, \s)? (?:i|we) \s
    (?:can(?:['’]t|not|\s not) | am \s (?:not \s able|unable) | won['’]t | will \s not | do \s? n(?:['’]|o)t \s (?:feel|have \s access))
    | as \s an? \s (?:ai|artificial|language \s model|large \s language) | i \s (?:must|have \s to) \s (?:decline|refuse) )"""
)
_RULES = QualityRules(min_letters=1, min_letter_share=0.2)  # short answers are welcome, rubbish is not


def read_prompts(path: str | None) -> list[str]:
    """The prompts of a text file, one a line, or of JSON lines with a field ``prompt``; each once. Raises DataError with file and line."""
    if not path:
        raise PretrainingError("corpus.prompts: names no file: a teacher behind an API needs prompts to answer")
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=file) from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", path=file) from error
    records = file.suffix in (".jsonl", ".ndjson")
    found = [_prompt(line, file, number) if records else line.strip() for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError("holds no prompts", path=file)
    return list(dict.fromkeys(map(well_formed, found)))


def _prompt(line: str, file: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=file, line=number) from error
    value = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError("expected text", path=file, line=number, field="prompt")
    return value.strip()


def ask(config: TeacherSource, prompts: Sequence[str], place: Path, tell: Callable[[int], None]) -> int:
    """Have every prompt answered that is not yet in ``place``/answers.jsonl; how many were not.

    An answer is on the disk before the next prompt is asked (with ``parallel`` requests, before that many more). A prompt whose request
    fails for good is left for the next time; after three failures in a row PretrainingError is raised with the last one's reason. ``tell``
    gets how many are answered.
    """
    api = ChatAPI(config, Client("teacher", "the teacher", PretrainingError))
    kept = Lines(place / ANSWERS)
    known = {record["prompt"] for record in kept.read()}
    left = [prompt for prompt in prompts if prompt not in known]
    answered, failed = len(prompts) - len(left), 0
    in_a_row: list[PretrainingError] = []
    tell(answered)
    with ThreadPoolExecutor(config.parallel) as pool:
        for first in range(0, len(left), config.parallel):
            asked = left[first : first + config.parallel]
            under_way: list[Future[str]] = [pool.submit(api.complete, config.instructions, prompt) for prompt in asked]
            for prompt, future in zip(asked, under_way, strict=True):
                try:
                    answer = future.result()
                except PretrainingError as error:
                    failed += 1
                    in_a_row.append(error)
                    continue
                in_a_row.clear()
                kept.append({"prompt": prompt, "answer": well_formed(answer)}, durable=True)
                answered += 1
                tell(answered)
            if len(in_a_row) >= GIVE_UP:
                raise in_a_row[-1]
    return failed


def filter_answers(config: FilterConfig, prompts: Sequence[str], place: Path) -> Counter[str]:
    """Write data.jsonl and filtered.jsonl from the answers to ``prompts``; how many were "kept" and how many left out for which reason."""
    answers = {record["prompt"]: record["answer"] for record in Lines(place / ANSWERS).read()}
    index = NearDuplicateIndex(config.near_duplicate) if config.near_duplicate else None
    counts: Counter[str] = Counter()
    kept: list[dict[str, str]] = []
    dropped: list[dict[str, str]] = []
    for prompt in prompts:
        if prompt not in answers:
            continue
        answer = answers[prompt].strip()
        reason = answer_problem(prompt, answer, config)
        both = f"{prompt}\n{answer}"
        if not reason and index is not None and index.find(both):
            reason = "near-duplicate"
        if reason:
            dropped.append({"prompt": prompt, "answer": answer, "reason": reason})
            counts[reason.partition(":")[0]] += 1
            continue
        if index is not None:
            index.add(str(len(kept)), both)
        kept.append({"prompt": prompt, "completion": answer})
    counts["kept"] = len(kept)
    write_lines(place / FILTERED, dropped)
    write_lines(place / DATA, kept)
    return counts


def answer_problem(prompt: str, answer: str, config: FilterConfig) -> str:
    """Why an answer is no training data; "" when it is: empty, a refusal, the prompt again, too long, repetitive, rubbish."""
    if not answer:
        return "empty"
    if _REFUSAL.match(answer):
        return "refusal"
    if _plain(answer) == _plain(prompt):
        return "repeats the prompt"
    words = len(answer.split())
    if words > config.max_words:
        return f"too long: {words} words"
    return quality_problem(answer, _RULES) or ""


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
