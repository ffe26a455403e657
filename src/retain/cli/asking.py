"""`retain ask` and `retain chat`: answers, with the sources and adapters that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.adapters import weighed
from retain.cli.command import command, flag
from retain.cli.errors import CommandError

if TYPE_CHECKING:
    from retain.cli.session import Session
    from retain.workspace.reports import Answer

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens (default: generate.max_tokens).", metavar="N")]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="Randomness; 0 takes the most likely token (default: generate.temperature).", metavar="T")
]
NoRetrieval = Annotated[bool, flag("--no-retrieval", "Answer from what was learned, without passages in the prompt.")]
Sources = Annotated[bool, flag("--sources", "Show the passages that were used.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="Answer with this adapter instead of routing, NAME=0.5 with a weight; may be repeated.",
        metavar="NAME[=WEIGHT]",
    ),
]
Base = Annotated[bool, flag("--base", "Answer with the base model alone.")]
Learner = Annotated[str | None, typer.Option(help="Answer with what this learner made alone (see retain learn).", metavar="NAME")]
Model = Annotated[str | None, typer.Option(help="Base model: name, folder or GGUF file (default: model.name).", metavar="NAME")]
_HELP = "/sources shows the passages of the last answer, /clear starts afresh, /quit (or Ctrl-D) leaves"


@command(
    ('retain ask "Who approves travel above 500 euros?"', "ask what was learned"),
    ('retain ask "Who approves it?" --sources', "with the passages used"),
    ('retain ask "Who approves it?" --no-retrieval', "from the adapters alone"),
    ('retain ask "Who approves it?" --base', "from the model as it came"),
    ('retain ask "Who approves it?" --adapter rules=0.5', "half of one adapter"),
    ('retain ask "Who approves it?" --json', "for programs"),
)
def ask(
    here: Session,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    no_retrieval: NoRetrieval = False,
    adapter: Adapters = None,
    base: Base = False,
    learner: Learner = None,
    sources: Sources = False,
    model: Model = None,
) -> None:
    """Answer one question from what was learned.

    The answer goes to standard output; the line with its sources and adapters goes to standard error.
    """
    if not question.strip():
        raise CommandError('the question is empty: retain ask "..."')
    lm = here.open(model=model, create=True)
    options = {"max_tokens": max_tokens, "temperature": temperature, "retrieval": False if no_retrieval else None, "learner": learner}
    answer = answered(here, lm, question, adapters=by_name(adapter, base), **options)
    if here.json:
        here.emit(answer)
        return
    here.err.print(origin(answer), soft_wrap=True)
    if sources:
        show_sources(here, answer)


@command(
    ("retain chat", "talk to the model about what it learned"),
    ("retain chat --temperature 0.7", "less predictably"),
    ("retain chat --no-retrieval", "from the adapters alone"),
)
def chat(
    here: Session,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    no_retrieval: NoRetrieval = False,
    adapter: Adapters = None,
    base: Base = False,
    learner: Learner = None,
    model: Model = None,
) -> None:
    """Talk to the model about what it learned.

    It remembers the conversation until you leave.

    With --json every line of standard input is a question and every line of standard output an answer.
    """
    from retain.data import Message

    lm = here.open(model=model, create=True)
    history: list[Message] = []
    last: Answer | None = None
    if here.interactive:
        here.note(_HELP)
    while (question := read_line(here, "\nyou › ")) is not None:
        words = question.strip()
        if words in ("/quit", "/exit", "/q"):
            return
        if words == "/clear":
            history, last = [], None
            here.note("a new conversation")
        elif words == "/sources":
            show_sources(here, last) if last else here.note("there is no answer yet")
        elif words.startswith("/"):
            here.note(_HELP)
        elif words:
            options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "learner": learner}
            options["retrieval"] = False if no_retrieval else None
            try:
                last = answered(here, lm, words, history=tuple(history), adapters=by_name(adapter, base), **options)
            except KeyboardInterrupt:
                here.note("stopped; Ctrl-D leaves", "yellow")
                continue
            history += [Message("user", words), Message("assistant", last.text)]
            if here.json:
                import json

                from retain.cli.output import to_plain

                print(json.dumps(to_plain(last), ensure_ascii=False), flush=True)
            else:
                here.err.print(origin(last), soft_wrap=True)


def by_name(adapters: list[str] | None, base: bool) -> list[str | tuple[str, float]] | None:
    """The adapters asked for by name, or by name and weight; none at all for the base, None for routing."""
    if base and adapters:
        raise CommandError("--base answers without any adapter: leave out --adapter, or --base")
    return [] if base else [weighed(text) for text in adapters or ()] or None


def answered(here: Session, lm: Any, question: str, **options: Any) -> Answer:
    """Ask, showing the answer as it is written on a terminal and as a whole elsewhere (not at all with --json)."""
    if here.json:
        return lm.ask(question, **options)
    live = here.out.is_terminal
    written = False
    with here.waiting("thinking") as stop:

        def on_token(piece: str) -> None:
            nonlocal written
            stop()
            text = piece if written else piece.lstrip()
            written = written or bool(text)
            here.out.print(Text(text), end="", soft_wrap=True)

        answer: Answer = lm.ask(question, on_token=on_token if live else None, **options)
    if written:
        here.out.print()
    else:
        here.out.print(Text(answer.text.strip() or "(no answer)"), soft_wrap=True)
    return answer


def origin(answer: Answer) -> Text:
    """The dim line below an answer: sources, adapters, cost."""
    from retain.cli.output import count, duration, shorten

    titles = dict.fromkeys(source.title or source.document for source in answer.sources)
    parts = [
        "sources: " + (", ".join(shorten(title) for title in titles) if titles else "none"),
        "adapters: " + (", ".join(answer.adapters) if answer.adapters else "none"),
        f"{count(answer.tokens, 'token')} in {duration(answer.seconds)}",
    ]
    return Text(" · ".join(parts), style="dim")


def show_sources(here: Session, answer: Answer) -> None:
    """The passages that an answer was given from."""
    from retain.cli.output import shorten, table

    if not answer.sources:
        here.note("no passage was used")
        return
    rows = table("score", "document", "passage", right=("score",))
    rows.show_lines = False
    for source in answer.sources:
        rows.add_row(f"{source.score:.2f}", Text(source.title or source.document), Text(shorten(source.text, 400), style="dim"))
    here.out.print(rows)


def read_line(here: Session, prompt: str) -> str | None:
    """One line from a person or a pipe; None at its end (Ctrl-D) and at Ctrl-C."""
    from retain.cli.session import typed

    try:
        return typed(prompt if here.interactive else "")
    except (EOFError, KeyboardInterrupt):
        if here.interactive:
            here.err.print()
        return None
