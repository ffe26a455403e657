"""What is refused: in OpenAI's shape, with a message that says what to do, nothing of it stored, and answering goes on as before."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import UploadFile
from tests.serving.conftest import HERE
from tests.tiny import tiny_documents
from typer.testing import CliRunner

from retain.cli.main import app
from retain.config import Config
from retain.config.serving import ServeConfig
from retain.serving import documents
from retain.serving.app import create_app
from retain.serving.events import EventFile
from retain.workspace import DurabilityLost, FileSystem
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.reports import Event
from retain.workspace.worker import Worker

SAID = [{"role": "user", "content": "Who?"}]
READ, ADMIN, WRONG = ({"Authorization": f"Bearer {scope}-0123456789abcdef"} for scope in ("read", "admin", "wrong"))
LONG = "word " * 600


def chat(client: TestClient, **more: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": SAID, "max_tokens": 2, **more}, headers=ADMIN)


def text(client: TestClient, **more: Any) -> Any:
    return client.post("/v1/documents", json={"text": "A new text.", **more}, headers=ADMIN)


def raw(path: str, body: bytes, kind: str = "application/json", **headers: str) -> Callable[[TestClient], Any]:
    return lambda client: client.post(path, content=body, headers={**ADMIN, "content-type": kind, **headers})


def posted(path: str, **body: Any) -> Callable[[TestClient], Any]:
    return lambda client: client.post(path, json=body, headers=ADMIN)


def chunked(client: TestClient) -> Any:
    def parts() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 30

    return client.post("/v1/documents", content=parts(), headers={**ADMIN, "content-type": "application/json"})


def file(name: str, body: bytes, **fields: Any) -> Callable[[TestClient], Any]:
    return lambda client: client.post("/v1/documents", files=[("file", (name, body))], data=fields, headers=ADMIN)


@contextmanager
def waiting(lm: ContinualLM, count: int, source: str = "") -> Iterator[None]:
    taken = lm.ledger.receive([Arrival(b"%d" % number, source=source) for number in range(count)])
    yield
    for key, _ in taken:
        lm.ledger.drop(key)


@contextmanager
def full_queue(lm: ContinualLM) -> Iterator[None]:
    with waiting(lm, 6):
        yield


@contextmanager
def full_source(lm: ContinualLM) -> Iterator[None]:
    with waiting(lm, 3, "mail"):
        yield


@contextmanager
def full_ledger(lm: ContinualLM) -> Iterator[None]:
    """SQLite's own error of a full disk."""
    lm.ledger._connection.execute(f"PRAGMA max_page_count = {lm.ledger._rows('PRAGMA page_count')[0][0]}")
    yield
    lm.ledger._connection.execute("PRAGMA max_page_count = 1000000")


class FullDisk(FileSystem):
    def write(self, descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def full_store(lm: ContinualLM) -> Iterator[None]:
    before, lm.store.files = lm.store.files, FullDisk()
    yield
    lm.store.files = before


@contextmanager
def full_temporary_folder(lm: ContinualLM) -> Iterator[None]:
    """A large upload goes to a temporary file."""

    async def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/secret")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UploadFile, "write", write)
        yield


@contextmanager
def another_process(code: str, folder: Path) -> Iterator[None]:
    """Runs until the end of the block; it says when it has begun."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    yield
    process.communicate("end\n", timeout=30)


WRITER = """
import sys
from pathlib import Path
from retain.workspace.lock import WriterLock
with WriterLock(Path(sys.argv[1]) / "lock").acquire():
    print("begun", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_writer(lm: ContinualLM) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, another_process(WRITER, lm.root):
        patch.setattr(documents, "PATIENCE", 0.1)
        yield


@contextmanager
def another_committer(lm: ContinualLM) -> Iterator[None]:
    code = (
        "import sqlite3, sys; made = sqlite3.connect(sys.argv[1] + '/ledger.db', isolation_level=None)\n"
        "made.execute('BEGIN IMMEDIATE'); print('begun', flush=True); sys.stdin.readline(); made.execute('ROLLBACK')"
    )
    lm.ledger._connection.execute("PRAGMA busy_timeout = 100")
    with another_process(code, lm.root):
        yield
    lm.ledger._connection.execute("PRAGMA busy_timeout = 5000")


@contextmanager
def nothing(lm: ContinualLM) -> Iterator[None]:
    yield


def latest(client: TestClient) -> str:
    return str(client.get("/v1/updates", headers=ADMIN).json()["updates"][0]["id"])


def revert(client: TestClient) -> Any:
    return client.post(f"/v1/updates/{latest(client)}/revert", headers=ADMIN)


def forget(client: TestClient) -> Any:
    known = client.get("/v1/documents", headers=ADMIN).json()["documents"][0]["id"]
    return client.delete(f"/v1/documents/{known}", headers=ADMIN)


CASES: dict[str, tuple[Callable[[ContinualLM], Any], Callable[[TestClient], Any], int, str]] = {
    "a body that is too large": (nothing, lambda client: text(client, title="x" * 25_000), 413, "0.02 MB at most"),
    "a body without a length that is too large": (nothing, chunked, 413, "0.02 MB at most"),
    "no JSON": (nothing, raw("/v1/chat/completions", b"{"), 400, "not JSON"),
    "no JSON in a document": (nothing, raw("/v1/documents", b"{'text': 1}"), 400, "not JSON"),
    "bytes that are no text": (nothing, raw("/v1/documents", b'{"text": "\xff"}'), 400, "not JSON"),
    "JSON that is no object": (nothing, raw("/v1/chat/completions", b"[]"), 400, "JSON object"),
    "a form where JSON belongs": (nothing, raw("/v1/chat/completions", b"a=b", "application/x-www-form-urlencoded"), 400, "sent with"),
    "a form without its boundary": (nothing, raw("/v1/documents", b"x", "multipart/form-data"), 400, "boundary"),
    "an unknown model": (nothing, lambda client: chat(client, model="gpt-4"), 404, "no model 'gpt-4'"),
    "an unknown model of a text": (nothing, posted("/v1/completions", model="gpt-4", prompt="a"), 404, "no model"),
    "an unknown model of vectors": (nothing, posted("/v1/embeddings", model="gpt-4", input="a"), 404, "no model"),
    "an unknown adapter": (nothing, posted("/v1/unload_lora_adapter", lora_name="mine"), 404, "was not loaded"),
    "an adapter that is none": (nothing, posted("/v1/load_lora_adapter", lora_name="mine", lora_path="/nowhere"), 400, "lora_path"),
    "no token": (nothing, lambda client: client.post("/v1/documents", json={"text": "x"}), 401, "Bearer TOKEN"),
    "a wrong token": (nothing, lambda client: client.get("/v1/models", headers=WRONG), 401, "needs a token"),
    "a token without the scope": (nothing, lambda client: client.delete("/v1/documents/a0", headers=READ), 403, "scope admin"),
    "a prompt that does not fit": (nothing, lambda client: chat(client, messages=[{"role": "user", "content": LONG}]), 400, "tokens"),
    "a text that does not fit": (nothing, posted("/v1/completions", prompt=LONG, max_tokens=2), 400, "tokens"),
    "a text for a vector that does not fit": (nothing, posted("/v1/embeddings", input=LONG), 400, "tokens"),
    "an answer that does not fit": (nothing, lambda client: chat(client, max_tokens=100_000), 400, "256 tokens at most"),
    "a full queue": (full_queue, text, 429, "waiting to be learned already"),
    "a full queue for a file": (full_queue, file("a.md", b"# A"), 429, "waiting to be learned already"),
    "a source with too much": (full_source, lambda client: text(client, source="mail"), 429, "of the source 'mail'"),
    "a full ledger": (full_ledger, lambda client: text(client, text="x" * 15_000), 507, "disk is full"),
    "a full ledger for many": (
        full_ledger, posted("/v1/documents", documents=[{"text": f"{number} {'x' * 3000}"} for number in range(5)]), 507, "disk is full",
    ),
    "a full store": (full_store, revert, 507, "disk is full"),
    "a full store while forgetting": (full_store, forget, 507, "disk is full"),
    "no room for an upload": (full_temporary_folder, file("a.md", b"x" * 9000), 507, "disk is full"),
    "another process that learns": (another_writer, revert, 503, "another process"),
    "another process that commits": (another_committer, text, 503, "another process"),
    "an empty file": (nothing, file("a.md", b""), 400, "not empty"),
    "a source that is too long": (nothing, file("a.md", b"# A", source="x" * 501), 400, "source"),
    "an empty text": (nothing, lambda client: text(client, text=" \n"), 400, "no text"),
    "a document that is unknown": (nothing, lambda client: client.get("/v1/documents/d-none", headers=ADMIN), 404, "no document"),
    "a list that goes on after nothing": (nothing, lambda client: client.get("/v1/documents?after=a0", headers=ADMIN), 404, "no arrival"),
    "a list that goes on after something else": (nothing, lambda client: client.get("/v1/documents?after=x0", headers=ADMIN), 400, "after"),
    "a list of nothing": (nothing, lambda client: client.get("/v1/documents?limit=0", headers=ADMIN), 400, "limit"),
    "another way": (nothing, lambda client: client.put("/v1/documents", headers=ADMIN), 405, "answers PUT"),
    "a place that there is not": (nothing, lambda client: client.get("/v1/nowhere", headers=ADMIN), 404, "nothing at this address"),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, settings: Config) -> Iterator[TestClient]:
    """A service with tokens and narrow limits that has learned a document."""
    place = tmp_path_factory.mktemp("guarded")
    (place / "tokens").write_text("read read-0123456789abcdef\nadmin admin-0123456789abcdef\n")
    limits = ServeConfig(capacity=256, token_file=place / "tokens", body_megabytes=0.02, depth=6, source_depth=3)
    with ContinualLM.open(place / "work", tiny_model, config=settings) as lm, TestClient(create_app(lm, limits), base_url=HERE) as client:
        title, words = tiny_documents()[0]
        lm.ledger.receive([Arrival(words.encode(), name=title)])
        assert Worker(lm).once() and lm.documents()[0].status == "committed"
        client.lm = lm  # type: ignore[attr-defined]
        yield client


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_nothing_else_happens(case: str, guarded: TestClient, capfd: pytest.CaptureFixture[str]) -> None:
    happens, asks, status, said = CASES[case]
    lm: ContinualLM = guarded.lm  # type: ignore[attr-defined]
    with happens(lm):
        before = (lm.ledger.arrival_counts(), lm.ledger.counts(), lm.ledger.head())
        response = asks(guarded)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and said in error["message"], error
        assert response.headers["x-request-id"].startswith("req_") and response.headers["x-frame-options"] == "DENY"
        assert not re.search(r"/home|/tmp|\.py|sqlite|Traceback|process \d|Error\b", error["message"]), error
        assert ("retry-after" in response.headers) == (status in (429, 503))
        assert chat(guarded).status_code == 200, "answering goes on"
        assert (lm.ledger.arrival_counts(), lm.ledger.counts(), lm.ledger.head()) == before
    assert "Traceback" not in "".join(capfd.readouterr())


def test_when_there_is_room_again_everything_is_taken(guarded: TestClient) -> None:
    lm: ContinualLM = guarded.lm  # type: ignore[attr-defined]
    with full_ledger(lm):
        assert text(guarded, text="x" * 15_000).status_code == 507
    taken = text(guarded, text="x" * 15_000)
    assert taken.status_code == 202 and guarded.delete(f"/v1/documents/{taken.json()['id']}", headers=ADMIN).status_code == 200
    with full_store(lm):
        assert revert(guarded).status_code == 507
    assert revert(guarded).json()["kind"] == "revert" and not lm.state.adapters
    assert revert(guarded).json()["kind"] == "revert" and lm.state.adapters


def test_who_waits_to_undo_keeps_nobody_from_asking(guarded: TestClient) -> None:
    """More of them than there are threads for everything else."""
    lm: ContinualLM = guarded.lm  # type: ignore[attr-defined]
    update = latest(guarded)
    with ThreadPoolExecutor(50) as pool, another_process(WRITER, lm.root):
        undoing = [pool.submit(guarded.post, f"/v1/updates/{update}/revert", headers=ADMIN) for _ in range(45)]
        time.sleep(1.0)
        wait([answered := pool.submit(chat, guarded)], timeout=30)
        in_time = answered.done() and not any(one.done() for one in undoing)
    assert in_time and answered.result().status_code == 200
    assert sorted(one.result().status_code for one in undoing) == [200] + [409] * 44
    assert revert(guarded).json()["kind"] == "revert" and lm.state.adapters


def test_a_disk_that_fails_ends_the_service(guarded: TestClient) -> None:
    """After an fsync that failed nothing may be acknowledged any more: nobody waits for an answer, and the process is told to end."""
    lm: ContinualLM = guarded.lm  # type: ignore[attr-defined]
    ended: list[bool] = []
    guarded.app.state.end = lambda: ended.append(True)  # type: ignore[attr-defined]
    lm.store.files, before = FileSystem(), lm.store.files
    lm.store.files.broken = "fsync failed"
    response = text(guarded)
    assert response.status_code == 500 and ended == [True] and "fsync" not in response.text
    with pytest.raises(DurabilityLost):
        lm.ledger.receive([Arrival(b"A text.")])
    lm.store.files = before


def test_what_cannot_be_parsed_is_put_aside_with_its_reason(guarded: TestClient) -> None:
    lm: ContinualLM = guarded.lm  # type: ignore[attr-defined]
    for name, body, reason in (("a.pdf", b"%PDF-nonsense", "PDF"), ("a.docx", b"no zip", "Word"), ("a.bin", b"\0\1", "binary")):
        key = file(name, body)(guarded).json()["id"]
        assert Worker(lm).once()
        found = guarded.get(f"/v1/documents/{key}", headers=ADMIN).json()
        guarded.delete(f"/v1/documents/{key}", headers=ADMIN)
        assert found["status"] == "failed" and reason in found["reason"] and "Traceback" not in found["reason"], found
    assert lm.ledger.waiting() == 0 and len(lm.documents()) == 1


def test_a_learner_on_a_full_disk_goes_on(tmp_path: Path) -> None:
    """What it tells is worth less than what it does."""
    record = EventFile(tmp_path / "gone")
    record(Event("note", "nobody hears this"))
    record.path.parent.mkdir()
    record(Event("note", "this is heard"))
    assert json.loads(record.path.read_text())["message"] == "this is heard"


@pytest.mark.parametrize("port", ["taken", "99999"])
def test_a_port_that_will_not_do(port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before a workspace is made or a model is loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("RETAIN_SERVE__PORT", str(taken.getsockname()[1]) if port == "taken" else port)
        done = CliRunner().invoke(app, ["serve", "-w", str(tmp_path / "work")])
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "work").exists()
    assert "serve.port" in done.stderr and ("in use" if port == "taken" else "65535") in done.stderr
