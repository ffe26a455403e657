"""What every language model offers to the rest of retain: a frozen base with adapters passed in as an argument."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.lm.packing import Packed, targets
from retain.lm.products import soft_cross_entropy


class LanguageModelError(RuntimeError):
    """A model cannot be loaded or cannot do what was asked; the message is one line with what to do."""


class Injection(Protocol):
    """Adapters compiled for one forward pass; see ``retain.adapters.inject``.

    Called with the sites that share the input ``x`` [T, d_in] (q, k, v together; gate, up together; a whole MLP), their base output ``y``
    [T, sum of d_out] and the segment number ``rows`` [T] of every token; returns the adapted output. ``by_row``: whether rows differ.
    """

    @property
    def by_row(self) -> bool: ...

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor: ...


class LanguageModel(ABC):
    """A frozen causal language model with its tokenizer.

    Attributes: ``name``; ``fingerprint`` (SHA-256 that identifies the weights); ``tokenizer``; ``sites`` (Hugging Face module
    name -> (d_in, d_out) of every linear layer an adapter can sit at, in layer order); ``blocks`` (name of every MLP that an adapter can
    sit beside -> its width, in layer order; empty for a model without); ``layers``, ``width``, ``vocabulary``,
    ``context`` (tokens); ``device``, ``dtype``; ``has_prefix`` (True when a pass can start at any layer).
    """

    name: str
    fingerprint: str
    tokenizer: Any
    sites: Mapping[str, tuple[int, int]]
    blocks: Mapping[str, int]
    layers: int
    width: int
    vocabulary: int
    context: int
    device: torch.device
    dtype: torch.dtype
    has_prefix: bool = False

    @abstractmethod
    def hidden(
        self, packed: Packed, injection: Injection | None = None, start: int = 0, stop: int | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Hidden states [T, width] after layers ``start..stop``; after the last layer the final norm is applied."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [N, vocabulary] of final hidden states [N, width]; callers select positions first."""

    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """The base parameters by Hugging Face name, not to be written to."""

    @abstractmethod
    def decode(self, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> Any:
        """Start decoding: an object with ``logits`` [B, vocabulary] of the next token and ``advance(tokens, keep)``."""

    def token_loss(self, hidden: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of the tokens ``labels`` [N] after the final hidden states ``hidden`` [N, width]; with ``soft`` [N, K]
        the labels are [N, K] tokens with these probabilities."""
        logits = self.logits(hidden)
        return F.cross_entropy(logits, labels) if soft is None else soft_cross_entropy(logits, labels, soft)

    def hidden_after(self, prefix: Sequence[int], sequences: Sequence[Sequence[int]], injection: Injection | None = None) -> Tensor:
        """Final hidden states [T, width] of the packed ``sequences``, each of which comes after the same ``prefix``."""
        packed = Packed.of([[*prefix, *sequence] for sequence in sequences], self.device)
        own = torch.cat([torch.arange(len(prefix) + len(sequence)) >= len(prefix) for sequence in sequences])
        return self.hidden(packed, injection)[own.to(self.device)]

    def sequence_log_likelihood(
        self, sequences: Sequence[Sequence[int]], supervised: Sequence[Sequence[bool]], injection: Injection | None = None
    ) -> tuple[list[float], list[int]]:
        """Summed log-likelihood of the supervised tokens of each sequence, and their number."""
        packed = Packed.of(sequences, self.device)
        positions, labels = targets(packed, supervised)
        with torch.inference_mode():
            final = self.hidden(packed, injection)[positions]
            picked = torch.cat(
                [
                    torch.log_softmax(self.logits(block), -1).gather(1, label[:, None])[:, 0]
                    for block, label in zip(final.split(256), labels.split(256), strict=True)
                ]
            )
            sums = torch.zeros(len(sequences)).index_add_(0, packed.rows[positions].cpu(), picked.cpu())
        return sums.tolist(), [sum(mask) for mask in supervised]

    def score(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], injection: Injection | None = None
    ) -> list[float]:
        """Log-likelihood of each completion's tokens after its prompt's tokens, in nats."""
        sequences = [list(prompt) + list(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        masks = [[False] * len(prompt) + [True] * len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        for first in range(0, len(sequences), 32):
            scores += self.sequence_log_likelihood(sequences[first : first + 32], masks[first : first + 32], injection)[0]
        return scores
