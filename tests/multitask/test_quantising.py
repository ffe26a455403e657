"""Backbones in 4 bits: what learns is LoRA alone, what is saved is small, and what cannot be is told before anything is loaded."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import save_tokenizer, table, topic_rows, write

from retain.config import ConfigError
from retain.multitask import Predictor, assemble, plan_experiment, train
from retain.multitask.backbones.base import BACKBONES
from retain.multitask.quantising import place_quantised

TASKS = {"topic": {"kind": "classification", "label": "topic"}}


@pytest.fixture(scope="module", params=["llama", "gpt2", "t5"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Kind of backbone and directory of a network whose layers are as wide as a block of NF4."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, LlamaConfig, T5Config

    place = tmp_path_factory.mktemp("wide") / request.param
    size = save_tokenizer(place, special=False)
    torch.manual_seed(0)
    if request.param == "t5":
        shape = T5Config(vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
        AutoModelForSeq2SeqLM.from_config(shape).save_pretrained(str(place))
        return "seq2seq", place
    if request.param == "gpt2":
        made: Any = GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    else:
        made = LlamaConfig(
            vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64,
        )  # fmt: skip
    AutoModelForCausalLM.from_config(made).save_pretrained(str(place))
    return "text", place


def test_a_backbone_in_4_bits_learns_and_is_answered_with(wide: tuple[str, Path], tmp_path: Path, experiment: Any) -> None:
    nf4 = pytest.importorskip("bitsandbytes").nn
    write(tmp_path / "t.jsonl", topic_rows(200))

    def config(method: str) -> Any:
        peft = {"method": method, "rank": 4, "targets": ["all-linear"]}
        backbone = {"kind": wide[0], "model": str(wide[1]), "max_length": 32, "freeze": {"layers": 1}, "peft": peft}
        training = {"epochs": 4, "batch": 16, "learning_rate": 1e-2, "device": "cpu"}
        return experiment(backbone, TASKS, data={"train": ["t.jsonl"]}, training=training)

    made, plain = assemble(config("qlora")), assemble(config("lora"))
    layers = [module for module in made.network.backbone.modules() if isinstance(module, nf4.Linear4bit)]
    assert layers and all(layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)
    assert not any(isinstance(module, nf4.Linear4bit) for module in plain.network.backbone.modules())
    adapters = {name for name in made.network.learning() if name.startswith("backbone.")}
    assert adapters == {name for name in plain.network.learning() if name.startswith("backbone.")}, "freezing holds for 4 bits too"
    assert all(".lora_" in name and not re.search(r"\.(layers|h|block)\.0\.", name) for name in adapters)
    full, small = (sum(value.nbytes for value in one.network.backbone.parameters()) for one in (plain, made))
    assert small < 0.7 * full
    assert plan_experiment(config("qlora")).parameters == plan_experiment(config("lora")).parameters  # two of them in a byte
    before = {name: layer.weight.detach().clone() for name, layer in made.network.named_modules() if isinstance(layer, nf4.Linear4bit)}
    results = train(made, tmp_path / "run")
    assert results["tasks"]["topic"]["validation"]["accuracy"] >= 0.6 > results["tasks"]["topic"]["before"]["accuracy"]
    assert before and all(torch.equal(value, made.network.get_submodule(name).weight) for name, value in before.items())
    kept = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert all(".lora_" in name or name.startswith("heads.") for name in kept)
    again = Predictor.load(tmp_path / "run", device="cpu")
    assert any(isinstance(module, nf4.Linear4bit) for module in again.network.modules())


def test_what_cannot_be_in_4_bits_is_told_before_anything_is_read(tmp_path: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("retain.multitask.quantising.find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    keys = {"data": {"train": ["there-is-none.jsonl"]}, "training": {"device": "cpu"}}
    config = experiment({"kind": "text", "model": "there-is-none", "peft": {"method": "qlora"}}, TASKS, **keys)
    with pytest.raises(ConfigError, match=r"qlora needs the library bitsandbytes: pip install 'retain\[cuda\]'"):
        assemble(config)
    with pytest.raises(ConfigError, match="qlora needs CUDA or a CPU, not mps"):
        place_quantised(config.backbone, torch.device("mps"))
    config.backbone.peft.method = "lora"
    place_quantised(config.backbone, torch.device("mps"))  # nothing is in 4 bits


def test_other_backbones_refuse_it(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "digits.jsonl", table("digits")[:20])
    for kind in BACKBONES:
        if kind not in ("text", "seq2seq"):
            with pytest.raises(ConfigError, match=f"qlora is for .*text.*; for {kind} take lora"):
                experiment({"kind": kind, "peft": {"method": "qlora"}}, {"t": {"kind": "classification"}})
