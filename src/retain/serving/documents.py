"""Documents that are sent, and what became of them; updates, and undoing them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from retain.data.document import check_metadata
from retain.data.fetch import check_url
from retain.serving.errors import ApiError
from retain.workspace.continual import ContinualLM
from retain.workspace.errors import Conflict, Locked
from retain.workspace.inbox import Arrival, ArrivalRecord, GroupCommit
from retain.workspace.records import DocumentRecord
from retain.workspace.reports import Update

router = APIRouter(prefix="/v1", tags=["retain"])
Key = Annotated[str, Path(min_length=2, max_length=64)]
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(min_length=2, max_length=64)]
PATIENCE = 600.0  # seconds that undoing waits for what is being learned
T = TypeVar("T")


class Sent(BaseModel):
    """A text to be learned."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1)]
    title: Annotated[str, Field(max_length=200)] = ""
    source: Annotated[str, Field(max_length=500)] = ""
    domain: str = "general"
    importance: Annotated[float, Field(ge=0, le=1)] = 0.5

    def arrival(self) -> Arrival:
        """As the inbox takes it."""
        check_metadata(self.domain, self.importance)
        body = self.text.encode("utf-8", "replace")
        if not self.text.strip():
            raise ApiError(400, "text: there is no text in it", "text")
        return Arrival(body, "text", self.title, self.source, self.domain, self.importance)


class SentAddress(BaseModel):
    """A web address whose document is to be learned; only where serve.fetch allows it."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(min_length=8, max_length=2000)]
    domain: str = "general"
    importance: Annotated[float, Field(ge=0, le=1)] = 0.5

    def arrival(self) -> Arrival:
        """As the inbox takes it. It is fetched when its turn to be learned comes."""
        check_metadata(self.domain, self.importance)
        check_url(self.url)
        return Arrival(self.url.encode(), "url", self.url[:200], self.url[:500], self.domain, self.importance)


class Several(BaseModel):
    """Many texts at once; all of them are taken, or none."""

    model_config = ConfigDict(extra="forbid")

    documents: Annotated[list[Sent], Field(min_length=1, max_length=10_000)]


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [Sent.model_json_schema(), SentAddress.model_json_schema(), {"$ref": "#/components/schemas/Several"}]
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object", "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"}, "domain": {"type": "string"}, "importance": {"type": "number"},
                        "source": {"type": "string", "maxLength": 500},
                    },
                }
            },
        },
    }
}  # fmt: skip


@router.post("/documents", status_code=202, openapi_extra=_BODY)
async def send(request: Request) -> dict[str, Any]:
    """Hand in a text ({"text": ...}), many ({"documents": [...]}), a web address ({"url": ...}) or a file (multipart).

    Done when it is safe on the disk: it is learned later, once, whatever happens to this process.
    """
    inbox: GroupCommit = request.app.state.inbox
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    arrivals = await (_uploaded(request) if kind == "multipart/form-data" else _texts(request))
    receipts = await asyncio.wrap_future(inbox.hand_in(arrivals))
    found = [{"id": key, "status": "pending"} for key, _ in receipts]
    request.state.journal |= {"arrival": receipts[0][0]} if len(receipts) == 1 else {"arrivals": len(receipts)}
    known = [key for key, new in receipts if not new]
    if known:
        lm: ContinualLM = request.app.state.lm
        there = {item["id"]: item for item in await run_in_threadpool(lambda: _arrivals(lm, lm.ledger.arrivals(limit=-1, ids=known)))}
        found = [there.get(item["id"], item) for item in found]
    return found[0] if len(found) == 1 else {"documents": found}


async def _texts(request: Request) -> list[Arrival]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not JSON") from error
    try:
        if isinstance(body, dict) and "url" in body:
            if not request.app.state.fetch:
                raise ApiError(403, "url: web addresses are not fetched here (serve.fetch)", "url")
            return [SentAddress.model_validate(body).arrival()]
        many = Several.model_validate(body).documents if isinstance(body, dict) and "documents" in body else [Sent.model_validate(body)]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where}: {first['msg']}" if where else first["msg"], where or None) from error
    return [sent.arrival() for sent in many]


async def _uploaded(request: Request) -> list[Arrival]:
    try:
        form = await request.form(max_files=100, max_fields=10)
    except (KeyError, ValueError) as error:
        raise ApiError(400, "the form cannot be read") from error
    domain, importance, source = form.get("domain", "general"), form.get("importance", "0.5"), form.get("source", "")
    try:
        number = float(importance) if isinstance(importance, str) else -1.0
    except ValueError:
        number = -1.0
    check_metadata(domain if isinstance(domain, str) else "", number)
    if not isinstance(source, str) or len(source) > 500:
        raise ApiError(400, "source: a text of at most 500 characters", "source")
    found = []
    for name, item in form.multi_items():
        if isinstance(item, UploadFile):
            file = (item.filename or "").replace("\\", "/").rpartition("/")[2][:200]
            body = await item.read()
            if not file or not body:
                raise ApiError(400, f"{name}: a file has a name and is not empty", name)
            found.append(Arrival(body, "file", file, source or file, str(domain), number))
    if not found:
        raise ApiError(400, "file: no file was sent", "file")
    return found


@router.get("/documents")
async def listed(request: Request, limit: Limit = 100, after: After = None) -> dict[str, Any]:
    """What was sent, the latest first, and what is learned: of each at most ``limit``, and whether there is more.

    With ``after``, the id of the last one of a list, that list goes on; the other is empty. ``sources``: of which most is waiting.
    """
    lm: ContinualLM = request.app.state.lm
    sent, learned = (after or "a").startswith("a"), (after or "d").startswith("d")
    if not sent and not learned:
        raise ApiError(400, "after: the id of something that was sent (a...) or of a document (d...)", "after")

    def both() -> dict[str, Any]:
        arrivals = _arrivals(lm, lm.ledger.arrivals(limit=limit + 1, after=after)) if sent else []
        records = lm.ledger.latest_documents(limit + 1, after) if learned else []
        return {
            "arrivals": arrivals[:limit], "documents": [_document(record) for record in records[:limit]],
            "has_more": {"arrivals": len(arrivals) > limit, "documents": len(records) > limit},
            "waiting": lm.ledger.waiting(), "sources": lm.ledger.waiting_by_source(),
        }  # fmt: skip

    return await run_in_threadpool(both)


@router.get("/documents/{key}")
async def status(key: Key, request: Request) -> dict[str, Any]:
    """What became of something that was sent (its id begins with a) or of a document (d)."""
    return await run_in_threadpool(_status, request.app.state.lm, key)


@router.delete("/documents/{key}")
async def forget(key: Key, request: Request, drop_checkpoints: bool = False) -> dict[str, Any]:
    """Forget a document for good, or everything that something sent became; what is not learned yet is thrown away."""
    lm: ContinualLM = request.app.state.lm

    def run() -> dict[str, Any]:
        keys, dropped = [key], False
        if key.startswith("a"):
            record = lm.ledger.arrival(key)
            keys = [name for name in record.documents if lm.ledger.document(name).status != "forgotten"]
            if record.status != "done":
                lm.ledger.drop(key)
                dropped = True
        updates = [_patient(lambda name=name: lm.forget(name, drop_checkpoints=drop_checkpoints)) for name in keys]  # type: ignore[misc]
        if not updates and not dropped:
            raise Conflict(f"{key} is forgotten already")
        return {"id": key, "status": "forgotten", "updates": [update.id for update in updates]}

    return await _undone(request, run)


@router.post("/documents/{key}/release")
async def release(key: Key, request: Request) -> dict[str, Any]:
    """Let something be learned that is held for review or was given up."""
    lm: ContinualLM = request.app.state.lm

    def run() -> dict[str, Any]:
        lm.ledger.release(key)
        return _status(lm, key)

    return await run_in_threadpool(run)


@router.get("/adapters")
async def adapters(request: Request) -> dict[str, Any]:
    """The adapters in use, with the documents that each holds."""
    lm: ContinualLM = request.app.state.lm

    def size(digest: str) -> int:
        try:
            return lm.store.path(digest).stat().st_size
        except FileNotFoundError:  # forgotten since the state was read
            return 0

    def listed() -> list[dict[str, Any]]:
        return [
            {
                "name": item.name, "documents": list(item.documents), "learner": item.learner, "enabled": bool(item.weight),
                "bytes": size(item.digest),
            }
            for item in lm.state.adapters
        ]  # fmt: skip

    return {"adapters": await run_in_threadpool(listed)}


@router.get("/updates")
async def updates(request: Request, limit: Limit = 100) -> dict[str, Any]:
    """The history, newest first."""
    lm: ContinualLM = request.app.state.lm
    found = await run_in_threadpool(lm.ledger.updates, limit)
    return {"updates": [_update(Update.of(record)) for record in found]}


@router.get("/updates/{key}")
async def update(key: Key, request: Request) -> dict[str, Any]:
    """One update with its certificate."""
    lm: ContinualLM = request.app.state.lm
    return (await run_in_threadpool(lm.show, key)).to_dict()


@router.post("/updates/{key}/revert")
async def revert(key: Key, request: Request) -> dict[str, Any]:
    """Undo one update; later ones stay."""
    lm: ContinualLM = request.app.state.lm
    return (await _undone(request, lambda: _patient(lambda: lm.revert(key)))).to_dict()


async def _undone(request: Request, change: Callable[[], T]) -> T:
    """In threads of its own, a few at a time: what waits for the learner keeps no thread from those who ask."""
    return await to_thread.run_sync(change, limiter=request.app.state.undoing)


def _patient(change: Callable[[], T]) -> T:
    """Undoing waits until what is being learned is done."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return change()
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _status(lm: ContinualLM, key: str) -> dict[str, Any]:
    if key.startswith("a"):
        return _arrivals(lm, [lm.ledger.arrival(key)])[0]
    return _document(lm.ledger.document(key))


def _arrivals(lm: ContinualLM, records: Sequence[ArrivalRecord]) -> list[dict[str, Any]]:
    """Arrivals with what became of their documents: one query, however many they are."""
    statuses = lm.ledger.statuses([key for record in records if record.status == "done" for key in record.documents])
    return [_arrival(record, statuses) for record in records]


def _arrival(record: ArrivalRecord, statuses: Mapping[str, str]) -> dict[str, Any]:
    status: str = record.status
    if status == "done":
        states = {statuses[key] for key in record.documents if key in statuses}
        ranked = ("learning", "pending", "failed", "committed", "rejected", "forgotten")
        status = next((state for state in ranked if state in states), "rejected")
    return {
        "id": record.id, "status": status, "title": record.name, "source": record.source, "domain": record.domain,
        "importance": record.importance, "reason": record.reason, "attempts": record.attempts, "documents": list(record.documents),
        "received_at": record.received_at,
    }  # fmt: skip


def _document(record: DocumentRecord) -> dict[str, Any]:
    return {
        "id": record.id, "status": record.status, "title": record.title, "source": record.source, "domain": record.domain,
        "importance": record.importance, "reason": record.reason, "chars": record.chars, "update": record.update,
        "added_at": record.added_at,
    }  # fmt: skip


def _update(update: Update) -> dict[str, Any]:
    values = update.to_dict()
    certificate = values.pop("certificate")
    return {
        **values,
        "certificate": {name: certificate[name] for name in ("learned", "kept", "cost", "hash") if name in certificate},
    }
