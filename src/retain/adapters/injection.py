"""Adapters compiled for a forward pass: several at once with weights, different ones in different rows of a batch.

All active adapters of a site become one low-rank product: their A factors are stacked to [R, d_in], the R coordinates of each token are
multiplied by the weight of the adapter they belong to (per row where rows differ), and the stacked B factors bring them back. Sites that
share an input (q, k, v; gate, up) share the first product too. Gradients reach every factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retain.adapters.adapter import LORA_A, LORA_B, Adapter


class LoraInjection:
    """Calls as the protocol :class:`retain.lm.model.Injection` asks.

    ``parts``: (tensors, sites, scale, weights) per adapter, ``weights`` being a float for every row or one per row [rows].
    """

    def __init__(self, parts: Sequence[tuple[Mapping[str, Tensor], frozenset[str], float, float | Tensor]], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.applied: set[str] = set()
        self._by_row = any(isinstance(weight, Tensor) for *_, weight in parts)
        self._compiled: dict[tuple[str, ...], _Product | None] = {}

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if sites not in self._compiled:
            self._compiled[sites] = self._compile(sites, y.shape[-1])
        product = self._compiled[sites]
        if product is None:
            return y
        self.applied.update(sites)
        return product(x, y, rows)

    def _compile(self, sites: tuple[str, ...], width: int) -> _Product | None:
        factors_a: list[Tensor] = []
        blocks: list[tuple[int, list[Tensor]]] = []
        coefficients: list[Tensor] = []
        for number, site in enumerate(sites):
            here: list[Tensor] = []
            for tensors, active, scale, weight in self.parts:
                if site not in active:
                    continue
                a, b = tensors[site + LORA_A], tensors[site + LORA_B]
                factors_a.append(a.to(self.dtype))
                uniform = 1.0 if isinstance(weight, Tensor) else weight
                here.append((b * (scale * uniform)).to(self.dtype))
                if self._by_row:
                    row_weights = weight if isinstance(weight, Tensor) else torch.ones(())
                    coefficients.append(row_weights.to(a.device, self.dtype).reshape(-1, 1).expand(-1, a.shape[0]))
            blocks.append((number, here))
        if not factors_a:
            return None
        by_row = None
        if self._by_row:
            rows = max(block.shape[0] for block in coefficients)
            by_row = torch.cat([block.expand(rows, -1) for block in coefficients], 1)
        widths = _widths([tensors_out(self.parts, site) for site in sites], width)
        return _Product(torch.cat(factors_a), [torch.cat(here, 1) if here else None for _, here in blocks], widths, by_row)


def tensors_out(parts: Sequence[tuple[Mapping[str, Tensor], frozenset[str], float, float | Tensor]], site: str) -> int | None:
    """d_out of a site as the adapters know it."""
    return next((tensors[site + LORA_B].shape[0] for tensors, active, *_ in parts if site in active), None)


def _widths(known: list[int | None], width: int) -> list[int]:
    """Output widths of the sites of a group; those without an adapter follow from the others: k and v are equally wide, gate and up too."""
    if len(known) == 3:
        key = known[1] or known[2] or (width - (known[0] or 0)) // 2
        return [width - 2 * key, key, key]
    return [width // len(known)] * len(known)


class _Product:
    def __init__(self, a: Tensor, b: list[Tensor | None], widths: list[int], by_row: Tensor | None) -> None:
        self.a, self.b, self.widths, self.by_row = a, b, widths, by_row

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        u = x @ self.a.t()  # [T, R]
        if self.by_row is not None:
            u = u * self.by_row[rows]
        if len(self.b) == 1 and self.b[0] is not None:
            return torch.addmm(y, u, self.b[0].t())
        offset, pieces = 0, []
        for part, b in zip(y.split(self.widths, 1), self.b, strict=True):
            if b is None:
                pieces.append(part)
            else:
                pieces.append(torch.addmm(part, u[:, offset : offset + b.shape[1]], b.t()))
                offset += b.shape[1]
        return torch.cat(pieces, 1)


def inject(
    adapters: Sequence[tuple[Adapter, float | Sequence[float]]], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> LoraInjection | None:
    """Compile adapters with weights: a float for the whole batch, or one weight per row (0.0 leaves the row untouched).

    Returns None when there are none, so that the base runs exactly as it does alone.
    """
    parts = []
    for adapter, weight in adapters:
        tensors = {name: tensor.to(device) for name, tensor in adapter.tensors.items()}
        value = weight if isinstance(weight, (int, float)) else torch.tensor(list(weight), dtype=torch.float32)
        parts.append((tensors, frozenset(adapter.spec.sites), adapter.spec.scale, value))
    return LoraInjection(parts, dtype) if parts else None


def inject_trainable(params: Mapping[str, Tensor], sites: Sequence[str], scale: float, dtype: torch.dtype) -> LoraInjection:
    """The injection of tensors being trained."""
    return LoraInjection([(params, frozenset(sites), scale, 1.0)], dtype)
