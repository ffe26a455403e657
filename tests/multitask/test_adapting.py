"""Freezing and adapters: only what should learns, adapters are where they were asked for, and saved models are small and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import table, topic_rows, write

from retain.multitask import Predictor, assemble, train
from retain.multitask.adapting import layers_of, linear_layers

TASK = {"t": {"kind": "classification", "label": "topic"}}


@pytest.fixture
def setup(tmp_path: Path, experiment: Any, request: pytest.FixtureRequest) -> Any:
    write(tmp_path / "t.jsonl", topic_rows(120))
    write(tmp_path / "digits.jsonl", table("digits")[:300])

    def make(model: str, **keys: Any) -> Any:
        training = {"epochs": 2, "batch": 16, "learning_rate": 1e-2}
        if model == "table":
            return experiment(
                {"kind": "sequential", **keys}, {"t": {"kind": "classification"}}, data={"train": ["digits.jsonl"]}, training=training
            )
        text = {"kind": "text", "model": str(request.getfixturevalue(model)), "max_length": 32, **keys}
        return experiment(text, TASK, data={"train": ["t.jsonl"]}, training=training)

    return make


METHODS = ["lora", "rslora", "dora", "adalora", "ia3", "bottleneck"]


@pytest.mark.parametrize("model", ["bert", "gpt2", "table"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_adapters_alone(method: str, model: str, setup: Any) -> None:
    made = assemble(setup(model, peft={"method": method, "rank": 2}))
    named = {name for name in made.network.learning() if name.startswith("backbone.")}
    words = {"ia3": ("ia3_l",), "bottleneck": (".down.", ".up.")}.get(method, ("lora_",))
    assert named and all(any(word in name for word in words) for name in named)
    loss = made.task("t").loss(made.network("t", made.batch("t", "train", list(range(8)))[0]), made.batch("t", "train", list(range(8)))[1])
    loss.backward()
    reached = [name for name, value in made.network.learning().items() if value.grad is not None]
    assert set(reached) == set(made.network.learning())


@pytest.mark.parametrize(
    ("method", "model"), [*((method, "bert") for method in METHODS), ("prefix", "gpt2"), ("lora", "gpt2"), ("lora", "table")]
)
def test_saved_adapters_answer_as_the_trained_ones(method: str, model: str, setup: Any, tmp_path: Path) -> None:
    """The save itself compares the loaded model with the trained one; here that the base is unchanged, and that files are small."""
    config = setup(model, peft={"method": method, "rank": 2, "tokens": 4})
    made = assemble(config)
    frozen = {
        name: value.detach().clone() for name, value in made.network.named_parameters() if not value.requires_grad and "ranknum" not in name
    }
    before = {name: value.detach().clone() for name, value in made.network.learning().items()}
    train(made, tmp_path / "run")
    after = dict(made.network.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items()) and frozen
    assert any(not torch.equal(value, after[name]) for name, value in before.items() if name.startswith("backbone."))
    kept = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert (set(kept) >= set(frozen)) == (model == "table")  # a random backbone cannot be had again elsewhere
    model_again = Predictor.load(tmp_path / "run")
    assert model_again.config.backbone.peft is not None and model_again.config.backbone.peft.method == method


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_freezing_by_part(model: str, setup: Any) -> None:
    whole = assemble(setup(model)).network
    assert whole.whole and len(layers_of(whole.backbone)) == 2

    def frozen(**keys: Any) -> set[str]:
        network = assemble(setup(model, freeze=keys)).network
        return {
            name.removeprefix("backbone.network.")
            for name, value in network.backbone.named_parameters(prefix="backbone")
            if not value.requires_grad
        }

    embeddings, layers, pattern, everything = frozen(embeddings=True), frozen(layers=1), frozen(patterns=["*.bias"]), frozen(all=True)
    assert embeddings and all("embed" in name or "wte" in name or "wpe" in name for name in embeddings)
    assert layers and all(".0." in name for name in layers)
    assert pattern and all(name.endswith(".bias") for name in pattern)
    assert everything == {name.removeprefix("backbone.network.") for name, _ in whole.backbone.named_parameters(prefix="backbone")}


def test_freezing_comes_before_adapters(setup: Any) -> None:
    """No adapter on a frozen layer; with everything frozen, adapters on all."""
    first = assemble(setup("bert", freeze={"layers": 1}, peft={}))
    assert {name.split(".layer.")[1][0] for name in first.network.learning() if ".layer." in name} == {"1"}
    every = assemble(setup("bert", freeze={"all": True}, peft={}))
    assert {name.split(".layer.")[1][0] for name in every.network.learning() if ".layer." in name} == {"0", "1"}


@pytest.mark.parametrize(
    ("targets", "modules"),
    [(["query"], {"query"}), (["*.attention.*"], {"query", "key", "value", "dense"}), (["auto"], {"query", "key", "value", "dense"})],
)
def test_targets(targets: list[str], modules: set[str], setup: Any) -> None:
    made = assemble(setup("bert", peft={"targets": targets}))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in made.network.learning() if "lora_A" in name} == modules


def test_linear_layers_of_gpt2_are_found(setup: Any) -> None:
    sizes = linear_layers(assemble(setup("gpt2")).network.backbone)
    assert {name.rpartition(".")[2]: size for name, size in sizes.items() if ".0.mlp" in name} == {"c_fc": (32, 128), "c_proj": (128, 32)}


def test_a_model_that_was_trained_whole_needs_its_source_no_more(setup: Any, tmp_path: Path, bert: Path) -> None:
    import shutil

    shutil.copytree(bert, tmp_path / "copy")
    for keys, needed in (({}, False), ({"freeze": {"embeddings": True}}, True)):
        config = setup("bert", **keys)
        config.backbone.model = str(tmp_path / "copy")
        run = tmp_path / f"run{needed}"
        train(config, run)
        (tmp_path / "copy").rename(tmp_path / "away")
        if needed:
            with pytest.raises(Exception, match="there is no model at"):
                Predictor.load(run)
        else:
            assert Predictor.load(run).predict(["the goal"])[0]["t"]["label"]
        (tmp_path / "away").rename(tmp_path / "copy")
    from safetensors.torch import save_file

    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    save_file({name: tensor + 1.0 for name, tensor in tensors.items()}, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not the one that this was trained on: its weights differ"):
        Predictor.load(tmp_path / "runTrue")
