"""retain's own decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, tied or untied head, optional QKV bias.

Parameters carry the names of a Hugging Face Llama checkpoint, so Llama, SmolLM2, Mistral (full attention) and Qwen2 weights load
unchanged. The decoder is a pure function of a dictionary of tensors: it has no trainable state of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.attention import KeyValueCache, attend, rotary_table
from retain.lm.derivatives import wide
from retain.lm.elementwise import gated, rms_norm, rotate
from retain.lm.model import Injection, LanguageModel, LanguageModelError
from retain.lm.packing import Packed, common_prefix
from retain.lm.products import linear, token_loss
from retain.lm.quantised import FEW, Quantised, product, quantised
from retain.lm.shapes import DecoderConfig


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
        self.blocks = {f"model.layers.{layer}.mlp": self.width for layer in range(self.layers)}
        self._load(weights)
        cos, sin = rotary_table(config)
        self.rotary = cos.to(self.device), sin.to(self.device)  # [context, head_width]

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
        self._quantised: list[dict[str, Quantised]] = []
        self._quantised_head: Quantised | None = None
        self._embedding = views["model.embed_tokens.weight"]
        self._head = views.get("lm_head.weight", self._embedding)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._views

    def quantise(self) -> None:
        """From now on compute decoding steps that need no gradient with matrices in eight bits, or in four where they hold no more
        (:mod:`retain.lm.quantised`), beside the weights, which stay: at most half as much again of their memory. For answering on a CPU;
        raises LanguageModelError elsewhere."""
        if self.device.type != "cpu":
            raise LanguageModelError(f"eight-bit matrices are for the CPU, and {self.name} is on {self.device}")
        self._quantised = [{key: quantised(fused[key]) for key in ("qkv", "o", "gate_up", "down")} for fused in self._fused]
        self._quantised_head = quantised(self._head)

    def save(self, directory: Path, weights: Mapping[str, Tensor] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write a Hugging Face Llama (or Qwen2) checkpoint: config.json, model.safetensors, and the tokenizer where there is one.

        ``weights`` instead of the model's own, by the same names; ``dtype`` of the file, by default that of each tensor. transformers and
        :func:`retain.lm.loading.load_model` read it."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in (weights or self._views).items()}
        config = self.config.to_hugging_face() | {"dtype": str(tensors["model.norm.weight"].dtype).removeprefix("torch.")}
        config |= {f"{mark}_token_id": getattr(self.tokenizer, f"{mark}_token_id", None) for mark in ("bos", "eos", "pad")}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors", metadata={"format": "pt"})
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(directory))

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
        rotation = (self.rotary[0][packed.positions][:, None, :], self.rotary[1][packed.positions][:, None, :])
        if cache is not None and cache.filled:
            cache.begin_step()
        for layer in range(start, stop):
            x = self._block(layer, x, packed, rotation, injection, cache)
        return self._norm(x, self._views["model.norm.weight"]) if stop == self.layers else x

    def logits(self, hidden: Tensor) -> Tensor:
        if self._quantised_head and not torch.is_grad_enabled() and len(hidden) <= FEW:
            return self._quantised_head(hidden.float())
        return wide(linear(hidden.to(self._head.dtype), self._head))

    def token_loss(self, hidden: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
        return token_loss(hidden.to(self._head.dtype), self._head, labels, soft)

    def hidden_after(self, prefix: Sequence[int], sequences: Sequence[Sequence[int]], injection: Injection | None = None) -> Tensor:
        """As :meth:`LanguageModel.hidden_after`; the prefix runs once."""
        if not prefix:
            return self.hidden(Packed.of(sequences, self.device), injection)
        cache = KeyValueCache.empty(self, 1, len(prefix))
        self.hidden(Packed.of([prefix], self.device), injection, cache=cache)
        cache.share(len(prefix))
        cache.read_only = True
        return self.hidden(Packed.of(sequences, self.device, len(prefix)), injection, cache=cache)

    def decode(self, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> Decoding:
        return Decoding(self, prompts, injection, capacity)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config.norm_epsilon)

    def _linear(self, layer: int, key: str, sites: tuple[str, ...], x: Tensor, packed: Packed, injection: Injection | None) -> Tensor:
        if self._quantised and not torch.is_grad_enabled():
            y = product(self._quantised[layer][key], x, len(packed.lengths) == packed.total)
            y = y.add_(self._fused[layer]["bias"]) if key == "qkv" and self.config.qkv_bias else y
        else:
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
        read = self._norm(x, fused["post_attention_layernorm"])
        gate_up = self._linear(layer, "gate_up", _GATE_UP, read, packed, injection)
        written = self._linear(layer, "down", ("mlp.down_proj",), gated(gate_up), packed, injection)
        return x + (written if injection is None else injection((f"model.layers.{layer}.mlp",), read, written, packed.rows))


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


class Decoding:
    """A batch of sequences being continued: ``rows`` [B], the numbers of the live ones, in an order that may change when some end,
    ``hidden`` [B, width], their final hidden states, and ``logits`` [B, vocabulary], those of the next token of each."""

    def __init__(self, model: DecoderLM, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if capacity > model.context:
            raise LanguageModelError(
                f"{longest} prompt tokens and the answer need {capacity} positions, the model's context has {model.context}"
            )
        self.model, self.injection = model, injection
        self.rows = torch.arange(len(prompts), device=model.device)
        self.cache = KeyValueCache.empty(model, len(prompts), capacity)
        shared = 0 if injection is not None and injection.by_row else common_prefix(prompts)
        if shared:  # questions about one document: its tokens run once
            model.hidden(Packed.of([prompts[0][:shared]], model.device), injection, cache=self.cache)
            self.cache.share(shared)
        packed = Packed.of([prompt[shared:] for prompt in prompts], model.device, shared)
        final = model.hidden(packed, injection, cache=self.cache)
        self.cache.lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.cache.filled = True
        self.hidden = final[packed.last]
        self.logits = model.logits(self.hidden)

    def advance(self, tokens: Tensor, keep: Tensor | None = None) -> None:
        """Append one token [B] to every row, then drop the rows not in ``keep`` [B] bool before computing the next logits."""
        if keep is not None and not bool(keep.all()):
            order = self.cache.keep(keep.nonzero(as_tuple=True)[0])
            tokens, self.rows = tokens[order], self.rows[order]
        packed = _Step(tokens, self.cache.lengths.clone(), self.rows)
        self.hidden = self.model.hidden(packed, self.injection, cache=self.cache)
        self.cache.lengths += 1
        self.logits = self.model.logits(self.hidden)


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
