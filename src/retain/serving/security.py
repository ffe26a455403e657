"""Who may do what: tokens with scopes, bounds on bodies and rates, and no answer to names that are not this machine's.

Scopes contain each other: read (ask, look), learn (and send documents), admin (and undo, forget, load adapters). Without a token file the
service listens on loopback only, and everybody who can reach it may do everything; a page of another site cannot, because the
browser's Host and Origin are checked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retain.config import ConfigError
from retain.serving.errors import error_response

SCOPES = ("read", "learn", "admin")
PUBLIC = re.compile(r"/(healthz|static/[^/]+)?")
SHORTEST = 16
# what changes nothing though it is a POST
_ASKING = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
# what every answer tells a browser: nothing from elsewhere, in no frame, nothing guessed
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


def read_tokens(path: Path) -> dict[bytes, str]:
    """SHA-256 of each token -> its scope. A line is a scope and a token; empty lines and those that begin with # say nothing.

    Raises ConfigError with the line that is wrong, never with the token.
    """
    try:
        lines = path.expanduser().read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"serve.token_file: {path} cannot be read: {error.strerror}") from error
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 2 or parts[0] not in SCOPES:
            raise ConfigError(f"{path}, line {number}: expected a scope (read, learn or admin) and a token")
        if len(parts[1]) < SHORTEST:
            raise ConfigError(f"{path}, line {number}: a token has at least {SHORTEST} characters")
        found[hashlib.sha256(parts[1].encode()).digest()] = parts[0]
    if not found:
        raise ConfigError(f"{path}: there is no token in it")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def needed(method: str, path: str) -> str | None:
    """The scope that a request needs, None when it needs none. What is not named here needs admin, unless it only looks."""
    if method in ("GET", "HEAD"):
        return None if PUBLIC.fullmatch(path) else "read"
    if method == "POST" and path in _ASKING:
        return "read"
    return "learn" if method == "POST" and path == "/v1/documents" else "admin"


class Guard:
    """What stands before the application. ``tokens``: see :func:`read_tokens`, empty on loopback; ``body``: bytes that a request may
    have; ``rate``: requests of one client in a minute."""

    def __init__(self, app: ASGIApp, tokens: Mapping[bytes, str], body: int, rate: int) -> None:
        self.app, self.tokens, self.body, self.rate = app, tokens, body, rate
        self._spent: dict[str, tuple[float, float]] = {}  # client -> (requests that it may send now, when that was)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refused(scope, headers)
        if refusal is not None:
            return await error_response(*refusal)(scope, receive, send)
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self.body:
            return await error_response(413, self._too_large)(scope, receive, send)
        await self._bounded(scope, receive, send)

    @property
    def _too_large(self) -> str:
        return f"a request may have {self.body / 2**20:.3g} MB at most"

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason when the request may not pass."""
        client = (scope.get("client") or ("", 0))[0]
        if not self.tokens and not self._from_here(headers):
            return 403, "this service answers under the names of this machine only: start it with a token file for others"
        wanted = needed(scope["method"], scope["path"])
        if wanted is None:
            return None
        if self.tokens:
            given = self._scope(headers)
            if given is None:
                self._may(f"refused {client}")
                return 401, "this needs a token: Authorization: Bearer TOKEN"
            if SCOPES.index(given) < SCOPES.index(wanted):
                return 403, f"this needs a token of scope {wanted}; yours has {given}"
        if not self._may(client):
            return 429, f"more than {self.rate} requests in a minute: slow down"
        return None

    def _from_here(self, headers: Mapping[str, str]) -> bool:
        """Whether host and origin are names of this machine: a page of another site that reaches loopback has others."""
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        origin = headers.get("origin")
        return is_loopback(host) and (origin is None or is_loopback(urlsplit(origin).hostname or ""))

    def _scope(self, headers: Mapping[str, str]) -> str | None:
        """The scope of the token; every known one is compared, each in constant time."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest() if kind.lower() == "bearer" else b""
        found = [scope for known, scope in self.tokens.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None

    def _may(self, client: str) -> bool:
        """Take one from the client's bucket, which fills by the rate."""
        now = time.monotonic()
        left, at = self._spent.pop(client, (float(self.rate), now))
        left = min(float(self.rate), left + (now - at) * self.rate / 60)
        self._spent[client] = (max(left - 1, 0.0), now)
        while len(self._spent) > 10_000:
            del self._spent[next(iter(self._spent))]
        return left >= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A body without a length, or with a wrong one, is cut off where it is too long."""
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _TooLarge:
            if not begun:
                await error_response(413, self._too_large)(scope, receive, send)


class _TooLarge(Exception):
    pass
