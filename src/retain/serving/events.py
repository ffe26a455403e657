"""What the worker does, as it does it: it writes lines to a file in the workspace, the service reads them from there, so that either may
be started anew without the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from retain.workspace.continual import ContinualLM
from retain.workspace.reports import EVENTS, Event

router = APIRouter(prefix="/v1", tags=["retain"])
LARGEST = 1 << 20
EVERY = 0.25  # seconds between looks
QUIET = 15.0  # seconds after which a comment keeps the connection open


class EventFile:
    """Appends events to a workspace's file, the old half of which goes when it is too large. Never a document's text. Where it cannot be
    written (the disk is full), what it tells of goes on."""

    def __init__(self, root: Path) -> None:
        self.path = root / EVENTS
        self._last = ("", 0.0)

    def __call__(self, event: Event) -> None:
        """Write it; of steps that follow each other closely, a few."""
        now = time.time()
        if event.kind == "train" and self._last[0] == event.message and now - self._last[1] < EVERY and event.done < event.total:
            return
        self._last = (event.message, now)
        line = {"at": round(now, 3), "kind": event.kind, "message": event.message, "done": event.done, "total": event.total, **event.fields}
        with suppress(OSError):
            if self.path.exists() and self.path.stat().st_size > LARGEST:
                self.path.replace(self.path.with_suffix(".old"))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")


@router.get("/events", response_class=StreamingResponse)
async def events(request: Request, recent: Annotated[int, Query(ge=0, le=1000)] = 0) -> StreamingResponse:
    """Server-sent events: ``learning`` (what the worker does), ``state`` (waiting, updates, adapters) when it changes. ``recent``: how
    many of the latest lines about learning come first."""
    lm: ContinualLM = request.app.state.lm
    return StreamingResponse(_events(request, lm, recent), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(request: Request, lm: ContinualLM, recent: int) -> AsyncIterator[str]:
    path, told, spoke = lm.root / EVENTS, "", time.monotonic()
    lines, place = await run_in_threadpool(_new_lines, path, 0)
    for line in lines[len(lines) - min(recent, len(lines)) :]:
        yield f"event: learning\ndata: {line}\n\n"
    while not request.app.state.closing and not await request.is_disconnected():
        state = json.dumps(await run_in_threadpool(state_of, lm))
        if state != told:
            told, spoke = state, time.monotonic()
            yield f"event: state\ndata: {state}\n\n"
        lines, place = await run_in_threadpool(_new_lines, path, place)
        for line in lines:
            spoke = time.monotonic()
            yield f"event: learning\ndata: {line}\n\n"
        if time.monotonic() - spoke > QUIET:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(EVERY)


def state_of(lm: ContinualLM) -> dict[str, Any]:
    """What changes when something is learned."""
    arrivals = lm.ledger.arrival_counts()
    waiting = arrivals.get("pending", 0) + arrivals.get("learning", 0)
    return {
        "waiting": waiting, "arrivals": arrivals, "documents": lm.ledger.counts(), "head": lm.ledger.head(),
        "adapters": [item.name for item in lm.state.adapters],
    }  # fmt: skip


def _new_lines(path: Path, place: int) -> tuple[list[str], int]:
    """Whole lines after a place in the file, which may have begun anew."""
    try:
        if path.stat().st_size < place:
            place = 0
        with path.open("rb") as file:
            file.seek(place)
            data = file.read(LARGEST)
    except OSError:
        return [], place
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), place + len(whole)
