"""Merging adapters, and writing them into a copy of the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import SEQUENCES, bytes_of, gpt2, llama, lora, same_bytes
from torch import Tensor

from retain.adapters import Adapter, AdapterError, inject, select_sites
from retain.adapters.merging import MERGE_METHODS, fuse, merge, save_fused
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

both = pytest.mark.parametrize("make", [llama, gpt2])
WEIGHTS = [0.7, -0.4, 1.1]


def three(model: LanguageModel) -> list[Adapter]:
    """Adapters of different ranks, scales and sites."""
    return [lora(model, 1), lora(model, 2, rank=5, rank_stabilised=True), lora(model, 3, rank=2, sites=select_sites(model, 1))]


def change(adapters: list[Adapter], weights: list[float], site: str) -> Tensor:
    """The weighted sum of the changes at a site."""
    here = [weight * adapter.delta(site) for adapter, weight in zip(adapters, weights, strict=True) if site in adapter.spec.sites]
    return torch.stack(here).sum(0)


def logits(model: LanguageModel, *adapters: tuple[Adapter, float]) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(Packed.of(SEQUENCES), inject(adapters, model.dtype)))


def one_site(model: LanguageModel, *deltas: list[list[float]]) -> list[Adapter]:
    """Adapters that change one site by given corner values, of full rank so that nothing is lost."""
    site = "model.layers.0.self_attn.k_proj"
    made = []
    for values in deltas:
        a, b = torch.zeros(4, 32), torch.zeros(16, 4)
        a[range(4), range(4)], b[: len(values), : len(values[0])] = 1.0, torch.tensor(values)
        spec = lora(model, sites=(site,)).spec
        made.append(Adapter({f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}, replace(spec, rank=4, alpha=4.0)))
    return made


def corner(adapter: Adapter, rows: int, columns: int) -> Tensor:
    return adapter.delta(adapter.spec.sites[0])[:rows, :columns]


@both
def test_concatenating_is_exact(make: Callable[[], LanguageModel]) -> None:
    model = make()
    adapters = three(model)
    merged = merge("concatenate", adapters, WEIGHTS)
    assert merged.spec.rank == 10 and merged.spec.scale == 1 and set(merged.spec.sites) == set(model.sites)
    for site in merged.spec.sites:
        torch.testing.assert_close(merged.delta(site), change(adapters, WEIGHTS, site), atol=1e-6, rtol=1e-5)
    expected = logits(model, *zip(adapters, WEIGHTS, strict=True))
    torch.testing.assert_close(logits(model, (merged, 1.0)), expected, atol=1e-4, rtol=1e-4)
    assert merged.spec.lineage["inputs"] == [adapter.digest for adapter in adapters]
    merged.check(model)


def test_linear_is_the_sum_of_changes_not_of_factors() -> None:
    model = llama()
    adapters = three(model)
    whole = merge("linear", adapters, WEIGHTS, rank=10)
    assert whole.spec.lineage["relative_error"] < 1e-6
    for site in whole.spec.sites:
        torch.testing.assert_close(whole.delta(site), change(adapters, WEIGHTS, site), atol=1e-5, rtol=1e-4)


def test_linear_truncates_as_well_as_any_rank_can_and_says_what_it_lost() -> None:
    model = llama()
    adapters = three(model)
    merged = merge("linear", adapters, WEIGHTS, rank=4)
    lost, norm = 0.0, 0.0
    for site in merged.spec.sites:
        wanted = change(adapters, WEIGHTS, site)
        singular = torch.linalg.svdvals(wanted.double())
        assert (merged.delta(site) - wanted).norm().item() == pytest.approx(singular[4:].norm().item(), rel=1e-3, abs=1e-5)
        lost, norm = lost + float(singular[4:].square().sum()), norm + float(singular.square().sum())
    assert merged.spec.lineage["relative_error"] == pytest.approx((lost / norm) ** 0.5, rel=1e-3)
    assert merge("linear", adapters, WEIGHTS).spec.rank == 5


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_the_error_of_dense_merges_is_the_true_one(method: str) -> None:
    model = llama()
    adapters = three(model)
    full = merge(method, adapters, WEIGHTS, rank=32)
    cut = merge(method, adapters, WEIGHTS, rank=6)
    assert full.spec.lineage["relative_error"] < 1e-5
    lost = sum(float((full.delta(s) - cut.delta(s)).square().sum()) for s in full.spec.sites)
    norm = sum(float(full.delta(s).square().sum()) for s in full.spec.sites)
    assert cut.spec.lineage["relative_error"] == pytest.approx((lost / norm) ** 0.5, rel=1e-3)
    assert 0.05 < cut.spec.lineage["relative_error"] < 1


def test_ties_by_hand() -> None:
    """2306.01708, figure 1: agreeing entries are averaged, the outvoted sign and the trimmed entries drop out."""
    adapters = one_site(llama(), [[4.0, -3.0, 0.1, 2.0]], [[2.0, 5.0, 0.1, -6.0]])
    kept = 3 / (16 * 32)
    merged = merge("ties", adapters, density=kept)
    torch.testing.assert_close(corner(merged, 1, 4), torch.tensor([[3.0, 5.0, 0.0, -6.0]]), atol=1e-5, rtol=0)
    weighted = merge("ties", adapters, [3.0, 1.0], density=kept, scale=0.5)
    torch.testing.assert_close(corner(weighted, 1, 4), torch.tensor([[1.75, -1.5, 0.0, 0.0]]), atol=1e-5, rtol=0)


def test_dare_keeps_the_mean_and_repeats_itself() -> None:
    adapters = one_site(llama(), [[1.0] * 4] * 16)
    draws = torch.stack([corner(merge("dare", adapters, density=0.4, seed=seed), 16, 4) for seed in range(60)])
    near = torch.isclose(draws, torch.tensor(0.0), atol=1e-5) | torch.isclose(draws, torch.tensor(2.5), atol=1e-5)
    assert bool(near.all()) and draws.mean().item() == pytest.approx(1.0, abs=0.08)
    model = llama()
    first, again, other = (merge("dare", three(model), WEIGHTS, seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    everything = merge("dare", three(model), WEIGHTS, density=1.0, rank=10)
    for site in everything.spec.sites:
        torch.testing.assert_close(everything.delta(site), change(three(model), WEIGHTS, site), atol=1e-5, rtol=1e-3)


def test_methods_are_registered_with_their_papers() -> None:
    assert set(MERGE_METHODS) == {"concatenate", "linear", "ties", "dare"}
    assert "2306.01708" in MERGE_METHODS["ties"].reference and "2311.03099" in MERGE_METHODS["dare"].reference
    assert MERGE_METHODS["ties"].options == {"density": 0.2, "scale": 1.0, "rank": None}
    assert all(method.summary for method in MERGE_METHODS.values())


def test_wrong_merges_are_refused() -> None:
    model = llama()
    adapters = three(model)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("did you mean ties", {"method": "tis", "adapters": adapters}),
        ("no option 'densty'", {"method": "ties", "adapters": adapters, "densty": 0.1}),
        ("density must be", {"method": "dare", "adapters": adapters, "density": 0.0}),
        ("at least one adapter", {"method": "linear", "adapters": []}),
        ("2 and 1", {"method": "linear", "adapters": adapters[:2], "weights": [1.0]}),
        ("finite", {"method": "linear", "adapters": adapters[:1], "weights": [float("nan")]}),
        ("different bases", {"method": "linear", "adapters": [lora(model), lora(llama(seed=9))]}),
    ]
    for pattern, arguments in cases:
        with pytest.raises(AdapterError, match=pattern):
            merge(**arguments)


@both
def test_fused_is_injected_and_the_base_stays(make: Callable[[], LanguageModel], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = make()
    before = bytes_of(model)
    pairs = list(zip(three(model), WEIGHTS, strict=True))
    save_fused(model, pairs, tmp_path)
    fused = AutoModelForCausalLM.from_pretrained(str(tmp_path)).eval()
    expected = logits(model, *pairs)
    packed = Packed.of(SEQUENCES)
    for row, tokens in enumerate(SEQUENCES):
        with torch.no_grad():
            got = fused(input_ids=torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(got, expected[packed.rows == row], atol=1e-4, rtol=1e-4)
    assert (expected - logits(model)).abs().max() > 0.1
    assert same_bytes(model, before)
    weights = fuse(model, [])
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert not {t.data_ptr() for t in weights.values()} & {t.data_ptr() for t in model.parameters().values()}


def test_fusing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    adapter = lora(model)
    whole = Adapter.delta
    monkeypatch.setattr(Adapter, "delta", lambda self, site: 1.01 * whole(self, site))
    with pytest.raises(AdapterError, match="other logits than its adapters"):
        fuse(model, [(adapter, 1.0)])
    with pytest.raises(AdapterError, match="was made for base"):
        fuse(llama(seed=4), [(adapter, 1.0)])


def test_a_half_precision_base_is_fused_in_float32() -> None:
    single = llama()
    model = DecoderLM(single.config, single.parameters(), None, name="half", dtype=torch.bfloat16)
    fused = fuse(model, [(lora(model), 1.0)])
    assert {tensor.dtype for tensor in fused.values()} == {torch.float32}
