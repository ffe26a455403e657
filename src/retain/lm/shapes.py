"""Shapes of the own decoder: its configuration, presets from 5M to 500M parameters, and fresh weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retain.lm.model import LanguageModelError


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder. The defaults are the reference shape (about 64M parameters with tied embeddings)."""

    vocabulary: int = 32_000
    width: int = 512
    layers: int = 12
    heads: int = 8
    kv_heads: int = 4
    head_width: int = 64
    feed_forward: int = 2048
    context: int = 2048
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a ``config.json`` of model type llama, mistral or qwen2; raises LanguageModelError for shapes it cannot run."""
        kind = config.get("model_type")
        if kind not in ("llama", "mistral", "qwen2"):
            raise LanguageModelError(f"the own decoder does not run model type {kind!r}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_kind = rope.get("rope_type", rope.get("type", "default"))
        if rope_kind not in ("default", "llama3"):
            raise LanguageModelError(f"the own decoder does not know RoPE scaling {rope_kind!r}")
        if config.get("mlp_bias") or (kind == "llama" and config.get("attention_bias")) or config.get("hidden_act", "silu") != "silu":
            raise LanguageModelError("the own decoder runs SiLU MLPs without bias only")
        windowed = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
        heads = config["num_attention_heads"]
        context = config.get("max_position_embeddings", 2048)
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config["intermediate_size"],
            context=min(context, config["sliding_window"]) if windowed else context,
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=kind == "qwen2",
            rope_scaling=rope if rope_kind == "llama3" else None,
        )

    def to_hugging_face(self) -> dict[str, Any]:
        """The ``config.json`` of the same model for transformers."""
        kind = "qwen2" if self.qkv_bias else "llama"
        return {
            "architectures": ["Qwen2ForCausalLM" if self.qkv_bias else "LlamaForCausalLM"],
            "model_type": kind,
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rope_parameters": dict(self.rope_scaling or {"rope_type": "default"}) | {"rope_theta": self.rope_theta},
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            base = f"model.layers.{layer}."
            for site, rows, columns in (
                ("self_attn.q_proj", query, self.width),
                ("self_attn.k_proj", key, self.width),
                ("self_attn.v_proj", key, self.width),
                ("self_attn.o_proj", self.width, query),
                ("mlp.gate_proj", self.feed_forward, self.width),
                ("mlp.up_proj", self.feed_forward, self.width),
                ("mlp.down_proj", self.width, self.feed_forward),
            ):
                shapes[f"{base}{site}.weight"] = (rows, columns)
                if self.qkv_bias and site[10] in "qkv" and site.startswith("self_attn"):
                    shapes[f"{base}{site}.bias"] = (rows,)
            shapes[f"{base}input_layernorm.weight"] = (self.width,)
            shapes[f"{base}post_attention_layernorm.weight"] = (self.width,)
        shapes["model.norm.weight"] = (self.width,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.width)
        return shapes

    @property
    def parameter_count(self) -> int:
        """True number of parameters (a tied head is counted once)."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def initial_weights(config: DecoderConfig, seed: int = 0) -> dict[str, Tensor]:
    """Fresh float32 weights: normal(0, 0.02), residual projections scaled by 1/sqrt(2 layers) (GPT-2, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in config.shapes().items():
        if "norm" in name:
            weights[name] = torch.ones(shape)
        elif name.endswith(".bias"):
            weights[name] = torch.zeros(shape)
        else:
            deviation = 0.02 / math.sqrt(2 * config.layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            weights[name] = torch.randn(shape, generator=generator) * deviation
    return weights


# by their number of parameters; those of published models where there is one, so that its tokenizer and weights fit
PRESETS: Mapping[str, DecoderConfig] = {
    "5m": DecoderConfig(4096, 256, 6, 4, 2, 64, 640, 512),  # minutes on a CPU
    "64m": DecoderConfig(),
    "135m": DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536, 8192, 100_000.0),  # SmolLM2-135M
    "200m": DecoderConfig(32_000, 768, 28, 12, 4, 64, 2048, 2048),
    "360m": DecoderConfig(49_152, 960, 32, 15, 5, 64, 2560, 8192, 100_000.0),  # SmolLM2-360M
    "500m": DecoderConfig(151_936, 896, 24, 14, 2, 64, 4864, 32_768, 1_000_000.0, 1e-6, qkv_bias=True),  # Qwen2.5-0.5B
}
