"""Documents from the web: what may be fetched, and that no address leads into the own network. The servers are real and local; which
addresses count as public is handed to the function, as nothing but a program can."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from retain.data.errors import DataError
from retain.data.fetch import Unreachable, check_url, fetch, is_public

OUTSIDE = "127.0.0.1"  # stands for the internet here
INSIDE = "127.0.0.2"  # and this for the own network
Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server at both addresses; ``pages``: path -> what answers it."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, str]] = []  # address that was connected to, path, Host header
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.connection.getsockname()[0], self.path, self.headers.get("Host", "")))
                site.pages[self.path.partition("?")[0]](self)

            def log_message(self, *_: Any) -> None:
                pass

        self.servers = [ThreadingHTTPServer((OUTSIDE, 0), Handler)]
        self.port = self.servers[0].server_port
        self.servers.append(ThreadingHTTPServer((INSIDE, self.port), Handler))
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def fetch(self, path: str, **more: Any) -> Any:
        url = path if "//" in path else f"http://{OUTSIDE}:{self.port}{path}"
        return fetch(url, **{"allowed": lambda address: str(address) == OUTSIDE, "seconds": 5.0, **more})


@pytest.fixture
def site() -> Iterator[Site]:
    if sys.platform != "linux":
        pytest.skip("only Linux has more than one address of loopback")
    made = Site()
    yield made
    for server in made.servers:
        server.shutdown()
        server.server_close()


def answer(body: bytes = b"A text.", kind: str | None = "text/plain", status: int = 200, **headers: str) -> Answer:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Type": kind, "Content_Length": str(len(body)), **headers}.items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def test_what_is_read_and_how_it_is_named(site: Site) -> None:
    site.pages = {
        "/notes": answer(), "/": answer(b"<p>Hi", "text/html; charset=utf-8"), "/a.py": answer(b"x = 1\n"),
        "/b%20c.bin": answer(b"%PDF", "application/pdf"), "/r.jsonl": answer(b"{}", "application/octet-stream"),
        "/n.md": answer(b"# N", None),
        "/latin": answer("é".encode("latin-1"), "text/plain; charset=iso-8859-1"),
    }  # fmt: skip
    names = {path: site.fetch(path).name for path in site.pages}
    assert names == {
        "/notes": "notes.txt", "/": f"{OUTSIDE}.html", "/a.py": "a.py", "/b%20c.bin": "b c.pdf", "/r.jsonl": "r.jsonl", "/n.md": "n.md",
        "/latin": "latin.txt",
    }  # fmt: skip
    assert site.fetch("/latin").body == "é".encode() and site.fetch("/notes").body == b"A text."
    found = site.fetch("/notes?q=ü#part")
    assert site.asked[-1][1] == "/notes?q=%C3%BC" and found.url.endswith("/notes?q=ü")


def test_what_is_not_read(site: Site) -> None:
    site.pages = {
        "/image": answer(b"GIF", "image/gif"), "/zip": answer(b"", Content_Encoding="gzip"), "/none": answer(b"no", status=404),
        "/nothing": answer(b"x", None), "/busy": answer(status=503), "/large": answer(b"x" * 5000),
    }  # fmt: skip
    for path, said in (("/image", "image/gif"), ("/zip", "compressed"), ("/none", "answers 404"), ("/nothing", "does not say")):
        with pytest.raises(DataError, match=said):
            site.fetch(path)
    with pytest.raises(Unreachable, match="503"):
        site.fetch("/busy")
    assert len(site.fetch("/large", largest=5000).body) == 5000
    with pytest.raises(DataError, match="more than"):
        site.fetch("/large", largest=4999)


def test_a_body_without_an_end_is_cut_off(site: Site) -> None:
    sent = [0]

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.end_headers()
        try:
            while sent[0] < 50_000_000:
                handler.wfile.write(b"x" * 10_000)
                sent[0] += 10_000
        except OSError:
            pass

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    site.pages = {"/endless": endless, "/slow": slow, "/short": answer(b"abc", Content_Length="10")}
    with pytest.raises(DataError, match="more than 1 MB"):
        site.fetch("/endless", largest=2**20)
    assert sent[0] < 20_000_000
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"longer than 0\.5 s"):
        site.fetch("/slow", seconds=0.5)
    assert time.monotonic() - began < 3
    with pytest.raises(Unreachable, match=r"too early|IncompleteRead"):
        site.fetch("/short")


def test_redirects_are_followed_and_checked(site: Site) -> None:
    def to(where: str) -> Answer:
        return answer(b"", status=302, Location=where)

    site.pages = {"/end": answer(), "/1": to("/2"), "/2": to("end"), "/loop": to("/loop"), "/nowhere": answer(b"", status=301)}
    assert site.fetch("/1").url.endswith("/end") and [path for _, path, _ in site.asked] == ["/1", "/2", "/end"]
    site.asked.clear()
    with pytest.raises(DataError, match="more than 5 times"):
        site.fetch("/loop")
    assert len(site.asked) == 6
    for target, said in (
        (f"http://{INSIDE}:{site.port}/end", "private network"), (f"//{INSIDE}:{site.port}/end", "private network"),
        (f"http://2130706434:{site.port}/end", "private network"), (f"http://0x7f.2:{site.port}/end", "private network"),
        (f"http://[::ffff:{INSIDE}]:{site.port}/end", "private network"), ("file:///etc/passwd", "only http"), ("ftp://x/y", "only http"),
        (f"http://{OUTSIDE}:{site.port}@{INSIDE}:{site.port}/end", "neither user"),
    ):  # fmt: skip
        site.pages["/away"] = to(target)
        with pytest.raises(DataError, match=said):
            site.fetch("/away")
    assert not [address for address, _, _ in site.asked if address == INSIDE], "nothing inside was ever connected to"
    assert fetch(f"http://{INSIDE}:{site.port}/end", allowed=lambda address: True).body == b"A text.", "the control: it is there"


def test_this_machine_is_never_fetched_from(site: Site) -> None:
    site.pages = {"/": answer()}
    for host in (OUTSIDE, "localhost", "[::1]", "0.0.0.0", "[::]", "0", "169.254.169.254", "[fe80::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises((DataError, Unreachable), match=r"private network|no host"):
            fetch(f"http://{host}:{site.port}/", seconds=2)
    assert site.asked == []


def test_a_name_is_resolved_once_and_that_address_is_used(site: Site) -> None:
    answers = [[OUTSIDE], [INSIDE]]  # a name that changes its mind

    def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("name.example", site.port)
        return answers.pop(0)

    site.pages = {"/": answer()}
    assert site.fetch(f"http://name.example:{site.port}/", resolve=resolve).body == b"A text."
    assert site.asked == [(OUTSIDE, "/", f"name.example:{site.port}")] and len(answers) == 1
    with pytest.raises(DataError, match="private network"):  # the second time it is the other one
        site.fetch(f"http://name.example:{site.port}/", resolve=resolve)
    with pytest.raises(DataError, match="private network"):  # one of several is enough to refuse
        site.fetch(f"http://name.example:{site.port}/", resolve=lambda host, port: [OUTSIDE, INSIDE])
    with pytest.raises(Unreachable, match="no host"):
        site.fetch("http://name.example/", resolve=lambda host, port: (_ for _ in ()).throw(socket.gaierror()))


CLOSED = """127.0.0.1 127.9.9.9 10.1.1.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1 255.255.255.255
192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1
2002:7f00:1::1 2002:c0a8:101::1 2001:0:1:2::3 2001:db8::1 ::127.0.0.1"""
OPEN = "8.8.8.8 1.1.1.1 93.184.216.34 2606:4700::1111 ::ffff:8.8.8.8"


@pytest.mark.parametrize("address", CLOSED.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OPEN.split())
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["", "x", "//a/b", "file:///etc/passwd", "gopher://a/", "http://", "http://a b/", "http://a\\b/", "http://a\n/", "http://u:p@a/", "http://a:99999/",
     "http://[::1/", "http://a..b/", "http://" + "a" * 70 + "/", "http://a/" + "b" * 2000, "javascript:alert(1)", "http://a\x00/"],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(DataError) as refused:
        check_url(url)
    assert "\n" not in str(refused.value) and "u:p" not in str(refused.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_has_to_hold(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=name.example", "-addext", "subjectAltName=DNS:name.example"]
    subprocess.run(["openssl", "req", "-x509", *asked, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.servers[0].socket = context.wrap_socket(site.servers[0].socket, server_side=True)
    site.pages = {"/": answer()}

    def fetched(name: str) -> bytes:
        return bytes(site.fetch(f"https://{name}:{site.port}/", resolve=lambda host, port: [OUTSIDE]).body)

    with pytest.raises(DataError, match="certificate does not hold"):
        fetched("name.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # now it is one that the system trusts
    assert fetched("name.example") == b"A text."
    with pytest.raises(DataError, match="certificate does not hold"):
        fetched("other.example")


def test_a_server_without_encryption(site: Site) -> None:
    with pytest.raises(Unreachable):
        site.fetch(f"https://{OUTSIDE}:{site.port}/", seconds=2)
