"""Published checkpoints of Doc-to-LoRA (github.com/SakanaAI/doc-to-lora) as hypernetworks of retain.

The layout is read off the published code: ``pytorch_model.bin`` holds the tensors of its ``HyperLoRA`` beside a configuration, as a pickle.
It is read without executing anything (torch's weights-only reader, with inert stand-ins for the configuration's classes). The same
tensors in a safetensors file are read too. Sizes follow from the shapes. Only networks that read every layer's hidden states and write
every rank by itself fit (``ctx_encoder_type: per_layer_activations``, ``per_rank_gen``); others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.learners.base import LearnerError
from retain.learners.doc2lora.files import save_network
from retain.learners.doc2lora.hypernetwork import Hypernetwork, NetworkConfig, Places
from retain.lm.model import LanguageModel

HEAD_WIDTH = 128  # a constant of the published code
# Tokens that the published data has around every chunk, by base model.
AROUND: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "google/gemma-2-2b-it": ((2, 106, 1645, 110), (107, 108, 106, 2516, 108)),
    "mistralai/Mistral-7B-Instruct-v0.2": ((1, 733, 16289, 28793, 28705, 13, 13), (733, 28748, 16289, 28793)),
    "Qwen/Qwen3-4B-Instruct-2507": ((151644, 8948, 198, 151645, 198, 151644, 872, 198), (151645, 198, 151644, 77091, 198)),
}
_CLASSES = {
    "ctx_to_lora.modeling.hypernet": ("HypernetConfig",),
    "ctx_to_lora.modeling.aggregator": ("AggregatorConfig", "AGGREGATOR_TYPE"),
    "ctx_to_lora.modeling.ctx_encoder": ("CTX_ENCODER_TYPE",),
    "ctx_to_lora.configs": ("CtxEncoderArguments", "AggregatorArguments", "HypernetArguments"),
    "ctx_to_lora.pooling": ("POOL_FN",),
    "peft.tuners.lora.config": ("LoraConfig", "LoraRuntimeConfig", "EvaConfig", "CordaConfig"),
    "peft.utils.peft_types": ("PeftType", "TaskType"),
}
_BLOCK = {
    "input_latents_layernorm": "before_attention",
    "input_context_layernorm": "of_context",
    "post_attention_layernorm": "after_attention",
    "pre_ff_layernorm": "before_mlp",
    "post_ff_layernorm": "after_mlp",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}


@dataclass
class Checkpoint:
    """``tensors`` of a published checkpoint, and ``facts`` of its configuration: nested dictionaries, empty for a safetensors file."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name].float()
        except KeyError:
            raise LearnerError(f"{self.path}: not a published checkpoint of Doc-to-LoRA that retain can read: it lacks {name}") from None

    def fact(self, *names: str, default: Any = None) -> Any:
        """A value of the configuration."""
        found: Any = self.facts
        for name in names:
            found = found.get(name, default) if isinstance(found, dict) else default
        return found


def convert_published(path: str | Path, model: LanguageModel, out: str | Path, scale: float | None = None) -> Path:
    """Write a published checkpoint as a hypernetwork for ``model``, the base that it was trained with, to ``out``.

    ``scale``: factor on B A; by default the checkpoint's ``lora_alpha``, or the published 2 r^1.5. Raises LearnerError.
    """
    found = read_published(Path(path).expanduser())
    named = found.fact("base_model_name_or_path")
    network = Hypernetwork(*_shape(found, model, scale))
    weights = dict(_weights(found, network))
    own = network.state_dict()
    wrong = [name for name, tensor in own.items() if name not in weights or weights[name].shape != tensor.shape]
    if wrong:
        shape = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "missing"
        raise LearnerError(f"{found.path}: does not fit {model.name}: {wrong[0]} is {shape}, not {tuple(own[wrong[0]].shape)}")
    network.load_state_dict(weights)
    place = Path(out).expanduser()
    save_network(network, place, {"published": found.path.name, "published_base": named, "skill": []})
    return place


def read_published(path: Path) -> Checkpoint:
    """The content of a published checkpoint. Raises LearnerError."""
    if not path.is_file():
        raise LearnerError(f"{path}: there is no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([*_stand_ins(), (set, "builtins.set")]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise whatever they stumble over
        raise LearnerError(f"{path}: cannot be read as a checkpoint of Doc-to-LoRA: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(content, dict):
        raise LearnerError(f"{path}: not a checkpoint of Doc-to-LoRA, but a {type(content).__name__}")
    tensors = {name.removeprefix("_orig_mod."): value for name, value in content.items() if isinstance(value, Tensor)}
    facts = {name: _plain(value) for name, value in content.items() if not isinstance(value, Tensor)}
    return Checkpoint(path, tensors, facts)


def _stand_ins() -> Iterator[tuple[type, str]]:
    """Classes that hold what a pickle gives them and do nothing, under the names of the published configuration's."""
    for module, names in _CLASSES.items():
        for name in names:
            yield type(name, (_StandIn,), {"__module__": module}), f"{module}.{name}"


class _StandIn:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _plain(value: Any) -> Any:
    """What a stand-in holds: its fields, or the value of an enumeration."""
    if isinstance(value, _StandIn):
        held = {name: item for name, item in vars(value).items() if name != "values"}
        return {name: _plain(item) for name, item in held.items()} if held else _plain(value.values[0] if value.values else None)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _shape(found: Checkpoint, model: LanguageModel, scale: float | None) -> tuple[NetworkConfig, Places]:
    """Sizes of the network, from the shapes of its tensors."""
    kind = found.fact("ctx_encoder_args", "ctx_encoder_type", default="per_layer_activations")
    if kind != "per_layer_activations":
        raise LearnerError(f"{found.path}: it reads {kind}; retain reads the hidden states of every layer (per_layer_activations)")
    encoder = "aggregator.perceiver.encoder"
    blocks = _count(found, rf"{re.escape(encoder)}\.layers\.(\d+)\.")
    if any(f"{encoder}.layers.{number}.input_context_layernorm.weight" not in found.tensors for number in range(blocks)):
        raise LearnerError(f"{found.path}: it has self-attention between the cross-attention blocks, which retain's Perceiver has not")
    targets = tuple(sorted(name.removeprefix("bias_A.") for name in found.tensors if name.startswith("bias_A.")))
    if not targets:
        raise LearnerError(f"{found.path}: not a published checkpoint of Doc-to-LoRA: it has no bias_A")
    rank = found[f"bias_A.{targets[0]}"].shape[1]
    latents = found[f"{encoder}.latents_q"]
    if found["aggregator.perceiver.decoder.latents_q"].shape[0] != len(targets) * rank:
        raise LearnerError(f"{found.path}: it does not write every rank of a layer by itself (per_rank_gen), as retain's network does")
    attention = f"{encoder}.layers.0.self_attn"
    config = NetworkConfig(
        width=latents.shape[1], latents=latents.shape[0], blocks=blocks, head_width=HEAD_WIDTH,
        heads=found[f"{attention}.q_proj.weight"].shape[0] // HEAD_WIDTH,
        kv_heads=found[f"{attention}.k_proj.weight"].shape[0] // HEAD_WIDTH,
        feed_forward=found[f"{encoder}.layers.0.mlp.gate_proj.weight"].shape[0] // latents.shape[1],
        residual=_count(found, r"layers\.(\d+)\.(?:layers|mlp)\."), per_layer="layers.0.layers.0.weight" in found.tensors, rank=rank,
        scale=scale or found.fact("hypernet_config", "lora_config", "lora_alpha") or 2 * rank**1.5, targets=targets,
        around=AROUND.get(str(found.fact("base_model_name_or_path"))),
    )  # fmt: skip
    return config, Places.of(model, targets)


def _count(found: Checkpoint, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in found.tensors if (match := re.match(pattern, name))), default=-1)


def _weights(found: Checkpoint, network: Hypernetwork) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the network by its name here."""
    config, places = network.config, network.places
    names = [site.rsplit(".", 1)[-1] for site in places.sites[0]]
    order = [sorted(names).index(name) for name in names]  # theirs are in the order of their names
    for ours, theirs in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        yield f"reader.projection.{ours}.weight", found[f"aggregator.perceiver.modality_projection.{theirs}.weight"]
    for part, blocks in (("encoder", config.blocks), ("decoder", 1)):
        theirs = f"aggregator.perceiver.{part}"
        latents = found[f"{theirs}.latents_q"]
        yield f"reader.{part}.latents", latents if part == "encoder" else latents.unflatten(0, (-1, config.rank))[order].flatten(0, 1)
        yield f"reader.{part}.norm.weight", found[f"{theirs}.layernorm.weight"]
        for number in range(blocks):
            for name, ours in _BLOCK.items():
                yield f"reader.{part}.blocks.{number}.{ours}.weight", found[f"{theirs}.layers.{number}.{name}.weight"]
    for number in range(config.residual):
        yield from _residual(found, number, config.per_layer)
    for number, (name, (d_in, d_out)) in enumerate(zip(names, places.sizes, strict=True)):
        head = found["head.weight"]
        head = head[:, order[number]] if head.ndim == 4 else head
        yield f"head.{number}", head[..., : d_in + d_out].contiguous()
        used = 0.0 if found.fact("hypernet_config", "use_bias", default=True) is False else 1.0
        yield f"bias_a.{number}", found[f"bias_A.{name}"]
        yield f"bias_b.{number}", found[f"bias_B.{name}"] * used
        yield f"factor_a.{number}", found[f"scaler_A.{name}"].flatten(0, 1).squeeze(-1)
        yield f"factor_b.{number}", found[f"scaler_B.{name}"].flatten(0, 1).squeeze(-1)


def _residual(found: Checkpoint, number: int, per_layer: bool) -> Iterator[tuple[str, Tensor]]:
    ours, theirs = f"residual.{number}", f"layers.{number}.{'layers' if per_layer else 'mlp'}"
    before, up, down, after = (0, 1, 3, 4) if per_layer else (0, 2, 5, 6)
    for name, place in (("before", before), ("after", after)):
        yield f"{ours}.{name}.weight", found[f"{theirs}.{place}.weight"]
        yield f"{ours}.{name}.bias", found[f"{theirs}.{place}.bias"]
    for name, place in (("up", up), ("down", down)):
        weight, bias = found[f"{theirs}.{place}.weight"], found[f"{theirs}.{place}.bias"]
        yield f"{ours}.{name}", weight if per_layer else weight.t()[None].contiguous()
        yield f"{ours}.{name}_bias", bias.reshape(weight.shape[0] if per_layer else 1, -1)
