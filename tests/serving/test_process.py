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
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            try:
                self.get("/healthz")
                return
            except OSError:
                time.sleep(0.1)
                assert self.process.poll() is None, self.process.communicate()
        raise AssertionError("the service did not come up")

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"content-type": "application/json"})
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
    made.process.communicate()


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
    _, said = service.process.communicate(timeout=60)
    assert service.process.returncode == 0 and "nothing was lost" in said and "Traceback" not in said, said
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
