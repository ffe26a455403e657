"""A real HTTP server that speaks the chat completions API, in a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Said(NamedTuple):
    """What the server answers: a status, the body, headers, and whether it first waits until the test ends."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    late: bool = False


class Asked(NamedTuple):
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def material(self) -> dict[str, str]:
        """What the user's message holds."""
        found: dict[str, str] = json.loads(self.body["messages"][1]["content"])
        return found


class Server(ThreadingHTTPServer):
    """Answers with ``script``, which gets the request; keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.script: Callable[[Asked], Said] = lambda asked: chat("")
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def says(self, *answers: Said) -> None:
        """Give these answers one after another, the last one again and again."""
        left = list(answers)
        self.script = lambda asked: left.pop(0) if len(left) > 1 else left[0]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.asked.append(asked)
        said = self.server.script(asked)
        if said.late:
            self.server.over.wait(30)
            return
        self.send_response(said.status)
        for name, value in {"Content-Length": str(len(said.body)), **said.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on standard error."""


def chat(content: str, **headers: str) -> Said:
    """A successful answer in which the model wrote ``content``."""
    return Said(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode(), headers)


def refusal(status: int, message: str = "", **headers: str) -> Said:
    """An error as the API words it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status, json.dumps({"error": {"message": message}}).encode(), named)
