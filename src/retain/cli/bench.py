"""`retain bench`: questions, multiple choice and perplexity, by the base and by what was learned, side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.asking import Adapters, Base, by_name
from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.evaluation.probes import Tell
    from retain.lm.model import LanguageModel
    from retain.workspace.asking import Wanted
    from retain.workspace.continual import ContinualLM
    from retain.workspace.knowledge import Decision

Seed = Annotated[int, typer.Option(help="Seed of what is drawn at random and of the intervals.", metavar="N")]
Model = Annotated[str | None, typer.Option(help="Measure this base model and no workspace: name, folder or GGUF file.", metavar="NAME")]
Out = Annotated[Path | None, typer.Option(help="Write everything, every item too, as JSON.", metavar="FILE", dir_okay=False)]
SCORES = ("auto", "letters", "options")
WINDOW = 512  # tokens in a passage of a text


@command(
    ("retain bench qa exam.jsonl", "base and learned, 50 questions"),
    ("retain bench qa dev-v1.1.json --limit 200", "a SQuAD file"),
    ("retain bench qa dev-v1.1.json --in-context", "with the passages shown"),
    ("retain bench qa exam.jsonl --retrieval", "as retain ask answers"),
    ("retain bench qa exam.jsonl --out result.json", "with every answer"),
)
def qa(
    here: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="SQuAD JSON, or JSON lines with question and answer.")],
    limit: Annotated[int, typer.Option(min=1, help="At most this many questions, spread over the documents.", metavar="N")] = 50,
    in_context: Annotated[bool, flag("--in-context", "Show the file's own passage with each question.")] = False,
    retrieval: Annotated[bool, flag("--retrieval", "Show the passages that were learned, where a question is routed to them.")] = False,
    adapter: Adapters = None,
    base: Base = False,
    model: Model = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Ask questions and compare the answers with the expected ones.

    Contains: the expected words are in the answer. EM: it is nothing else. F1: shared words. As SQuAD defines them; 95 % intervals.
    """
    if in_context and retrieval:
        raise CommandError("--in-context shows the file's passages, --retrieval those that were learned: choose one")
    writable(out)
    from retain.evaluation import load_items, passages, question_answering

    items = load_items(file.expanduser(), limit)
    if in_context:
        passages(items)  # a lack of them is told before the model is loaded
    language, lm, names = subject(here, adapter, base, model)
    arms: dict[str, Any] = {}
    with watched(here) as told:
        arms["base"] = question_answering(language, items, in_context=in_context, seed=seed, tell=told("base"))
        if lm is not None:
            arms["learned"] = lm.evaluate(
                items, retrieval=retrieval, adapters=names, in_context=in_context, seed=seed, tell=told("learned")
            )
    figures = ("contains", "em", "f1")
    facts = {"file": str(file), "n": len(items), "in_context": in_context, "retrieval": retrieval}
    result = summary(here, "qa", language, arms, figures, seed, facts)
    finish(here, result, out, [compared(result, dict(zip(figures, ("contains", "EM", "F1"), strict=True)))])


@command(
    ("retain bench mc exam.jsonl", "a file of your own"),
    ("retain bench mc mmlu:anatomy --data mmlu/ --shots 5", "a subject of MMLU"),
    ("retain bench mc mmlu --data mmlu/ --limit 500", "all 57, drawn"),
    ("retain bench mc task.json --score letters", "a BIG-bench task"),
    ("retain bench mc hub:allenai/ai2_arc:ARC-Easy", "from the hub"),
)
def mc(
    here: Session,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="JSON lines, MMLU's CSV, BIG-bench's JSON, mmlu:SUBJECT, hub:NAME.")],
    data: Annotated[Path | None, typer.Option(help="Folder with SUBJECT_test.csv and SUBJECT_dev.csv.", metavar="DIR")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Questions with answers shown before each.", metavar="K")] = 0,
    score: Annotated[str, typer.Option(help="What is scored: letters, options, or auto (letters for MMLU).", metavar="WAY")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions, drawn at random.", metavar="N")] = None,
    adapter: Adapters = None,
    base: Base = False,
    model: Model = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Multiple choice: the option that the model finds most likely is its answer.

    By letters, with MMLU's prompt and scoring; or by options, the mean likelihood of a token of each option as the answer.
    """
    if score not in SCORES:
        raise CommandError(f"--score {score}: it is one of {', '.join(SCORES)}")
    if data is not None and not source.startswith("mmlu"):
        raise CommandError("--data is where mmlu:SUBJECT finds its files: leave it out")
    writable(out)
    from retain.data.choices import draw, load_choices
    from retain.evaluation import choice_scores, grade_choices

    found = load_choices(source, data)
    choices = draw(found.items, limit, seed)
    shown = [found.shots(choice, shots) for choice in choices]
    way: Any = ("letters" if found.letters else "options") if score == "auto" else score
    language, lm, names = subject(here, adapter, base, model)
    arms: dict[str, Any] = {}
    with watched(here) as told:
        base_scores = choice_scores(language, choices, None, score=way, shots=shown, tell=told("base"))
        arms["base"] = grade_choices(choices, base_scores, seed)
        if lm is not None:
            decisions = decide(lm, ["\n".join([choice.question, *choice.options]) for choice in choices], names)
            scores = list(base_scores)
            routed = [choice for choice, decision in zip(choices, decisions, strict=True) if decision.adapters]
            tell = told("learned", sum(len(choice.options) for choice in routed))
            for injection, members in alike(lm, decisions):
                part, before = [choices[place] for place in members], [shown[place] for place in members]
                if injection is not None:  # the base has answered the others
                    values = choice_scores(language, part, injection, score=way, shots=before, tell=tell)
                    for place, value in zip(members, values, strict=True):
                        scores[place] = value
            arms["learned"] = {**grade_choices(choices, scores, seed), "routed": sum(bool(item.adapters) for item in decisions)}
    facts = {"source": source, "n": len(choices), "score": way, "shots": shots, "chance": arms["base"]["chance"]}
    result = summary(here, "mc", language, arms, ("accuracy",), seed, facts)
    finish(here, result, out, [compared(result, {"accuracy": f"accuracy by {way}"}), by_subject(arms)])


@command(
    ("retain bench perplexity notes.md", "with the KL to the base"),
    ("retain bench perplexity texts/ --limit 40", "40 passages"),
    ("retain bench perplexity notes.md --adapter notes", "with one adapter"),
)
def perplexity(
    here: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text or a folder of texts, as retain learn reads them.")],
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many passages, drawn at random.", metavar="N")] = None,
    adapter: Adapters = None,
    base: Base = False,
    model: Model = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """How well texts are predicted, and how far what was learned moves the predictions.

    Perplexity: exp of the mean negative log-likelihood of a token, in passages of 512 tokens, each routed by itself. KL: mean divergence
    of the base's predictions from those with adapters, in nats; 0 where the base answers.
    """
    writable(out)
    from retain.data import DataError, chunks, read_path
    from retain.data.chat import tokenise
    from retain.data.choices import draw
    from retain.evaluation import text_windows

    documents = list(read_path(file.expanduser(), on_note=lambda note: here.note(str(note))))
    language, lm, names = subject(here, adapter, base, model)
    size = min(WINDOW, language.context)

    def counted(text: str) -> int:
        return len(tokenise(language.tokenizer, text, literal=True))

    passages = [chunk.text for document in documents for chunk in chunks(document.text, counted, size - 1)]  # 1: the tokenizer's bos
    texts = draw(passages, limit, seed)
    arms: dict[str, Any] = {}
    with watched(here) as told:
        decisions = decide(lm, texts, names) if lm is not None else []
        groups = alike(lm, decisions) if lm is not None else [(None, list(range(len(texts))))]
        tell = told("base" if lm is None else "base and learned", len(texts))
        windows = [
            window
            for injection, members in groups
            for window in text_windows(language, [texts[place] for place in members], injection, size, tell)
        ]
    tokens = [window.tokens for window in windows]
    if not tokens:
        raise DataError("the text is too short to predict anything in it", path=file)
    arms["base"] = predicted([window.base for window in windows], [0.0] * len(tokens), tokens, seed)
    if lm is not None:
        arms["learned"] = predicted([window.adapted for window in windows], [window.kl for window in windows], tokens, seed)
        arms["learned"]["routed"] = sum(bool(item.adapters) for item in decisions)
    result = summary(here, "perplexity", language, arms, (), seed, {"file": str(file), "n": len(texts), "tokens": sum(tokens)})
    columns = {"perplexity": "perplexity", **({"kl": "KL to the base"} if lm is not None else {})}
    finish(here, result, out, [compared(result, columns)])


def predicted(losses: Sequence[float], divergences: Sequence[float], tokens: Sequence[int], seed: int) -> dict[str, Any]:
    """Perplexity and mean divergence of windows with these sums, with intervals over the windows."""
    import math

    from retain.evaluation import ratio_interval

    low, high = ratio_interval(losses, tokens, seed)
    count = sum(tokens)
    mean = math.fsum(losses) / count
    figures = {"perplexity": math.exp(mean) if mean < 700 else math.inf, "kl": max(math.fsum(divergences), 0.0) / count}
    intervals = {
        "perplexity": [math.exp(min(value, 700.0)) for value in (low, high)],
        "kl": list(ratio_interval(divergences, tokens, seed)),
    }
    windows = [
        {"tokens": n, "loss": loss / n, "kl": kl / n} for n, loss, kl in zip(tokens, losses, divergences, strict=True)
    ]  # fmt: skip
    return {"n": len(tokens), **figures, "intervals": intervals, "items": windows}


def subject(
    here: Session, adapter: list[str] | None, base: bool, name: str | None
) -> tuple[LanguageModel, ContinualLM | None, Wanted | None]:
    """What is measured: the model; the workspace, unless the base is to be measured alone; the adapters asked for, None for routing."""
    from retain.cli.session import is_workspace

    names = by_name(adapter, base)
    if name is not None and names:
        raise CommandError("--model measures a base model, --adapter what a workspace learned: leave one out")
    place, settings = here.config.workspace, here.config.model
    with here.waiting("loading the model"):
        if name is None and is_workspace(place):
            lm = here.open()
            if base:
                return lm.model, None, None
            if not lm.state.adapters:
                here.note("nothing was learned yet: the base alone is measured")
                return lm.model, None, None
            return lm.model, lm, names
        if names:
            raise CommandError(f"there is no workspace at {place}, and so no adapter {', '.join(adapter or ())}")
        if name is None and not base:
            here.note(f"there is no workspace at {place}: the base alone is measured")
        from retain.lm.loading import load_model

        where = {"device": settings.device, "precision": settings.precision}
        return load_model(name or settings.name, **where, cache_dir=settings.cache_dir, threads=settings.threads), None, None


def decide(lm: ContinualLM, prompts: Sequence[str], names: Wanted | None) -> list[Decision]:
    """The adapters that each prompt gets: those of the given names, or those that it is routed to."""
    from retain.workspace.asking import decided

    knowledge, state = lm.knowledge, lm.state
    return [decided(knowledge, state, prompt, names) for prompt in prompts]


def alike(lm: ContinualLM, decisions: Sequence[Decision]) -> list[tuple[Any, list[int]]]:
    """The prompts that get the same adapters: compiled once, with the prompts' numbers."""
    members: dict[Any, list[int]] = {}
    for place, decision in enumerate(decisions):
        members.setdefault((decision.key, bool(decision.documents)), []).append(place)
    return [(lm.knowledge.injection(decisions[places[0]], lm.state), places) for places in members.values()]


@contextlib.contextmanager
def watched(here: Session) -> Iterator[Callable[..., Tell]]:
    """Progress of the arms on standard error, with tokens a second and the time that is left: ``told("base")`` is what a measurement
    calls; ``told("learned", 12)`` for one that goes through 12 items in several groups."""
    from retain.cli.progress import watching
    from retain.workspace.reports import Event

    def told(arm: str, together: int | None = None) -> Tell:
        began, items, spent = time.perf_counter(), 0, 0

        def tell(done: int, members: int, tokens: int) -> None:
            nonlocal items, spent
            rate = (spent + tokens) / max(time.perf_counter() - began, 1e-9)
            if here.watcher is not None:
                here.watcher(Event("check", arm, items + done, together or members, {"tokens_per_second": rate}))
            if done == members:
                items, spent = items + done, spent + tokens

        return tell

    with watching(here):
        yield told


def summary(
    here: Session, kind: str, language: LanguageModel, arms: dict[str, Any], figures: Sequence[str], seed: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was found, as JSON: the arms, and what was learned less the base with intervals over the same items."""
    from retain.evaluation import bootstrap

    difference = {}
    if "learned" in arms:
        for name in figures:
            pairs = zip(arms["base"]["items"], arms["learned"]["items"], strict=True)
            found = bootstrap([float(after[name]) - float(before[name]) for before, after in pairs], seed)
            difference[name] = {"mean": found.mean, "low": found.low, "high": found.high}
        if not arms["learned"]["routed"]:
            here.note("nothing was routed to an adapter: the base answered everything")
    model = {"model": language.name, "fingerprint": language.fingerprint}
    return {"benchmark": kind, **facts, **model, "seed": seed, "arms": arms, "difference": difference}


def compared(result: dict[str, Any], columns: dict[str, str]) -> Any:
    """The arms below each other, each figure with its interval; then what was learned less the base."""
    from retain.cli.output import table

    rows = table("model", *columns.values(), right=columns.values())
    for arm, found in result["arms"].items():
        rows.add_row(arm, *(with_interval(name, found[name], *found["intervals"][name]) for name in columns))
    if result["difference"]:
        changes = {name: result["difference"][name] for name in columns}
        cells = [with_interval("difference", change["mean"], change["low"], change["high"]) for change in changes.values()]
        rows.add_row(Text("difference", style="dim"), *cells)
    return rows


def with_interval(name: str, *values: Any) -> str:
    """A figure with the ends of its interval, where it has one, in the form that it is shown in."""
    from retain.cli.output import DASH, number, percent, signed_percent

    shares = signed_percent if name == "difference" else percent
    digits = {"perplexity": 2, "kl": 4}.get(name)
    if digits is None:
        shown = [shares(value, places) for value, places in zip(values, (1, 0, 0), strict=True)]
    else:
        shown = [DASH if number(value) is None else f"{value:.{digits}f}" for value in values]
    low, high = (edge.removesuffix(" %") for edge in shown[1:])
    return shown[0] if DASH in (low, high) else f"{shown[0]} ({low} to {high})"


def by_subject(arms: dict[str, Any]) -> Any:
    """Accuracy of each subject; None when there is one subject or none."""
    from retain.cli.output import percent, table

    subjects = arms["base"]["subjects"]
    if len(subjects) < 2:
        return None
    rows = table("subject", "questions", "chance", *arms, right=("questions", "chance", *arms))
    for name, found in subjects.items():
        right = [percent(arm["subjects"][name]["accuracy"]) for arm in arms.values()]
        rows.add_row(name.replace("_", " "), str(found["n"]), percent(found["chance"]), *right)
    return rows


def writable(out: Path | None) -> None:
    """Refuse at once what would be refused after the work."""
    if out is not None and not out.expanduser().absolute().parent.is_dir():
        raise CommandError(f"--out {out}: there is no directory {out.parent}")


def finish(here: Session, result: dict[str, Any], out: Path | None, tables: Sequence[Any]) -> None:
    """Write the result, and show it."""
    from retain.cli.output import count, percent, to_json

    if out is not None:
        from retain.workspace.atomic import write_file

        write_file(out.expanduser().absolute(), (to_json(result) + "\n").encode())
        here.note(f"written to {out}")
    if here.json:
        here.emit(result)
        return
    for rows in tables:
        if rows is not None:
            here.out.print(rows)
    noun = {"qa": "question", "mc": "question", "perplexity": "passage"}[result["benchmark"]]
    parts = [count(result["n"], noun), result["model"]]
    parts += [f"chance {percent(result['chance'], 1)}"] if "chance" in result else []
    parts += [f"{result['shots']}-shot"] if result.get("shots") else []
    parts += [f"{result['arms']['learned']['routed']} routed to an adapter"] if "learned" in result["arms"] else []
    here.note("; ".join([*parts, "in brackets 95 % intervals"]))
    for arm, found in result["arms"].items():
        if found.get("note"):
            here.note(f"{arm}: {found['note']}", "yellow")
