"""The application: OpenAI's API, documents and updates, events, metrics, and the page."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from retain import __version__
from retain.config.serving import ServeConfig
from retain.serving import documents, errors, events, openai
from retain.serving.engine import Engine
from retain.serving.journal import Follower, Journal, Journaled
from retain.serving.metrics import metrics_text
from retain.serving.models import Models
from retain.serving.security import Guard, read_tokens
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import GroupCommit

PAGE = Path(__file__).parent / "page"
UNDOING = 4  # reverts and the like that may wait for the learner at a time


class Page(StaticFiles):
    """The page's files. Their names have no version: a browser keeps them, and asks each time whether they are still right (304)."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


class LoadAdapter(BaseModel):
    """An adapter to be loaded, as vLLM's API has it."""

    lora_name: Annotated[str, Field(min_length=1, max_length=100)]
    lora_path: Annotated[str, Field(min_length=1, max_length=1000)]


class UnloadAdapter(BaseModel):
    """An adapter to be unloaded."""

    lora_name: Annotated[str, Field(min_length=1, max_length=100)]


def create_app(lm: ContinualLM, settings: ServeConfig, journal: Journal | None = None) -> FastAPI:
    """The application over a workspace that is open. It begins with an engine of its own and ends it. ``journal``: gets the lines about
    requests and what is learned; without one nothing is written."""
    journal = Journal() if journal is None else journal

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        engine = await run_in_threadpool(Engine, lm, settings.slots, settings.capacity, settings.eight_bits)
        app.state.engine, app.state.models = engine, Models(engine)
        app.state.inbox = GroupCommit(lm.ledger, settings.depth, settings.source_depth)
        app.state.undoing = CapacityLimiter(UNDOING)
        follower = Follower(lm.ledger, journal)
        yield
        follower.close()
        app.state.inbox.close()
        await run_in_threadpool(engine.close)

    app = FastAPI(title="retain", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    app.state.lm, app.state.seed, app.state.closing = lm, lambda: secrets.randbits(31), False
    app.state.fetch, app.state.end = settings.fetch, lambda: None
    errors.install(app)
    for router in (openai.router, documents.router, events.router):
        app.include_router(router)
    _own(app)
    page = Page(directory=PAGE)
    app.mount("/static", page, name="static")

    async def home(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    app.add_route("/", home, include_in_schema=False)
    tokens = read_tokens(settings.token_file) if settings.token_file else {}

    app.add_middleware(Guard, tokens=tokens, body=int(settings.body_megabytes * 2**20), rate=settings.requests_per_minute)
    words = {part for path in app.openapi()["paths"] for part in path.split("/")} | {file.name for file in PAGE.iterdir()}
    app.add_middleware(Journaled, journal=journal, words=frozenset(words | {"static", "openapi.json"}))
    return app


def _own(app: FastAPI) -> None:
    @app.get("/healthz", tags=["operation"])
    async def health() -> dict[str, Any]:
        """Whether it answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> PlainTextResponse:
        """Numbers for Prometheus."""
        return PlainTextResponse(await run_in_threadpool(metrics_text, request.app.state.engine), media_type="text/plain; version=0.0.4")

    @app.post("/v1/load_lora_adapter", tags=["retain"])
    async def load(asked: LoadAdapter, request: Request) -> dict[str, str]:
        """Make an adapter in peft's format known by a name, until the service ends."""
        known: Models = request.app.state.models
        await run_in_threadpool(known.load, asked.lora_name, asked.lora_path)
        return {"id": asked.lora_name, "status": "loaded"}

    @app.post("/v1/unload_lora_adapter", tags=["retain"])
    async def unload(asked: UnloadAdapter, request: Request) -> dict[str, str]:
        """Take the name away again."""
        known: Models = request.app.state.models
        await run_in_threadpool(known.unload, asked.lora_name)
        return {"id": asked.lora_name, "status": "unloaded"}
