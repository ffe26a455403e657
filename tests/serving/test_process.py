"""The service as a user starts it: two processes, one port, and a stop that loses nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions

from retain.config import ConfigError
from retain.config.serving import ServeConfig
from retain.serving.process import check_address

SETTINGS = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3},
    "study": {"writer": "none", "held_out_fraction": 0.5}, "route": {"least_bits": 2.0, "threshold": 0.4},
    "model": {"precision": "float32"}, "gate": {"attempts": 1}, "serve": {"capacity": 256},
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Service:
    """`retain serve` in a process of its own."""

    def __init__(self, place: Path, model: Path) -> None:
        self.place, self.port = place, free_port()
        (place / "user.yaml").write_text(json.dumps({**SETTINGS, "model": {"name": str(model), "precision": "float32"}}))
        self.environment = {**os.environ, "RETAIN_CONFIG": str(place / "user.yaml"), "OMP_NUM_THREADS": "1"}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "retain.cli", "serve", "-w", str(self.place / "work"), "--port", str(self.port)]
        with (self.place / "out").open("a") as out, (self.place / "err").open("a") as err:
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=err)
        for _ in range(600):
            try:
                self.get("/healthz")
                return
            except OSError:
                time.sleep(0.1)
                assert self.process.poll() is None, self.said()
        raise AssertionError("the service did not come up")

    def said(self) -> str:
        """What it and its learner wrote to standard error."""
        return (self.place / "err").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What they wrote to standard output, which is JSON."""
        return [json.loads(line) for line in (self.place / "out").read_text().splitlines()]

    def get(self, path: str, body: Any = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"content-type": "application/json", **headers})
        with urllib.request.urlopen(asked, timeout=60) as response:
            return json.load(response)

    def ask(self, question: str) -> str:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 16}
        return str(self.get("/v1/chat/completions", body)["choices"][0]["message"]["content"])

    def status(self, key: str) -> str:
        return str(self.get(f"/v1/documents/{key}")["status"])

    def wait(self, key: str) -> None:
        for _ in range(900):
            if self.status(key) == "committed":
                return
            time.sleep(0.1)
        raise AssertionError(self.get(f"/v1/documents/{key}"))

    def learners(self) -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"retain.cli work --workspace {self.place}"], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]


@pytest.fixture
def service(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Service]:
    made = Service(tmp_path, tiny_model_dir)
    yield made
    made.process.kill()
    for pid in made.learners():
        os.kill(pid, signal.SIGKILL)
    made.process.wait()


def test_it_learns_while_it_answers_and_stops_cleanly(service: Service) -> None:
    keys = [service.get("/v1/documents", {"text": text, "title": title})["id"] for title, text in tiny_documents()[:2]]
    answers = 0
    while service.status(keys[0]) != "committed":
        assert service.ask("Who are you?")
        answers += 1
        assert answers < 3000
    assert answers > 0, "nothing was answered while it learned"
    item = tiny_questions(0)[0]
    assert item.answer.lower() in service.ask(item.wordings[-1]).lower()
    first = service.learners()
    os.kill(first[0], signal.SIGKILL)  # the learner dies, maybe in the middle of the second document
    assert service.ask("Who are you?")
    service.wait(keys[1])
    item = tiny_questions(1)[0]
    assert item.answer.lower() in service.ask(item.wordings[-1]).lower() and service.learners() != first
    updates = service.get("/v1/updates")["updates"]
    assert sorted(update["documents"][0] for update in updates if update["status"] == "committed") == sorted(
        service.get(f"/v1/documents/{key}")["documents"][0] for key in keys
    ), "each document is learned once"
    service.process.terminate()
    assert service.process.wait(60) == 0 and "nothing was lost" in service.said() and "Traceback" not in service.said(), service.said()
    assert service.learners() == []
    service.start()
    assert item.answer.lower() in service.ask(item.wordings[-1]).lower()


def test_a_watched_folder_is_learned_while_questions_are_answered(service: Service, tmp_path: Path) -> None:
    """Files that are there, are added later, and are changed; among them the description of a real package."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    (title, text), (_, changed) = tiny_documents()[:2]
    (folder / "first.md").write_text(f"# {title}\n\n{text}")
    command = [sys.executable, "-m", "retain.cli", "watch", str(folder), "-w", str(service.place / "work")]
    watching = subprocess.Popen(command, env=service.environment, stderr=subprocess.PIPE, text=True)
    try:
        item, other, answers = tiny_questions(0)[0], tiny_questions(1)[0], 0
        for _ in range(600):
            answers += bool(service.ask("Who are you?"))
            if item.answer.lower() in service.ask(item.wordings[-1]).lower():
                break
        assert item.answer.lower() in service.ask(item.wordings[-1]).lower() and answers > 0
        readme = importlib.metadata.metadata("typer").get_payload()
        (folder / "package.md").write_text(str(readme)[:1200])
        (folder / "first.md").write_text(f"{changed}")
        for _ in range(600):
            found = {one["title"]: one["status"] for one in service.get("/v1/documents")["arrivals"]}
            if len(service.get("/v1/documents")["arrivals"]) == 3 and not set(found.values()) & {"pending", "learning"}:
                break
            time.sleep(0.1)
        arrivals = service.get("/v1/documents")["arrivals"]
        assert [one["title"] for one in arrivals].count("first.md") == 2 and any(one["title"] == "package.md" for one in arrivals)
        assert {one["status"] for one in arrivals} <= {"committed", "rejected"}, [one["reason"] for one in arrivals]
        assert other.answer.lower() in service.ask(other.wordings[-1]).lower(), "what a changed file says now is learned too"
    finally:
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
    assert "Traceback" not in said, said


def test_the_log_has_ids_and_no_text(service: Service) -> None:
    """Requests, what was learned and what went wrong are told; no word of a prompt, a document, a file's name, a title or a token is."""
    secret = "zorvexamulet"
    (title, text), headers = tiny_documents()[0], {"Authorization": f"Bearer {secret}"}
    learned = service.get("/v1/documents", {"text": f"{text} {secret}", "title": f"{title} {secret}", "source": secret}, **headers)["id"]
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{secret}.pdf"'
    form = f"{head}\r\n\r\n%PDF-{secret}\r\n--{boundary}--\r\n"
    address = f"http://127.0.0.1:{service.port}/v1/documents"
    sent = urllib.request.Request(address, form.encode(), {"content-type": f"multipart/form-data; boundary={boundary}"})
    with urllib.request.urlopen(sent, timeout=60) as response:
        broken, request = json.load(response)["id"], response.headers["x-request-id"]
    service.wait(learned)
    while service.status(broken) != "failed":
        time.sleep(0.1)
    service.ask(f"Who is {secret}?")
    for path, body in (("/v1/chat/completions", {"messages": [{"role": "user", "content": secret * 500}]}), (f"/{secret}/{secret}", None)):
        with pytest.raises(urllib.error.HTTPError):
            service.get(f"{path}?{secret}={secret}", body)
    service.process.terminate()
    assert service.process.wait(60) == 0
    assert secret not in (service.place / "out").read_text() and secret not in service.said(), service.said()
    lines = service.lines()
    requests = [line for line in lines if line["event"] == "request"]
    assert {"time", "level", "event", "id", "method", "path", "status", "ms"} <= set(requests[0])
    (own,) = [line for line in requests if line["id"] == request]
    assert (own["method"], own["path"], own["status"], own["arrival"]) == ("POST", "/v1/documents", 202, broken)
    assert {line["path"] for line in requests if line["status"] in (400, 404)} == {"/v1/chat/completions", "/*/*"}
    told = {(line["event"], line.get("id"), line["status"]) for line in lines if line["event"] != "request"}
    assert {("arrival", learned, "done"), ("arrival", broken, "failed")} <= told
    (update,) = [line for line in lines if line["event"] == "update"]
    assert update["status"] == "committed" and update["id"].startswith("u") and update["kind"] == "learn"
    (document,) = [line for line in lines if line["event"] == "document" and line["status"] == "committed"]
    assert document["update"] == update["id"]
    assert [line["level"] for line in lines if line.get("id") == broken] == ["error"]


def test_addresses_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can be reached by others"):
        check_address(ServeConfig(host="0.0.0.0"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="already in use"):
            check_address(ServeConfig(port=taken.getsockname()[1]))
    wrong = {"admin short": "line 1: a token has", "# none\n": "no token", "read\n": "line 1: expected", "root " + "x" * 20: "scope"}
    for text, said in wrong.items():
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(ConfigError, match=said):
            check_address(ServeConfig(host="0.0.0.0", token_file=tmp_path / "tokens"))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_address(ServeConfig(token_file=tmp_path / "none"))
