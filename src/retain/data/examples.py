"""Examples: tokens and which of them are learned. Masks go by position, never by the id of a padding token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retain.data.chat import Piece, Tokenizer, affixes, conversation_pieces, tokenise, user_turn
from retain.data.document import Message
from retain.data.errors import DataError

_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens to train on.

    Attributes:
        tokens: token ids.
        supervised: `supervised[t]` is True when token t is a target, to be predicted from those before it; `supervised[0]` is False.
        document: id of the document it was made from, or "".
        kind: "text", "dialogue", "question", or a name of the caller's.
        importance: from 0 to 1.
        soft: for each target in order, likely tokens with their probabilities by a teacher, which take their sum's share of the target's
            place in the loss (see :func:`retain.lm.products.token_loss`); () when there is no teacher.

    Raises:
        DataError: no tokens, lengths that differ, a supervised first token, or as many soft targets as there are not targets.
    """

    tokens: tuple[int, ...]
    supervised: tuple[bool, ...]
    document: str = ""
    kind: str = "text"
    importance: float = 0.5
    soft: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "supervised", tuple(self.supervised))
        if not self.tokens or len(self.tokens) != len(self.supervised):
            raise DataError(f"an example of {len(self.tokens)} tokens and {len(self.supervised)} marks")
        if self.supervised[0]:
            raise DataError("the first token of an example has nothing before it to be predicted from", field="supervised")
        if self.soft and len(self.soft) != self.n_supervised():
            raise DataError(f"{len(self.soft)} soft targets for {self.n_supervised()} targets", field="soft")

    def __len__(self) -> int:
        return len(self.tokens)

    def n_supervised(self) -> int:
        """How many tokens are targets."""
        return sum(self.supervised)


def text_example(
    tokenizer: Tokenizer,
    text: str,
    *,
    document: str = "",
    kind: str = "text",
    importance: float = 0.5,
    max_tokens: int | None = None,
    end: bool = True,
) -> Example:
    """A text to continue: every token but the first is a target.

    The tokenizer's own beginning (bos, where it has the habit) comes first. With `end` the text is complete and the end-of-text token
    comes last. Special tokens spelled out in the text stay letters.

    Raises:
        DataError: fewer than two tokens, or more than max_tokens (use `text_examples`).
    """
    found = text_examples(tokenizer, text, None, document=document, kind=kind, importance=importance, end=end)[0]
    if max_tokens is not None and len(found) > max_tokens:
        raise DataError(f"the text has {len(found)} tokens, the window {max_tokens}", fix="use text_examples, which splits it")
    return found


def text_examples(
    tokenizer: Tokenizer,
    text: str,
    max_tokens: int | None,
    *,
    overlap: int = 1,
    document: str = "",
    kind: str = "text",
    importance: float = 0.5,
    end: bool = True,
) -> list[Example]:
    """A text of any length as examples of at most `max_tokens` tokens; None: one example.

    Each example begins with the last `overlap` tokens of the one before, as context that is not learned again: over all the examples,
    every token of the text except the very first is a target exactly once.

    Raises:
        DataError: the text has fewer than two tokens, or the window leaves no room.
    """
    before, after = affixes(tokenizer)
    if not end:
        after = []
    elif not after and tokenizer.eos_token_id is not None:
        after = [int(tokenizer.eos_token_id)]
    body = tokenise(tokenizer, text, literal=True) + after
    if len(body) - len(after) == 0 or len(before) + len(body) < 2:
        raise DataError("the text is too short to learn from: it needs two tokens")
    window = len(before) + len(body) if max_tokens is None else max_tokens
    room = window - len(before)
    if overlap < 1 or room <= overlap:
        raise DataError(f"a window of {window} tokens has no room for new text beside an overlap of {overlap}", field="max_tokens")
    found = []
    start = learned = 0
    while learned < len(body):
        stop = min(start + room, len(body))
        tokens = before + body[start:stop]
        marks = [position > 0 and position - len(before) >= learned - start for position in range(len(tokens))]
        found.append(Example(tuple(tokens), tuple(marks), document, kind, importance))
        learned, start = stop, stop - overlap
    return found


def question_example(
    tokenizer: Tokenizer,
    question: str,
    answer: str,
    context: str | None = None,
    system: str | None = None,
    *,
    document: str = "",
    kind: str = "question",
    importance: float = 0.5,
    max_tokens: int | None = None,
) -> Example:
    """A question with its answer; only the answer and the token that ends the turn are targets.

    The tokens of `prompt_tokens` with the same arguments are its beginning. When it is longer than max_tokens, the context loses words
    at its end, never the question or the answer.

    Raises:
        DataError: question or answer is empty, or both together are longer than max_tokens.
    """
    if not question.strip() or not answer.strip():
        raise DataError("a question and an answer are needed", field="answer" if question.strip() else "question")

    def build(shortened: str | None) -> Example:
        turns = [*_system_turn(system), *user_turn(tokenizer, question, shortened), Message("assistant", answer)]
        return dialogue_example(tokenizer, turns, document=document, kind=kind, importance=importance)

    words = _WORD.findall(context or "")
    kept = _most_words(len(words), lambda count: max_tokens is None or len(build("".join(words[:count]))) <= max_tokens)
    if kept is None:
        size = len(build(None))
        raise DataError(f"question and answer have {size} tokens, the window {max_tokens}", field="question", fix="shorten them")
    return build("".join(words[:kept]))


def prompt_tokens(
    tokenizer: Tokenizer,
    question: str,
    context: str | None = None,
    system: str | None = None,
    history: Sequence[Message] = (),
    *,
    max_tokens: int | None = None,
) -> tuple[int, ...]:
    """The tokens that make the model answer a question; no system prompt is shown unless `system` is given.

    Args:
        tokenizer: a transformers tokenizer; without a chat template the form is "Question: ...", "Answer:".
        question: what is asked; never shortened.
        context: text that the question is about.
        system: system prompt.
        history: the turns before.
        max_tokens: when given, the context loses words at its end, then the oldest turns of the history go, until the prompt fits.

    Raises:
        DataError: the question is empty, or does not fit by itself.
    """
    if not question.strip():
        raise DataError("the question is empty", field="question")

    def build(shortened: str | None, past: Sequence[Message]) -> tuple[int, ...]:
        turns = [*_system_turn(system), *past, *user_turn(tokenizer, question, shortened)]
        return _tokens(tokenizer, conversation_pieces(tokenizer, turns))[0]

    def fits(count: int) -> bool:
        return max_tokens is None or len(build("".join(words[:count]), past)) <= max_tokens

    words = _WORD.findall(context or "")
    past = list(history)
    while (kept := _most_words(len(words), fits)) is None:
        if not past:
            raise DataError(f"the question has {len(build(None, ()))} tokens, the window {max_tokens}", field="question")
        past = past[_next_user(past) :]
    return build("".join(words[:kept]), past)


def dialogue_example(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    document: str = "",
    kind: str = "dialogue",
    importance: float = 0.5,
    max_tokens: int | None = None,
) -> Example:
    """A conversation; what the assistant says and the tokens that end its turns are targets. Turns after its last are left out.

    Raises:
        DataError: the assistant says nothing, the template refuses the order of turns, or more than max_tokens tokens.
    """
    spoken = [i for i, message in enumerate(messages) if message.role == "assistant" and message.content.strip()]
    if not spoken:
        raise DataError("the assistant says nothing in this conversation, so there is nothing to learn", field="messages")
    tokens, marks = _tokens(tokenizer, conversation_pieces(tokenizer, messages[: spoken[-1] + 1]))
    if max_tokens is not None and len(tokens) > max_tokens:
        raise DataError(
            f"the conversation has {len(tokens)} tokens, the window {max_tokens}", field="messages", fix="use dialogue_examples"
        )
    return Example(tokens, (False, *marks[1:]), document, kind, importance)


def dialogue_examples(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    max_tokens: int,
    *,
    document: str = "",
    kind: str = "dialogue",
    importance: float = 0.5,
) -> list[Example]:
    """A conversation of any length as examples of at most `max_tokens` tokens, cut before user turns; each has the system turn.

    Raises:
        DataError: one exchange alone is longer than max_tokens, or the assistant says nothing.
    """
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    found: list[Example] = []
    start = 0
    while start < len(turns) and any(message.role == "assistant" and message.content.strip() for message in turns[start:]):
        best: tuple[Example, int] | None = None
        stop = start
        while stop < len(turns):
            stop += _next_user(turns[stop:])
            piece = turns[start:stop]
            if not any(message.role == "assistant" and message.content.strip() for message in piece):
                continue
            example = dialogue_example(tokenizer, [*system, *piece], document=document, kind=kind, importance=importance)
            if len(example) > max_tokens:
                if best is None:
                    raise DataError(f"an exchange has {len(example)} tokens, the window {max_tokens}", field=f"messages[{start}]")
                break
            best = example, stop
        assert best is not None
        found.append(best[0])
        start = best[1]
    if not found:
        raise DataError("the assistant says nothing in this conversation, so there is nothing to learn", field="messages")
    return found


def _tokens(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The tokens of the pieces, each tokenised by itself, and which of them the assistant says."""
    tokens: list[int] = []
    marks: list[bool] = []
    if not getattr(tokenizer, "chat_template", None):
        tokens += affixes(tokenizer)[0]
        marks += [False] * len(tokens)
    for piece in pieces:
        found = tokenise(tokenizer, piece.text, literal=piece.literal)
        tokens += found
        marks += [piece.spoken] * len(found)
    return tuple(tokens), tuple(marks)


def _system_turn(system: str | None) -> list[Message]:
    return [Message("system", system)] if system and system.strip() else []


def _next_user(messages: Sequence[Message]) -> int:
    """Where the next exchange begins: the index of the first user turn after the first turn, or the number of turns."""
    return next((i for i, message in enumerate(messages) if i > 0 and message.role == "user"), len(messages))


def _most_words(count: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number of words, at most `count`, that fits; None when not even 0 does. Takes log2(count) trials."""
    if fits(count):
        return count
    if count == 0 or not fits(0):
        return None
    low, high = 0, count  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
