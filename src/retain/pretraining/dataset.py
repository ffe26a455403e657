"""The corpus as tokens on disk: made once, mapped into memory, cut into windows.

dataset.json            what it was made from (a hash of the corpus and the settings), counts, SHA-256 of the token files
tokenizer/              as transformers has it
train.bin               token ids, uint16 or uint32, little-endian: documents one after another, an end token behind each
train.index.npy         where each document begins, and where the last one ends
validation.bin, .npy    the same of the documents that are held out
dropped.jsonl           what was left out or repaired, and why
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.data import Document
from retain.lm.loading import load_tokenizer
from retain.pretraining.config import PretrainConfig, preset
from retain.pretraining.corpus import Told, document_tokens, documents, fingerprint, held_out
from retain.pretraining.durable import Lines, whole_folder
from retain.pretraining.errors import PretrainingError
from retain.pretraining.tokenizer import existing_tokenizer, train_tokenizer

VERSION = 1
Say = Callable[[str, int], None]  # (what is being done, how many documents so far)


class Dataset:
    """A dataset that is there. ``facts``: the content of dataset.json; ``tokenizer``; ``train`` and ``validation`` [tokens], mapped into
    memory (None where nothing is held out)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        self.train = self._map("train")
        self.validation = self._map("validation") if "validation" in self.facts else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the tokens are from."""
        return load_tokenizer(self.folder / "tokenizer")

    def index(self, half: str) -> np.ndarray[Any, Any]:
        """Where the documents of "train" or "validation" begin, and where the last one ends; mapped into memory."""
        return np.load(self.folder / f"{half}.index.npy", mmap_mode="r", allow_pickle=False)

    def _map(self, half: str) -> np.ndarray[Any, Any]:
        path, dtype = self.folder / f"{half}.bin", np.dtype(self.facts["dtype"])
        if not path.exists() or path.stat().st_size != self.facts[half]["tokens"] * dtype.itemsize:
            raise PretrainingError(f"{path}: is damaged or incomplete: remove {self.folder}, it is made anew")
        return np.memmap(path, dtype, mode="r")


def prepare(config: PretrainConfig, place: Path, say: Say = lambda stage, count: None) -> Dataset:
    """The dataset at ``place``. It is made when it is not there, and made anew when the corpus or a setting that it depends on is another.

    Raises DataError and PretrainingError, each one line: a corpus that is missing, empty, or too small to be split.
    """
    for path in config.corpus.paths:
        if place.resolve().is_relative_to(Path(path).resolve()):
            raise PretrainingError(f"{place}: lies inside the corpus {path}, and would be learned from: choose another folder with --out")
    key = dataset_key(config)
    try:
        known = json.loads((place / "dataset.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        known = None
    if known != key:
        with whole_folder(place) as scratch:
            _make(config, scratch, key, say)
    return Dataset(place)


def dataset_key(config: PretrainConfig) -> str:
    """SHA-256 over the corpus' files and every setting that the tokens depend on."""
    own = config.tokenizer
    settings = {
        "version": VERSION, "corpus": config.corpus.model_dump(exclude={"paths"}), "seed": config.seed,
        "tokenizer": fingerprint([own.path]) if own.path else own.vocabulary or preset(config.model.preset).vocabulary,
    }  # fmt: skip
    return hashlib.sha256(f"{fingerprint(config.corpus.paths)} {json.dumps(settings, sort_keys=True)}".encode()).hexdigest()


def _make(config: PretrainConfig, folder: Path, key: str, say: Say) -> None:
    told, texts = Told(), folder / "documents.jsonl"
    spool, ids, characters = Lines(texts), [], 0
    for document in documents(config.corpus, told):
        spool.append(document.to_dict())
        ids.append(document.id)
        characters += len(document.text)
        say("reading", len(ids))
    if not ids:
        raise PretrainingError(f"the corpus has no document that is worth learning{_why(told)}: look at corpus.paths and corpus.clean")
    apart = held_out(ids, config.corpus.validation, config.seed)
    say("training the tokenizer", len(ids))
    tokenizer = _tokenizer(config, (document.text for document, out in zip(_spooled(texts), apart, strict=True) if not out))
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    dtype = np.dtype("<u2" if len(tokenizer) <= 2**16 else "<u4")
    facts: dict[str, Any] = {
        "key": key, "dtype": dtype.str, "vocabulary": len(tokenizer), "characters": characters, "dropped": told.summary(),
    }  # fmt: skip
    for half, wanted in (("train", False), ("validation", True)):
        if wanted in apart:
            chosen = (document for document, out in zip(_spooled(texts), apart, strict=True) if out is wanted)
            facts[half] = _write(tokenizer, chosen, folder, half, dtype, say)
    with (folder / "dropped.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in told.records)
    texts.unlink()
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _tokenizer(config: PretrainConfig, texts: Iterator[str]) -> Any:
    if config.tokenizer.path:
        return existing_tokenizer(Path(config.tokenizer.path))
    return train_tokenizer(texts, config.tokenizer.vocabulary or preset(config.model.preset).vocabulary)


def _write(tokenizer: Any, chosen: Iterator[Document], folder: Path, half: str, dtype: np.dtype[Any], say: Say) -> dict[str, Any]:
    """The token file and the index of one half, and their facts."""
    starts, digest = [0], hashlib.sha256()
    with (folder / f"{half}.bin").open("wb") as file:
        for document in chosen:
            data = np.asarray(document_tokens(tokenizer, document), dtype).tobytes()
            digest.update(data)
            file.write(data)
            starts.append(starts[-1] + len(data) // dtype.itemsize)
            say("writing tokens", len(starts) - 1)
    np.save(folder / f"{half}.index.npy", np.asarray(starts, np.int64), allow_pickle=False)
    return {"documents": len(starts) - 1, "tokens": starts[-1], "sha256": digest.hexdigest()}


def _spooled(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Document.from_dict(json.loads(line))


def _why(told: Told) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in told.summary().items())
    return f" (left out: {reasons})" if reasons else ""


class Windows:
    """Tokens cut into windows of ``context``, each beginning with the last token of the one before: over one pass every token but the
    first is predicted once. What is left over at the end is not read, except with ``rest``.

    ``order(epoch)`` shuffles: a permutation that depends on seed and epoch alone.
    """

    def __init__(self, tokens: np.ndarray[Any, Any], context: int, seed: int = 0, rest: bool = False) -> None:
        self.tokens, self.context, self.seed = tokens, context, seed
        steps = max(len(tokens) - 1, 0)
        self.count = -(-steps // (context - 1)) if rest else steps // (context - 1)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def window(self, number: int) -> Tensor:
        """Tokens [context] of a window; fewer in the rest."""
        first = number * (self.context - 1)
        return torch.from_numpy(self.tokens[first : first + self.context].astype(np.int64))

    def order(self, epoch: int) -> np.ndarray[Any, Any]:
        """The windows of an epoch in the order in which they are learned."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return self._order


class WindowStream:
    """Windows for the training loop: what a process learns at a step follows from the step alone, so training goes on anywhere.

    ``batch``: windows of a step, all processes together; ``accumulation``: pieces of a process's share. Raises PretrainingError when the
    corpus is smaller than a batch.
    """

    def __init__(self, dataset: Dataset, context: int, batch: int, accumulation: int, seed: int, check_tokens: int) -> None:
        self.windows = Windows(dataset.train, context, seed)
        self.batch, self.accumulation = batch, accumulation
        if self.windows.count < batch:
            raise PretrainingError(
                f"the corpus has {len(dataset.train):,} tokens to learn, {self.windows.count} windows of {context}, fewer than the {batch} "
                "of a batch: add texts, or lower training.batch or model.context"
            )
        self.held = None if dataset.validation is None else Windows(dataset.validation, context, rest=True)
        self.held_count = 0 if self.held is None else min(self.held.count, max(1, check_tokens // context))

    @property
    def epoch(self) -> int:
        """Steps of one pass."""
        return self.windows.count // self.batch

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.windows.context

    def pieces(self, step: int, rank: int, world: int) -> list[tuple[Tensor, float]]:
        """Windows [n, context] for this process, with their shares of the step's targets; the shares of all processes sum to 1."""
        first = step * self.batch
        numbers = [self._window(place) for place in range(first + rank, first + self.batch, world)]
        size = len(numbers) // self.accumulation
        parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return [(torch.stack([self.windows.window(number) for number in part]), len(part) / self.batch) for part in parts]

    def _window(self, place: int) -> int:
        """The window at a place of the endless sequence of epochs."""
        epoch, number = divmod(place, self.windows.count)
        return int(self.windows.order(epoch)[number])

    def checks(self) -> Sequence[tuple[Tensor, int]]:
        """Windows that are held out, a few at a time, with the number of their targets."""
        if self.held is None:
            return []
        windows = [self.held.window(number) for number in range(self.held_count)]
        size = max(1, self.batch // self.accumulation)
        full = [window for window in windows if len(window) == self.held.context]
        found = [(torch.stack(full[start : start + size]), full[start : start + size]) for start in range(0, len(full), size)]
        found += [(window[None], [window]) for window in windows if 1 < len(window) < self.held.context]
        return [(piece, sum(len(window) - 1 for window in part)) for piece, part in found]
