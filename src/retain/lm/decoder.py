"""retain's own decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, tied or untied head, optional QKV bias.

Parameters carry the names of a Hugging Face Llama checkpoint, so Llama, SmolLM2, Mistral (full attention) and Qwen2 weights load
unchanged. The decoder is a pure function of a dictionary of tensors: it has no trainable state of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.elementwise import gated, pad, rms_norm, rotate, unpad
from retain.lm.model import Injection, LanguageModel, LanguageModelError
from retain.lm.packing import Packed
from retain.lm.products import linear, token_loss


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


class DecoderLM(LanguageModel):
    """The own decoder with its weights; see :class:`LanguageModel` for what it offers."""

    has_prefix = True

    def __init__(
        self, config: DecoderConfig, weights: Mapping[str, Tensor], tokenizer: Any, *, name: str, fingerprint: str | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        missing = sorted(set(config.shapes()) - set(weights))
        if missing:
            raise LanguageModelError(f"model {name!r} lacks {len(missing)} tensors, the first is {missing[0]}")
        wrong = [key for key, shape in config.shapes().items() if tuple(weights[key].shape) != shape]
        if wrong:
            raise LanguageModelError(
                f"model {name!r}: tensor {wrong[0]} has shape {tuple(weights[wrong[0]].shape)}, expected {config.shapes()[wrong[0]]}"
            )
        self.config, self.tokenizer, self.name = config, tokenizer, name
        self.fingerprint = fingerprint or weights_fingerprint({key: weights[key] for key in config.shapes()})
        self.device, self.dtype = torch.device(device), dtype
        self.layers, self.width = config.layers, config.width
        self.vocabulary, self.context = config.vocabulary, config.context
        self.sites = {
            name.removesuffix(".weight"): (shape[1], shape[0]) for name, shape in config.shapes().items() if name.endswith("_proj.weight")
        }
        self._load(weights)
        self._cos, self._sin = (table.to(self.device) for table in rotary_table(config))

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        # q, k, v and gate, up share one storage each, so that one matrix product serves all; the separate names are views of it.
        def move(name: str, dtype: torch.dtype) -> Tensor:
            return weights[name].detach().to(device=self.device, dtype=dtype, copy=True).contiguous()

        views: dict[str, Tensor] = {}
        self._fused: list[dict[str, Tensor]] = []
        for layer in range(self.layers):
            base = f"model.layers.{layer}."
            fused: dict[str, Tensor] = {}
            for key, members in (("qkv", _QKV), ("gate_up", _GATE_UP), ("o", ("self_attn.o_proj",)), ("down", ("mlp.down_proj",))):
                names = [f"{base}{member}.weight" for member in members]
                fused[key] = torch.cat([weights[name].detach().to(self.device, self.dtype) for name in names])  # cat copies
                rows = [weights[name].shape[0] for name in names]
                views.update(zip(names, fused[key].split(rows), strict=True))
            if self.config.qkv_bias:
                biases = [f"{base}{member}.bias" for member in _QKV]
                fused["bias"] = torch.cat([move(name, self.dtype) for name in biases])
                views.update(zip(biases, fused["bias"].split([weights[name].shape[0] for name in biases]), strict=True))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                fused[norm] = views[f"{base}{norm}.weight"] = move(f"{base}{norm}.weight", self.dtype)
            self._fused.append(fused)
        for name in ("model.embed_tokens.weight", "model.norm.weight"):
            views[name] = move(name, self.dtype)
        if not self.config.tied:
            views["lm_head.weight"] = move("lm_head.weight", self.dtype)
        self._views = views
        self._embedding = views["model.embed_tokens.weight"]
        self._head = views.get("lm_head.weight", self._embedding)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._views

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [T, width]."""
        return F.embedding(tokens, self._embedding)

    def hidden(
        self, packed: Packed, injection: Injection | None = None, start: int = 0, stop: int | None = None, inputs: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        stop = self.layers if stop is None else stop
        if not 0 <= start <= stop <= self.layers or (start > 0) != (inputs is not None):
            raise ValueError(
                f"layers {start}..{stop} of {self.layers}: a pass that starts above layer 0 needs its inputs, and only that one"
            )
        if packed.total and int(packed.positions.max()) >= self.context:
            raise LanguageModelError(f"{int(packed.positions.max()) + 1} tokens exceed the model's context of {self.context}")
        x = self.embed(packed.tokens) if inputs is None else inputs
        rotation = (self._cos[packed.positions][:, None, :], self._sin[packed.positions][:, None, :])
        for layer in range(start, stop):
            x = self._block(layer, x, packed, rotation, injection, cache)
        return self._norm(x, self._views["model.norm.weight"]) if stop == self.layers else x

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden.to(self._head.dtype), self._head).float()

    def token_loss(self, hidden: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
        return token_loss(hidden.to(self._head.dtype), self._head, labels, soft)

    def hidden_after(self, prefix: Sequence[int], sequences: Sequence[Sequence[int]], injection: Injection | None = None) -> Tensor:
        """As :meth:`LanguageModel.hidden_after`; the prefix runs once."""
        if not prefix:
            return self.hidden(Packed.of(sequences, self.device), injection)
        cache = KeyValueCache(self, 1, len(prefix))
        self.hidden(Packed.of([prefix], self.device), injection, cache=cache)
        cache.share(len(prefix))
        cache.read_only = True
        return self.hidden(Packed.of(sequences, self.device, len(prefix)), injection, cache=cache)

    def decode(self, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> Decoding:
        return Decoding(self, prompts, injection, capacity)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config.norm_epsilon)

    def _linear(self, layer: int, key: str, sites: tuple[str, ...], x: Tensor, packed: Packed, injection: Injection | None) -> Tensor:
        y = linear(x, self._fused[layer][key], self._fused[layer].get("bias") if key == "qkv" else None)
        return y if injection is None else injection(tuple(f"model.layers.{layer}.{site}" for site in sites), x, y, packed.rows)

    def _block(
        self,
        layer: int,
        x: Tensor,
        packed: Packed,
        rotation: tuple[Tensor, Tensor],
        injection: Injection | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        c, fused = self.config, self._fused[layer]
        qkv = self._linear(layer, "qkv", _QKV, self._norm(x, fused["input_layernorm"]), packed, injection)
        heads = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_width)  # [T, H + 2 KV, head_width]
        qk, v = rotate(heads[:, : -c.kv_heads], *rotation), heads[:, -c.kv_heads :]
        if cache is not None and cache.filled:
            mixed = cache.attend(layer, qk[:, : c.heads], qk[:, c.heads :], v)
        else:
            if cache is not None and not cache.read_only:
                cache.store(layer, packed, qk[:, c.heads :], v)
            mixed = attend(packed, qk, v, cache.prefix(layer) if cache is not None else None)
        x = x + self._linear(layer, "o", ("self_attn.o_proj",), mixed.reshape(x.shape[0], -1), packed, injection)
        gate_up = self._linear(layer, "gate_up", _GATE_UP, self._norm(x, fused["post_attention_layernorm"]), packed, injection)
        return x + self._linear(layer, "down", ("mlp.down_proj",), gated(gate_up), packed, injection)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def rotary_table(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_width] of rotary embeddings (RoFormer, 2104.09864), with Llama 3's frequency scaling."""
    half = config.head_width // 2
    frequencies = 1.0 / config.rope_theta ** (torch.arange(half, dtype=torch.float32) * 2 / config.head_width)
    if config.rope_scaling:
        s = config.rope_scaling
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        cycles = s["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        smooth = ((cycles - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / s["factor"])
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def attend(packed: Packed, qk: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Causal attention inside each segment: queries and keys ``qk`` [T, H + KV, D] and ``v`` [T, KV, D] -> [T, H, D].

    ``prefix``: keys and values [KV, P, D] of P tokens that stand before every segment.
    """
    if len(packed.groups) == 1 and len(set(packed.lengths)) == 1:
        shape = (len(packed.lengths), packed.lengths[0])
        return _causal(qk.unflatten(0, shape), v.unflatten(0, shape), prefix).flatten(0, 1)
    shapes = [group.index.shape for group in packed.groups]
    sizes = [shape.numel() for shape in shapes]
    rows = zip(shapes, pad(qk, packed).split(sizes), pad(v, packed).split(sizes), strict=True)
    return unpad(torch.cat([_causal(a.unflatten(0, shape), b.unflatten(0, shape), prefix).flatten(0, 1) for shape, a, b in rows]), packed)


def _causal(qk: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """Causal attention over rows of equal length: ``qk`` [n, L, H + KV, D], ``v`` [n, L, KV, D] -> [n, L, H, D].

    Short rows go through two batched products: on a CPU that is several times faster, forward and backward, than the fused kernel
    (measured in bfloat16 at 30 tokens: 11 ms against 134 ms, at 220: 2.6 against 7.6), and it can be differentiated twice.
    """
    n, length, kv, width = v.shape  # grouped queries: every key/value head serves heads / kv query heads
    heads = qk.shape[2] - kv
    q, k = qk.split([heads, kv], 2)
    if prefix is None and length > (384 if v.device.type == "cpu" else 192):
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    queries = (q * (1 / math.sqrt(width))).transpose(1, 2).reshape(n * kv, -1, width)  # [n KV, H/KV L, D]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [n, KV, L, D]
    if prefix is not None:
        keys, values = (torch.cat([p.expand(n, -1, -1, -1), x], 2) for p, x in zip(prefix, (keys, values), strict=True))
    seen = keys.shape[2]
    keys, values = keys.reshape(n * kv, seen, width), values.reshape(n * kv, seen, width)
    scores = torch.bmm(queries, keys.transpose(1, 2)).float().add_(_hidden_future(length, seen, heads // kv, v.device))
    weights = torch.softmax(scores, -1).to(v.dtype)
    return torch.bmm(weights, values).view(n, heads, length, width).transpose(1, 2)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _hidden_future(length: int, seen: int, repeats: int, device: torch.device) -> Tensor:
    """[repeats * length, seen]: minus infinity where a key comes after the query; queries are the last ``length`` of ``seen`` tokens."""
    return torch.full((length, seen), -math.inf, device=device).triu(1 + seen - length).repeat(repeats, 1)


class KeyValueCache:
    """Static keys and values of ``rows`` sequences, ``capacity`` positions each; nothing is reallocated while decoding."""

    def __init__(self, model: DecoderLM, rows: int, capacity: int) -> None:
        c = model.config
        shape = (model.layers, rows, c.kv_heads, capacity, c.head_width)
        self.keys = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.values = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.filled = False
        self.read_only = False  # what comes after the shared positions is not kept
        self._shared = 0

    def share(self, length: int) -> None:
        """Give every row the first ``length`` positions of the first one."""
        self.keys[:, 1:, :, :length] = self.keys[:, :1, :, :length]
        self.values[:, 1:, :, :length] = self.values[:, :1, :, :length]
        self._shared = length

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [KV, P, D] of the shared positions, None when there are none."""
        return (self.keys[layer, 0, :, : self._shared], self.values[layer, 0, :, : self._shared]) if self._shared else None

    def store(self, layer: int, packed: Packed, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values [T, KV, D] of a first pass."""
        self.keys[layer, packed.rows, :, packed.positions] = k
        self.values[layer, packed.rows, :, packed.positions] = v

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new token per row: q [B, H, D], k and v [B, KV, D] -> [B, H, D]."""
        rows = torch.arange(q.shape[0], device=q.device)
        self.keys[layer, rows, :, self.lengths] = k
        self.values[layer, rows, :, self.lengths] = v
        width = int(self.lengths.max()) + 1
        keys, values = self.keys[layer, :, :, :width], self.values[layer, :, :, :width]  # [B, KV, width, D]
        grouped = q.unflatten(1, (keys.shape[1], -1))  # [B, KV, H / KV, D]
        visible = torch.arange(width, device=q.device)[None, :] <= self.lengths[:, None]
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None, :])
        return out.flatten(1, 2)

    def keep(self, rows: Tensor) -> Tensor:
        """Drop all but the given rows: the last move into the gaps, nothing else is copied. Returns the old numbers in the new order."""
        count = len(rows)
        order = torch.arange(count, device=rows.device)
        gaps = ~torch.isin(order, rows)
        moved = rows[rows >= count]
        order[gaps] = moved
        for tensor in (self.keys, self.values):
            tensor[:, gaps.nonzero(as_tuple=True)[0]] = tensor[:, moved]
        self.keys, self.values, self.lengths = self.keys[:, :count], self.values[:, :count], self.lengths[order]
        return order


class Decoding:
    """A batch of sequences being continued: ``rows`` [B], the numbers of the live ones, in an order that may change when some end, and
    ``logits`` [B, vocabulary], those of the next token of each."""

    def __init__(self, model: DecoderLM, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if capacity > model.context:
            raise LanguageModelError(
                f"{longest} prompt tokens and the answer need {capacity} positions, the model's context has {model.context}"
            )
        self.model, self.injection = model, injection
        self.rows = torch.arange(len(prompts), device=model.device)
        self.cache = KeyValueCache(model, len(prompts), capacity)
        shared = 0 if injection is not None and injection.by_row else common_prefix(prompts)
        if shared:  # questions about one document: its tokens run once
            model.hidden(Packed.of([prompts[0][:shared]], model.device), injection, cache=self.cache)
            self.cache.share(shared)
        packed = Packed.of([prompt[shared:] for prompt in prompts], model.device, shared)
        final = model.hidden(packed, injection, cache=self.cache)
        self.cache.lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.cache.filled = True
        self.logits = model.logits(final[packed.last])

    def advance(self, tokens: Tensor, keep: Tensor | None = None) -> None:
        """Append one token [B] to every row, then drop the rows not in ``keep`` [B] bool before computing the next logits."""
        if keep is not None and not bool(keep.all()):
            order = self.cache.keep(keep.nonzero(as_tuple=True)[0])
            tokens, self.rows = tokens[order], self.rows[order]
        packed = _Step(tokens, self.cache.lengths.clone(), self.rows)
        final = self.model.hidden(packed, self.injection, cache=self.cache)
        self.cache.lengths += 1
        self.logits = self.model.logits(final)


def common_prefix(prompts: Sequence[Sequence[int]], least: int = 32) -> int:
    """How many tokens all prompts begin with, the last token of the shortest not counted; 0 when it does not pay (below ``least``)."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # what the first and the last in order have in common, all have
    limit = min(len(prompt) for prompt in prompts) - 1
    found = min(limit, next((place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), limit))
    return found if found >= least else 0


class _Step(Packed):
    """One token of every live row: positions go on from the cache and ``rows`` keeps the original row numbers."""

    def __init__(self, tokens: Tensor, positions: Tensor, rows: Tensor) -> None:
        super().__init__(tokens, positions, (1,) * int(tokens.shape[0]))
        self.__dict__["rows"] = rows


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors in name order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()
