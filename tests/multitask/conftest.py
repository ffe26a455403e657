"""Small models with tokenizers of their own, and records that can be learned."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from retain.multitask import ExperimentConfig, parse_experiment

TOPICS = {
    "sport": ["goal", "match", "team", "coach", "league", "player"],
    "food": ["soup", "bread", "butter", "cook", "oven", "salad"],
    "space": ["rocket", "orbit", "planet", "moon", "star", "launch"],
}
FILLER = ["the", "a", "was", "seen", "today", "and", "then", "it", "very", "near", "again", "some"]
PEOPLE, PLACES = ["anna", "boris", "clara", "dmitri", "edith"], ["paris", "oslo", "lima", "quito"]
WORDS = [*FILLER, *PEOPLE, *PLACES, "with", "in", ".", "new", "york", *(word for words in TOPICS.values() for word in words)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of models are not kept in the user's cache."""
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def save_tokenizer(directory: Path, special: bool) -> int:
    """A tokenizer of whole words and their pieces; ``special`` puts [CLS] and [SEP] around a text. Returns the number of tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *dict.fromkeys(WORDS),
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    read = ["input_ids", "attention_mask", *(["token_type_ids"] if special else [])]
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, model_input_names=read, **names).save_pretrained(str(directory))
    return made.get_vocab_size()


def save_model(directory: Path, kind: str) -> Path:
    """A random small network of a kind with its tokenizer, as a directory."""
    from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, T5Config

    size = save_tokenizer(directory, special=kind == "bert")
    torch.manual_seed(0)
    if kind == "bert":
        shape = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        }
        model = AutoModel.from_config(BertConfig(vocab_size=size, pad_token_id=0, **shape))
    elif kind == "gpt2":
        model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    else:
        model = AutoModel.from_config(T5Config(vocab_size=size, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4))
    model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-bert", "bert")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", "gpt2")


def topic_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with three words of a topic among others; also scores, several labels, and a mood that a single word gives away."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        topic = draw.choice(list(TOPICS))
        words = [*draw.sample(TOPICS[topic], 3), *draw.choices(FILLER, k=draw.randint(2, 9))]
        draw.shuffle(words)
        length = "long" if len(words) > 8 else "short"
        tags = [name for name, word in (("timely", "today"), ("near", "near"), ("again", "again")) if word in words]
        rows.append({"text": " ".join(words), "topic": topic, "length": length, "tags": tags, "words": float(len(words))})
    return rows


def entity_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with people and places, as words with tags and as a text with entities."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = draw.choices(FILLER, k=draw.randint(1, 4)), []
        tags = ["O"] * len(words)
        for kind, names in (("person", PEOPLE), ("place", PLACES)):
            if draw.random() < 0.7:
                name = ["new", "york"] if kind == "place" and draw.random() < 0.3 else [draw.choice(names)]
                words += [draw.choice(["with", "in"]), *name]
                tags += ["O", f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
        words.append(".")
        tags.append("O")
        ends, start, entities = 0, 0, []
        for word, tag in zip(words, tags, strict=True):
            ends = start + len(word)
            if tag.startswith("B-"):
                entities.append({"start": start, "end": ends, "label": tag[2:]})
            elif tag.startswith("I-"):
                entities[-1]["end"] = ends
            start = ends + 1
        rows.append({"words": words, "tags": tags, "text": " ".join(words), "entities": entities})
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Records as JSON lines or CSV."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """``experiment(backbone, tasks, training={...}, ...)``: a configuration whose files are in the test's folder. In float32, to compare
    with figures that are computed otherwise; what ``auto`` is depends on the machine."""

    def make(backbone: Mapping[str, Any], tasks: Mapping[str, Any], **sections: Any) -> ExperimentConfig:
        sections["training"] = {"precision": "float32", **sections.get("training", {})}
        return parse_experiment({"backbone": dict(backbone), "tasks": dict(tasks), **sections}, tmp_path)

    return make


def table(name: str) -> list[dict[str, Any]]:
    """A table that comes with scikit-learn, with the column ``label``."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    columns = [f"c{number}" for number in range(data.data.shape[1])]
    return [
        {**dict(zip(columns, map(float, values), strict=True)), "label": str(data.target_names[label])}
        for values, label in zip(data.data, data.target, strict=True)
    ]
