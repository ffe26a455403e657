"""What the service does, as lines of JSON: one for each request, and one for each change of an arrival, a document or an update, whoever
made it. Ids, numbers, names of routes and of errors; never a text, a file name, a title, a token, or the message of an error."""

from __future__ import annotations

import datetime
import json
import re
import sys
import threading
import time
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retain.serving.errors import error_response
from retain.serving.security import HEADERS
from retain.workspace.errors import DurabilityLost
from retain.workspace.ledger import Ledger

Level = Literal["auto", "all", "problems", "none"]
_ID = re.compile(r"[adu][0-9a-f]{6,32}")
_PACKAGE = Path(__file__).parent.parent
_KINDS = {"a": "arrival", "d": "document", "u": "update"}
_PROBLEMS = ("failed", "interrupted")


class Journal:
    """Writes lines to ``out``. ``level``: all, problems (what failed here: status 500 and above, arrivals given up), none, or auto: all,
    and problems only where ``out`` is a terminal."""

    def __init__(self, level: Level = "none", out: TextIO | None = None) -> None:
        self.out = sys.stdout if out is None else out
        self.level = ("problems" if self.out.isatty() else "all") if level == "auto" else level
        self._guard = threading.Lock()

    def __call__(self, event: str, problem: bool, **facts: Any) -> None:
        """A line with the time, what happened, and these facts; those that are None are left out."""
        if self.level == "none" or (self.level == "problems" and not problem):
            return
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": "error" if problem else "info", "event": event, **facts}
        with self._guard, suppress(OSError, ValueError):  # nobody reads it, its disk is full: requests go on
            self.out.write(json.dumps({name: value for name, value in line.items() if value is not None}) + "\n")
            self.out.flush()


class Journaled:
    """Around the whole application: gives each request an id, writes its line, and answers what nobody foresaw."""

    def __init__(self, app: ASGIApp, journal: Journal, words: frozenset[str]) -> None:
        self.app, self.journal, self.words = app, journal, words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        key, began, status, facts = f"req_{uuid.uuid4().hex}", time.monotonic(), 0, dict[str, Any]()
        scope.setdefault("state", {})["journal"] = facts

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", key.encode()), *HEADERS]
                if not any(name.lower() == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self.app(scope, receive, marked)
        except (Exception, DurabilityLost) as error:
            facts |= named(error)
            if not status:
                message = f"something went wrong here; the service's log has the reason beside {key}"
                await error_response(500, message)(scope, receive, marked)
            if isinstance(error, DurabilityLost):
                scope["app"].state.end()
        finally:
            spent = round(1000 * (time.monotonic() - began), 1)
            path = shown(scope["path"], self.words)
            # a client that went away before the answer began has none: 499, as proxies write it
            self.journal(
                "request", status >= 500 or "error" in facts, id=key, method=scope["method"], path=path, status=status or 499, ms=spent,
                **facts,
            )  # fmt: skip


def shown(path: str, words: frozenset[str]) -> str:
    """A path with what is known of it: the words of routes, and ids. Anything else may be anything, and becomes a star."""
    return "/".join(part if not part or part in words or _ID.fullmatch(part) else "*" for part in path.split("/"))


def named(error: BaseException) -> dict[str, Any]:
    """What an error is called and where it was raised, innermost first. Its message may quote what it was about, so it is left out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_PACKAGE)]
    places = [f"{Path(frame.filename).relative_to(_PACKAGE)}:{frame.lineno}" for frame in frames]
    return {"error": type(error).__name__, "at": places[:-5:-1]}


class Follower:
    """Writes what the ledger's history gains from now on, every ``every`` seconds, until it is closed."""

    def __init__(self, ledger: Ledger, journal: Journal, every: float = 1.0) -> None:
        self.ledger, self.journal, self.every = ledger, journal, every
        self._last = max((event.id for event in ledger.events(1)), default=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what has happened until now, and stop."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(self.every)
            self._write()

    def _write(self) -> None:
        try:
            found = self.ledger.events_after(self._last)
        except Exception as error:  # a ledger that cannot be read now: later
            return self.journal("journal", True, **named(error))
        for event in found:
            self._last = event.id
            about = _KINDS[event.subject[0]] if _ID.fullmatch(event.subject) else "workspace"
            made = about == "update" and event.kind not in ("rejected", "reverted")  # the history has the kind of one that was committed
            self.journal(
                about, event.kind in _PROBLEMS, time=event.at, id=None if about == "workspace" else event.subject,
                kind=event.kind if made else None, status="committed" if made else event.kind,
                **{name: event.detail.get(name) for name in ("update", "documents", "attempts")},
            )  # fmt: skip
