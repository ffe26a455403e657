"""The Perceiver of the hypernetwork: a few latent vectors that read a sequence of any length through cross-attention.

Perceiver (2103.03206) in the form of a resampler (Idefics2, 2405.02246), as Doc-to-LoRA (2602.15902) uses it: RMS norms before and after
attention and MLP, grouped queries, SwiGLU, no biases, no positions of its own (those are in the hidden states that it reads).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class Norm(nn.Module):
    """Division by the root mean square over the last dimension, times a learned weight (RMSNorm, 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., width] -> the same shape and type."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPSILON).to(x.dtype)


class Gated(nn.Module):
    """SwiGLU (2002.05202) without biases: d_in -> d_hidden -> d_out."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_in, d_hidden, bias=False)
        self.up = nn.Linear(d_in, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., d_in] -> [..., d_out]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class CrossAttention(nn.Module):
    """Latents ask, the context answers; every key and value head serves heads / kv_heads query heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, kv_heads * head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        for layer in (self.query, self.key):  # scores of about unit size, so that heads look at different places from the start
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, latents: Tensor, context: Tensor, valid: Tensor | None) -> Tensor:
        """``latents`` [S, N, width], ``context`` [S, L, width], ``valid`` [S, L] (all when None) -> [S, N, width]."""
        q = self.query(latents).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (layer(context).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for layer in (self.key, self.value))
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        mask = None if valid is None else valid[:, None, None, :]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Cross-attention and MLP, each between two norms, added to the latents."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, feed_forward: int) -> None:
        super().__init__()
        self.before_attention, self.of_context, self.after_attention = Norm(width), Norm(width), Norm(width)
        self.attention = CrossAttention(width, heads, kv_heads, head_width)
        self.before_mlp, self.after_mlp = Norm(width), Norm(width)
        self.mlp = Gated(width, feed_forward * width, width)

    def forward(self, latents: Tensor, context: Tensor, valid: Tensor | None) -> Tensor:
        """As :meth:`CrossAttention.forward`."""
        found = self.attention(self.before_attention(latents), self.of_context(context), valid)
        latents = latents + self.after_attention(found)
        return latents + self.after_mlp(self.mlp(self.before_mlp(latents)))


class Resampler(nn.Module):
    """``count`` learned latents through ``blocks`` of cross-attention over the same context."""

    def __init__(self, count: int, blocks: int, width: int, heads: int, kv_heads: int, head_width: int, feed_forward: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(count, width))
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, head_width, feed_forward) for _ in range(blocks))
        self.norm = Norm(width)

    def forward(self, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """``context`` [S, L, width], ``valid`` [S, L] -> [S, count, width]."""
        latents = self.latents.to(context.dtype).expand(context.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, context, valid)
        return self.norm(latents)
