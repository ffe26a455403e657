"""Next-token learning of a frozen model with one trainable adapter: packed, supervised positions only, frozen prefix run once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retain.adapters import first_layer, inject, inject_trainable
from retain.adapters.adapter import Adapter
from retain.data.examples import Example
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, targets

Params = dict[str, Tensor]


class AdapterObjective:
    """Loss of examples under ``base + frozen adapters + the adapter being trained``.

    ``sites``, ``scale`` and ``kind`` describe the trained tensors. Hidden states below the first trained layer (frozen adapters included)
    never change while training, so they are computed once per example and kept (in the model's precision, ``width`` values per token).

    ``dropout``: share of the inputs of the trained factors that are set to zero in :meth:`loss` while gradients are recorded (LoRA,
    2106.09685, appendix D), drawn from ``seed``; logits, teachers and losses without gradient never have it.
    """

    def __init__(self, model: LanguageModel, sites: Sequence[str], scale: float, frozen: Sequence[tuple[Adapter, float]] = (), *,
                 kind: str = "lora", cache_prefix: bool = True, dropout: float = 0.0, seed: int = 0) -> None:  # fmt: skip
        if not 0.0 <= dropout < 1.0 or (dropout and frozen):
            raise ValueError(f"dropout {dropout} must be at least 0 and below 1, and without frozen adapters, whose inputs it would change")
        self.dropout, self._random = dropout, torch.Generator(model.device).manual_seed(seed)
        self.model, self.sites, self.scale, self.kind = model, tuple(sites), scale, kind
        self.frozen = tuple(frozen)
        self._frozen_injection = inject(self.frozen, model.dtype, model.device)
        self.start = first_layer(sites) if cache_prefix and model.has_prefix else 0
        self._prefix: dict[tuple[int, ...], Tensor] = {}

    def prepare(self, examples: Sequence[Example], batch_tokens: int = 2048) -> None:
        """Run the frozen prefix of examples that were not seen yet."""
        if self.start == 0:
            return
        missing = list({example.tokens: None for example in examples if example.tokens not in self._prefix})
        for batch in _by_tokens(missing, batch_tokens):
            with torch.inference_mode():
                packed = Packed.of(batch, self.model.device)
                hidden = self.model.hidden(packed, self._frozen_injection, stop=self.start)
            # clone: inference tensors cannot take part in autograd
            for tokens, rows in zip(batch, hidden.clone().split(packed.lengths), strict=True):
                self._prefix[tokens] = rows

    def hidden(self, examples: Sequence[Example], params: Params, drop: bool = False) -> tuple[Tensor, Packed]:
        """Final hidden states [T, width] of the packed examples; with dropout when ``drop``."""
        trainable = inject_trainable(params, self.sites, self.scale, self.model.dtype, self._drop if drop else None, self.kind)
        injection = trainable
        if self._frozen_injection is not None:
            injection = type(trainable)([*self._frozen_injection.parts, *trainable.parts], self.model.dtype)
        hidden, packed = self._run(examples, injection)
        unused = set(self.sites) - injection.applied
        if unused:
            raise RuntimeError(f"{len(unused)} of {len(self.sites)} adapter sites were never reached, the first is {sorted(unused)[0]}")
        return hidden, packed

    def logits(self, examples: Sequence[Example], params: Params) -> tuple[Tensor, Tensor]:
        hidden, packed = self.hidden(examples, params)
        positions, _ = targets(packed, [example.supervised for example in examples])
        return self.model.logits(hidden[positions]), packed.rows[positions]

    def labels(self, examples: Sequence[Example]) -> Tensor:
        """Supervised token ids [N]."""
        packed = Packed.of([example.tokens for example in examples], self.model.device)
        return targets(packed, [example.supervised for example in examples])[1]

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        hidden, packed = self.hidden(examples, params, drop=self.dropout > 0 and torch.is_grad_enabled())
        positions, labels = targets(packed, [example.supervised for example in examples])
        return self.model.token_loss(hidden[positions], *soft_targets(examples, labels))

    def _drop(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape, generator=self._random, device=x.device) >= self.dropout
        return x * kept / (1.0 - self.dropout)

    @torch.no_grad()
    def base_logits(self, examples: Sequence[Example]) -> Tensor:
        hidden, packed = self._run(examples, self._frozen_injection)
        positions, _ = targets(packed, [example.supervised for example in examples])
        return self.model.logits(hidden[positions])

    def _run(self, examples: Sequence[Example], injection: Injection | None) -> tuple[Tensor, Packed]:
        self.prepare(examples)
        packed = Packed.of([example.tokens for example in examples], self.model.device)
        inputs = torch.cat([self._prefix[example.tokens] for example in examples]) if self.start else None
        return self.model.hidden(packed, injection, start=self.start, inputs=inputs), packed


def soft_targets(examples: Sequence[Example], labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """The examples' ``labels`` [N] with the teachers' tokens beside them, [N, K], and the probability of each, [N, K]: what the teacher
    leaves of 1 is the label's. Unchanged and None when no example has a teacher."""
    if not any(example.soft for example in examples):
        return labels, None
    rows = [row for example in examples for row in (example.soft or ((),) * example.n_supervised())]
    most = max(map(len, rows))
    padded = [(*row, *[(0, 0.0)] * (most - len(row))) for row in rows]
    tokens = torch.tensor([[token for token, _ in row] for row in padded], device=labels.device)
    shares = torch.tensor([[share for _, share in row] for row in padded], device=labels.device)
    return torch.cat([labels[:, None], tokens], 1), torch.cat([1.0 - shares.sum(1, keepdim=True), shares], 1)


def _by_tokens(sequences: Sequence[tuple[int, ...]], budget: int) -> list[list[tuple[int, ...]]]:
    batches: list[list[tuple[int, ...]]] = []
    used = 0
    for sequence in sorted(sequences, key=len):
        if not batches or used + len(sequence) > budget:
            batches.append([])
            used = 0
        batches[-1].append(sequence)
        used += len(sequence)
    return batches
