"""Adapters compiled for a forward pass: several at once with weights, different ones in different rows of a batch.

All active adapters of a group of sites that share an input (q, k, v; gate, up) become one low-rank product: their A factors are stacked
to [R, d_in], the R coordinates of each token are multiplied by the weight of the adapter they belong to (per row where rows differ), and
a block-diagonal B [d_out, R] brings them back. All layers are compiled at once, with a dozen operations instead of a dozen per layer;
what does not change from step to step is compiled once. Gradients reach every trained factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters.adapter import LORA_A, LORA_B, Adapter
from retain.adapters.blocks import BLOCK_KINDS, at_site
from retain.lm.quantised import FEW, EightBits, product

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(eq=False)
class Part:
    """One adapter of an injection: ``tensors``, the ``sites`` that they change, the factor ``scale`` (alpha / rank), the weight, a float
    for every row of a batch or one per row [rows], and the ``kind``, "lora" or a block kind."""

    tensors: Mapping[str, Tensor]
    sites: frozenset[str]
    scale: float
    weight: float | Tensor = 1.0
    kind: str = "lora"
    _stacked: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _blocks: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def stacked(self, sites: tuple[str, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [layers, r, d_in] and B [layers, d_out, r] of one site in several layers, scale and uniform weight included."""
        if sites in self._stacked:
            return self._stacked[sites]
        down, up = ([self.tensors[site + end] for site in sites] for end in (LORA_A, LORA_B))
        factor = self.scale * (1.0 if isinstance(self.weight, Tensor) else self.weight)
        if any(tensor.requires_grad for tensor in (*down, *up)):
            return torch.stack(down).to(dtype), (torch.stack(up) * factor).to(dtype)
        with torch.inference_mode(False):  # what is kept may serve a later pass that gradients flow through
            self._stacked[sites] = torch.stack(down).to(dtype), (torch.stack(up) * factor).to(dtype)
        return self._stacked[sites]

    def beside(self, site: str, x: Tensor, y: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The output ``y`` of an MLP with what this adapter of a block kind adds to it."""
        tensors = self._stacked_block(site, dtype)
        change = BLOCK_KINDS[self.kind].change(tensors, x.to(dtype)) * self.scale
        weight = self.weight.to(x.device, dtype)[rows, None] if isinstance(self.weight, Tensor) else self.weight
        return y + change * weight

    def _stacked_block(self, site: str, dtype: torch.dtype) -> dict[str, Tensor]:
        if site not in self._blocks:
            found = {name: tensor.to(dtype) for name, tensor in at_site(self.tensors, site).items()}
            if any(tensor.requires_grad for tensor in found.values()):
                return found
            self._blocks[site] = found
        return self._blocks[site]


class AdapterInjection:
    """Calls as the protocol :class:`retain.lm.model.Injection` asks. ``applied``: the sites that were reached. ``change``: what happens to
    the inputs of the adapters, such as dropout. ``eight_bits``: frozen factors of LoRA become :class:`retain.lm.quantised.EightBits`."""

    def __init__(
        self, parts: Sequence[Part], dtype: torch.dtype, change: Callable[[Tensor], Tensor] | None = None, eight_bits: bool = False
    ) -> None:
        self.parts, self.dtype, self.change, self.eight_bits = tuple(parts), dtype, change, eight_bits
        self._low_rank = tuple(part for part in self.parts if part.kind == "lora")
        self._beside: dict[str, list[Part]] = {}
        for part in self.parts:
            for site in part.sites if part.kind != "lora" else ():
                self._beside.setdefault(site, []).append(part)
        self.applied: set[str] = set()
        self.by_row = any(isinstance(part.weight, Tensor) for part in self.parts)
        self._known = frozenset().union(*(part.sites for part in self._low_rank))
        self._compiled: dict[tuple[str, ...], _Product | _EightBitProduct | None] = {}
        self._row_weights: dict[tuple[int, ...], _RowWeights] = {}

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if beside := self._beside.get(sites[0]):
            self.applied.update(sites)
            for part in beside:
                y = part.beside(sites[0], self.change(x) if self.change else x, y, rows, self.dtype)
            return y
        if sites not in self._compiled:
            self._compile(sites, y)
        product = self._compiled[sites]
        if product is None:
            return y
        self.applied.update(sites)
        return product(self.change(x) if self.change else x, y, rows)

    def _compile(self, sites: tuple[str, ...], y: Tensor) -> None:
        """Compile a group of sites in this layer and in all layers where the same adapters have factors of the same shapes."""
        active = self._active(sites)
        if not any(active):
            self._compiled[sites] = None
            return
        layers = [group for group in self._alike(sites) if group == sites or (self._shapes(group) == self._shapes(sites))]
        widths = _widths([self._width(site) for site in sites], y.shape[-1])
        a: list[Tensor] = []
        b: list[Tensor | None] = []
        owners: list[int] = []
        for place, here in enumerate(active):
            columns = []
            for number in here:
                part = self._low_rank[number]
                block_a, block_b = part.stacked(tuple(group[place] for group in layers), self.dtype)
                a.append(block_a)
                columns.append(block_b)
                owners += [number] * block_a.shape[1]
            b.append(_joined(columns, 2) if columns else None)
        by_row = self._by_row(tuple(owners))
        down = _joined(a, 1)
        if self.eight_bits:
            for layer, group in enumerate(layers):
                up = tuple(width if block is None else EightBits(block[layer]) for block, width in zip(b, widths, strict=True))
                self._compiled[group] = _EightBitProduct(EightBits(down[layer]), up, tuple(owners), by_row)
            return
        for group, one, other in zip(layers, down.unbind(), _block_diagonal(b, widths, down).unbind(), strict=True):
            self._compiled[group] = _Product(one.t(), other.t(), tuple(owners), by_row)

    def _by_row(self, owners: tuple[int, ...]) -> _RowWeights | None:
        """The weight of each coordinate in each row, given the number of the part that each belongs to; None if rows agree."""
        if not any(isinstance(part.weight, Tensor) for part in self._low_rank):
            return None
        if owners not in self._row_weights:
            own = [part.weight if isinstance(part.weight, Tensor) else torch.ones(1) for part in self._low_rank]
            rows = max(len(weights) for weights in own)
            table = torch.stack([weights.expand(rows) for weights in own], 1)[:, list(owners)]
            device = next(iter(self._low_rank[0].tensors.values())).device
            self._row_weights[owners] = _RowWeights(table.to(device, self.dtype))
        return self._row_weights[owners]

    def reweighted(self, weights: Sequence[Sequence[float]]) -> AdapterInjection:
        """The same adapters with other weights by row, one list for each; what was compiled is used again. Every weight was by row."""
        parts = [replace(part, weight=torch.tensor(list(own))) for part, own in zip(self.parts, weights, strict=True)]
        made = AdapterInjection(parts, self.dtype, self.change, self.eight_bits)
        made._compiled = {
            sites: product and replace(product, by_row=made._by_row(product.owners)) for sites, product in self._compiled.items()
        }
        return made

    def _active(self, sites: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """For each site the numbers of the parts that change it."""
        return tuple(tuple(number for number, part in enumerate(self._low_rank) if site in part.sites) for site in sites)

    def _alike(self, sites: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The same group in every layer in which the same parts are active, in layer order."""
        found = _LAYER.search(sites[0])
        if found is None:
            return [sites]
        numbers = {int(match[0]) for site in self._known if (match := _LAYER.search(site))}
        groups = [tuple(_LAYER.sub(str(number), site, count=1) for site in sites) for number in sorted(numbers)]
        active = self._active(sites)
        return [group for group in groups if self._active(group) == active]

    def _shapes(self, sites: tuple[str, ...]) -> list[torch.Size]:
        return [
            self._low_rank[number].tensors[site + end].shape
            for site, here in zip(sites, self._active(sites), strict=True)
            for number in here
            for end in (LORA_A, LORA_B)
        ]

    def _width(self, site: str) -> int | None:
        """d_out of a site as the adapters know it."""
        return next((part.tensors[site + LORA_B].shape[0] for part in self._low_rank if site in part.sites), None)


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _block_diagonal(blocks: Sequence[Tensor | None], widths: Sequence[int], like: Tensor) -> Tensor:
    """[layers, sum of d_out, sum of r] with the blocks [layers, d_out, r] of the sites; those without any have only zeros."""
    total, offset, rows = sum(block.shape[2] for block in blocks if block is not None), 0, []
    for block, width in zip(blocks, widths, strict=True):
        if block is None:
            block = like.new_zeros(len(like), width, 0)
        rank = block.shape[2]
        rows.append(F.pad(block, (offset, total - offset - rank)) if rank < total else block)
        offset += rank
    return _joined(rows, 1)


def _widths(known: list[int | None], width: int) -> list[int]:
    """Output widths of the sites of a group; those without an adapter follow from the others: k and v are equally wide, gate and up too."""
    if len(known) == 3:
        key = known[1] or known[2] or (width - (known[0] or 0)) // 2
        return [width - 2 * key, key, key]
    return [width // len(known)] * len(known)


class _RowWeights:
    """A table [rows, R] of weights; of the rows of a pass, which are the same at every site, they are looked up once."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, rows: Tensor) -> Tensor:
        """[T, R] for the row numbers ``rows`` [T]."""
        last = self._last
        if last is None or last[0] is not rows:
            last = self._last = rows, self._table.index_select(0, rows)
        return last[1]


@dataclass(frozen=True, eq=False)
class _Product:
    """``a`` [d_in, R], ``b`` [R, d_out], the number of the part that each of the R coordinates belongs to, and their weights by row."""

    a: Tensor
    b: Tensor
    owners: tuple[int, ...]
    by_row: _RowWeights | None

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        u = x @ self.a  # [T, R]
        if self.by_row is not None:
            u = u * self.by_row.of(rows)
        return torch.addmm(y, u, self.b)


@dataclass(frozen=True, eq=False)
class _EightBitProduct:
    """The same with factors in eight bits: A [R, d_in] of all sites together, and B [d_out, r] of each, or its d_out where it has none."""

    a: EightBits
    b: tuple[EightBits | int, ...]
    owners: tuple[int, ...]
    by_row: _RowWeights | None

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        few = len(x) <= FEW
        u = product(self.a, x, few)
        if self.by_row is not None:
            u = u * self.by_row.of(rows)
        ranks = [0 if isinstance(b, int) else b.weight.shape[1] for b in self.b]
        pieces = zip(self.b, u.split(ranks, 1), strict=True)
        return y + _joined([u.new_zeros(len(u), b) if isinstance(b, int) else product(b, own.contiguous(), few) for b, own in pieces], 1)


class Composer:
    """Injections of batches whose rows come and go: as long as the adapters in the batch are the same, nothing is compiled anew. The
    ``kept`` sets of adapters used last stay compiled. ``eight_bits``: see :class:`AdapterInjection`."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu", kept: int = 4, eight_bits: bool = False) -> None:
        self.dtype, self.device, self.kept, self.eight_bits = dtype, device, kept, eight_bits
        self._compiled: dict[frozenset[Adapter], tuple[list[Adapter], AdapterInjection]] = {}  # the set used last is the last

    def __call__(self, rows: Sequence[Sequence[tuple[Adapter, float]]]) -> AdapterInjection | None:
        """``rows``: for each row of the batch its adapters with their weights. None when no row has any."""
        together = frozenset(adapter for row in rows for adapter, _ in row)
        if not together:
            return None
        order, known = self._compiled.pop(together, (list(together), None))
        weights = [[dict(row).get(adapter, 0.0) for row in rows] for adapter in order]
        if known is None:
            made = inject(list(zip(order, weights, strict=True)), self.dtype, self.device, self.eight_bits)
            assert made is not None
        else:
            made = known.reweighted(weights)
        self._compiled[together] = order, made
        while len(self._compiled) > self.kept:
            del self._compiled[next(iter(self._compiled))]
        return made


def inject(
    adapters: Sequence[tuple[Adapter, float | Sequence[float]]], dtype: torch.dtype, device: torch.device | str = "cpu",
    eight_bits: bool = False,
) -> AdapterInjection | None:  # fmt: skip
    """Compile adapters with weights: a float for the whole batch, or one weight per row (0.0 leaves the row untouched).

    Returns None when there are none, so that the base runs exactly as it does alone. ``eight_bits``: see :class:`AdapterInjection`.
    """
    parts = []
    for adapter, weight in adapters:
        tensors = {name: tensor.to(device) for name, tensor in adapter.tensors.items()}
        value = weight if isinstance(weight, (int, float)) else torch.tensor(list(weight), dtype=torch.float32)
        parts.append(Part(tensors, frozenset(adapter.spec.sites), adapter.spec.scale, value, adapter.spec.kind))
    return AdapterInjection(parts, dtype, eight_bits=eight_bits) if parts else None


def inject_trainable(
    params: Mapping[str, Tensor],
    sites: Sequence[str],
    scale: float,
    dtype: torch.dtype,
    change: Callable[[Tensor], Tensor] | None = None,
    kind: str = "lora",
) -> AdapterInjection:
    """The injection of tensors being trained; ``change``: see :class:`AdapterInjection`."""
    return AdapterInjection([Part(params, frozenset(sites), scale, kind=kind)], dtype, change)
