"""Diagonal Fisher information from per-example gradients, of LoRA factors at about the cost of one backward pass.

For an example s (one packed segment) of one site, with inputs x [L, d_in], coordinates u = x A^T [L, r] and output gradients g [L, d_out]:

    grad_A log p(s) = (g B)^T x        grad_B log p(s) = g^T u          (B already multiplied by the adapter's scale)

so the gradients of all examples are two batched matrix products, which are squared and summed over the examples. They take the place of
the products that an ordinary backward pass needs for A and B, which is why the extra cost is small. Attention never crosses a segment, so
the gradient of the summed loss at the tokens of s is the gradient of the loss of s alone.

Conventions: F = (1/n) sum_s (grad log p(s))^2, where log p(s) is the *sum* over the supervised tokens of the sequence (the log-likelihood
of the whole sequence, not its token mean); n is the number of sequences. No penalty takes part: only the model's own log-likelihood.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters import AdapterInjection
from retain.adapters.adapter import LORA_A, LORA_B
from retain.data.examples import Example
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed
from retain.retention.base import Objective, Params
from retain.retention.positions import by_tokens, labels_of

Labels = Literal["empirical", "sampled"]


@dataclass(frozen=True)
class Fisher:
    """``diagonal``: a float32 tensor per parameter; ``examples``: n; ``labels``: "empirical" (the labels of the data: the empirical
    Fisher) or "sampled" (labels drawn from the model: an unbiased estimate of the true Fisher; 1905.12558, section 2)."""

    diagonal: Params
    examples: int
    labels: Labels


def fisher_information(
    objective: Objective, examples: Sequence[Example], params: Params, *, labels: Labels = "empirical",
    generator: torch.Generator | None = None, batch_tokens: int = 2048,
) -> Fisher:  # fmt: skip
    """Diagonal Fisher information of ``params`` (EWC, 1612.00796, section 2.1) from one backward pass per batch of examples.

    Networks on tables have ways of their own (``squares`` of the objective); other objectives, and parameters other than
    LoRA factors of a language model, are handed to :func:`fisher_by_loop`. ``generator`` (on the CPU) draws the sampled labels. Raises
    ValueError when there are no examples.
    """
    if hasattr(objective, "squares"):
        return _fisher_of_network(objective, examples, params, labels, generator)
    if not hasattr(objective, "model") or not all(name.endswith((LORA_A, LORA_B)) for name in params):
        return fisher_by_loop(objective, examples, params, labels=labels, generator=generator)
    draws = _draws(examples, labels, generator)
    recorder = _Recorder(params, objective.model)
    observed: Any = copy.copy(objective)
    observed.model = _Observed(objective.model, recorder)
    for batch in by_tokens(examples, batch_tokens):
        chosen = [examples[number] for number in batch]
        with torch.enable_grad():
            logits, _ = observed.logits(chosen, recorder.params)
            _negative_log_likelihood(logits, chosen, [draws[number] for number in batch] if draws else None).backward()
    if not recorder.passes:
        raise ValueError("the objective does not use these parameters as LoRA factors: take fisher_by_loop")
    return Fisher({name: total / len(examples) for name, total in recorder.totals.items()}, len(examples), labels)


def fisher_by_loop(
    objective: Objective, examples: Sequence[Example], params: Params, *, labels: Labels = "empirical",
    generator: torch.Generator | None = None,
) -> Fisher:  # fmt: skip
    """The same by definition: one forward and one backward pass per example. For any objective and any parameters."""
    draws = _draws(examples, labels, generator)
    leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in params.items()}
    totals = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in params.items()}
    for number, example in enumerate(examples):
        with torch.enable_grad():
            logits, _ = objective.logits([example], leaves)
            loss = _negative_log_likelihood(logits, [example], [draws[number]] if draws else None)
        for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
            if gradient is not None:
                totals[name] += gradient.float().square()
    return Fisher({name: total / len(examples) for name, total in totals.items()}, len(examples), labels)


def _fisher_of_network(
    objective: Any, examples: Sequence[Example], params: Params, labels: Labels, generator: torch.Generator | None, batch: int = 256
) -> Fisher:
    """The rows of a table, in batches; see :class:`retain.training.network.NetworkObjective`."""
    draws = _draws(examples, labels, generator)
    detached = {name: tensor.detach() for name, tensor in params.items()}
    totals = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in params.items()}
    for first in range(0, len(examples), batch):
        chosen = examples[first : first + batch]
        with torch.no_grad():
            logits, _ = objective.logits(chosen, detached)
        targets = _labels(logits, chosen, draws[first : first + batch] if draws else None)
        with torch.enable_grad():
            squares = objective.squares(detached, objective.features[[example.tokens[0] for example in chosen]], targets)
        for name, values in squares.items():
            totals[name] += values
    return Fisher({name: total / len(examples) for name, total in totals.items()}, len(examples), labels)


def _negative_log_likelihood(logits: Tensor, examples: Sequence[Example], draws: Sequence[Tensor] | None) -> Tensor:
    return F.cross_entropy(logits, _labels(logits, examples, draws), reduction="sum")


@torch.no_grad()
def _labels(logits: Tensor, examples: Sequence[Example], draws: Sequence[Tensor] | None) -> Tensor:
    """The labels of the data, or labels drawn from the model's own distribution."""
    if draws is None:
        return labels_of(examples, logits.device)
    cumulated = torch.softmax(logits, -1).cumsum(-1)
    points = torch.cat(list(draws)).to(logits.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, points, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _draws(examples: Sequence[Example], labels: Labels, generator: torch.Generator | None) -> list[Tensor] | None:
    """One uniform number per supervised token, drawn before batches are made, so that labels do not depend on the batches."""
    if not examples:
        raise ValueError("Fisher information needs at least one example")
    if labels == "empirical":
        return None
    counts = [sum(example.supervised) for example in examples]
    return list(torch.rand(sum(counts), generator=generator).split(counts))


class _Observed:
    """A language model whose injected passes go through a recorder. The model itself is not touched."""

    def __init__(self, model: LanguageModel, recorder: _Recorder) -> None:
        self._model, self._recorder = model, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden(self, packed: Packed, injection: Injection | None = None, *args: Any, **options: Any) -> Tensor:
        if injection is not None:
            injection = self._recorder.watch(injection)
        return self._model.hidden(packed, injection, *args, **options)


class _Recorder:
    """Sums of squared per-example gradients of the watched LoRA factors, collected while gradients flow back."""

    def __init__(self, params: Params, model: LanguageModel) -> None:
        self.params = {name: tensor.detach() for name, tensor in params.items()}
        self.totals = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in params.items()}
        self.passes = 0
        self.widths = {site: d_out for site, (_, d_out) in model.sites.items()}

    def watch(self, injection: Injection) -> Injection:
        """The same injection with the watched factors recorded; an injection without them (of a frozen prefix) as it is."""
        if not isinstance(injection, AdapterInjection):
            raise TypeError(f"a Fisher pass watches LoRA injections, not {type(injection).__name__}")
        watched = [part for part in injection.parts if any(self.params.get(name) is tensor for name, tensor in part.tensors.items())]
        if not watched:
            return injection
        self.passes += 1
        part = watched[0]
        if isinstance(part.weight, Tensor):
            raise ValueError("Fisher information is taken with one weight for all rows")
        others = [other for other in injection.parts if other is not part]
        frozen = AdapterInjection(others, injection.dtype) if others else None
        return _Watching(self, frozen, injection, part.sites, part.scale * part.weight)


class _Watching:
    """The injection of one pass: frozen adapters as they are, the watched factors through :class:`_Squares`."""

    by_row = False

    def __init__(
        self, recorder: _Recorder, frozen: AdapterInjection | None, original: AdapterInjection, sites: frozenset[str], scale: float
    ) -> None:
        self.recorder, self.frozen, self.original, self.sites, self.scale = recorder, frozen, original, sites, scale
        self._layout: tuple[Tensor, _Layout] | None = None
        self._open = torch.zeros((), device=next(iter(recorder.params.values())).device, requires_grad=True)

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if self.frozen is not None:
            y = self.frozen(sites, x, y, rows)
        if self.sites.isdisjoint(sites):
            return y
        factors: list[_Factors] = []
        offset = 0
        for site in sites:
            width = self.recorder.widths[site]
            if site in self.sites:
                a, b = self.recorder.params[site + LORA_A], self.recorder.params[site + LORA_B]
                factors.append(_Factors(site, offset, a.to(x.dtype), (b * self.scale).to(x.dtype)))
            offset += width
        if not factors:
            return y
        self.original.applied.update(factor.site for factor in factors)
        if self._layout is None or not (self._layout[0] is rows or torch.equal(self._layout[0], rows)):
            self._layout = rows, _Layout.of(rows)
        layout = self._layout[1]
        return _Squares.apply(x, y, self._open, factors, layout, self._add)

    def _add(self, factor: _Factors, squares_a: Tensor, squares_b: Tensor) -> None:
        self.recorder.totals[factor.site + LORA_A] += squares_a
        self.recorder.totals[factor.site + LORA_B] += squares_b.t() * self.scale**2


@dataclass(frozen=True)
class _Factors:
    site: str
    offset: int
    a: Tensor  # [r, d_in]
    b: Tensor  # [d_out, r], scaled


class _Squares(torch.autograd.Function):
    """y + x A^T B^T for the sites that share x. Its backward passes gradients on to x and y only and records the squares of A's and B's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, keep_open: Tensor, factors: list[_Factors], layout: _Layout, add: Callable[..., None]
    ) -> Tensor:
        a = factors[0].a if len(factors) == 1 else torch.cat([factor.a for factor in factors])
        u = x @ a.t()
        out = y.clone()
        for factor, block in zip(factors, u.split([len(factor.a) for factor in factors], 1), strict=True):
            out[:, factor.offset : factor.offset + len(factor.b)].addmm_(block, factor.b.t())
        ctx.save_for_backward(x, u, a)
        ctx.factors, ctx.layout, ctx.add = factors, layout, add
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        x, u, a = ctx.saved_tensors
        factors, layout = ctx.factors, ctx.layout
        ranks = [len(factor.a) for factor in factors]
        outs = [g[:, factor.offset : factor.offset + len(factor.b)] for factor in factors]
        v = torch.cat([out @ factor.b for out, factor in zip(outs, factors, strict=True)], 1)
        squares_a = layout.squares(v, x).split(ranks)
        for factor, square_a, block, out in zip(factors, squares_a, u.split(ranks, 1), outs, strict=True):
            ctx.add(factor, square_a, layout.squares(block, out))
        return (v @ a if ctx.needs_input_grad[0] else None), g, None, None, None, None


class _Layout:
    """Where the tokens of each example are: groups of examples of similar length, so that their products can be batched."""

    def __init__(self, groups: list[tuple[Tensor | slice, int, Tensor | None]]) -> None:
        self.groups = groups  # (tokens, examples, which of them are real or None for all)

    @classmethod
    def of(cls, rows: Tensor) -> _Layout:
        """From the example number of every token, in any order."""
        order = torch.argsort(rows, stable=True)
        lengths = torch.bincount(rows)
        groups: list[tuple[Tensor | slice, int, Tensor | None]] = []
        for group in Packed(order, order, tuple(lengths[lengths > 0].tolist())).groups:
            index = order[group.index]
            first, size = int(index[0, 0]), index.numel()
            if bool(group.valid.all()) and torch.equal(index.flatten(), torch.arange(first, first + size, device=rows.device)):
                groups.append((slice(first, first + size), len(index), None))
            else:
                groups.append((index.flatten(), len(index), None if bool(group.valid.all()) else group.valid[:, :, None]))
        return cls(groups)

    def squares(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum over the examples of the squares of left_s^T right_s, float32 [p, q], for left [T, p] and right [T, q]."""
        total = torch.zeros((), device=left.device)
        for tokens, examples, valid in self.groups:
            small = left[tokens].unflatten(0, (examples, -1))
            if valid is not None:
                small = small * valid
            products = torch.bmm(small.transpose(1, 2), right[tokens].unflatten(0, (examples, -1))).float()
            total = total + products.square_().sum(0)
        return total
