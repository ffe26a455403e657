"""The own decoder with weights that learn: the same code as :class:`DecoderLM`, running on the parameters of a module.

``DecoderLM`` is a function of tensors. Here these tensors are ``nn.Parameter``s, so autograd, DDP, FSDP2 and optimizers find them. They
are the decoder's fused matrices (q, k, v in one, gate and up in one); :meth:`TrainableDecoder.named` cuts them into the tensors of a
Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed, targets
from retain.lm.shapes import DecoderConfig

_QKV = tuple(f"self_attn.{site}" for site in ("q_proj", "k_proj", "v_proj"))
_FUSED = {"qkv": _QKV, "o": ("self_attn.o_proj",), "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",)}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ROOT = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


class _Block(nn.Module):
    """The parameters of one layer. What runs on them is called through the module, so that sharding can gather them just then."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, function: Any, *arguments: Any) -> Tensor:
        return function(*arguments)


class _Running(DecoderLM):
    """The decoder that reads its tensors from the module, at each pass anew: sharding puts others in their place."""

    def attach(self, module: TrainableDecoder) -> None:
        """Run on the parameters of ``module`` from now on."""
        self._layers = list(module.layers)
        self._fused = [layer._parameters for layer in module.layers]  # type: ignore[misc]
        self.refresh(module)

    def refresh(self, module: TrainableDecoder) -> None:
        """Look up the parameters that belong to no layer."""
        self._embedding, self._views = module.embedding, {_ROOT["norm"]: module.norm}
        self._head = module.embedding if module.head is None else module.head

    def _block(self, layer: int, *arguments: Any) -> Tensor:
        return self._layers[layer](super()._block, layer, *arguments)


class TrainableDecoder(nn.Module):
    """A decoder of shape ``config`` whose parameters start as copies of ``weights`` (by Hugging Face name), in float32.

    ``hidden``, ``logits`` and ``token_loss`` are :class:`DecoderLM`'s, with gradients to every parameter.
    """

    def __init__(
        self, config: DecoderConfig, weights: Mapping[str, Tensor], tokenizer: Any = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        lm = _Running(config, weights, tokenizer, name="own decoder", fingerprint="in training", device=device)
        self.config, self.tokenizer = config, tokenizer
        self.layers = nn.ModuleList(_Block(tensors) for tensors in lm._fused)
        self.embedding, self.norm = nn.Parameter(lm._embedding), nn.Parameter(lm._views[_ROOT["norm"]])
        self.head = None if config.tied else nn.Parameter(lm._head)
        lm.attach(self)
        self._lm = lm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._lm.device

    def hidden(self, packed: Packed) -> Tensor:
        """Final hidden states [T, width]."""
        self._lm.refresh(self)
        return self._lm.hidden(packed)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [N, vocabulary] of final hidden states [N, width]."""
        return self._lm.logits(hidden)

    def token_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of ``labels`` [N] after ``hidden`` [N, width]."""
        return self._lm.token_loss(hidden, labels)

    def named(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of this module's parameters, as views by Hugging Face name. They may be moments of an optimizer as well."""
        found = {theirs: parameters[own] for own, theirs in _ROOT.items() if own in parameters}
        shapes = self.config.shapes()
        for layer in range(self.config.layers):
            base, own = f"model.layers.{layer}.", f"layers.{layer}."
            for key, members in _FUSED.items():
                names = [f"{base}{member}.weight" for member in members]
                found.update(zip(names, parameters[own + key].split([shapes[name][0] for name in names]), strict=True))
            if self.config.qkv_bias:
                names = [f"{base}{member}.bias" for member in _QKV]
                found.update(zip(names, parameters[own + "bias"].split([shapes[name][0] for name in names]), strict=True))
            found.update({f"{base}{norm}.weight": parameters[own + norm] for norm in _NORMS})
        return found

    def frozen(self, parameters: Mapping[str, Tensor]) -> DecoderLM:
        """A decoder to generate with, from copies of tensors by the names of this module's parameters."""
        return DecoderLM(
            self.config, self.named(parameters), self.tokenizer, name="own decoder", fingerprint="in training", device=self.device
        )

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face checkpoint of tensors by the names of this module's parameters."""
        DecoderLM.save(self._lm, folder, self.named(parameters))


class NextToken(nn.Module):
    """The objective of pre-training: every token of a window but the first is predicted from those before it."""

    def __init__(self, decoder: TrainableDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, windows: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy in nats over the windows [n, L]."""
        rows, length = windows.shape
        tokens, positions = windows.flatten(), torch.arange(length).repeat(rows)
        packed = Packed(tokens.to(self.decoder.device), positions.to(self.decoder.device), (length,) * rows)
        places, labels = targets(packed, [[False] + [True] * (length - 1)] * rows)
        return {"loss": self.decoder.token_loss(self.decoder.hidden(packed)[places], labels)}
