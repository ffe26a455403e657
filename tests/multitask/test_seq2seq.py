"""Encoder-decoders: told from other models, their encoder for every task, adapters and freezing in both halves, and earlier tasks kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import FILLER, PEOPLE, PLACES, TOPICS, WORDS, entity_rows, topic_rows, write
from tests.tiny_models import save_words, save_writer

from retain.config import ConfigError
from retain.multitask import Predictor, assemble, load_experiment, model_kind, train
from retain.multitask.adapting import linear_layers, stacks_of

ALL = [*WORDS, *TOPICS, "about", "one", ":"]
SAID = {"sport": "about sport", "food": "about the food again", "space": "it was seen near one star"}
TOPIC = {"topic": {"kind": "classification", "label": "topic"}}
TEXT = {"t": {"kind": "generation"}}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``models(kind)``: the directory of a tiny random encoder-decoder."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_writer(tmp_path_factory.mktemp("models") / kind, kind, ALL)
        return made[kind]

    return get


@pytest.fixture
def setup(tmp_path: Path, experiment: Any, models: Any) -> Callable[..., Any]:
    write(tmp_path / "t.jsonl", [{**row, "target": SAID[row["topic"]]} for row in topic_rows(160)])
    write(tmp_path / "names.jsonl", entity_rows(100))

    def make(kind: str, tasks: dict[str, Any], **sections: Any) -> Any:
        backbone = {"kind": "seq2seq", "model": str(models(kind)), "max_length": 32, **sections.pop("backbone", {})}
        training = {"epochs": 6, "batch": 16, "learning_rate": 1e-2, **sections.pop("training", {})}
        return experiment(backbone, tasks, data={"train": ["t.jsonl"]}, training=training, **sections)

    return make


def test_other_tasks_read_the_encoder(setup: Any, tmp_path: Path) -> None:
    """Four tasks at once; the decoder, which none of them needs, is not there, and the saved model is restored without it."""
    tasks = {
        **TOPIC,
        "tags": {"kind": "multilabel", "label": "tags"},
        "size": {"kind": "regression", "label": "words"},
        "names": {"kind": "ner", "words": "words", "tags": "tags", "data": {"train": ["names.jsonl"]}},
    }
    config = setup("t5", tasks)
    made = assemble(config)
    assert not any("decoder" in name or "lm_head" in name for name, _ in made.network.named_parameters())
    found = train(made, tmp_path / "run")["tasks"]
    assert found["topic"]["validation"]["accuracy"] > 0.8 > found["topic"]["before"]["accuracy"]
    assert found["names"]["validation"]["f1"] > 0.6 and found["size"]["validation"]["r2"] > 0.3
    assert found["tags"]["validation"]["micro_f1"] > 0.6
    model = Predictor.load(tmp_path / "run")
    for name in tasks:
        assert model.evaluate(made.parts[name]["validation"].rows, name) == found[name]["validation"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_states_are_those_of_the_encoder(kind: str, setup: Any, models: Any) -> None:
    """With and without a decoder; padding changes nothing."""
    from transformers import AutoModelForSeq2SeqLM

    theirs = AutoModelForSeq2SeqLM.from_pretrained(str(models(kind))).eval()
    alone, with_decoder = assemble(setup(kind, TOPIC)), assemble(setup(kind, {**TOPIC, **TEXT}))
    inputs, _ = alone.batch("topic", "train", [0, 1, 2, 3])
    ids = alone.parts["topic"]["train"].inputs[1].inputs["input_ids"]
    expected = theirs.get_encoder()(ids[None]).last_hidden_state[0]
    for made in (alone, with_decoder):
        states = made.network.eval().backbone(inputs)
        assert torch.allclose(states.tokens[1, : len(ids)], expected, atol=1e-5)
    assert any("decoder" in name for name, _ in with_decoder.network.named_parameters())


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "adalora", "ia3", "bottleneck"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_adapters_go_into_both_halves(kind: str, method: str, setup: Any) -> None:
    made = assemble(setup(kind, TEXT, backbone={"peft": {"method": method, "rank": 2}}))
    named = list(made.network.learning())
    words = {"ia3": ("ia3_l",), "bottleneck": (".down.", ".up.")}.get(method, ("lora_",))
    assert named and all(any(word in name for word in words) for name in named)
    assert any("encoder." in name for name in named) and any("decoder." in name for name in named)
    assert method == "bottleneck" or any("EncDecAttention" in name or "encoder_attn" in name for name in named)  # also where it reads
    inputs, targets = made.batch("t", "train", list(range(8)))
    made.task("t").loss(made.network("t", inputs), targets).backward()
    assert {name for name, value in made.network.learning().items() if value.grad is not None} == set(named)


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_saved_adapters_write_as_the_trained_ones(method: str, setup: Any, tmp_path: Path) -> None:
    config = setup("t5", {**TOPIC, **TEXT}, backbone={"peft": {"method": method, "rank": 4}}, training={"epochs": 8, "learning_rate": 3e-2})
    made = assemble(config)
    found = train(made, tmp_path / "run")["tasks"]
    assert found["topic"]["validation"]["accuracy"] > 0.6 and found["t"]["validation"]["loss"] < 0.5 * found["t"]["before"]["loss"]
    kept = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert not any("shared" in name or "lm_head" in name for name in kept)
    model = Predictor.load(tmp_path / "run")
    for name in ("topic", "t"):
        assert model.evaluate(made.parts[name]["validation"].rows, name) == found[name]["validation"]


def test_freezing_counts_layers_of_both_halves(setup: Any) -> None:
    network = assemble(setup("t5", TEXT, backbone={"freeze": {"layers": 1, "embeddings": True}})).network
    assert [len(stack) for stack in stacks_of(network.backbone.network)] == [2, 2]
    learning = set(network.learning())
    assert not any("block.0." in name for name in learning) and not any("shared" in name for name in learning)
    assert {"encoder", "decoder"} == {half for name in learning for half in ("encoder", "decoder") if f"{half}.block.1." in name}
    assert {name.split(".")[0] for name in linear_layers(network.backbone.network)} == {"encoder", "decoder"}
    for layers, message in ((3, "freeze.layers: this backbone has 2 layers, not 3"),):
        with pytest.raises(ConfigError, match=message):
            assemble(setup("t5", TEXT, backbone={"freeze": {"layers": layers}}))


def forgotten(methods: list[str], place: Path, experiment: Any, models: Any) -> tuple[float, float]:
    """Of what is written about people (learned first): its loss, and how much that rose while places were learned."""
    tasks = {
        "people": {"kind": "generation", "prompt": "one : {text}", "target": "person", "max_new_tokens": 3},
        "places": {"kind": "generation", "prompt": "about : {text}", "target": "place", "max_new_tokens": 3},
    }
    config = experiment(
        {"kind": "seq2seq", "model": str(models("t5")), "max_length": 32}, tasks, data={"train": ["t.jsonl"]},
        sampling={"phases": [["people"], ["places"]]},
        retention={"methods": methods, "ewc": {"lambda": 1e5}, "replay": {"strategy": "balanced"}},
        training={"epochs": 8, "batch": 16, "metric": "loss", "evaluate_every": 10_000, "learning_rate": 1e-2},
    )  # fmt: skip
    matrix = train(config, place)["matrix"]
    before, first, last = (row["people"]["loss"] for row in matrix)
    assert first < 0.5 * before and matrix[2]["places"]["loss"] < 0.6 * matrix[1]["places"]["loss"]
    return first, last


def test_earlier_tasks_are_kept(tmp_path: Path, experiment: Any, models: Any) -> None:
    """Written by the same decoder: without protection the first task is lost, with it it stays."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(150):
        person, place, *filler = (int(torch.randint(0, 60, (), generator=draw)) for _ in range(5))
        words = [*(FILLER[number % len(FILLER)] for number in filler), PEOPLE[person % len(PEOPLE)], PLACES[place % len(PLACES)]]
        rows.append({"text": " ".join(words), "person": f"it was {words[-2]}", "place": f"near {words[-1]}"})
    write(tmp_path / "t.jsonl", rows)
    first, naive = forgotten([], tmp_path / "naive", experiment, models)
    assert naive - first > 1.0
    for methods, share in ((["replay"], 0.2), (["replay", "kl"], 0.2), (["ewc"], 0.5)):
        own, kept = forgotten(methods, tmp_path / "-".join(methods), experiment, models)
        assert kept - own < share * (naive - first), (methods, first, naive, own, kept)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "causal"),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2", "is_encoder_decoder": False}, "causal"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}, "causal"),
        ({"model_type": "bert"}, "encoder"),
        ({"architectures": ["BartForCausalLM"], "model_type": "bart", "is_encoder_decoder": False}, "causal"),
        ({"architectures": ["MarianMTModel"], "model_type": "marian", "is_encoder_decoder": True}, "seq2seq"),
        ({"architectures": ["T5Model"], "model_type": "t5", "is_encoder_decoder": True}, "seq2seq"),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["EncoderDecoderModel"], "model_type": "encoder-decoder", "is_encoder_decoder": True}, "seq2seq"),
    ],
)
def test_kinds_of_models(config: dict[str, Any], kind: str) -> None:
    assert model_kind(config) == kind


def test_each_kind_of_backbone_names_the_other(setup: Any, models: Any, bert: Path, gpt2: Path, tmp_path: Path, experiment: Any) -> None:
    from transformers import AutoConfig, T5EncoderModel

    encoder = tmp_path / "t5-encoder"
    save_words(encoder, ALL, ends=True)
    T5EncoderModel(AutoConfig.from_pretrained(str(models("t5")))).save_pretrained(str(encoder))
    assert json.loads((encoder / "config.json").read_text())["architectures"] == ["T5EncoderModel"]
    for kind, model, message in (
        ("text", models("t5"), "is an encoder-decoder, and text takes encoders and causal models: write kind: seq2seq"),
        ("seq2seq", bert, "is an encoder without a decoder, and seq2seq takes encoder-decoders: write kind: text"),
        ("seq2seq", gpt2, "is a causal language model, and seq2seq takes encoder-decoders: write kind: text"),
        ("seq2seq", encoder, "is an encoder without a decoder"),
    ):
        with pytest.raises(ConfigError) as caught:
            assemble(experiment({"kind": kind, "model": str(model), "max_length": 32}, TOPIC, data={"train": ["t.jsonl"]}))
        assert message in str(caught.value)
    made = assemble(experiment({"kind": "text", "model": str(encoder), "max_length": 32}, TOPIC, data={"train": ["t.jsonl"]}))
    assert made.network.backbone.model_kind == "encoder"
    results = train(made, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").evaluate(made.parts["topic"]["validation"].rows) == results["tasks"]["topic"]["validation"]


def test_weights_that_are_missing(models: Any, tmp_path: Path, setup: Any) -> None:
    """A decoder at random would seem to work: nothing is filled in."""
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models("t5").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("decoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 tensors, the first is decoder\.block\.1\.layer\.0\.SelfAttention\.q"):
        assemble(setup("t5", TEXT, backbone={"model": str(broken)}))


@pytest.mark.parametrize(("name", "kind", "file"), [("seq2seq", "t5", "articles.jsonl"), ("llm", "gpt2", "calls.jsonl")])
def test_the_examples_learn(name: str, kind: str, file: str, tmp_path: Path, models: Any) -> None:
    pytest.importorskip("peft")
    text = files("retain").joinpath("multitask", "examples", f"{name}.yaml").read_text(encoding="utf-8")
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    read, target = ("article", "headline") if name == "seq2seq" else ("report", "reply")
    write(tmp_path / file, [{read: row["text"], target: SAID[row["topic"]]} for row in topic_rows(160)])
    small = {"backbone.model": str(models(kind)), "backbone.max_length": 32, "training.epochs": 6, "training.learning_rate": 3e-2}
    task = "headline" if name == "seq2seq" else "reply"
    small |= {f"tasks.{task}.max_target_length": 16}
    found = train(load_experiment(tmp_path / f"{name}.yaml", small), tmp_path / "run")["tasks"][task]
    assert found["test"]["rougeL"] > found["before"]["rougeL"] + 0.2
