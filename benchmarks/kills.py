"""What SIGKILL and power cuts do to a workspace in use, and whether seeded faults are noticed.

    python -m benchmarks.kills [--kills 200] [--seed 0] [--fault NAME] [--out benchmarks/results/kills.json]

A process (:mod:`benchmarks.kills_victim`) takes in documents, learns, consolidates, forgets, reverts and collects with a tiny language
model, and is killed: every other time after a random time, and every other time at an exact operation of a stage, taken in turns. After
every second kill the objects are made anew as a power cut at that moment may leave them (:mod:`benchmarks.power_cut`); SQLite syncs its
own file at each commit. Every time everything that was acknowledged is looked up and everything stored is checked
(:mod:`benchmarks.kills_check`), and the next process goes on with the same workspace. After 25 kills the queue is worked off, each
arrival has to be done exactly once, and adapters have to have the bits that they get in a workspace that nobody disturbs.

Then each fault of ``FAULTS`` is put in, and has to be noticed by the same checks within ``MOST`` kills. Ends with 1 when the real
system has any violation or a fault is not noticed. With ``--fault`` that one alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from base64 import b64decode
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load

from benchmarks.kills_check import Told, same_tensors, violations
from benchmarks.kills_victim import ACTIONS, FAULTS, MODEL, Life, live, settings
from benchmarks.power_cut import Operation, contents, rebuild
from benchmarks.recording import keep
from retain.lm.devices import machine_facts
from retain.workspace import Ledger, Store
from retain.workspace.continual import ContinualLM
from retain.workspace.knowledge import stored_document
from retain.workspace.transaction import base_control

RESULTS = Path(__file__).parent / "results" / "kills.json"
ROUND = 25  # kills of one workspace
MOST = 60  # kills until a fault has to be noticed
LONGEST = 1.2  # seconds until a kill at a random time
PATIENCE = 6.0  # seconds until a kill that waits for an operation comes anyway
SAMPLE = 6  # adapters of each workspace that are learned again undisturbed
STAGES = {
    "ingest": 8, "acknowledge": 4, "lease": 4, "queue": 24, "store": 24, "commit": 24, "finish": 4, "consolidate": 40,
    "forget": 24, "collect": 4, "revert": 16, "checkpoint": 4,
}  # fmt: skip
"""The stages that have durable operations, and up to which of them a kill waits."""


@dataclass
class Found:
    """What happened to one or more workspaces."""

    stages: dict[str, Counter[str]] = field(default_factory=lambda: {"at an operation": Counter(), "at a random time": Counter()})
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How often a process was killed."""
        return sum(count.total() for count in self.stages.values())

    def add(self, other: Found) -> None:
        """Put another workspace's to it."""
        for how, count in other.stages.items():
            self.stages[how] += count
        self.counts += other.counts
        self.violations += other.violations


class Victims:
    """Processes that share a workspace one after another, and what they leave. ``root`` is the workspace."""

    def __init__(self, folder: Path, template: Path, seed: int, fault: str) -> None:
        self.root, self.notes, self.fault, self.seed = folder / "work", folder / "notes", fault, seed
        shutil.copytree(template, self.root)
        self.notes.mkdir()
        self.chance, self.told, self.found = random.Random(seed), Told(), Found()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "benchmarks.kills_victim"])
        self._log, self._base = list[Operation](), contents(self.root / "objects")
        self._turns = self.chance.sample(sorted(STAGES), len(STAGES))

    def kill(self, number: int) -> None:
        """One process, killed, and what is wrong afterwards."""
        life, wait = Life(self.root, self.notes, self.seed * 1000 + number, number * 1000, fault=self.fault), PATIENCE
        if number % 2:
            wait = self.chance.uniform(0.02, LONGEST)
        else:
            stage = self._turns[number // 2 % len(STAGES)]
            action = stage if stage in ACTIONS else ""
            life = replace(life, at=(stage, self.chance.randint(1, STAGES[stage])), action=action)
        code = self._run(life, wait)
        stages = json.loads((self.notes / "stages").read_text() or "{}") if (self.notes / "stages").exists() else {}
        exact = "killed at" in stages
        at = stages["stage"] if exact else stages.get("MainThread", "start")
        self.found.stages["at an operation" if exact else "at a random time"][at] += 1
        if code != -9:
            self._wrong([f"process: it ended by itself ({code}): {self._error()}"], number, at)
        if number // 2 % 2:
            self._cut()
            self.found.counts["power cuts"] += 1
            at += " and a power cut"
        self._age()
        self._wrong(violations(self.root, self.told), number, at)

    def finish(self, template: Path) -> None:
        """Work off what waits; what was given up because its process died three times is released, as somebody would."""
        with Ledger.open(self.root / "ledger.db", Store(self.root)) as ledger:
            for owner in ledger.owners():
                ledger.end_leases(owner)
            for record in ledger.arrivals("failed", 10_000):
                ledger.release(record.id)
                self.found.counts["given up after three kills, then released"] += 1
        code = self._run(Life(self.root, self.notes, self.seed, fault=self.fault, undisturbed=True), 300.0)
        if code != 0:
            self._wrong([f"process: working off what waits ended with {code}: {self._error()}"], -1, "the end")
        self._age()
        with ContinualLM.open(self.root, MODEL, config=settings()) as lm:
            lm.collect()
        self._wrong(violations(self.root, self.told, at_rest=True), -1, "the end")
        if not self.found.violations:
            self._wrong(self._learned_again(template), -1, "the end")
        with Ledger.open(self.root / "ledger.db", Store(self.root)) as ledger:
            self.found.counts["arrivals acknowledged"] += len(self.told.arrivals)
            self.found.counts += Counter(f"documents {record.status}" for record in ledger.documents())
            self.found.counts += Counter(f"updates {update.kind}" for update in ledger.updates() if update.status != "rejected")

    def _age(self) -> None:
        """Hours pass: garbage collection leaves what is younger."""
        for path in (self.root / "objects").rglob("*"):
            if path.is_file():
                os.utime(path, (past := time.time() - 7200, past))

    def _run(self, life: Life, wait: float) -> int | None:
        for name in ("stages", "error", "told", "operations"):
            (self.notes / name).unlink(missing_ok=True)
        process = self._context.Process(target=live, args=(life,))
        process.start()
        process.join(wait)
        process.kill()
        process.join()
        self.told.read(self._note("told"))
        for line in self._note("operations").splitlines(keepends=True):
            if line.endswith("\n"):  # what was cut off had not happened, or happens again
                self._log.append(_operation(json.loads(line)))
        return process.exitcode

    def _cut(self) -> None:
        """The power fails: the objects are what the disk had."""
        left, objects = self.notes / "left", self.root / "objects"
        rebuild(self._log, self.root, left, self.chance, self._base)
        shutil.rmtree(objects, ignore_errors=True)
        if (left / "objects").is_dir():
            (left / "objects").rename(objects)
        shutil.rmtree(left)
        self._log, self._base = [], contents(objects)

    def _learned_again(self, template: Path) -> list[str]:
        """The adapters of some documents, compared with those that the same documents get where nothing is killed."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(template, Path(folder) / "again")
            with (
                ContinualLM.open(self.root, MODEL, config=settings()) as lm,
                ContinualLM.open(Path(folder) / "again", MODEL, config=settings()) as again,
            ):
                own = [item for item in lm.state.adapters if len(item.documents) == 1][-SAMPLE:]
                for item in own:
                    again.learn(stored_document(lm.store, lm.ledger.document(item.documents[0])))
                    (made,) = [other for other in again.state.adapters if other.documents == item.documents]
                    files = [load(store.get(digest)) for store, digest in ((lm.store, item.digest), (again.store, made.digest))]
                    if not same_tensors(*files):
                        found.append(f"weights: adapter {item.name} is not what learning {item.documents[0]} gives undisturbed")
                self.found.counts["adapters equal to undisturbed ones"] += len(own) - len(found)
        return found

    def _wrong(self, lines: list[str], number: int, at: str) -> None:
        where = f"after kill {number + 1}, at {at}" if number >= 0 else "at the end"
        self.found.violations += [f"{line} ({where}; seed {self.seed})" for line in lines]

    def _note(self, name: str) -> str:
        path = self.notes / name
        return path.read_text() if path.exists() else ""

    def _error(self) -> str:
        return " | ".join(self._note("error").splitlines()[-3:])


def _operation(values: list[Any]) -> Operation:
    """An operation as :class:`benchmarks.kills_victim.Files` noted it."""
    what, *rest = values
    if what == "write":
        return (what, rest[0], b64decode(rest[1]))
    return (what, *(Path(value) if isinstance(value, str) else value for value in rest))


def killed(folder: Path, seed: int, kills: int, fault: str = "", patient: bool = True) -> Found:
    """A workspace whose processes are killed so often, and then worked off; without ``patient`` only until something is wrong."""
    template = folder / "template"
    if not template.exists():  # what is measured once for each base model, so that it is not most of what is killed
        with ContinualLM.open(template, MODEL, config=settings()) as lm:
            base_control(lm.knowledge)
    victims = Victims(Path(tempfile.mkdtemp(prefix=f"{fault or 'real'}-", dir=folder)), template, seed, fault)
    for number in range(kills):
        victims.kill(number)
        if victims.found.violations and not patient:
            return victims.found
    victims.finish(template)
    return victims.found


def real(folder: Path, seed: int, kills: int) -> dict[str, Any]:
    """The system as it is, in workspaces of ``ROUND`` kills."""
    found, started = Found(), time.perf_counter()
    for number, first in enumerate(range(0, kills, ROUND)):
        found.add(killed(folder, seed * 100 + number, min(ROUND, kills - first)))
        print(f"{found.kills} kills, {len(found.violations)} violations", flush=True)
    stages = sorted({stage for count in found.stages.values() for stage in count})
    return {
        "kills": found.kills,
        "violations": found.violations,
        "stages": {stage: {how: count[stage] for how, count in found.stages.items()} for stage in stages},
        "counts": dict(sorted(found.counts.items())),
        "seconds": round(time.perf_counter() - started, 1),
    }


def noticed(folder: Path, seed: int, fault: str) -> dict[str, Any]:
    """Whether a fault is noticed, after how many kills, and by which kind of violation."""
    found = Found()
    for number, first in enumerate(range(0, MOST, ROUND)):
        found.add(killed(folder, seed * 100 + number, min(ROUND, MOST - first), fault, patient=False))
        if found.violations:
            break
    kinds = sorted({line.partition(":")[0] for line in found.violations})
    print(f"{fault}: {found.violations[0] if found.violations else 'not noticed'}", flush=True)
    return {"noticed": bool(kinds), "kills": found.kills, "by": kinds, "first": found.violations[:1]}


def main() -> int:
    """Measure and write; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.fault:
            print(json.dumps(outcome := noticed(folder, options.seed, options.fault), indent=1))
            return 0 if outcome["noticed"] else 1
        record: dict[str, Any] = {
            "benchmark": "kills", "seed": options.seed,
            "real": real(folder, options.seed, options.kills),
            "faults": {fault: noticed(folder, options.seed, fault) for fault in FAULTS},
            "machine": machine_facts(),
        }  # fmt: skip
    keep(record, options.out)
    return 0 if not record["real"]["violations"] and all(item["noticed"] for item in record["faults"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
