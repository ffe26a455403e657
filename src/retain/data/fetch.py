"""A document from the web, fetched so that an address cannot lead into the network of the machine that fetches it.

One parser reads the address; the name is resolved once, every address that it has is checked, and the connection goes to the one that was
checked, so that a name that changes its mind (DNS rebinding) changes nothing. Redirects are checked the same way. Proxies are not used.
"""

from __future__ import annotations

import codecs
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from retain.data.errors import DataError
from retain.data.readers import CODE, RECORDS, RICH, TEXT

LARGEST = 20 * 2**20  # bytes
SECONDS = 30.0  # for everything but the resolver
REDIRECTS = 5
LONGEST_ADDRESS = 2000
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]
_ENDINGS = {
    "text/html": ".html", "application/xhtml+xml": ".xhtml", "application/pdf": ".pdf", "text/plain": ".txt", "text/markdown": ".md",
    "text/x-rst": ".rst", "application/json": ".json", "application/x-ndjson": ".jsonl", "application/jsonl": ".jsonl",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}  # fmt: skip


class Unreachable(RuntimeError):
    """It cannot be had just now: nothing answers, it takes too long, or the server says that it is busy or broken."""


@dataclass(frozen=True)
class Fetched:
    """The bytes of a document, a file name that says how they are read, and the address that they came from in the end."""

    body: bytes
    name: str
    url: str


@dataclass(frozen=True)
class _Place:
    secure: bool
    host: str
    port: int
    target: str  # path and query, as they are asked for
    url: str


def fetch(
    url: str, *, largest: int = LARGEST, seconds: float = SECONDS, allowed: Callable[[Address], bool] | None = None,
    resolve: Resolve | None = None,
) -> Fetched:  # fmt: skip
    """What is at an address (http or https).

    ``largest``: bytes; ``seconds``: for each of the at most 6 requests; ``allowed``: which network addresses may be asked, by default
    :func:`is_public`; ``resolve``: the addresses of a name and port, by default the system's.
    Raises DataError (it will never do) and Unreachable (not now).
    """
    place = _parse(url)
    for _ in range(REDIRECTS + 1):
        with _asked(place, allowed or is_public, resolve or _resolve, seconds) as response:
            if response.status in (301, 302, 303, 307, 308):
                place = _parse(urljoin(place.url, response.getheader("Location") or ""), shown=url)
                continue
            return Fetched(_body(response, place.url, largest), _name(response, place), place.url)
    raise DataError(f"it is redirected more than {REDIRECTS} times", path=_shown(url))


def check_url(url: str) -> None:
    """Raise DataError unless it is an address that could be fetched. Nothing is asked or resolved."""
    _parse(url)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet: not this machine, not a private network, not a group, not reserved."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if inner is not None:
        return is_public(inner)
    closed = (
        address.is_private or address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved
        or address.is_unspecified or getattr(address, "is_site_local", False) or getattr(address, "teredo", None) is not None
    )  # fmt: skip
    return address.is_global and not closed


def _parse(url: str, shown: str = "") -> _Place:
    """The one reading of an address that everything below goes by."""
    told = _shown(shown or url)
    if len(url) > LONGEST_ADDRESS or any(letter.isspace() or not letter.isprintable() or letter == "\\" for letter in url):
        raise DataError("it is no address: too long, or with characters that no address has", path=told)
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:  # UnicodeError is one
        raise DataError("it is no address that can be read", path=told, fix="write it as https://host/path") from error
    if parts.scheme not in ("http", "https"):
        raise DataError("only http and https addresses are fetched", path=told)
    if not host or parts.username is not None or parts.password is not None:
        raise DataError("an address has a host, and neither user nor password", path=told)
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]")
    target = path + (f"?{quote(parts.query, safe='/%:=&~+!$,;@()*[]?')}" if parts.query else "")
    secure = parts.scheme == "https"
    return _Place(secure, host, port or (443 if secure else 80), target, url.partition("#")[0])


def _shown(url: str) -> str:
    """An address for a message: one short line without user and password, and without what is asked for."""
    line = "".join(letter if letter.isprintable() else " " for letter in url.partition("?")[0].partition("#")[0])
    scheme, found, rest = line.partition("://")
    host, slash, path = rest.partition("/")
    return (f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if found else line)[:200]


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@contextlib.contextmanager
def _asked(place: _Place, allowed: Callable[[Address], bool], resolve: Resolve, seconds: float) -> Iterator[http.client.HTTPResponse]:
    """The reply to one request, while it is read; after ``seconds`` the connection is cut."""
    told = _shown(place.url)
    try:
        addresses = resolve(place.host, place.port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{told}: there is no host {place.host!r}, or no network") from error
    if not addresses or not all(allowed(ipaddress.ip_address(address)) for address in addresses):
        raise DataError("it is an address of this machine or of a private network", path=told, fix="fetch it yourself and send the file")
    connection = _Connection(place, addresses[0], seconds)
    late = threading.Event()

    def cut() -> None:
        late.set()
        if connection.live is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.live, socket.SHUT_RDWR)  # of the connection, below what encrypts it

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        accepted = "text/html, application/pdf, text/plain, */*;q=0.5"
        connection.request("GET", place.target, headers={"User-Agent": "retain", "Accept": accepted, "Accept-Encoding": "identity"})
        yield connection.getresponse()
        if late.is_set():  # what was cut may look as if it had ended
            raise TimeoutError
    except ssl.SSLCertVerificationError as error:
        raise DataError(f"its certificate does not hold: {error.verify_message}", path=told) from error
    except (OSError, http.client.HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise Unreachable(f"{told}: it takes longer than {seconds:g} s") from error
        raise Unreachable(f"{told}: {getattr(error, 'strerror', None) or type(error).__name__}") from error
    finally:
        timer.cancel()
        connection.close()


class _Connection(http.client.HTTPConnection):
    """Goes to an address that was checked, whatever the name says now."""

    def __init__(self, place: _Place, address: str, seconds: float) -> None:
        super().__init__(place.host, place.port, timeout=seconds)
        self._place, self._address = place, address
        self.live: socket.socket | None = None  # also while a reply is read after which the server hangs up
        if place.secure:
            self.default_port = 443  # no port in the Host header then

    def connect(self) -> None:
        self.sock: Any = socket.create_connection((self._address, self._place.port), self.timeout)
        self.live = self.sock
        if self._place.secure:
            context, name = ssl.create_default_context(), self._place.host
            self.sock = context.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
            self.live = self.sock
            self.sock.do_handshake()


def _body(response: http.client.HTTPResponse, url: str, largest: int) -> bytes:
    told, status = _shown(url), response.status
    if status in (408, 425, 429) or status >= 500:
        raise Unreachable(f"{told}: the server answers {status}")
    if status != 200:
        raise DataError(f"the server answers {status}", path=told, fix="open it in a browser to see what is there")
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise DataError("the server sends it compressed, which was not asked for", path=told)
    received, promised = bytearray(), response.length
    while promised is None or promised <= largest:
        part = b"" if promised is not None and len(received) >= promised else response.read1(65536)
        if not part:
            if promised is not None and len(received) < promised:
                raise Unreachable(f"{told}: the connection ended too early")
            return _in_utf8(bytes(received), response)
        received += part
        if len(received) > largest:
            break
    raise DataError(f"it has more than {largest / 2**20:.3g} MB", path=told)


def _in_utf8(body: bytes, response: http.client.HTTPResponse) -> bytes:
    """Plain text whose header names another encoding. Web pages name theirs inside, and other formats have one of their own."""
    charset = response.headers.get_content_charset()
    if charset and response.headers.get_content_type() in ("text/plain", "text/markdown", "text/x-rst"):
        with contextlib.suppress(LookupError, ValueError):
            if codecs.lookup(charset).name != "utf-8":
                return body.decode(charset, "replace").encode()
    return body


def _name(response: http.client.HTTPResponse, place: _Place) -> str:
    """A file name: the last part of the path with the ending of what it is. Raises DataError for what no reader knows."""
    last = PurePosixPath(unquote(place.target.partition("?")[0])).name
    last = "".join(letter for letter in last if letter.isprintable() and letter not in '/\\:*?"<>|')[-100:]
    stem, ending = PurePosixPath(last).stem or place.host, PurePosixPath(last).suffix.lower()
    kind = response.headers.get_content_type() if response.getheader("Content-Type") else ""
    readable = {*RICH, *RECORDS, *TEXT, *CODE}
    if kind in ("", "text/plain", "application/octet-stream") and ending in readable:
        return f"{stem}{ending}"
    if kind not in _ENDINGS:
        what = f"{kind!r} is not a kind of document that can be read" if kind else "the server does not say what it is"
        raise DataError(what, path=_shown(place.url), fix="pages, PDF, Word, text, JSON are")
    return f"{stem}{_ENDINGS[kind]}"
