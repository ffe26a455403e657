"""Ways of making one adapter of several, and of writing adapters into a copy of the base's weights.

A way of merging is one typed function; :func:`merge_method` registers it with the paper it comes from. All of them work on the change
an adapter makes to a weight (B A times its scale), never on the factors: B1 A1 + B2 A2 is not (B1 + B2)(A1 + A2). Where the sum is brought
back to two factors, ``lineage["relative_error"]`` says how much of it was lost, as a share of its Frobenius norm.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.adapters.adapter import LORA_A, LORA_B, Adapter, AdapterError, AdapterSpec
from retain.adapters.injection import inject
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

Method = Callable[..., Adapter]


@dataclass(frozen=True)
class MergeMethod:
    """A registered way of merging: ``options`` are the keyword arguments of its function with their defaults."""

    name: str
    function: Method
    reference: str
    options: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


MERGE_METHODS: dict[str, MergeMethod] = {}


def merge_method(reference: str) -> Callable[[Method], Method]:
    """Register a function ``(adapters, weights, *, options...) -> Adapter`` under its own name with the paper it follows."""

    def register(function: Method) -> Method:
        options = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        MERGE_METHODS[function.__name__] = MergeMethod(function.__name__, function, reference, options)
        return function

    return register


def merge(method: str, adapters: Sequence[Adapter], weights: Sequence[float] | None = None, **options: Any) -> Adapter:
    """Merge adapters of one base by a registered method; ``weights`` default to 1 each. Raises AdapterError."""
    if method not in MERGE_METHODS:
        near = difflib.get_close_matches(method, MERGE_METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise AdapterError(f"no way of merging is called {method!r}: there are {', '.join(sorted(MERGE_METHODS))}{hint}")
    other = next((adapter.spec.kind for adapter in adapters if adapter.spec.kind != "lora"), None)
    if other:
        raise AdapterError(f"an adapter of kind {other!r} cannot be merged: only LoRA adapters can")
    known = MERGE_METHODS[method].options
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise AdapterError(f"{method} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")
    return MERGE_METHODS[method].function(adapters, weights or [1.0] * len(adapters), **options)


@merge_method("2106.09685, section 4.1: a sum of low-rank products is one of the summed rank")
def concatenate(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Stack the factors: exact, the ranks add up. Adapters that lack a site contribute nothing there."""
    _check(adapters, weights)
    sites = _sites(adapters)
    stacked = {site: _stack(adapters, weights, site) for site in sites}
    rank = max(a.shape[0] for a, _ in stacked.values())
    tensors: dict[str, Tensor] = {}
    for site, (a, b) in stacked.items():
        tensors[site + LORA_A] = torch.cat([a, a.new_zeros(rank - a.shape[0], a.shape[1])])
        tensors[site + LORA_B] = torch.cat([b, b.new_zeros(b.shape[0], rank - b.shape[1])], 1)
    return _adapter(tensors, adapters, rank, _lineage("concatenate", adapters, weights, 0.0))


@merge_method("2212.04089: task arithmetic")
def linear(adapters: Sequence[Adapter], weights: Sequence[float], *, rank: int | None = None) -> Adapter:
    """Weighted sum of the changes, truncated to ``rank`` (default: the largest of the adapters) by exact singular value decomposition."""
    _check(adapters, weights)
    chosen = _rank(adapters, rank)
    factored = ((site, *_factor_product(*_stack(adapters, weights, site), chosen)) for site in _sites(adapters))
    return _refactored("linear", factored, adapters, weights, chosen, {})


@merge_method("2306.01708: TIES, trim, elect sign, disjoint mean")
def ties(
    adapters: Sequence[Adapter], weights: Sequence[float], *, density: float = 0.2, scale: float = 1.0, rank: int | None = None
) -> Adapter:
    """Keep the largest ``density`` of each change, let the signs vote by mass, average those that agree, multiply by ``scale``.

    Trimming is by weight matrix, as in mergekit. The mean is weighted; equal weights give the paper's.
    """
    _check(adapters, weights)
    _share("density", density)
    chosen = _rank(adapters, rank)

    def merged(site: str) -> Tensor:
        deltas, shares = _deltas(adapters, weights, site)
        trimmed = torch.stack([_largest(delta, density) for delta in deltas]) * shares[:, None, None]
        agree = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
        mass = (agree * shares.abs()[:, None, None]).sum(0)
        return scale * (trimmed * agree).sum(0) / mass.clamp(min=1e-12)

    factored = ((site, *_factor_dense(merged(site), chosen)) for site in _sites(adapters))
    return _refactored("ties", factored, adapters, weights, chosen, {"density": density, "scale": scale})


@merge_method("2311.03099: DARE, drop and rescale")
def dare(
    adapters: Sequence[Adapter], weights: Sequence[float], *, density: float = 0.5, seed: int = 0, rank: int | None = None
) -> Adapter:  # fmt: skip
    """Keep a random ``density`` of each change, rescale it to keep the mean, and add up with weights. ``seed`` decides what is kept.

    What is dropped at random is noise of full rank: the smaller the density, the larger the error of the two factors.
    """
    _check(adapters, weights)
    _share("density", density)
    chosen = _rank(adapters, rank)
    generator = torch.Generator().manual_seed(seed)

    def merged(site: str) -> Tensor:
        deltas, shares = _deltas(adapters, weights, site)
        kept = torch.rand(deltas.shape, generator=generator) < density
        return (deltas * kept * shares[:, None, None]).sum(0) / density

    factored = ((site, *_factor_dense(merged(site), chosen)) for site in _sites(adapters))
    return _refactored("dare", factored, adapters, weights, chosen, {"density": density, "seed": seed})


def fuse(model: LanguageModel, adapters: Sequence[tuple[Adapter, float]], tolerance: float = 1e-4) -> dict[str, Tensor]:
    """A float32 copy of the base's weights with the adapters merged into it; the base stays as it is, bit for bit.

    Raises AdapterError when the fused weights' logits differ from the injected adapters' by more than ``tolerance`` of the largest one.
    """
    transposed = model.transposed if isinstance(model, TransformersLM) else frozenset()
    fused = {name: weight.detach().to(torch.float32, copy=True) for name, weight in model.parameters().items()}
    for adapter, weight in adapters:
        adapter.check(model)
        for site in adapter.spec.sites:
            delta = weight * adapter.delta(site).to(model.device)
            fused[f"{site}.weight"] += delta.t() if site in transposed else delta
    difference = _fused_difference(model, fused, adapters)
    if not difference <= tolerance:
        raise AdapterError(f"the fused weights of {model.name} give other logits than its adapters (relative difference {difference:.1e})")
    return fused


def save_fused(
    model: LanguageModel, adapters: Sequence[tuple[Adapter, float]], directory: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write base and adapters as one Hugging Face checkpoint: config.json, model.safetensors and the tokenizer."""
    fused = fuse(model, adapters)
    if isinstance(model, DecoderLM):
        model.save(directory, fused, dtype)
    elif isinstance(model, TransformersLM):
        directory.mkdir(parents=True, exist_ok=True)
        model.module.save_pretrained(str(directory), state_dict={name: weight.to("cpu", dtype) for name, weight in fused.items()})
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(str(directory))
    else:
        raise AdapterError(f"{model.name} cannot be written as a Hugging Face checkpoint")


@torch.no_grad()
def _fused_difference(model: LanguageModel, fused: dict[str, Tensor], adapters: Sequence[tuple[Adapter, float]]) -> float:
    """Largest difference of the logits of fused weights and of injected adapters on a short probe, both in float32, as a share of the
    largest logit."""
    probe = (torch.arange(1, 17, device=model.device) * 7919) % model.vocabulary
    packed = Packed.of([probe.tolist()], model.device)
    if isinstance(model, TransformersLM):
        ours = model.logits_under(fused, probe)
        plain = {name: weight.float() for name, weight in model.parameters().items()}
        theirs = model.logits_under(plain, probe, inject(adapters, torch.float32, model.device))
    elif isinstance(model, DecoderLM):
        about: dict[str, Any] = {"name": model.name, "fingerprint": model.fingerprint, "device": model.device}
        single = DecoderLM(model.config, fused, None, **about)
        ours = single.logits(single.hidden(packed))
        single = model if model.dtype == torch.float32 else DecoderLM(model.config, model.parameters(), None, **about)
        theirs = single.logits(single.hidden(packed, inject(adapters, torch.float32, model.device)))
    else:
        raise AdapterError(f"{model.name} cannot be fused")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _check(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(f"merging needs at least one adapter and one weight each, not {len(adapters)} and {len(weights)}")
    if len({adapter.spec.base for adapter in adapters}) > 1:
        raise AdapterError("the adapters were made for different bases and cannot be merged")
    odd = next((adapter.spec.kind for adapter in adapters if adapter.spec.kind != "lora"), None)
    if odd:
        raise AdapterError(f"adapters of kind {odd!r} cannot be merged")
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError("weights of a merge must be finite numbers")


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise AdapterError(f"{name} must be above 0 and at most 1, not {value}")


def _rank(adapters: Sequence[Adapter], wanted: int | None) -> int:
    """The rank of a result: the one asked for, or the largest of the adapters."""
    if wanted is not None and wanted < 1:
        raise AdapterError(f"rank must be at least 1, not {wanted}")
    return wanted or max(adapter.spec.rank for adapter in adapters)


def _sites(adapters: Iterable[Adapter]) -> tuple[str, ...]:
    """All sites, in the order of the first adapter that has them."""
    return tuple(dict.fromkeys(site for adapter in adapters for site in adapter.spec.sites))


def _stack(adapters: Sequence[Adapter], weights: Sequence[float], site: str) -> tuple[Tensor, Tensor]:
    """Factors A [R, d_in] and B [d_out, R] of the weighted sum at one site, in float32 on the CPU."""
    pairs = [
        (adapter.tensors[site + LORA_A].float().cpu(), adapter.tensors[site + LORA_B].float().cpu() * (adapter.spec.scale * weight))
        for adapter, weight in zip(adapters, weights, strict=True)
        if site in adapter.spec.sites
    ]
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)


def _deltas(adapters: Sequence[Adapter], weights: Sequence[float], site: str) -> tuple[Tensor, Tensor]:
    """Changes [n, d_out, d_in] of the adapters that have the site, and their weights [n]."""
    here = [(adapter.delta(site).cpu(), weight) for adapter, weight in zip(adapters, weights, strict=True) if site in adapter.spec.sites]
    return torch.stack([delta for delta, _ in here]), torch.tensor([weight for _, weight in here])


def _largest(delta: Tensor, density: float) -> Tensor:
    """The largest ``density`` of the entries by magnitude, zero elsewhere."""
    count = max(1, round(delta.numel() * density))
    kept = delta.flatten().abs().topk(count).indices
    return torch.zeros_like(delta).flatten().index_copy(0, kept, delta.flatten()[kept]).view_as(delta)


def _factor_product(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Best factors of B A of a smaller rank without forming B A: two thin QR and the decomposition of an R x R core, in float64.

    Returns (A, B, squared norm that was lost, squared norm).
    """
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().t())
    u, s, vt = torch.linalg.svd(upper @ lower.t())
    root = s[:rank].sqrt()
    lost, whole = float(s[rank:].square().sum()), float(s.square().sum())
    return (root[:, None] * (right @ vt[:rank].t()).t()).float(), (left @ u[:, :rank] * root).float(), lost, whole


def _factor_dense(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Best factors of a dense matrix by the eigenvectors of its smaller Gram matrix, in float64; see :func:`_factor_product`."""
    wide = matrix.shape[0] <= matrix.shape[1]
    m = matrix.double() if wide else matrix.double().t()
    values, vectors = torch.linalg.eigh(m @ m.t())  # ascending
    basis, kept = vectors[:, -rank:], values[-rank:].clamp(min=0)
    root = kept.pow(0.25).clamp(min=1e-12)  # the root of a singular value, so that both factors are of one size
    near, far = basis * root, (basis.t() @ m) / root[:, None]
    whole = float(m.square().sum())
    lost = max(0.0, whole - float(kept.sum()))
    return (far.float(), near.float(), lost, whole) if wide else (near.t().float(), far.t().float(), lost, whole)


def _refactored(
    method: str, factored: Iterable[tuple[str, Tensor, Tensor, float, float]], adapters: Sequence[Adapter], weights: Sequence[float],
    rank: int, options: Mapping[str, Any],
) -> Adapter:  # fmt: skip
    tensors: dict[str, Tensor] = {}
    lost, whole = 0.0, 0.0
    for site, a, b, lost_here, whole_here in factored:
        missing = rank - a.shape[0]
        tensors[site + LORA_A] = torch.cat([a, a.new_zeros(missing, a.shape[1])]).contiguous()
        tensors[site + LORA_B] = torch.cat([b, b.new_zeros(b.shape[0], missing)], 1).contiguous()
        lost, whole = lost + lost_here, whole + whole_here
    error = math.sqrt(lost / whole) if whole else 0.0
    return _adapter(tensors, adapters, rank, _lineage(method, adapters, weights, error) | dict(options))


def _adapter(tensors: dict[str, Tensor], adapters: Sequence[Adapter], rank: int, lineage: Mapping[str, Any]) -> Adapter:
    """Scale 1: it is in the factors already."""
    return Adapter(tensors, AdapterSpec("lora", adapters[0].spec.base, _sites(adapters), rank, float(rank), lineage=lineage))


def _lineage(method: str, adapters: Sequence[Adapter], weights: Sequence[float], error: float) -> dict[str, Any]:
    inputs = [adapter.digest for adapter in adapters]
    return {"merged": method, "inputs": inputs, "weights": [float(weight) for weight in weights], "relative_error": error}
