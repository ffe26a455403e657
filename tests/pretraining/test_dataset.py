"""Tokenizer, corpus and dataset: every token once, the same every time, made anew when something changed, mistakes in one line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pretraining.material import TOWNS, configured, sentence, write_corpus

from retain.config import ConfigError
from retain.data import DataError, Document, Message, QuestionAnswer, prompt_tokens
from retain.lm.loading import load_tokenizer
from retain.pretraining import PretrainingError
from retain.pretraining.corpus import document_tokens, held_out
from retain.pretraining.dataset import Windows, WindowStream, prepare
from retain.pretraining.durable import whole_folder
from retain.pretraining.tokenizer import END, TURN, TURN_END, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([sentence(town) for town in TOWNS], 300)


@pytest.mark.parametrize(
    "text", ["Hello, wörld 12345!", "  two  spaces\n\n\ttab", "don't 日本語 🙂", f"{TURN}spelled out{TURN_END} {END}", "\r\n"]
)
def test_every_text_comes_back(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert not {0, 1, 2} & set(tokens)  # special tokens are letters there


def test_the_tokenizer_learned_and_chats(tokenizer: Any, tmp_path: Path) -> None:
    assert len(tokenizer) == 300 and tokenizer.convert_tokens_to_ids([END, TURN, TURN_END]) == [0, 1, 2]
    assert len(tokenizer("The town of Arn sells").input_ids) < 9 < len("The town of Arn sells")
    assert [len(tokenizer(number).input_ids) for number in ("7", "2026")] == [1, 4]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    read = load_tokenizer(tmp_path)
    assert read.get_vocab() == tokenizer.get_vocab() and read.chat_template == tokenizer.chat_template
    assert read.decode(prompt_tokens(read, "Which?")) == "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    assert train_tokenizer([sentence(town) for town in TOWNS], 300).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(PretrainingError, match="258 tokens have no room for the 256 bytes"):
        train_tokenizer(["x"], 258)


def test_conversations_keep_their_turns(tokenizer: Any) -> None:
    pair = Document.from_text("Q\nA", kind="pairs", pairs=[QuestionAnswer("Where?", "Here.")])
    talk = Document.from_text("x", kind="dialogue", messages=[Message("user", "Where?"), Message("assistant", "Here.")])
    text = Document.from_text(f"Where?{TURN}")
    turns = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|><|endoftext|>"
    for document in (pair, talk):
        assert tokenizer.decode(document_tokens(tokenizer, document)) == turns
        assert document_tokens(tokenizer, document).count(1) == 2
    assert document_tokens(tokenizer, text).count(1) == 0 and document_tokens(tokenizer, text)[-1] == 0


def test_every_document_is_in_one_half(tmp_path: Path) -> None:
    config = configured(tmp_path)
    data = prepare(config, tmp_path / "data")
    assert data.facts["train"]["documents"] == 5 and data.facts["validation"]["documents"] == 1
    found = []
    for half, tokens in (("train", data.train), ("validation", data.validation)):
        assert tokens is not None and isinstance(tokens, np.memmap) and tokens.dtype == np.dtype("<u2")
        starts = data.index(half)
        documents = [data.tokenizer.decode(tokens[a:b]) for a, b in pairwise(starts)]
        assert starts[-1] == len(tokens) and all(text.endswith(END) for text in documents)
        found += [text.removesuffix(END) for text in documents]
    written = [path.read_text() for path in (tmp_path / "texts").iterdir()]
    assert sorted(found) == sorted(written)
    again = prepare(config, tmp_path / "again")
    assert again.facts == data.facts  # with the hashes of the token files


def test_it_is_made_once_and_anew_when_something_changed(tmp_path: Path) -> None:
    config, place = configured(tmp_path), tmp_path / "data"
    prepare(config, place)
    made = (place / "train.bin").stat().st_mtime_ns
    stages: list[str] = []
    prepare(config, place, lambda stage, count: stages.append(stage))
    assert not stages and (place / "train.bin").stat().st_mtime_ns == made
    first = json.loads((place / "dataset.json").read_text())
    (tmp_path / "texts" / "1.txt").write_text("Another text stands here now.\n")
    prepare(config, place, lambda stage, count: stages.append(stage))
    second = json.loads((place / "dataset.json").read_text())
    assert {"reading", "training the tokenizer", "writing tokens"} <= set(stages) and first["key"] != second["key"]
    config.corpus.validation = 0.5
    assert prepare(config, place).facts["validation"]["documents"] == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []
    (place / "train.bin").write_bytes(b"xx")
    with pytest.raises(PretrainingError, match="damaged or incomplete"):
        prepare(config, place)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    texts = write_corpus(tmp_path / "texts", 2)
    (texts / "short.txt").write_text("No.")
    (texts / "twice.txt").write_text((texts / "0.txt").read_text())
    (texts / "image.png").write_bytes(b"\x89PNG")
    (texts / "talk.jsonl").write_text('{"prompt": "Who sells tin?", "completion": "Arn does."}\n' * 2)
    data = prepare(configured(tmp_path, corpus={"clean": True, "validation": 0.3}), tmp_path / "data")
    assert data.facts["dropped"] == {"near-duplicate": 1, "same content": 2, "too short": 1, "file left out": 1}
    told = (tmp_path / "data" / "dropped.jsonl").read_text()
    assert all(name in told for name in ("short.txt", "image.png", "twice.txt", "1.txt", "talk.jsonl:2"))


def test_a_separator_divides_a_file(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.txt").write_text("<|endoftext|>\n".join(map(sentence, TOWNS)))
    data = prepare(configured(tmp_path, corpus={"separator": "<|endoftext|>"}), tmp_path / "data")
    assert data.facts["train"]["documents"] + data.facts["validation"]["documents"] == len(TOWNS)


def test_the_split_does_not_depend_on_the_order() -> None:
    ids = [f"d{number}" for number in range(50)]
    chosen = {name for name, out in zip(ids, held_out(ids, 0.1, 0), strict=True) if out}
    assert len(chosen) == 5
    backward = {name for name, out in zip(ids[::-1], held_out(ids[::-1], 0.1, 0), strict=True) if out}
    other = {name for name, out in zip(ids, held_out(ids, 0.1, 1), strict=True) if out}
    assert chosen == backward != other and not any(held_out(ids, 0.0, 0)) and sum(held_out(ids[:2], 0.01, 0)) == 1


@pytest.mark.parametrize("rest", [False, True])
def test_windows_predict_every_token_once(rest: bool) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    windows = Windows(tokens, 8, seed=3, rest=rest)
    predicted = [int(token) for number in range(windows.count) for token in windows.window(number)[1:]]
    assert predicted == list(range(1, 100 if rest else 1 + 99 // 7 * 7))
    assert sorted(windows.order(0)) == sorted(windows.order(1)) == list(range(windows.count))
    assert list(windows.order(0)) != list(windows.order(1)) and list(Windows(tokens, 8, 3, rest).order(1)) == list(windows.order(1))
    assert list(Windows(tokens, 8, seed=4).order(0)) != list(Windows(tokens, 8, seed=3).order(0))


def test_a_step_is_the_same_however_it_is_divided(tmp_path: Path) -> None:
    data = prepare(configured(tmp_path), tmp_path / "data")
    whole = WindowStream(data, 16, 4, 1, 0, 1000)
    for step in (0, 1, whole.epoch, 3 * whole.epoch + 1):
        ((expected, share),) = whole.pieces(step, 0, 1)
        assert share == 1.0 and expected.shape == (4, 16)
        for world, accumulation in ((2, 1), (1, 2), (2, 2)):
            stream = WindowStream(data, 16, 4, accumulation, 0, 1000)  # a new one: nothing depends on what was asked before
            parts = [piece for rank in range(world) for piece in stream.pieces(step, rank, world)]
            assert len(parts) == world * accumulation and sum(share for _, share in parts) == 1.0
            rows = torch.cat([rows for rows, _ in parts])
            assert sorted(rows.tolist()) == sorted(expected.tolist())
    assert whole.pieces(0, 0, 1)[0][0].tolist() != whole.pieces(1, 0, 1)[0][0].tolist()


@pytest.mark.parametrize(
    ("sections", "kind", "words"),
    [
        ({"corpus": {"paths": ["nowhere"]}}, DataError, "nowhere"),
        ({"corpus": {"paths": []}}, PretrainingError, "corpus.paths: names no file"),
        ({"corpus": {"paths": ["texts/0.txt"]}}, PretrainingError, "1 document, and corpus.validation 0.2 leaves none"),
        ({"corpus": {"paths": ["bad.jsonl"]}}, DataError, "line 2"),
        ({"tokenizer": {"path": "nowhere"}}, DataError, "nowhere"),
        ({"tokenizer": {"vocabulary": 100}}, PretrainingError, "tokenizer.vocabulary: 100 tokens have no room"),
        ({"model": {"preset": "6m"}}, ConfigError, "did you mean '64m'|did you mean '5m'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, sections: dict[str, Any], kind: type[Exception], words: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "Good enough to be learned."}\n{"text": \n')
    config = configured(tmp_path, **sections)
    if "tokenizer" not in sections:
        config.tokenizer.vocabulary = 320 if "model" not in sections else None
    with pytest.raises(kind, match=words) as caught:
        prepare(config, tmp_path / "run" / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "data").exists()


def test_the_run_may_not_lie_in_its_corpus(tmp_path: Path) -> None:
    with pytest.raises(PretrainingError, match="lies inside the corpus"):
        prepare(configured(tmp_path), tmp_path / "texts" / "run" / "data")


def test_an_existing_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "own")
    data = prepare(configured(tmp_path, tokenizer={"path": "own"}), tmp_path / "data")
    assert data.facts["vocabulary"] == 300 and data.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "data"
    with whole_folder(place) as folder:
        (folder / "part").write_text("old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if (self / "part").is_file() and (self / "part").read_text() == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"), whole_folder(place) as folder:
        (folder / "part").write_text("new")
    assert (place / "part").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["data"]
