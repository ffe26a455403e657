"""``retain demo``: the main job on real text, in a workspace that is thrown away: three documents, one after another, and the proof."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def run() -> None:
    """Teach three documents, ask about each before and after, show what was learned, what was kept and the certificate."""
    from retain.cli.certificates import certificate_panel
    from retain.data.answers import contains
    from retain.data.document import Document
    from retain.workspace.continual import ContinualLM

    console = Console(highlight=False)
    lessons = json.loads(files("retain.cli").joinpath("demo.json").read_text(encoding="utf-8"))
    general = ("What is the capital of France?", "Paris")
    with tempfile.TemporaryDirectory() as folder, ContinualLM.open(Path(folder) / "demo") as lm:
        console.print(f"[bold]The base model[/] {lm.model.name}, {lm.model_info()['parameters']:,} parameters: loading and asking it first")
        table = Table(title="Closed book: the document is not in the prompt", title_justify="left")
        for column in ("question", "before", "after", "at the end", "expected"):
            table.add_column(column, overflow="fold")
        asked = [(item["question"], item["answer"]) for lesson in lessons for item in lesson["questions"]] + [general]
        before = {question: _ask(lm, question) for question, _ in asked}
        base_before = before[general[0]]
        after: dict[str, str] = {}
        updates = []
        for number, lesson in enumerate(lessons, 1):
            console.print(f"[bold]{number}/3[/] learning {lesson['title']!r} ({len(lesson['text'].split())} words) ...")
            update = lm.learn(Document.from_text(lesson["text"], lesson["title"], source="demo"))
            updates.append(update)
            cost, learned = update.certificate["cost"], update.certificate["learned"]
            console.print(
                f"    {update.status} in {cost['seconds']:.0f} s; its held-out questions: "
                f"{learned.get('recall_before', 0):.0%} right before, {learned.get('recall_after', 0):.0%} after"
            )
            after |= {item["question"]: _ask(lm, item["question"]) for item in lesson["questions"]}
        end = {question: _ask(lm, question) for question, _ in asked}
        for question, answer in asked:
            marks = [_mark(text, answer, contains) for text in (before[question], after.get(question, ""), end[question])]
            table.add_row(question, *marks, answer)
        console.print(table)
        same = "identical to the base model's" if end[general[0]] == base_before else "CHANGED"
        console.print(f"General question, routed to the untouched base: its answer is {same}.")
        console.print(certificate_panel(updates[-1], {record.id: record.title for record in lm.documents()}))
        found = lm.verify()
        console.print(f"verify: {'every byte and hash is whole, the probes hold' if found.ok else '; '.join(found.problems)}")


def _ask(lm: Any, question: str) -> str:
    return str(lm.ask(question, retrieval=False, max_tokens=24).text).split("\n")[0]


def _mark(text: str, expected: str, contains: Any) -> str:
    if not text:
        return ""
    from rich.markup import escape

    colour = "green" if contains(text, (expected,)) else "red"
    return f"[{colour}]{escape(text[:70])}[/]"
