"""The client of an OpenAI-compatible API: chat completions with time limits, further tries, and errors of one line.

The key is read from the environment, goes into the header of the requests and nowhere else: not into a message, a log or a file.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from retain.config import EndpointConfig

log = logging.getLogger(__name__)
LARGEST_REPLY = 4 * 2**20  # bytes
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Client(NamedTuple):
    """Who asks: the ``section`` of the configuration that messages speak of, the ``name`` that they give the model, the ``error`` that is
    raised (one line that says what to do, without the key), and a ``hint`` for the case that nothing answers."""

    section: str
    name: str
    error: type[RuntimeError]
    hint: str = ""


class Reply(NamedTuple):
    """An answer over HTTP: its status, its body, and the seconds after which the server wants to be asked again (None: not said)."""

    status: int
    body: bytes
    wait: float | None


class _AsItCame(urllib.request.HTTPErrorProcessor):
    """Gives back every reply, whatever its status. Redirects are not followed, so the key goes to the configured address only."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class ChatAPI:
    """A model behind POST {url}/chat/completions. All errors are the client's; already when the settings are not complete."""

    def __init__(self, config: EndpointConfig, client: Client) -> None:
        section = client.section
        for name in ("url", "model"):
            if not getattr(config, name):
                raise client.error(f"{client.name} cannot be asked, {section}.{name} is not set: retain config set {section}.{name} ...")
        self.config, self._client, self._name = config, client, f"{client.name} at {config.url}"
        self._address = f"{section}.url is what stands before /chat/completions, as in http://localhost:11434/v1"
        self._key = (os.environ.get(config.key_env) or "").strip() if config.key_env else ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise client.error(f"the key in the environment variable {config.key_env} has characters that no key has")
        self._limit = "max_tokens"
        direct = [urllib.request.ProxyHandler({})] if urlsplit(config.url or "").hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_AsItCame, *direct)

    def complete(self, instructions: str, material: str) -> str:
        """The model's answer to one message; tries again, later and later, while the server is busy, fails or cannot be reached."""
        tries = 0
        while True:
            wait = None
            try:
                reply = self._post(instructions, material)
                if 200 <= reply.status < 300:
                    return self._content(reply.body)
                if reply.status == 400 and self._limit == "max_tokens" and b"max_completion_tokens" in reply.body:
                    self._limit = "max_completion_tokens"  # what newer models of OpenAI call it, and insist on
                    continue
                fault, wait = self._refusal(reply), reply.wait
                passing = reply.status in (408, 429) or reply.status >= 500
            except (OSError, http.client.HTTPException) as error:
                fault, passing = self._unreachable(error), True
            if not passing or tries == self.config.retries:
                raise self._client.error(fault)
            seconds = pause(tries, wait)
            tries += 1
            log.warning("%s; try %d of %d follows in %g s", fault, tries + 1, self.config.retries + 1, seconds)
            time.sleep(seconds)

    def _post(self, instructions: str, material: str) -> Reply:
        messages = [{"role": "system", "content": instructions}, {"role": "user", "content": material}]
        body = {"model": self.config.model, "messages": messages, self._limit: self.config.max_tokens}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "retain"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.config.url}/chat/completions", json.dumps(body).encode(), headers, method="POST")
        until = time.monotonic() + self.config.timeout
        with self._opener.open(request, timeout=self.config.timeout) as response:
            received = bytearray()
            while part := response.read1(65536):
                received += part
                if time.monotonic() > until:
                    raise TimeoutError
                if len(received) > LARGEST_REPLY:
                    raise self._client.error(f"{self._name} sends more than {LARGEST_REPLY // 2**20} MiB: check {self._client.section}.url")
            if response.length:  # of what the header promised, so much is missing
                raise http.client.IncompleteRead(bytes(received), response.length)
            return Reply(response.status, bytes(received), _seconds(response.headers.get("Retry-After")))

    def _content(self, body: bytes) -> str:
        """What the model wrote, "" when it wrote nothing."""
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            said = self._said(body) or "no JSON with choices"
            raise self._client.error(f"{self._name} does not answer as an OpenAI-compatible API ({said}): {self._address}") from None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    def _refusal(self, reply: Reply) -> str:
        """A status that is no success, as one line that says what to do."""
        config, section, status = self.config, self._client.section, reply.status
        said = self._said(reply.body)
        because = f"{status}: {said}" if said else str(status)
        if status == 401 and self._key:
            return f"{self._name} does not accept the key in the environment variable {config.key_env} ({status})"
        if status == 401:
            todo = f"set the environment variable {config.key_env}" if config.key_env else f"name its variable in {section}.key_env"
            return f"{self._name} wants a key ({status}): {todo}"
        if status == 404:
            return f"{self._name} has no model {config.model!r} ({because}): check {section}.model; {self._address}"
        if status == 429:
            return f"{self._name} is busy, or the quota is used up ({because})"
        if status >= 500:
            return f"{self._name} failed ({because})"
        if 300 <= status < 400:
            return f"{self._name} redirects ({status}), and retain does not follow: set {section}.url to the final address"
        return f"{self._name} refused the request ({because})"

    def _unreachable(self, error: Exception) -> str:
        """A failure to connect, to send or to receive, as one line."""
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            return f"{self._name} did not answer within {self.config.timeout:g} s ({self._client.section}.timeout)"
        why = self._clean(getattr(cause, "strerror", None) or str(cause)) or type(cause).__name__
        return f"{self._name} cannot be reached: {why} (is it running, and {self._client.section}.url right?{self._client.hint})"

    def _said(self, body: bytes) -> str:
        """The server's own words about an error, "" when there are none."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return ""
        error = value.get("error", value) if isinstance(value, dict) else ""
        said = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
        return self._clean(said) if isinstance(said, str) else ""

    def _clean(self, text: str) -> str:
        """Foreign text for a message: one short printable line without the key."""
        text = text.replace(self._key, "***") if self._key else text
        line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return line if len(line) <= 200 else f"{line[:199]}…"


def pause(tries: int, wanted: float | None = None) -> float:
    """Seconds before the next try: what the server asked for, else 1, 2, 4, ...; at most 60."""
    return min(LONGEST_WAIT, 2.0 ** min(tries, 9) if wanted is None else wanted)


def _seconds(header: str | None) -> float | None:
    """The seconds of a Retry-After header. The other form, a date, is left to the growing pauses."""
    return float(header) if header is not None and header.strip().isdecimal() else None


def json_values(text: str) -> Iterator[Any]:
    """Every JSON object of a text that stands in no other."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except ValueError:
            end = start + 1
        except RecursionError:
            return
        start = text.find("{", end)
