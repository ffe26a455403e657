"""Adapters passed to a forward pass: the same as adding their change to the weights, row by row, and gone without a trace afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.tiny_models import SEQUENCES, bytes_of, gpt2, llama, lora, same_bytes
from torch import Tensor

from retain.adapters import Adapter, AdapterError, AdapterInjection, Composer, inject, inject_trainable, new_lora, select_sites
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

Make = Callable[[], LanguageModel]
both = pytest.mark.parametrize("make", [llama, gpt2])


def logits(model: LanguageModel, sequences: Sequence[Sequence[int]], *adapters: tuple[Adapter, float | list[float]]) -> tuple[Tensor, ...]:
    """One [L, V] for each sequence."""
    packed = Packed.of(sequences)
    with torch.no_grad():
        return model.logits(model.hidden(packed, inject(adapters, model.dtype))).split(packed.lengths)


def dense(model: LanguageModel, tokens: list[int], *adapters: tuple[Adapter, float]) -> Tensor:
    """Logits with every change added to the weights by hand."""
    weights = {name: weight.clone() for name, weight in model.parameters().items()}
    for adapter, weight in adapters:
        for site in adapter.spec.sites:
            delta = weight * adapter.delta(site)
            weights[f"{site}.weight"] += delta.t() if isinstance(model, TransformersLM) and site in model.transposed else delta
    with torch.no_grad():
        if isinstance(model, TransformersLM):
            return model.logits_under(weights, torch.tensor(tokens))
        assert isinstance(model, DecoderLM)
        plain = DecoderLM(model.config, weights, None, name="dense")
        return plain.logits(plain.hidden(Packed.of([tokens])))


@both
def test_injected_is_merged_by_hand(make: Make) -> None:
    model = make()
    first, second = lora(model, 1), lora(model, 2, rank=5, rank_stabilised=True)
    plain, adapted = logits(model, SEQUENCES), logits(model, SEQUENCES, (first, 1.0), (second, 0.3))
    for tokens, base, row in zip(SEQUENCES, plain, adapted, strict=True):
        torch.testing.assert_close(row, dense(model, tokens, (first, 1.0), (second, 0.3)), atol=1e-4, rtol=1e-4)
        assert (row - base).abs().max() > 0.1


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["k_proj"], ["v_proj"], ["q_proj", "v_proj"], ["k_proj", "v_proj"], ["gate_proj"], ["up_proj", "o_proj"]]
)
def test_a_part_of_a_fused_group_lands_in_its_place(targets: list[str]) -> None:
    """Query, key and value share one product although their widths differ."""
    model = llama()
    adapter = lora(model, 3, sites=select_sites(model, targets=targets))
    other = lora(model, 4, sites=select_sites(model, "last-third", ["k_proj"]))
    for active in ([(adapter, 1.0)], [(adapter, 1.0), (other, 0.5)]):
        torch.testing.assert_close(logits(model, [SEQUENCES[0]], *active)[0], dense(model, SEQUENCES[0], *active), atol=1e-4, rtol=1e-4)


@both
def test_rows_with_different_adapters_are_single_runs(make: Make) -> None:
    model = make()
    first, second = lora(model, 1), lora(model, 2, rank=2)
    weights = ([1.0, 0.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0, 2.0])
    rows = logits(model, SEQUENCES, (first, weights[0]), (second, weights[1]))
    for number, tokens in enumerate(SEQUENCES):
        alone = logits(model, [tokens], (first, weights[0][number]), (second, weights[1][number]))[0]
        torch.testing.assert_close(rows[number], alone, atol=1e-4, rtol=1e-4)


@both
def test_a_row_of_weight_zero_is_untouched(make: Make) -> None:
    model = make()
    plain = logits(model, SEQUENCES)
    mixed = logits(model, SEQUENCES, (lora(model, 1), [1.0, 0.0, 1.0, 0.0, 1.0]))
    assert [torch.equal(a, b) for a, b in zip(plain, mixed, strict=True)] == [False, True, False, True, False]


@both
def test_the_base_stays_the_same_bit_by_bit(make: Make) -> None:
    model = make()
    before, plain = bytes_of(model), logits(model, SEQUENCES)
    adapter = lora(model, 1)
    logits(model, SEQUENCES, (adapter, 1.0))
    decoding = model.decode(SEQUENCES, inject([(adapter, 1.0)], model.dtype), 20)
    decoding.advance(torch.tensor([3, 4, 5, 6, 7]), torch.tensor([True, False, True, True, True]))
    sites = select_sites(model)
    params = {name: tensor.requires_grad_() for name, tensor in new_lora(model, sites, 2, 4.0, 0).items()}
    hidden = model.hidden(Packed.of(SEQUENCES), inject_trainable(params, sites, 2.0, model.dtype))
    model.logits(hidden).square().mean().backward()
    assert all(tensor.grad is not None for tensor in params.values())
    assert all(params[f"{site}.lora_B.weight"].grad.abs().max() > 0 for site in sites)  # type: ignore[union-attr]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters().values())
    assert same_bytes(model, before)
    assert all(torch.equal(a, b) for a, b in zip(plain, logits(model, SEQUENCES), strict=True))


@both
def test_threads_keep_their_adapters_apart(make: Make) -> None:
    model = make()
    adapters = [lora(model, seed) for seed in range(4)]
    expected = [logits(model, SEQUENCES, (adapter, 1.0)) for adapter in adapters]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(15):
            got = logits(model, SEQUENCES, (adapters[number], 1.0))
            if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected[number], strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sites_are_chosen_by_layer_and_name() -> None:
    model = llama()
    assert len(select_sites(model)) == 21 and set(select_sites(model)) == set(model.sites)
    assert {site.split(".")[2] for site in select_sites(model, "last-third")} == {"2"}
    assert select_sites(model, 1, "q_proj") == ("model.layers.2.self_attn.q_proj",)
    assert select_sites(model, 1, ["*.mlp.[gu]*", "k_proj"]) == tuple(
        f"model.layers.2.{name}" for name in ("self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
    )
    with pytest.raises(AdapterError, match="down_proj"):
        select_sites(model, targets="c_attn")
    with pytest.raises(AdapterError, match="last-half"):
        select_sites(model, "first-half")


def test_an_adapter_is_checked_and_addressed_by_its_content() -> None:
    model = llama()
    adapter = lora(model, 1)
    adapter.check(model)
    assert adapter.digest == lora(model, 1).digest != lora(model, 2).digest
    assert adapter.digest != adapter.scaled(0.5).digest
    with pytest.raises(AdapterError, match="was made for base"):
        adapter.check(llama(seed=5))
    assert inject([], torch.float32) is None


@pytest.mark.parametrize("targets", [["k_proj"], ["q_proj", "v_proj"], ["up_proj", "o_proj"], ["q_proj", "k_proj", "v_proj", "down_proj"]])
def test_factors_in_eight_bits_do_the_same_nearly(targets: list[str]) -> None:
    """For few tokens, row by row; many tokens take the factors as they are."""
    model = llama()
    first, second = (lora(model, number, sites=select_sites(model, targets=targets)) for number in (1, 2))
    active = [(first, [1.0, 0.0, 0.5]), (second, [0.0, 0.0, 2.0])]
    for packed, near in ((Packed.of([[5, 9], [7], [31, 2, 8]]), 0.02), (Packed.of([[5, 9] * 8, [7], [31] * 20]), 1e-4)):
        with torch.no_grad():
            plain = model.hidden(packed)
            exact, rounded = (model.hidden(packed, inject(active, torch.float32, eight_bits=narrow)) for narrow in (False, True))
        changed = packed.rows != 1
        assert torch.equal(rounded[~changed], plain[~changed])
        assert float((rounded - exact)[changed].norm() / (exact - plain)[changed].norm()) < near
        assert torch.equal(rounded, exact) is False or near < 0.01


def test_rows_that_come_and_go_compile_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    known = {name: lora(model, number) for number, name in enumerate("abc")}
    compose = Composer(torch.float32, kept=1)
    compiled = 0
    compile_group = AdapterInjection._compile

    def counted(self: AdapterInjection, *inputs: Any) -> None:
        nonlocal compiled
        compiled += 1
        compile_group(self, *inputs)

    monkeypatch.setattr(AdapterInjection, "_compile", counted)
    for rows in ([[("a", 1.0)], [("b", 0.5)]], [[("b", 1.0)], [], [("a", 1.0), ("b", 2.0)]], [[("a", 1.0)]], [[], []]):
        packed = Packed.of(SEQUENCES[: len(rows)])
        expected = torch.cat([
            model.hidden(Packed.of([sequence]), inject([(known[name], weight) for name, weight in row], torch.float32))
            for sequence, row in zip(SEQUENCES, rows, strict=False)
        ])  # fmt: skip
        before = compiled
        torch.testing.assert_close(
            model.hidden(packed, compose([[(known[name], weight) for name, weight in row] for row in rows])), expected, atol=1e-4, rtol=1e-4
        )
        if len(rows) == 3:
            assert compiled == before, "the same two adapters, in other rows"
        elif any(rows):
            assert compiled > before
    assert compose([[], []]) is None
