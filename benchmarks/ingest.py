"""How fast documents are taken in: acknowledged, that is durable, per second.

    python -m benchmarks.ingest [--documents 100000] [--out benchmarks/results/ingest.json]

Eight clients hand in small documents of their own, each waiting for acknowledgements with at most 64 under way. Three ways: every document
in a commit of its own, by one client (what group commit saves); eight threads over one :class:`GroupCommit`; and eight processes that
send groups of 100 over HTTP to the service (``retain serve --no-learner``), each document acknowledged in the answer.
Afterwards every acknowledged id is looked up.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.recording import keep
from retain.lm.devices import machine_facts
from retain.workspace import Ledger, Store
from retain.workspace.inbox import Arrival, GroupCommit, Receipts

RESULTS = Path(__file__).parent / "results" / "ingest.json"
CLIENTS, UNDER_WAY, GROUP = 8, 64, 100


def text(client: int, number: int) -> str:
    """A document of some 200 characters."""
    return (
        f"Report {number} of station {client}. " + f"The level stood at {number % 997} millimetres, the wind at {number % 31} knots. " * 3
    )


def opened(folder: Path) -> Ledger:
    """The ledger of a fresh workspace."""
    return Ledger.open(folder / "ledger.db", Store(folder))


def one_by_one(count: int) -> dict[str, float]:
    """A commit for each document."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as ledger:
        started = time.perf_counter()
        for number in range(count):
            ledger.receive([Arrival(text(0, number).encode())])
        return {"documents": count, "per_second": count / (time.perf_counter() - started)}


def in_groups(count: int) -> dict[str, float]:
    """Eight threads, one group commit."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as ledger:
        group, keys = GroupCommit(ledger, depth=2 * count), list[str]()

        def client(name: int) -> None:
            under_way: deque[Future[Receipts]] = deque()
            for number in range(count // CLIENTS):
                under_way.append(group.hand_in([Arrival(text(name, number).encode())]))
                if len(under_way) == UNDER_WAY:
                    keys.extend(key for key, _ in under_way.popleft().result())
            keys.extend(key for future in under_way for key, _ in future.result())

        started = time.perf_counter()
        threads = [threading.Thread(target=client, args=(name,)) for name in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        group.close()
        return {"documents": len(keys), "per_second": len(keys) / seconds, "lost": len(set(keys)) - ledger.waiting()}


def send(port: int, client: int, count: int) -> list[str]:
    """One client over HTTP; the ids that were acknowledged."""
    keys: list[str] = []
    for first in range(0, count, GROUP):
        body = {"documents": [{"text": text(client, number)} for number in range(first, min(first + GROUP, count))]}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/documents", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as response:
            keys += [item["id"] for item in json.load(response)["documents"]]
    return keys


def over_http(count: int) -> dict[str, float]:
    """Eight processes and the service."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "user.yaml"
        settings.write_text(f"serve: {{requests_per_minute: 1000000, depth: {2 * count}}}\n")
        command = [sys.executable, "-m", "retain.cli", "serve", "-w", f"{folder}/work", "--port", str(port), "--no-learner"]
        service = subprocess.Popen(
            command, env={**os.environ, "RETAIN_CONFIG": str(settings)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_up(port)
            started = time.perf_counter()
            with ProcessPoolExecutor(CLIENTS) as clients:
                parts = list(clients.map(send, [port] * CLIENTS, range(CLIENTS), [count // CLIENTS] * CLIENTS))
            seconds = time.perf_counter() - started
        finally:
            service.terminate()
            service.wait(30)
        keys = [key for part in parts for key in part]
        with opened(Path(folder) / "work") as ledger:
            return {"documents": len(keys), "per_second": len(keys) / seconds, "lost": len(set(keys)) - ledger.waiting()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_up(port: int) -> None:
    """Return when the service answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the service did not come up")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "benchmark": "ingest", "clients": CLIENTS,
        "a commit for each": one_by_one(min(1000, options.documents)),
        "group commit, threads": in_groups(options.documents),
        "group commit, HTTP": over_http(options.documents),
        "machine": machine_facts(),
    }  # fmt: skip
    keep(record, options.out)


if __name__ == "__main__":
    main()
