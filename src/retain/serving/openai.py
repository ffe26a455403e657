"""OpenAI's API: models, chat completions, completions, embeddings. Model names: "retain" routes each question to the documents that it
speaks of; the base's name answers without anything learned; an adapter's name answers with that one."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from retain.data.document import Message, well_formed
from retain.lm import batching
from retain.lm.generation import Sampling
from retain.serving.engine import Answering, Engine, Piece, request_of
from retain.serving.errors import ApiError, error_body
from retain.serving.models import ROUTED, Models
from retain.workspace.reports import Source

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_UNSUPPORTED = {"tools": "calling tools", "functions": "calling functions", "audio": "audio", "logit_bias": "a bias of logits",
                "presence_penalty": "penalties", "frequency_penalty": "penalties"}  # fmt: skip

COLDEST = 1e-4  # temperatures below are the likeliest token, as 0 is: logits divided by less have no numbers
NARROWEST = 1e-6  # the least top_p; it keeps one token
Temperature = Annotated[float | None, Field(ge=0, le=2)]
TopP = Annotated[float | None, Field(gt=0, le=1)]
Seed = Annotated[int | None, Field(ge=-(2**63), lt=2**63)]
Room = Annotated[int | None, Field(ge=1, le=1_000_000)]
Choices = Annotated[int | None, Field(ge=1, le=8)]
Stop = Annotated[str | list[Annotated[str, Field(min_length=1)]] | None, Field(max_length=64)]


class StreamOptions(BaseModel):
    """``include_usage``: a last piece with the number of tokens."""

    include_usage: bool = False


class Asking(BaseModel):
    """What both kinds of completions have. Other fields of OpenAI's are taken and do nothing, except those that would change the answer."""

    model_config = ConfigDict(extra="allow")

    model: str = ROUTED
    max_tokens: Room = None
    temperature: Temperature = None
    top_p: TopP = None
    n: Choices = 1
    stop: Stop = None
    seed: Seed = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    def sampling(self, default: Any, seed: int) -> Sampling:
        """As the engine takes it; ``default``: the configuration's section ``generate``."""
        for name, what in _UNSUPPORTED.items():
            if (self.model_extra or {}).get(name):
                raise ApiError(400, f"{name}: {what} cannot be had here", name)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        temperature = default.temperature if self.temperature is None else self.temperature
        return Sampling(
            self.room or default.max_tokens,
            temperature if temperature >= COLDEST else 0.0,
            max(default.top_p if self.top_p is None else self.top_p, NARROWEST),
            (seed if self.seed is None else self.seed) & (2**63 - 1),
            tuple(mark for mark in stop if mark),
        )

    @property
    def room(self) -> int | None:
        """Tokens that may be written."""
        return self.max_tokens


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    def message(self) -> Message:
        """As the model's chat template takes it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())
        return Message("system" if self.role == "developer" else self.role, well_formed(text))


class ChatAsking(Asking):
    """A conversation to go on with. ``retrieval`` is retain's own: passages of the documents in the prompt, or not."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Room = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    retrieval: bool | None = None

    @property
    def room(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TextAsking(Asking):
    """A text to go on with, as it is: no chat template."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None


class EmbeddingAsking(BaseModel):
    """Texts to be turned into vectors: the mean of the base's final hidden states, of length 1."""

    model_config = ConfigDict(extra="allow")

    model: str = ROUTED
    input: Annotated[str | list[str], Field(max_length=1_000_000)]
    encoding_format: Literal["float", "base64"] = "float"


@dataclass
class Choice:
    """One answer that is being written."""

    request: batching.Request
    pieces: asyncio.Queue[Piece]
    answering: Answering | None = None


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """What can be asked for."""
    known: Models = request.app.state.models
    return {"object": "list", "data": await run_in_threadpool(known.listed)}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    known: Models = request.app.state.models
    for item in await run_in_threadpool(known.listed):
        if item["id"] == name:
            return item
    raise ApiError(404, f"there is no model {name!r}", "model", "model_not_found")


@router.post("/chat/completions")
async def chat(asking: ChatAsking, request: Request) -> Any:
    """Answer the last message of a conversation."""
    engine: Engine = request.app.state.engine
    known: Models = request.app.state.models
    messages = [turn.message() for turn in asking.messages]
    if not messages[-1].content.strip():
        raise ApiError(400, "messages: the last message has no text", "messages")
    sampling = asking.sampling(engine.lm.config.generate, request.app.state.seed())
    if sampling.max_tokens >= engine.batch.capacity:
        raise ApiError(400, f"max_tokens: a conversation has {engine.batch.capacity} tokens at most, with its answer", "max_tokens")
    top = (asking.top_logprobs or 0) if asking.logprobs else None
    asked = await run_in_threadpool(known.prepare, asking.model, messages, sampling, asking.retrieval)
    choices = [Choice(request_of(asked, top, sampling.seed + number), asyncio.Queue()) for number in range(asking.n or 1)]
    facts = {"sources": [_source(source) for source in asked.sources], "adapters": [item.name for item in asked.decision.adapters]}
    answer = _Answer("chat.completion", asking.model, len(asked.prompt), facts, engine)
    if asking.stream:
        usage = asking.stream_options is not None and asking.stream_options.include_usage
        return StreamingResponse(answer.streamed(choices, usage), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await answer.whole(choices)


@router.post("/completions")
async def complete(asking: TextAsking, request: Request) -> Any:
    """Go on with a text."""
    engine: Engine = request.app.state.engine
    known: Models = request.app.state.models
    sampling = asking.sampling(engine.lm.config.generate, request.app.state.seed())
    prompts = _prompts(asking.prompt, engine)
    if len(prompts) * (asking.n or 1) > 32:
        raise ApiError(400, "prompt: at most 32 answers at a time", "prompt")
    choices = []
    for ids, text in prompts:
        active = await run_in_threadpool(known.active, asking.model, text)
        for number in range(asking.n or 1):
            own = Sampling(sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed + number, sampling.stop)
            choices.append(Choice(batching.Request(ids, own, active, None, asking.logprobs), asyncio.Queue()))
    answer = _Answer("text_completion", asking.model, sum(len(ids) for ids, _ in prompts), {}, engine)
    if asking.stream:
        usage = asking.stream_options is not None and asking.stream_options.include_usage
        return StreamingResponse(answer.streamed(choices, usage), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await answer.whole(choices)


@router.post("/embeddings")
async def embed(asking: EmbeddingAsking, request: Request) -> dict[str, Any]:
    """Vectors of texts."""
    engine: Engine = request.app.state.engine
    known: Models = request.app.state.models
    await run_in_threadpool(known.check, asking.model)
    texts = [asking.input] if isinstance(asking.input, str) else asking.input
    if not texts or len(texts) > 256 or any(not text for text in texts):
        raise ApiError(400, "input: between 1 and 256 texts, none of them empty", "input")
    vectors, tokens = await run_in_threadpool(engine.embed, [well_formed(text) for text in texts])
    coded: list[Any] = vectors
    if asking.encoding_format == "base64":
        coded = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(coded)]
    return {"object": "list", "data": data, "model": asking.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


class _Answer:
    """The choices of one request, whole or in pieces. ``kind``: "chat.completion" or "text_completion"."""

    def __init__(self, kind: str, model: str, prompt_tokens: int, facts: dict[str, Any], engine: Engine) -> None:
        self.kind, self.prompt_tokens, self.facts, self.engine = kind, prompt_tokens, facts, engine
        self.chat = kind == "chat.completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """One JSON value when all choices are done."""
        self._submit(choices)
        done, written = [], 0
        try:
            for number, choice in enumerate(choices):
                pieces = [await choice.pieces.get()]
                while pieces[-1].finish is None:
                    pieces.append(await choice.pieces.get())
                if pieces[-1].finish == "error":
                    raise ApiError(500, "this answer could not be written: try again")
                text, tokens = "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens]
                written += len(tokens)
                done.append(self._choice(number, text, tokens, pieces[-1].finish, choice.request.top is not None))
        finally:
            self._cancel(choices)
        extra = {"retain": self.facts} if self.facts else {}
        return {**self.head, "object": self.kind, "choices": done, "usage": self._usage(written), **extra}

    async def streamed(self, choices: Sequence[Choice], include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events. A client that goes away frees the slots."""
        self._submit(choices)
        written = 0
        try:
            for number, choice in enumerate(choices):  # one after another: every client reads that
                if self.chat:
                    yield self._event(number, {"role": "assistant", "content": ""}, None)
                while True:
                    piece = await choice.pieces.get()
                    written += len(piece.tokens)
                    if piece.finish == "error":
                        yield _sse(error_body(500, "this answer could not be written: try again"))
                        return
                    if piece.text or (piece.tokens and choice.request.top is not None):
                        yield self._event(number, {"content": piece.text}, None, piece.tokens if choice.request.top is not None else ())
                    if piece.finish is not None:
                        yield self._event(number, {}, piece.finish, last=number == len(choices) - 1)
                        break
            if include_usage:
                yield _sse({**self.head, "object": self._object, "choices": [], "usage": self._usage(written)})
            yield "data: [DONE]\n\n"
        finally:
            self._cancel(choices)

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _event(
        self, number: int, delta: dict[str, Any], finish: str | None, tokens: Sequence[batching.Written] = (), last: bool = False
    ) -> str:
        likelihoods = self._likelihoods(tokens) if tokens else None
        if self.chat:
            choice = {"index": number, "delta": delta, "logprobs": likelihoods, "finish_reason": finish}
        else:
            choice = {"index": number, "text": delta.get("content", ""), "logprobs": likelihoods, "finish_reason": finish}
        extra = {"retain": self.facts} if last and self.facts else {}
        return _sse({**self.head, "object": self._object, "choices": [choice], **extra})

    def _choice(self, number: int, text: str, tokens: Sequence[batching.Written], finish: str | None, likely: bool) -> dict[str, Any]:
        likelihoods = self._likelihoods(tokens) if likely else None
        body = {"message": {"role": "assistant", "content": text.strip()}} if self.chat else {"text": text}
        return {"index": number, **body, "logprobs": likelihoods, "finish_reason": finish}

    def _likelihoods(self, tokens: Sequence[batching.Written]) -> dict[str, Any]:
        def word(token: int) -> str:
            return str(self.engine.lm.model.tokenizer.decode([token]))

        if not self.chat:
            top = [{word(token): value for token, value in each.top} for each in tokens]
            likely = [each.log_likelihood for each in tokens]
            return {"tokens": [word(each.token) for each in tokens], "token_logprobs": likely, "top_logprobs": top, "text_offset": []}

        def entry(token: int, value: float | None) -> dict[str, Any]:
            return {"token": word(token), "logprob": value, "bytes": list(word(token).encode())}

        return {
            "content": [{**entry(each.token, each.log_likelihood), "top_logprobs": [entry(*pair) for pair in each.top]} for each in tokens]
        }

    def _usage(self, written: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": self.prompt_tokens + written}

    def _submit(self, choices: Sequence[Choice]) -> None:
        loop = asyncio.get_running_loop()
        try:
            for choice in choices:
                choice.answering = self.engine.submit(choice.request, _hearing(loop, choice.pieces))
        except BaseException:
            self._cancel(choices)
            raise

    def _cancel(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            if choice.answering is not None:
                self.engine.cancel(choice.answering)


def _hearing(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece]) -> Callable[[Piece], None]:
    """From the engine's thread into the loop's."""

    def hear(piece: Piece) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return hear


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _source(source: Source) -> dict[str, Any]:
    return {"document": source.document, "title": source.title, "text": source.text, "score": source.score}


def _prompts(prompt: str | list[int] | list[str] | list[list[int]], engine: Engine) -> list[tuple[list[int], str]]:
    """Token ids and text of each prompt."""
    tokenizer = engine.lm.model.tokenizer
    if isinstance(prompt, str):
        many: list[str | list[int]] = [prompt]
    elif prompt and all(isinstance(item, int) for item in prompt):
        many = [[int(item) for item in prompt if isinstance(item, int)]]
    else:
        many = [item for item in prompt if not isinstance(item, int)]
    if not many:
        raise ApiError(400, "prompt: nothing to go on with", "prompt")
    found = []
    for item in [well_formed(item) if isinstance(item, str) else item for item in many]:
        ids = tokenizer(item, add_special_tokens=True).input_ids if isinstance(item, str) else item
        if any(not 0 <= token < engine.lm.model.vocabulary for token in ids):
            raise ApiError(400, f"prompt: tokens are numbers from 0 to {engine.lm.model.vocabulary - 1}", "prompt")
        found.append((list(ids), item if isinstance(item, str) else str(tokenizer.decode(ids))))
    return found
