"""Columns of a progressive network (Rusu et al., 1606.04671) beside the MLPs of a frozen model: the block kind ``column``.

At a site, column k is a bottleneck that reads what the MLP reads and the hidden values of all earlier columns there:

    h_k = silu(A_k x + sum over j < k of U_kj h_j)          added to the MLP's output: B_k h_k

where x is brought to a mean square of one, token by token: models differ widely in how large it is (0.14 in the middle of
SmolLM2-135M), and a column of inputs that small would be linear and slow to learn. An adapter holds the column that it is named after
and frozen copies of what the hidden values of the earlier ones are computed from, so it needs no other. Its tensors at a site, with w the
column's width and E the width of all earlier columns together:

    A [w, d]   B [d, w]   U [w, E]   earlier.A [E, d]   earlier.U.n [width of column n, width of all before it], n from 2

``U`` and ``earlier.A`` are there when an earlier column is. The earlier columns' ``B`` is not: what they add is theirs alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters.adapter import Adapter, layer_of, select_sites
from retain.adapters.blocks import BLOCK_KINDS, BlockKind, at_site
from retain.lm.model import LanguageModel

KIND = "column"


def column_sites(model: LanguageModel, layers: str | int = "all") -> tuple[str, ...]:
    """The MLPs of the layers that :func:`retain.adapters.select_sites` means by ``layers``; none for a model without MLPs."""
    chosen = {layer_of(site) for site in select_sites(model, layers)} if model.blocks else set()
    return tuple(site for site in model.blocks if layer_of(site) in chosen)


def earlier_columns(chain: Sequence[Adapter], site: str) -> dict[str, Tensor]:
    """The tensors ``earlier.*`` of the column that comes after those of ``chain`` (oldest first) at a site: copies of the last one's own
    tensors and of its earlier ones'. Empty when none of them is at the site."""
    latest = next((adapter for adapter in reversed(chain) if site in adapter.spec.sites), None)
    if latest is None:
        return {}
    own = at_site(latest.tensors, site)
    if "U" not in own:
        return {"earlier.A": own["A"]}
    kept = {name: tensor for name, tensor in own.items() if name.startswith("earlier.U.")}
    return {"earlier.A": torch.cat([own["earlier.A"], own["A"]]), **kept, f"earlier.U.{len(kept) + 2}": own["U"]}


def new_column(model: LanguageModel, sites: Sequence[str], width: int, earlier: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Fresh float32 tensors of a column, by full name, given the frozen ones of the ``earlier`` columns: A uniform with variance 1 / (3 d),
    U uniform with variance 1 / (3 E), B zero, so no effect at start."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site in sites:
        d = model.blocks[site]
        tensors[f"{site}.A"] = _uniform(width, d, generator).to(model.device)
        tensors[f"{site}.B"] = torch.zeros(d, width, device=model.device)
    for site in sites:  # after all A, which are the same with and without earlier columns
        if f"{site}.earlier.A" in earlier:
            tensors[f"{site}.U"] = _uniform(width, earlier[f"{site}.earlier.A"].shape[0], generator).to(model.device)
    return tensors


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(rows, columns, generator=generator) * 2 - 1) / math.sqrt(columns)


def column_change(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What a column adds to the output of the MLP with input ``x`` [T, d]. The products of all earlier columns with it are one."""
    x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    read = x @ tensors["A"].t()
    if "U" in tensors:
        read = torch.addmm(read, earlier_hidden(tensors, x), tensors["U"].t())
    return F.silu(read) @ tensors["B"].t()


def earlier_hidden(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Hidden values [T, E] of the earlier columns for ``x`` [T, d] of mean square one."""
    laterals = _laterals(tensors)
    widths = [tensors["earlier.A"].shape[0] - sum(lateral.shape[0] for lateral in laterals), *(lateral.shape[0] for lateral in laterals)]
    first, *others = (x @ tensors["earlier.A"].t()).split(widths, 1)
    hidden = F.silu(first)
    for read, lateral in zip(others, laterals, strict=True):
        hidden = torch.cat([hidden, F.silu(torch.addmm(read, hidden, lateral.t()))], 1)
    return hidden


def _laterals(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """``earlier.U.2``, ``earlier.U.3`` ..."""
    found = []
    for number in count(2):
        lateral = tensors.get(f"earlier.U.{number}")
        if lateral is None:
            break
        found.append(lateral)
    return found


def column_problem(tensors: Mapping[str, Tensor], width: int) -> str:
    """What is wrong with the shapes of a column's tensors at a site of a model of that width, or nothing."""
    inner = tensors["A"].shape[0]
    if tuple(tensors["A"].shape) != (inner, width) or tuple(tensors["B"].shape) != (width, inner):
        return f"A {list(tensors['A'].shape)} and B {list(tensors['B'].shape)} do not fit a column beside an MLP of width {width}"
    laterals = _laterals(tensors)
    if set(tensors) - {"A", "B", "U", "earlier.A"} != {f"earlier.U.{number + 2}" for number in range(len(laterals))}:
        return "its tensors are not those of a column and of the earlier ones"
    if "U" not in tensors and "earlier.A" not in tensors and not laterals:
        return ""
    if "U" not in tensors or "earlier.A" not in tensors:
        return f"the tensor {'earlier.A' if 'U' in tensors else 'U'} of the lateral connections is missing"
    total = tensors["earlier.A"].shape[0]
    before = total - sum(lateral.shape[0] for lateral in laterals)
    if tuple(tensors["earlier.A"].shape) != (total, width) or before < 1:
        return f"earlier.A {list(tensors['earlier.A'].shape)} does not fit the earlier columns beside an MLP of width {width}"
    for number, lateral in enumerate(laterals, 2):
        if lateral.ndim != 2 or lateral.shape[1] != before:
            return f"earlier.U.{number} {list(lateral.shape)} does not read the {before} hidden values before it"
        before += lateral.shape[0]
    if tuple(tensors["U"].shape) != (inner, total):
        return f"U {list(tensors['U'].shape)} does not read the {total} hidden values of the earlier columns"
    return ""


BLOCK_KINDS[KIND] = BlockKind(("A", "B"), column_change, column_problem)
