"""Time to the first token of the service, idle and while it learns, and its memory.

    python -m benchmarks.serving [--seconds 60] [--documents 6] [--clients 4] [--eight-bits] [--out benchmarks/results/serving.json]

``retain serve`` runs with the embedded model on a fresh workspace. Clients ask general questions one after another, streamed, ten tokens
each, first for some seconds with nothing to learn, then while documents of the stream benchmark are learned by the second process.
Percentiles of the time to the first token of both phases, their ratio (goal: p99 at most twice), and the resident memory of the service and
of its learner, minute by minute; six documents take more than ten minutes. ``grown``: by how much the last quarter of the time lies above
the second quarter, by its medians; the first is for warming up, in which the learner loads its model and learns its first document.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.ingest import free_port, wait_until_up
from benchmarks.recording import keep
from benchmarks.stream.run import written_stream
from retain.evaluation.control import load_control
from retain.lm.devices import machine_facts

RESULTS = Path(__file__).parent / "results" / "serving.json"


def first_token(port: int, question: str) -> float:
    """Seconds from sending a question to its first token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 10, "stream": True}
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    found = None
    for line in response:
        if found is None and b'"content"' in line and b'"content": ""' not in line:
            found = time.perf_counter() - started
    connection.close()
    if found is None:
        raise RuntimeError(f"no token came: {response.status}")
    return found


def ask_until(port: int, clients: int, done: threading.Event) -> list[float]:
    """First-token times of so many clients until told to stop."""
    questions, times = [item.question for item in load_control().questions], list[float]()

    def client(number: int) -> None:
        asked = number
        while not done.is_set():
            times.append(first_token(port, questions[asked % len(questions)]))
            asked += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def get(port: int, path: str, body: Any = None) -> Any:
    """A call of the API."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    payload = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, payload, {"content-type": "application/json"})
    return json.load(connection.getresponse())


def resident(pid: int) -> dict[str, float]:
    """Megabytes of the service and of the learner that it started."""
    found = {"service": 0.0, "learner": 0.0}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if int(values.get("PPid", 0)) == pid or status.parent.name == str(pid):
            found["service" if status.parent.name == str(pid) else "learner"] += int(values.get("VmRSS", "0 kB").split()[0]) / 1024
    return found


def course(memory: list[tuple[float, dict[str, float]]]) -> dict[str, Any]:
    """Of each process the largest memory, that of every minute (the median), and how much it grew."""
    found: dict[str, Any] = {"together": max(sum(sizes.values()) for _, sizes in memory)}
    for name in ("service", "learner"):
        sizes = [values[name] for _, values in memory]
        minutes: dict[int, list[float]] = {}
        for moment, values in memory:
            minutes.setdefault(int((moment - memory[0][0]) // 60), []).append(values[name])
        quarter = len(sizes) // 4
        grown = statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter]) if quarter else None
        found[name] = {"largest": max(sizes), "minutes": [round(statistics.median(own)) for own in minutes.values()], "grown": grown}
    return found


def summary(times: list[float]) -> dict[str, float]:
    """Percentiles in seconds."""
    ordered = sorted(times)
    at = {f"p{share}": ordered[min(len(ordered) - 1, int(share / 100 * len(ordered)))] for share in (50, 95, 99)}
    return {"answers": len(ordered), "mean": statistics.fmean(ordered), **at}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--eight-bits", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "retain.cli", "serve", "-w", f"{folder}/work", "--port", str(port)]
        command += ["--eight-bits"] if options.eight_bits else []
        service = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        try:
            wait_until_up(port)
            first_token(port, "Hello")  # warm
            done = threading.Event()
            threading.Timer(options.seconds, done.set).start()
            idle = ask_until(port, options.clients, done)
            memory = [(time.perf_counter(), resident(service.pid))]
            documents = written_stream(options.documents).documents
            for document in documents:
                get(port, "/v1/documents", {"text": document.text, "title": document.title})
            done = threading.Event()

            def watch() -> None:
                while get(port, "/v1/documents")["waiting"]:
                    memory.append((time.perf_counter(), resident(service.pid)))
                    time.sleep(1)
                done.set()

            watcher = threading.Thread(target=watch)
            watcher.start()
            began = time.perf_counter()
            learning = ask_until(port, options.clients, done)
            took = time.perf_counter() - began
            watcher.join()
            statuses = [item["status"] for item in get(port, "/v1/documents")["documents"]]
        finally:
            service.terminate()
            service.wait(60)
    record = {
        "benchmark": "serving", "clients": options.clients, "eight_bits": options.eight_bits, "idle": summary(idle),
        "learning": summary(learning), "p99_ratio": summary(learning)["p99"] / summary(idle)["p99"], "documents": statuses,
        "learning_seconds": took, "memory_megabytes": course(memory), "machine": machine_facts(),
    }  # fmt: skip
    keep(record, options.out)


if __name__ == "__main__":
    main()
