"""Attention of the own decoder: rotary embeddings, packed segments, and the keys and values that decoding keeps."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.derivatives import differentiated_twice, wide
from retain.lm.elementwise import pad, unpad
from retain.lm.packing import Packed
from retain.lm.shapes import DecoderConfig

if TYPE_CHECKING:
    from retain.lm.decoder import DecoderLM


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
    if prefix is None and length > (384 if v.device.type == "cpu" else 192) and not differentiated_twice():
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    queries = (q * (1 / math.sqrt(width))).transpose(1, 2).reshape(n * kv, -1, width)  # [n KV, H/KV L, D]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [n, KV, L, D]
    if prefix is not None:
        keys, values = (torch.cat([p.expand(n, -1, -1, -1), x], 2) for p, x in zip(prefix, (keys, values), strict=True))
    seen = keys.shape[2]
    keys, values = keys.reshape(n * kv, seen, width), values.reshape(n * kv, seen, width)
    scores = wide(torch.bmm(queries, keys.transpose(1, 2))).add_(_hidden_future(length, seen, heads // kv, v.device))
    weights = torch.softmax(scores, -1).to(v.dtype)
    return torch.bmm(weights, values).view(n, heads, length, width).transpose(1, 2)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _hidden_future(length: int, seen: int, repeats: int, device: torch.device) -> Tensor:
    """[repeats * length, seen]: minus infinity where a key comes after the query; queries are the last ``length`` of ``seen`` tokens."""
    return torch.full((length, seen), -math.inf, device=device).triu(1 + seen - length).repeat(repeats, 1)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU those that nothing is written to take no memory: numpy has the operating system's empty pages, where torch writes
    every zero (94 MB and 40 ms for eight sequences of 512 tokens of SmolLM2-135M)."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class KeyValueCache:
    """Keys and values [layers, rows, KV, capacity, D] of sequences; nothing is reallocated while decoding."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.lengths = torch.zeros(keys.shape[1], dtype=torch.int64, device=keys.device)
        self.filled = False
        self.read_only = False  # what comes after the shared positions is not kept
        self._shared = 0

    @classmethod
    def empty(cls, model: DecoderLM, rows: int, capacity: int) -> KeyValueCache:
        """Of ``rows`` sequences with ``capacity`` positions each."""
        c = model.config
        shape = (model.layers, rows, c.kv_heads, capacity, c.head_width)
        return cls(*(_untouched_zeros(shape, model.dtype, model.device) for _ in range(2)))

    def share(self, length: int) -> None:
        """Give every row the first ``length`` positions of the first one."""
        self.keys[:, 1:, :, :length] = self.keys[:, :1, :, :length]
        self.values[:, 1:, :, :length] = self.values[:, :1, :, :length]
        self._shared = length

    def continue_from(self, length: int) -> None:
        """What comes next follows the first ``length`` positions of every row, which are shared or those of a single row."""
        self._shared = length

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [KV, P, D] of the shared positions, None when there are none."""
        return (self.keys[layer, 0, :, : self._shared], self.values[layer, 0, :, : self._shared]) if self._shared else None

    def store(self, layer: int, packed: Packed, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values [T, KV, D] of a first pass."""
        self.keys[layer, packed.rows, :, packed.positions] = k
        self.values[layer, packed.rows, :, packed.positions] = v

    def begin_step(self) -> None:
        """One token of every row comes next: what is the same in all layers."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        width = int(self.lengths.max()) + 1
        hidden = torch.arange(width, device=rows.device) > self.lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.keys.dtype, device=rows.device).masked_fill_(hidden, -math.inf)
        self._step = rows, self.lengths.clone(), width, mask[:, None, None, :]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The step's token of every row: q [B, H, D], k and v [B, KV, D] -> [B, H, D]."""
        rows, places, width, mask = self._step
        keys, values = self.keys[layer], self.values[layer]  # [B, KV, capacity, D]
        keys[rows, :, places] = k
        values[rows, :, places] = v
        grouped = q.unflatten(1, (keys.shape[1], -1))  # [B, KV, H / KV, D]
        return F.scaled_dot_product_attention(grouped, keys[:, :, :width], values[:, :, :width], attn_mask=mask).flatten(1, 2)

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
