"""Columns of a progressive network: what they compute, that they start without effect, what they weigh, what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_models import SEQUENCES, gpt2, llama
from torch import Tensor

from retain.adapters import Adapter, AdapterError, AdapterSpec, column_sites, inject
from retain.adapters.column import column_change, column_problem, earlier_columns, new_column
from retain.learners.skills import load_adapter, save_adapter
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed


def chain(model: Any, widths: Sequence[int], sites: Sequence[str] | None = None) -> list[Adapter]:
    """A column of each width, one after another, each with an effect."""
    found: list[Adapter] = []
    for number, width in enumerate(widths):
        here = tuple(sites or model.blocks)
        earlier = {f"{site}.{name}": tensor for site in here for name, tensor in earlier_columns(found, site).items()}
        own = new_column(model, here, width, earlier, seed=number)
        own = {name: torch.randn_like(tensor) * 0.3 if name.endswith(".B") else tensor for name, tensor in own.items()}
        found.append(Adapter({**own, **earlier}, AdapterSpec("column", model.fingerprint, here, width, width)).half())
    return found


def by_hand(columns: Sequence[tuple[Tensor, Tensor, Tensor]], x: Tensor) -> Tensor:
    """h_k = silu(A_k x + sum_j U_kj h_j), one column and one earlier column after another; B_k h_k of the last."""
    hidden: list[Tensor] = []
    x = x / x.square().mean(1, keepdim=True).sqrt()
    for a, lateral, _ in columns:
        read = x @ a.t()
        for h, block in zip(hidden, lateral.split([h.shape[1] for h in hidden], 1), strict=True):
            read = read + h @ block.t()
        hidden.append(read * torch.sigmoid(read))
    return hidden[-1] @ columns[-1][2].t()


@pytest.mark.parametrize("widths", [(4,), (4, 4), (4, 7, 3, 5)])
def test_it_computes_the_formula_from_its_own_tensors_alone(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = llama()
    found, site = chain(model, widths), next(iter(model.blocks))
    columns = []
    for adapter in found:
        own = {name: tensor.double() for name, tensor in adapter.tensors.items()}
        a, b = own[f"{site}.A"], own[f"{site}.B"]
        columns.append((a, own.get(f"{site}.U", a.new_zeros(a.shape[0], 0)), b))
    x = 3.0 * torch.randn(9, model.width, dtype=torch.float64)
    tensors = {name.removeprefix(f"{site}."): tensor.double() for name, tensor in found[-1].tensors.items() if name.startswith(site)}
    torch.testing.assert_close(column_change(tensors, x), by_hand(columns, x))


def test_earlier_columns_are_copied_bit_by_bit() -> None:
    model = llama()
    found = chain(model, (4, 6, 5))
    for site in model.blocks:
        first, second, third = ({name: tensor for name, tensor in adapter.tensors.items() if name.startswith(site)} for adapter in found)
        assert torch.equal(third[f"{site}.earlier.A"], torch.cat([first[f"{site}.A"], second[f"{site}.A"]]))
        assert torch.equal(third[f"{site}.earlier.U.2"], second[f"{site}.U"]) and third[f"{site}.U"].shape == (5, 10)


def test_its_sites_are_the_mlps_of_the_chosen_layers() -> None:
    model = llama()
    assert column_sites(model, 2) == ("model.layers.1.mlp", "model.layers.2.mlp") and column_sites(model) == tuple(model.blocks)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_new_column_has_no_effect(make: Callable[[], LanguageModel]) -> None:
    model = make()
    sites = column_sites(model)
    found = chain(model, (4, 4), sites)
    earlier = {f"{site}.{name}": tensor for site in sites for name, tensor in earlier_columns(found, site).items()}
    fresh = Adapter({**new_column(model, sites, 4, earlier, 2), **earlier}, AdapterSpec("column", model.fingerprint, sites, 4, 8.0))
    fresh.check(model)
    packed = Packed.of(SEQUENCES)
    with torch.no_grad():
        plain = model.hidden(packed)
        assert torch.equal(model.hidden(packed, inject([(fresh, 1.0)], model.dtype)), plain)
        assert (model.hidden(packed, inject([(found[-1], 1.0)], model.dtype)) - plain).abs().max() > 0.05


def test_a_site_without_earlier_columns_has_none() -> None:
    model = llama()
    first, second, third = model.blocks
    found = [*chain(model, (4,), [second, third]), *chain(model, (5,), [third])]
    assert earlier_columns(found, first) == {}
    assert torch.equal(earlier_columns(found, second)["earlier.A"], found[0].tensors[f"{second}.A"])


def test_it_goes_through_a_file(tmp_path: Path) -> None:
    model = llama()
    adapter = chain(model, (4, 3, 5))[-1]
    save_adapter(adapter, tmp_path / "column.safetensors")
    loaded = load_adapter(tmp_path / "column.safetensors")
    loaded.check(model)
    assert loaded.digest == adapter.digest and loaded.spec == adapter.spec


def test_twenty_columns_of_the_embedded_models_shape_are_small() -> None:
    sites = tuple(f"model.layers.{layer}.mlp" for layer in range(10, 30))
    model = SimpleNamespace(blocks=dict.fromkeys(sites, 576), device=torch.device("meta"), fingerprint="")
    sizes = [adapter.byte_count for adapter in chain(model, (16,) * 20)]
    assert sizes[0] == 737_280 and sizes[19] == 9_687_040 and sum(sizes) < 110_000_000
    assert [after - before for before, after in pairwise(sizes)] == [2 * 20 * (16 * 576 + number * 16 * 16) for number in range(1, 20)]


def test_what_does_not_fit_is_said() -> None:
    model = llama()
    site = next(iter(model.blocks))
    good = {name.removeprefix(f"{site}."): tensor for name, tensor in chain(model, (4, 3, 5))[-1].tensors.items() if name.startswith(site)}
    assert column_problem(good, model.width) == ""
    wrong = {
        "do not fit a column beside an MLP of width 32": {"B": torch.zeros(32, 4)},
        r"earlier\.A \[7, 31\] does not fit": {"earlier.A": torch.zeros(7, 31)},
        r"earlier\.U\.2 \[3, 5\] does not read the 4 hidden values before it": {"earlier.U.2": torch.zeros(3, 5)},
        r"U \[5, 6\] does not read the 7 hidden values": {"U": torch.zeros(5, 6)},
        "not those of a column": {"earlier.U.4": torch.zeros(1, 1)},
    }
    for message, tensors in wrong.items():
        bad = {f"{site}.{name}": tensor for name, tensor in {**good, **tensors}.items()}
        with pytest.raises(AdapterError, match=f"^site {site}: .*{message}"):
            Adapter(bad, AdapterSpec("column", "", (site,), 5, 5.0)).check(model)
    assert "tensor U of the lateral connections is missing" in column_problem({k: t for k, t in good.items() if k != "U"}, 32)
    assert "tensor earlier.A of the lateral" in column_problem({k: good[k] for k in "ABU"}, 32)
