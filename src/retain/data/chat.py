"""Conversations as text: the tokenizer's chat template, without default system prompts, cut where the assistant speaks.

A conversation becomes pieces (text, spoken); `spoken` pieces are what the assistant says, with the token that ends its turn. The
pieces are tokenised one by one, so that a prompt's tokens are the same whether or not the answer follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from retain.data.document import Message
from retain.data.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer: TypeAlias = PreTrainedTokenizerBase
else:
    Tokenizer = Any

_MARK = "RETAIN7TURN{}MARK"  # stands for a turn's content while the template is rendered
_MARKS = re.compile(r"RETAIN7TURN(\d+)MARK")


class Piece(NamedTuple):
    """Part of a conversation's text. `spoken`: the assistant says it. `literal`: from the user, never a special token."""

    text: str
    spoken: bool = False
    literal: bool = False


def conversation_pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Piece]:
    """The pieces of a conversation.

    When the last turn is the assistant's, the pieces end with the token that ends its turn. Otherwise they end with the prompt that
    makes the assistant speak. No system turn is shown but the one in `messages`.

    Raises:
        DataError: the messages are empty, or the template does not accept this order of roles.
    """
    if not messages:
        raise DataError("a conversation without turns", field="messages")
    if messages[-1].role == "assistant" and not messages[-1].content.strip():
        raise DataError("the assistant's last turn is empty", field="messages")
    if getattr(tokenizer, "chat_template", None):
        return _template_pieces(tokenizer, list(messages))
    return _plain_pieces(tokenizer, messages)


def user_turn(tokenizer: Tokenizer, question: str, context: str | None) -> list[Message]:
    """The turn in which a question is asked, below the text that it is about, if any."""
    if not context or not context.strip():
        return [Message("user", question)]
    if getattr(tokenizer, "chat_template", None):
        return [Message("user", f"{context.strip()}\n\n{question}")]
    return [Message("system", context), Message("user", question)]


def tokenise(tokenizer: Tokenizer, text: str, *, literal: bool = False) -> list[int]:
    """The tokens of a text, nothing added around them. With `literal`, "<|im_end|>" in the text is letters, not a special token."""
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer itself puts before and after a text, for example [bos] and [] for Llama, [] and [] for GPT-2."""
    bare = tokenise(tokenizer, "a")
    full = [int(token) for token in tokenizer("a")["input_ids"]]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def _template_pieces(tokenizer: Tokenizer, messages: list[Message]) -> list[Piece]:
    if messages[-1].role != "assistant":
        return _cut(tokenizer, messages, _rendered(tokenizer, messages, speak=True))
    whole = _cut(tokenizer, messages, _rendered(tokenizer, messages, speak=False))
    last = max(i for i, piece in enumerate(whole) if piece.spoken and piece.literal)
    if len(messages) == 1:
        prompt = whole[:last]
    else:
        prompt = _cut(tokenizer, messages[:-1], _rendered(tokenizer, messages[:-1], speak=True))
    opening, written = prompt[-1].text if prompt else "", whole[last - 1].text if last else ""
    if len(written) > len(opening) and written.startswith(opening):  # the template writes more before an answer than it asks with
        lead = written[len(opening) :]
        prompt += [] if lead == " " and _adds_space(tokenizer) else [Piece(lead, spoken=True)]
    return prompt + whole[last:]


def _cut(tokenizer: Tokenizer, messages: Sequence[Message], rendered: str) -> list[Piece]:
    """Put the turns' contents back where their marks are, each a piece of its own."""
    parts = _MARKS.split(rendered)  # template text, number, template text, number, ... template text
    ends = "|".join(re.escape(token) for token in sorted(_special_tokens(tokenizer), key=len, reverse=True))
    pieces = [Piece(parts[0])]
    for at in range(1, len(parts), 2):
        message, text = messages[int(parts[at])], parts[at + 1]
        spoken = message.role == "assistant"
        pieces.append(Piece(message.content.strip(), spoken, literal=True))
        if spoken:
            end = re.match(rf"\s*({ends})", text) if ends else None
            final = at + 2 == len(parts) and messages[-1] is message
            token = end[1] if end else (tokenizer.eos_token or "") if final else ""
            pieces.append(Piece(token, spoken=True))
            text = "" if final else text[end.end() if end else 0 :]
        pieces.append(Piece(text))
    return [piece for piece in pieces if piece.text]


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message], *, speak: bool) -> str:
    """The conversation through the template, a mark in place of what the assistant says and of what looks like special tokens."""
    special = _special_tokens(tokenizer)
    turns = []
    for number, message in enumerate(messages):
        marked = message.role == "assistant" or any(token in message.content for token in special) or _MARKS.search(message.content)
        turns.append({"role": message.role, "content": _MARK.format(number) if marked else message.content})
    has_system = any(turn["role"] == "system" for turn in turns)
    try:
        text = _apply(tokenizer, turns, speak)
        if has_system and not all(turn["content"].strip() in text for turn in turns):
            text = _apply(tokenizer, _folded(turns), speak)  # some templates pass over the system turn
    except DataError:
        if not has_system:
            raise
        text = _apply(tokenizer, _folded(turns), speak)  # and some refuse it
    return text if has_system else _without_default_system(tokenizer, text)


def _apply(tokenizer: Tokenizer, turns: Sequence[dict[str, str]], speak: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=speak, enable_thinking=False))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(f"the model's chat template does not accept turns in the order {roles}: {error}", field="messages") from error


def _folded(turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with the system's words at the head of the first user turn."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    others = [dict(turn) for turn in turns if turn["role"] != "system"]
    first = next((turn for turn in others if turn["role"] == "user"), None)
    if first is not None:
        first["content"] = "\n\n".join([*system, first["content"]])
    return others


def _without_default_system(tokenizer: Tokenizer, text: str) -> str:
    """Take away the system turn that a template puts in by itself (SmolLM2, Qwen2.5, Llama 3.1), but no bos token."""
    user, answer, again = (_MARK.format(number) for number in (0, 1, 2))
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}, {"role": "user", "content": again}]
    try:
        tail = _apply(tokenizer, turns[:2], False).rpartition(answer)[2]
        between = _apply(tokenizer, turns, False).rpartition(answer)[2].partition(again)[0]
        before = _apply(tokenizer, turns[:1], False).partition(user)[0]
    except DataError:
        return text
    header = between.removeprefix(tail)  # what opens a user turn
    if not header or not before.endswith(header):
        return text
    injected = before[: len(before) - len(header)]
    words = injected
    for token in _special_tokens(tokenizer):
        words = words.replace(token, "")
    if not any(map(str.isalnum, words)) or not text.startswith(injected):
        return text
    bos = tokenizer.bos_token or ""
    keeps_bos = bos and injected.startswith(bos) and not header.startswith(bos)  # in ChatML "bos" may be what opens a turn
    return (bos if keeps_bos else "") + text[len(injected) :]


def _plain_pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Piece]:
    """For models without a chat template: "Question: ...", a new line, "Answer: ..." and the end-of-text token."""
    pieces: list[Piece] = []
    text = ""
    for message in messages:
        if message.role == "assistant":
            pieces.append(Piece(text + "Answer:", literal=True))
            pieces.append(Piece(("" if _adds_space(tokenizer) else " ") + message.content.strip(), spoken=True, literal=True))
            pieces.append(Piece(tokenizer.eos_token or "\n", spoken=True))
            text = "\n\n"
        else:
            text += f"Question: {message.content.strip()}\n" if message.role == "user" else f"{message.content.strip()}\n\n"
    if messages[-1].role != "assistant":
        pieces.append(Piece(text + "Answer:", literal=True))
    return pieces


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before a text by itself, as SentencePiece does."""
    return str(tokenizer.convert_ids_to_tokens(tokenise(tokenizer, "a")[:1])[0]).startswith("\u2581")


def _special_tokens(tokenizer: Tokenizer) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {str(token) for token in (*tokenizer.all_special_tokens, *(token.content for token in added if token.special)) if str(token)}
