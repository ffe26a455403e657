"""The second MLP beside the frozen one: nothing at the start, the frozen one's own function when its weights are, and small on disk."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import SEQUENCES, gpt2, llama

from retain.adapters import Adapter, AdapterError, AdapterSpec, dual_mlp_sites, inject
from retain.adapters.blocks import at_site
from retain.adapters.dual_mlp import KIND, dual_mlp_change, new_dual_mlp, projection
from retain.config import Config
from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed
from retain.lm.shapes import DecoderConfig


def adapter_of(model: DecoderLM, sites: tuple[str, ...], width: int, blend: float = 1.0, **tensors: torch.Tensor) -> Adapter:
    fresh = new_dual_mlp(model, {site: torch.arange(width) for site in sites})
    return Adapter(fresh | tensors, AdapterSpec(KIND, model.fingerprint, sites, width, blend * width))


def test_it_stands_in_the_last_quarter_of_the_layers() -> None:
    assert dual_mlp_sites(llama(num_hidden_layers=8)) == ("model.layers.6.mlp", "model.layers.7.mlp")
    assert dual_mlp_sites(llama()) == ("model.layers.2.mlp",)
    with pytest.raises(AdapterError, match=r"^tiny-gpt2 has no MLP with gate, up and down projections[^\n]*$"):
        dual_mlp_sites(gpt2())


def test_it_has_no_effect_at_first() -> None:
    model = llama()
    adapter = adapter_of(model, dual_mlp_sites(model), 12)
    adapter.check(model)
    packed = Packed.of(SEQUENCES)
    with torch.no_grad():
        assert torch.equal(model.hidden(packed, inject([(adapter, 1.0)], model.dtype)), model.hidden(packed))


def test_with_the_frozen_weights_it_is_the_frozen_mlp() -> None:
    model = llama()
    site = "model.layers.2.mlp"
    copy = at_site(new_dual_mlp(model, {site: torch.arange(48)}), site) | {"down": projection(model, site, "down_proj")}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watch:
        by_row = False

        def __call__(self, sites: tuple[str, ...], x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            if sites == (site,):
                seen.append((x, y))
            return y

    with torch.no_grad():
        model.hidden(Packed.of(SEQUENCES), Watch())
        x, y = seen[0]
        torch.testing.assert_close(dual_mlp_change(copy, x), y, atol=1e-4, rtol=1e-4)
        some = torch.tensor([3, 11, 40])
        part = {"gate": copy["gate"][some], "up": copy["up"][some], "down": copy["down"][:, some]}
        rest = torch.tensor([n for n in range(48) if n not in some])
        other = {"gate": copy["gate"][rest], "up": copy["up"][rest], "down": copy["down"][:, rest]}
        torch.testing.assert_close(dual_mlp_change(part, x) + dual_mlp_change(other, x), y, atol=1e-4, rtol=1e-4)


def test_the_blend_scales_it() -> None:
    model = llama()
    (site,) = dual_mlp_sites(model)
    down = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    packed, changes = Packed.of(SEQUENCES), []
    with torch.no_grad():
        for blend in (1e-3, 2e-3, 1.0):
            adapter = adapter_of(model, (site,), 12, blend, **{f"{site}.down": down})
            changes.append(model.hidden(packed, inject([(adapter, 1.0)], model.dtype)) - model.hidden(packed))
    torch.testing.assert_close(changes[1], 2 * changes[0], atol=1e-4, rtol=0.1)
    assert changes[2].abs().max() > 0.05


def test_shapes_that_do_not_fit_are_said() -> None:
    model = llama()
    (site,) = dual_mlp_sites(model)
    with pytest.raises(AdapterError, match=r"the tensor down has the shape \[31, 12\] instead of \[32, 12\]"):
        adapter_of(model, (site,), 12, **{f"{site}.down": torch.zeros(31, 12)}).check(model)
    with pytest.raises(AdapterError, match="the tensor up has the shape"):
        adapter_of(model, (site,), 12, **{f"{site}.up": torch.zeros(11, 32)}).check(model)


@pytest.mark.parametrize(("width", "megabytes"), [(Config().ttt.width, 17), (768, 50)])
def test_it_is_small_beside_a_model_of_one_and_a_half_billion_parameters(width: int, megabytes: int) -> None:
    shape = DecoderConfig(151_936, 1536, 28, 12, 2, 128, 8960, 32_768, 1_000_000.0, 1e-6, qkv_bias=True)  # Qwen2.5-1.5B
    assert 1.5e9 < shape.parameter_count < 1.6e9
    weights = {name: torch.empty(size, device="meta") for name, size in shape.shapes().items()}
    model = DecoderLM(shape, weights, None, name="1.5b", fingerprint="f", device="meta")
    sites = dual_mlp_sites(model)
    fresh = new_dual_mlp(model, {site: torch.empty(width, dtype=torch.int64, device="meta") for site in sites})
    adapter = Adapter(fresh, AdapterSpec(KIND, "f", sites, width, 1.0 * width)).half()
    assert len(sites) == 7 and adapter.byte_count < megabytes * 1e6
