"""The process that :mod:`benchmarks.kills` kills: a workspace in use, as a service uses it, with a tiny language model.

Three threads, each with its own connection to the ledger: one sends arrivals through :class:`GroupCommit` and writes down what is
acknowledged, one is the real :class:`Worker`, and one forgets documents, reverts updates and names checkpoints now and then. Everything
that makes something durable passes :class:`Watch`, which knows at which stage a thread is and can end the process at an exact operation.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasketch  # noqa: F401  (this, and what is behind torch._dynamo, would be imported by the first document that a process learns)
import torch
import torch._dynamo
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.power_cut import Recorder
from retain.config import Config, load_config
from retain.data.document import Document
from retain.lm.decoder import DecoderLM
from retain.lm.shapes import DecoderConfig
from retain.workspace import Conflict, Ledger, Locked, NotFound, Store
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival, GroupCommit, Leased
from retain.workspace.reports import Event
from retain.workspace.worker import Worker

FAULTS = ("rename-without-fsync", "folder-not-synced", "offset-apart", "offset-late", "acknowledged-early")
ACTIONS = ("forget", "revert", "checkpoint", "collect")
WAITING = 6  # arrivals that wait at least
SETTINGS: dict[str, Any] = {
    "model": {"precision": "float32"}, "study": {"writer": "none", "questions_per_fact": 1, "distillation": 0.0},
    "learn": {
        "rank": 2, "alpha": 4.0, "layers": "last-half", "targets": ["q_proj", "v_proj"], "epochs": 1, "batch_tokens": 512,
        "consolidate_after": 5,
    },
    "gate": {"attempts": 1, "max_forgetting": 1.0, "max_perplexity_rise": 1000.0, "probe_budget": 4},
    "route": {"least_bits": 2.0, "threshold": 0.2}, "generate": {"max_tokens": 4},
    "serve": {"hold_suspects": False, "checkpoint_after": 10, "checkpoints_kept": 2},
}  # fmt: skip
_SYLLABLES = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
NAMES = [(one + two).capitalize() for one in _SYLLABLES for two in _SYLLABLES[::7]]
_OTHER = "The the of in was by is near mill keeper station built stands level stood at metres . In"


@dataclass(frozen=True)
class Life:
    """What one process does. ``first``: the number of the first document that it sends; ``at``: the stage in which it ends itself and at
    which operation of it; ``action``: what is forgotten, reverted or named more often; ``fault``: one of ``FAULTS``;
    ``undisturbed``: nothing is sent or undone, and it ends when nothing waits."""

    root: Path
    notes: Path
    seed: int
    first: int = 0
    at: tuple[str, int] | None = None
    action: str = ""
    fault: str = ""
    undisturbed: bool = False


def tiny_model() -> DecoderLM:
    """A random decoder with two layers of 32 values, and a tokenizer of whole words."""
    torch.set_num_threads(1)
    special = ["<pad>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, *_OTHER.split(), *NAMES])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    shape = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": words.get_vocab_size(), "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True, "rope_theta": 10000.0,
    }  # fmt: skip
    config, generator = DecoderConfig.from_hugging_face(shape), torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(size, generator=generator) * 0.2 if len(size) > 1 else torch.ones(size) for name, size in config.shapes().items()
    }
    return DecoderLM(config, weights, tokenizer, name="tiny")


MODEL = tiny_model()  # once in the process that victims are forked from


def settings() -> Config:
    """The configuration of the workspace."""
    return load_config(None, SETTINGS)


def texts(number: int) -> list[str]:
    """The texts of an arrival: of every eighth two."""
    found = []
    for part in range(2 if number % 8 == 7 else 1):
        chance = random.Random(number * 2 + part)
        a, b, c, d, e, f, g, h = chance.sample(NAMES, 8)
        found.append(
            f"The {a} station stands in {b}. The keeper of {a} is {c} {d}. In {chance.randint(1800, 1990)} the mill of {e} was built by "
            f"{f} {g}. The level stood at {chance.randint(1, 999)} metres near {h}."
        )
    return found


def arrival_of(number: int) -> Arrival:
    """What is sent: a text, or a file with two of them, which is read in a process of its own."""
    source, importance = f"n{number}", number % 10 / 10
    if len(parts := texts(number)) == 1:
        return Arrival(parts[0].encode(), "text", "", source, "general", importance)
    body = "".join(json.dumps({"text": text}) + "\n" for text in parts)
    return Arrival(body.encode(), "file", f"{source}.jsonl", source, "general", importance)


def documents_of(number: int) -> list[str]:
    """The ids of the documents that an arrival becomes."""
    return [Document.from_text(text, None).id for text in texts(number)]


class Watch:
    """Where the threads of a process are, in a file that outlives it; and its end, at the operation that was chosen."""

    def __init__(self, life: Life) -> None:
        self._at, self._left = life.at or ("", 0), life.at[1] if life.at else 0
        self._file = os.open(life.notes / "stages", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._told = os.open(life.notes / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._guard, self._stages = threading.Lock(), dict[str, str]()

    @property
    def stage(self) -> str:
        """The stage of this thread."""
        return self._stages.get(threading.current_thread().name, "")

    def enter(self, stage: str, thread: str = "") -> None:
        """This thread, or the one with this name, is at a stage now."""
        with self._guard:
            self._stages[thread or threading.current_thread().name] = stage
            os.pwrite(self._file, json.dumps(self._stages).ljust(400).encode(), 0)

    def reach(self, operation: str) -> None:
        """This thread is about to do something durable."""
        stage = self.stage
        if stage == self._at[0]:
            self._left -= 1
            if self._left == 0:
                os.pwrite(self._file, json.dumps({"killed at": operation, "stage": stage}).ljust(400).encode(), 0)
                os.kill(os.getpid(), signal.SIGKILL)

    def statement(self, text: str) -> None:
        """SQLite is about to run a statement."""
        word = text.split(None, 1)[0]
        if word in ("SELECT", "--") or word.startswith("PRAGMA"):
            return
        if self.stage == "store":
            self.enter("commit")
        self.reach(word)
        if word == "COMMIT" and self.stage in ("lease", "finish"):
            self.enter({"lease": "read", "finish": "upkeep"}[self.stage])

    def tell(self, line: str) -> None:
        """Write down what the workspace acknowledged; SIGKILL does not lose it."""
        os.write(self._told, f"{line}\n".encode())

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """This thread is at a stage, and idle afterwards."""
        self.enter(stage)
        try:
            yield
        finally:
            self.enter("idle")


class Files(Recorder):
    """The file system of a victim: what is done is noted in a file that outlives it."""

    def __init__(self, life: Life, watch: Watch) -> None:
        super().__init__({"rename-without-fsync": "sync", "folder-not-synced": "syncdir"}.get(life.fault, ""))
        self._watch = watch
        self._notes = os.open(life.notes / "operations", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *operation: Any) -> None:
        watch = self._watch
        if operation[0] == "remove" and watch.stage == "forget":
            watch.enter("collect")
        elif watch.stage == "learn":
            watch.enter("store")
        watch.reach(operation[0])
        plain = [b64encode(value).decode() if isinstance(value, bytes) else value for value in operation]
        os.write(self._notes, (json.dumps(plain, default=str) + "\n").encode())


class OffsetApart(Worker):
    """The seeded fault: an arrival is done, in a transaction of its own, before what it taught is committed."""

    def _learn(self, one: Leased) -> None:
        documents = self._read(one.arrival)
        self.lm.ledger.finish(one.id, self.owner, [document.id for document in documents])
        self.lm.learn_all(documents)


def live(life: Life) -> None:
    """Use a workspace until the process is killed. It ends by itself when it has an error (1) or, undisturbed, when nothing waits (0)."""
    try:
        tempfile.tempdir = str(life.notes)
        watch = Watch(life)
        watch.enter("start")
        files = Files(life, watch)
        others = [] if life.undisturbed else [_send, _undo]
        for number, other in enumerate(others):
            threading.Thread(target=_guarded, args=(other, life, watch, files), name=f"other {number}", daemon=True).start()
        _work(life, watch, files)
    except BaseException:
        _end(life)


def _guarded(other: Any, life: Life, watch: Watch, files: Files) -> None:
    try:
        other(life, watch, files)
    except BaseException:
        _end(life)


def _end(life: Life) -> None:
    (life.notes / "error").write_text(traceback.format_exc())
    os._exit(1)


def _watched(connection: sqlite3.Connection, watch: Watch) -> None:
    connection.set_trace_callback(watch.statement)


def _opened(life: Life, watch: Watch, files: Files, progress: Any = None) -> ContinualLM:
    """The workspace, with files and ledger that are watched."""
    lm = ContinualLM.open(life.root, MODEL, config=settings(), progress=progress)
    lm.store.files = files
    _watched(lm.ledger._connection, watch)
    return lm


def _work(life: Life, watch: Watch, files: Files) -> None:
    """The worker, as ``retain work`` runs it."""

    def progress(event: Event) -> None:
        joins = watch.stage == "upkeep" and event.kind == "study"
        if joins or watch.stage == "consolidate":
            watch.enter("upkeep" if event.kind == "commit" else "consolidate")
        elif event.kind in ("read", "commit"):
            watch.enter({"read": "queue", "commit": "finish"}[event.kind])
        elif watch.stage in ("queue", "learn", "store"):
            watch.enter("learn")

    lm = _opened(life, watch, files, progress)
    worker = (OffsetApart if life.fault == "offset-apart" else Worker)(lm)
    if life.fault == "offset-late":  # what is committed already is not known, and learned again
        known = lm._learning.queue
        lm._learning.queue = lambda *given: (known(*given), None)[1]  # type: ignore[method-assign]
    if life.undisturbed:
        while lm.ledger.waiting():
            if not worker.once():
                worker._bury()
                time.sleep(0.01)
        return
    once = worker.once

    def watched_once() -> bool:
        with watch.at("lease"):
            return once()

    worker.once = watched_once  # type: ignore[method-assign]
    worker.run(threading.Event(), idle=0.01)


def _send(life: Life, watch: Watch, files: Files) -> None:
    """What clients do: send, and count on what is acknowledged. Some of it is sent twice."""
    chance, number = random.Random(life.seed), life.first
    ledger = Ledger.open(life.root / "ledger.db", Store(life.root, files))
    _watched(ledger._connection, watch)
    group = GroupCommit(ledger)
    watch.enter("ingest", group._thread.name)
    while True:
        watch.enter("send")
        if ledger.waiting() >= WAITING:
            time.sleep(0.01)
            continue
        count = chance.randint(1, 3)
        sent = list(range(number, number + count))
        number += count
        if life.fault == "acknowledged-early":
            for each in sent:
                watch.tell(f"arrival {each} {arrival_of(each).id}")
        under_way = [(each, group.hand_in([arrival_of(each)])) for each in sent]
        if sent[-1] % 2 and chance.random() < 0.3:  # documents with an odd number are not forgotten
            under_way.append((sent[-1], group.hand_in([arrival_of(sent[-1])])))
        for each, receipts in under_way:
            ((key, _),) = receipts.result()
            watch.enter("acknowledge")
            watch.reach("acknowledge")
            watch.tell(f"arrival {each} {key}")


def _undo(life: Life, watch: Watch, files: Files) -> None:
    """What people do: forget, revert, name a state. At the beginning too, before the worker knows what its predecessor left."""
    chance = random.Random(life.seed + 1)
    lm = _opened(life, watch, files)
    names = iter(range(1000))
    while True:
        action = life.action if life.action and chance.random() < 0.7 else chance.choice(ACTIONS)
        if life.action or chance.random() < 0.3:
            with watch.at(action), suppress(Conflict, Locked, NotFound):
                _act(lm, action, chance, f"c{life.first}-{next(names)}", watch)
        time.sleep(chance.uniform(0.1, 0.5))


def _number(source: str) -> int:
    """Of the arrival that a document came from."""
    return int(source.strip("n").partition(".")[0])


def _act(lm: ContinualLM, action: str, chance: random.Random, name: str, watch: Watch) -> None:
    """Clear up, name the state, or undo something whose arrival is done."""
    if action == "collect":
        lm.collect()
        return
    if action == "checkpoint":
        lm.checkpoint(name)
        watch.tell(f"checkpoint {name}")
        return
    if action == "revert":
        learned = [update for update in lm.log() if (update.kind, update.status) == ("learn", "committed")]
        if learned:
            key = chance.choice(learned[-3:]).id
            lm.revert(key)
            watch.tell(f"reverted {key}")
    else:
        known = [record for record in lm.ledger.documents("committed") if _number(record.source) % 2 == 0]
        if known:
            key = chance.choice(known[-3:]).id
            lm.forget(key, drop_checkpoints=True)
            watch.tell(f"forgot {key}")
