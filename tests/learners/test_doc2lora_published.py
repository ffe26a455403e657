"""Published checkpoints: their layout, as their code writes it, becomes a network that writes the same factors."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_models import SEQUENCES, llama
from torch import Tensor
from torch.nn.functional import normalize, rms_norm, silu

from retain.learners.base import LearnerError
from retain.learners.doc2lora import load_network
from retain.learners.doc2lora.published import AROUND, convert_published
from retain.learners.doc2lora.reading import layer_states

HEADS, KV, HEAD, WIDTH, RANK, LATENTS = 4, 2, 128, 24, 2, 5
TARGETS = ("down_proj", "q_proj")


def published(model: Any, targets: tuple[str, ...] = TARGETS, blocks: int = 2, per_layer: bool = True) -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of the published code's state dictionary."""
    layers, width = model.layers, model.width
    sizes = {name: next(size for site, size in model.sites.items() if site.endswith(name)) for name in targets}
    largest = max(sum(size) for size in sizes.values())
    shapes: dict[str, tuple[int, ...]] = {
        "modality_projection.gate_proj.weight": (4 * width, width), "modality_projection.up_proj.weight": (4 * width, width),
        "modality_projection.down_proj.weight": (WIDTH, 4 * width),
    }  # fmt: skip
    for part, count, latents in (("encoder", blocks, LATENTS), ("decoder", 1, len(targets) * RANK)):
        shapes |= {f"{part}.latents_q": (latents, WIDTH), f"{part}.layernorm.weight": (WIDTH,)}
        for number in range(count):
            block = f"{part}.layers.{number}"
            shapes |= {f"{block}.self_attn.{name}_proj.weight": (rows * HEAD, WIDTH) for name, rows in (("q", HEADS), ("k", KV), ("v", KV))}
            shapes |= {f"{block}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD), f"{block}.mlp.down_proj.weight": (WIDTH, 4 * WIDTH)}
            shapes |= {f"{block}.mlp.{name}_proj.weight": (4 * WIDTH, WIDTH) for name in ("gate", "up")}
            norms = ("input_latents", "input_context", "post_attention", "pre_ff", "post_ff")
            shapes |= {f"{block}.{name}_layernorm.weight": (WIDTH,) for name in norms}
    shapes = {f"aggregator.perceiver.{name}": shape for name, shape in shapes.items()}
    places = ((0, 1, 3, 4), "layers") if per_layer else ((0, 2, 5, 6), "mlp")
    (before, up, down, after), kind = places
    shapes |= {f"layers.0.{kind}.{place}.{name}": (WIDTH,) for place in (before, after) for name in ("weight", "bias")}
    for place, rows, columns in ((up, WIDTH, 4 * WIDTH), (down, 4 * WIDTH, WIDTH)):
        shapes[f"layers.0.{kind}.{place}.weight"] = (layers, rows, columns) if per_layer else (columns, rows)
        shapes[f"layers.0.{kind}.{place}.bias"] = (1, layers, 1, 1, columns) if per_layer else (columns,)
    shapes["head.weight"] = (layers, WIDTH, largest) if len(targets) == 1 else (layers, len(targets), WIDTH, largest)
    for name, (d_in, d_out) in sizes.items():
        shapes |= {f"bias_A.{name}": (layers, RANK, d_in), f"bias_B.{name}": (layers, RANK, d_out)}
        shapes |= {f"scaler_{factor}.{name}": (1, layers, RANK, 1) for factor in "AB"}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def factors(state: dict[str, Tensor], states: Tensor, layer: int, name: str, targets: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """A [r, d_in] and B [r, d_out] of one module, one layer and one unpadded text, written out for the per-layer form."""

    def norm(x: Tensor, key: str) -> Tensor:
        return rms_norm(x, x.shape[-1:], state[f"aggregator.perceiver.{key}.weight"], 1e-6)

    def linear(x: Tensor, key: str) -> Tensor:
        return x @ state[f"aggregator.perceiver.{key}.weight"].t()

    def gated(x: Tensor, key: str) -> Tensor:
        return linear(silu(linear(x, f"{key}.gate_proj")) * linear(x, f"{key}.up_proj"), f"{key}.down_proj")

    def resampled(part: str, context: Tensor, blocks: int) -> Tensor:
        latents = state[f"aggregator.perceiver.{part}.latents_q"]
        for number in range(blocks):
            block = f"{part}.layers.{number}"
            asking, read = norm(latents, f"{block}.input_latents_layernorm"), norm(context, f"{block}.input_context_layernorm")
            q, k, v = (
                linear(x, f"{block}.self_attn.{n}_proj").unflatten(-1, (-1, HEAD)) for x, n in ((asking, "q"), (read, "k"), (read, "v"))
            )
            heads = [(q[:, h] @ k[:, h // (HEADS // KV)].t() / HEAD**0.5).softmax(-1) @ v[:, h // (HEADS // KV)] for h in range(HEADS)]
            latents = latents + norm(linear(torch.cat(heads, -1), f"{block}.self_attn.o_proj"), f"{block}.post_attention_layernorm")
            latents = latents + norm(gated(norm(latents, f"{block}.pre_ff_layernorm"), f"{block}.mlp"), f"{block}.post_ff_layernorm")
        return norm(latents, f"{part}.layernorm")

    module = sorted(targets).index(name)
    x = resampled("decoder", resampled("encoder", gated(states, "modality_projection"), 2), 1)[module * RANK : (module + 1) * RANK]
    mlp = {key.removeprefix("layers.0.layers."): tensor for key, tensor in state.items() if key.startswith("layers.0.layers.")}
    h = torch.layer_norm(x, x.shape[-1:], mlp["0.weight"], mlp["0.bias"])
    h = silu(h @ mlp["1.weight"][layer] + mlp["1.bias"][0, layer, 0]) @ mlp["3.weight"][layer] + mlp["3.bias"][0, layer, 0]
    x = normalize(x + torch.layer_norm(h, h.shape[-1:], mlp["4.weight"], mlp["4.bias"]), dim=-1)
    head = state["head.weight"][layer] if len(targets) == 1 else state["head.weight"][layer, module]
    flat, d_in, d_out = x @ head, state[f"bias_A.{name}"].shape[-1], state[f"bias_B.{name}"].shape[-1]
    a, b = flat[:, :d_in], flat[:, d_in : d_in + d_out]
    return a * state[f"scaler_A.{name}"][0, layer], b * state[f"scaler_B.{name}"][0, layer]


def pickled(path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The tensors beside a configuration, pickled as the published code does it, with classes that only exist while it is written."""
    classes = {
        "ctx_to_lora.modeling.hypernet": {"HypernetConfig": ["lora_config", "use_bias", "layer_indices"]},
        "ctx_to_lora.configs": {"CtxEncoderArguments": ["ctx_encoder_type"]},
        "peft.tuners.lora.config": {"LoraConfig": ["lora_alpha", "target_modules", "peft_type"]},
    }
    made: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        for name in ("ctx_to_lora.modeling.ctx_encoder", *classes):
            for end in range(1, name.count(".") + 2):
                part = ".".join(name.split(".")[:end])
                patch.setitem(sys.modules, part, ModuleType(part))
        for module, kinds in classes.items():
            for kind, fields in kinds.items():
                made[kind] = make_dataclass(kind, fields)
                made[kind].__module__ = module
                setattr(sys.modules[module], kind, made[kind])
        reads = Enum("CTX_ENCODER_TYPE", {"EARLY_EXIT": "early_exit", "PER_LAYER_ACTIVATIONS": "per_layer_activations"}, type=str)
        reads.__module__ = "ctx_to_lora.modeling.ctx_encoder"
        sys.modules[reads.__module__].CTX_ENCODER_TYPE = reads  # type: ignore[attr-defined]
        lora = made["LoraConfig"](changes.get("lora_alpha", 3.5), set(TARGETS), "LORA")
        torch.save(
            {
                **state,
                "base_model_name_or_path": "google/gemma-2-2b-it",
                "hypernet_config": made["HypernetConfig"](lora, changes.get("use_bias", True), torch.arange(3)),
                "ctx_encoder_args": made["CtxEncoderArguments"](reads(changes.get("reads", "per_layer_activations"))),
            },
            path,
        )


@pytest.mark.parametrize("targets", [TARGETS, ("down_proj",)])
def test_a_published_checkpoint_writes_what_it_wrote(targets: tuple[str, ...], tmp_path: Path) -> None:
    model = llama()
    state = published(model, targets)
    save_file(state, tmp_path / "theirs.safetensors")
    network, trained = load_network(convert_published(tmp_path / "theirs.safetensors", model, tmp_path / "ours.safetensors"))
    assert network.config.scale == pytest.approx(2 * RANK**1.5) and network.config.blocks == 2 and network.config.latents == LATENTS
    assert trained["published"] == "theirs.safetensors" and network.config.around is None
    states, valid = layer_states(model, SEQUENCES[:1], network.places.layers)
    written = network(states, valid)
    for number, site in enumerate(network.places.sites[0]):
        name = site.rsplit(".", 1)[-1]
        for layer in range(model.layers):
            a, b = factors(state, states[0, layer], layer, name, targets)
            torch.testing.assert_close(written.a[number][0, layer], a, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(written.b[number][0, layer], b, atol=1e-4, rtol=1e-4)
    assert torch.equal(network.bias_b[0], state[f"bias_B.{network.places.sites[0][0].rsplit('.', 1)[-1]}"])


def test_a_pickle_is_read_without_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = llama(), tmp_path / "pytorch_model.bin"
    state = published(model)
    pickled(path, {f"_orig_mod.{name}": tensor for name, tensor in state.items()}, monkeypatch, use_bias=False)
    network, trained = load_network(convert_published(path, model, tmp_path / "ours.safetensors"))
    assert network.config.scale == 3.5 and network.config.around == AROUND["google/gemma-2-2b-it"]
    assert trained["published_base"] == "google/gemma-2-2b-it"
    assert not any(bool(bias.any()) for bias in network.bias_b), "a network without a bias was meant to have none"
    assert torch.equal(network.factor_b[1], state["scaler_B.down_proj"][0, ..., 0])


def test_one_residual_for_all_layers(tmp_path: Path) -> None:
    model = llama()
    state = published(model, ("down_proj",), per_layer=False)
    save_file(state, tmp_path / "theirs.safetensors")
    network, _ = load_network(convert_published(tmp_path / "theirs.safetensors", model, tmp_path / "ours.safetensors"))
    x = torch.randn(2, model.layers, 1, RANK, WIDTH)
    h = torch.layer_norm(x, (WIDTH,), state["layers.0.mlp.0.weight"], state["layers.0.mlp.0.bias"])
    h = silu(h @ state["layers.0.mlp.2.weight"].t() + state["layers.0.mlp.2.bias"]) @ state["layers.0.mlp.5.weight"].t()
    h = torch.layer_norm(h + state["layers.0.mlp.5.bias"], (WIDTH,), state["layers.0.mlp.6.weight"], state["layers.0.mlp.6.bias"])
    torch.testing.assert_close(network.residual[0](x), x + h)


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("harmed"),))  # type: ignore[return-value]


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, path, out = llama(), tmp_path / "theirs.bin", tmp_path / "ours.safetensors"
    state = published(model)

    def refused(problem: str) -> None:
        with pytest.raises(LearnerError, match=problem) as caught:
            convert_published(path, model, out)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and not out.exists()

    refused("there is no such checkpoint")
    torch.save({"a": Harm()}, path)
    refused("cannot be read as a checkpoint")
    assert not Path("harmed").exists()
    path.write_bytes(b"nonsense")
    refused("cannot be read as a checkpoint")
    torch.save({"weight": torch.ones(2)}, path)
    refused("it has no bias_A")
    torch.save({name: tensor for name, tensor in state.items() if "v_proj" not in name}, path)
    refused(r"lacks aggregator\.perceiver\.encoder\.layers\.0\.self_attn\.v_proj")
    torch.save({name: tensor for name, tensor in state.items() if "layers.1.input_context" not in name}, path)
    refused("self-attention between")
    torch.save(state | {"aggregator.perceiver.decoder.latents_q": torch.ones(2, WIDTH)}, path)
    refused("per_rank_gen")
    torch.save(state | {"bias_A.q_proj": torch.ones(model.layers, RANK, 7)}, path)
    refused("does not fit tiny: bias_a")
    pickled(path, state, monkeypatch, reads="early_exit")
    refused("it reads early_exit")
