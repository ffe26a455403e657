"""The own decoder gives transformers' logits, in whatever order and batch its work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import LLAMA, SEQUENCES, bytes_of, hugging_face, llama, lora, own, same_bytes

from retain.adapters import inject
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel, LanguageModelError
from retain.lm.packing import Packed, common_prefix
from retain.lm.shapes import PRESETS, DecoderConfig, initial_weights

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped queries, untied": ("llama", {"tie_word_embeddings": False}),
    "grouped queries, tied": ("llama", {"tie_word_embeddings": True}),
    "one head each": ("llama", {"num_key_value_heads": 4}),
    "one shared key head": ("llama", {"num_key_value_heads": 1}),
    "wide heads": ("llama", {"head_dim": 16}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "another theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2 with bias": ("qwen2", {}),
    "qwen2 with bias, tied": ("qwen2", {"tie_word_embeddings": True}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mistral inside its window": ("mistral", {"sliding_window": 20}),
}


@torch.no_grad()
def reference(module: Any, tokens: list[int]) -> torch.Tensor:
    return module(input_ids=torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_are_those_of_transformers(variant: str) -> None:
    kind, options = VARIANTS[variant]
    module = hugging_face(kind, **LLAMA | options)
    model, packed = own(module), Packed.of(SEQUENCES)
    logits = model.logits(model.hidden(packed))
    assert logits.dtype == torch.float32 and logits.abs().max() > 1
    for row, tokens in enumerate(SEQUENCES):
        torch.testing.assert_close(logits[packed.rows == row], reference(module, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["llama3 rope", "qwen2 with bias", "mistral inside its window", "grouped queries, tied"])
@torch.no_grad()
def test_the_written_config_describes_the_same_model(variant: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, options = VARIANTS[variant]
    model = own(hugging_face(kind, **LLAMA | options))
    data = model.config.to_hugging_face()
    again = AutoModelForCausalLM.from_config(AutoConfig.for_model(**data)).eval()
    again.load_state_dict(dict(model.parameters()), strict=False)
    again.tie_weights()
    assert DecoderConfig.from_hugging_face(data) == DecoderConfig.from_hugging_face(again.config.to_dict())
    tokens = SEQUENCES[2]
    torch.testing.assert_close(model.logits(model.hidden(Packed.of([tokens]))), reference(again, tokens), atol=1e-4, rtol=0)


@torch.no_grad()
def test_packed_is_one_by_one() -> None:
    model = llama()
    packed = Packed.of(SEQUENCES)
    together = model.hidden(packed).split(packed.lengths)
    for tokens, rows in zip(SEQUENCES, together, strict=True):
        torch.testing.assert_close(rows, model.hidden(Packed.of([tokens])), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_segments_never_see_each_other() -> None:
    model = llama()
    before = model.hidden(Packed.of(SEQUENCES)).split(Packed.of(SEQUENCES).lengths)
    for changed in range(len(SEQUENCES)):
        other = [[(token + 7) % 61 for token in tokens] if row == changed else tokens for row, tokens in enumerate(SEQUENCES)]
        after = model.hidden(Packed.of(other)).split(Packed.of(other).lengths)
        for row, (was, now) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(was, now) == (row != changed)


@torch.no_grad()
def test_no_token_sees_a_later_one() -> None:
    model = llama()
    tokens = SEQUENCES[2]
    whole = model.hidden(Packed.of([tokens]))
    other = model.hidden(Packed.of([[*tokens[:6], *[1] * 6]]))
    torch.testing.assert_close(whole[:6], other[:6], atol=1e-6, rtol=0)
    assert not torch.allclose(whole[6:], other[6:])


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_prefix_and_suffix_are_the_whole_pass(adapted: bool) -> None:
    model, packed = llama(), Packed.of(SEQUENCES)
    injection = inject([(lora(model, 1), 1.0)], model.dtype) if adapted else None
    whole = model.hidden(packed, injection)
    for cut in (1, 2):
        middle = model.hidden(packed, injection, stop=cut)
        assert torch.equal(model.hidden(packed, injection, start=cut, inputs=middle), whole)


def test_a_pass_needs_inputs_exactly_when_it_starts_higher() -> None:
    model, packed = llama(), Packed.of([[1, 2]])
    with pytest.raises(ValueError, match="needs its inputs"):
        model.hidden(packed, start=1)
    with pytest.raises(ValueError, match="needs its inputs"):
        model.hidden(packed, inputs=torch.zeros(2, 32))
    with pytest.raises(LanguageModelError, match="context of 96"):
        model.hidden(Packed.of([[1] * 97]))


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_cached_decoding_is_the_plain_pass(adapted: bool) -> None:
    """Rows of different length and adapter, some ending early: every step's logits are those of the sequence run alone from its start."""
    model = llama()
    weights = [1.0, 0.0, 0.5, 2.0, 1.0]
    adapter = lora(model, 1)

    def injection(chosen: list[float]) -> Any:
        return inject([(adapter, chosen)], model.dtype) if adapted else None

    decoding = model.decode(SEQUENCES, injection(weights), 40)
    written = [list(tokens) for tokens in SEQUENCES]
    for step in range(10):
        for place, row in enumerate(decoding.rows.tolist()):
            alone = model.logits(model.hidden(Packed.of([written[row]]), injection([weights[row]])))[-1]
            torch.testing.assert_close(decoding.logits[place], alone, atol=1e-4, rtol=0)
        chosen = decoding.logits.argmax(-1)
        for row, token in zip(decoding.rows.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        decoding.advance(chosen, ~torch.isin(decoding.rows, torch.tensor({2: [0], 5: [1, 3]}.get(step, [-1]))))
    assert sorted(decoding.rows.tolist()) == [2, 4]


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_a_shared_beginning_runs_once(adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions about one document: each row's logits, at every step, are those of the row alone."""
    model = llama()
    document = [(7 * place + 3) % 61 for place in range(40)]
    prompts = [[*document, *tokens] for tokens in SEQUENCES]
    injection = inject([(lora(model, 1), 1.0)], model.dtype) if adapted else None
    run: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda packed, *rest, **named: run.append(packed.total) or hidden(packed, *rest, **named))
    decoding = model.decode(prompts, injection, 60)
    monkeypatch.undo()
    assert run == [40, sum(map(len, SEQUENCES))]
    written = [list(tokens) for tokens in prompts]
    for step in range(5):
        for place, row in enumerate(decoding.rows.tolist()):
            alone = model.logits(model.hidden(Packed.of([written[row]]), injection))[-1]
            torch.testing.assert_close(decoding.logits[place], alone, atol=1e-4, rtol=0)
        chosen = decoding.logits.argmax(-1)
        for row, token in zip(decoding.rows.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        decoding.advance(chosen, decoding.rows != {1: 0, 3: 2}.get(step, -1))
    assert sorted(decoding.rows.tolist()) == [1, 3, 4]


@torch.no_grad()
def test_rows_with_different_adapters_share_nothing() -> None:
    model, document = llama(), list(range(1, 41))
    prompts = [[*document, 3], [*document, 3]]
    logits = model.decode(prompts, inject([(lora(model, 1), [0.0, 1.0])], model.dtype), 50).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    torch.testing.assert_close(logits[0], model.logits(model.hidden(Packed.of(prompts[:1])))[-1], atol=1e-4, rtol=0)


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3]], least=1) == 2  # every row keeps a token of its own
    assert common_prefix([[1, 2], [1, 2]], least=1) == 1
    assert common_prefix([[1, 2, 3], [1, 2, 4]], least=3) == 0
    assert common_prefix([[1] * 100]) == 0


def test_loading_copies_and_running_never_writes() -> None:
    weights = initial_weights(
        DecoderConfig(vocabulary=61, width=32, layers=2, heads=4, kv_heads=2, head_width=8, feed_forward=48, context=64)
    )
    config = DecoderConfig(vocabulary=61, width=32, layers=2, heads=4, kv_heads=2, head_width=8, feed_forward=48, context=64)
    model = DecoderLM(config, weights, None, name="tiny")
    before = bytes_of(model)
    assert sum(t.numel() for t in model.parameters().values()) == config.parameter_count
    for weight in weights.values():
        weight.zero_()
    model.decode(SEQUENCES, inject([(lora(model), 1.0)], model.dtype), 20).advance(torch.tensor([1, 2, 3, 4, 5]))
    assert same_bytes(model, before)
    with pytest.raises(LanguageModelError, match="lacks 1 tensors"):
        DecoderLM(config, {name: w for name, w in weights.items() if name != "model.norm.weight"}, None, name="tiny")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"attention_bias": True}, "without bias"),
        ({"hidden_act": "gelu"}, "SiLU"),
    ],
)
def test_what_it_cannot_run_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(LanguageModelError, match=reason):
        DecoderConfig.from_hugging_face({"model_type": "llama", **LLAMA, **options})


@torch.no_grad()
def test_what_comes_after_a_prefix() -> None:
    """The prefix runs once, for the base and with an adapter; the same as running it before every sequence."""
    model = llama()
    for injection in (None, inject([(lora(model), 1.0)], model.dtype, model.device)):
        for prefix in ([], [5, 9, 2, 7, 7, 1]):
            found = model.hidden_after(prefix, SEQUENCES, injection)
            expected = LanguageModel.hidden_after(model, prefix, SEQUENCES, injection)
            assert found.shape == (sum(map(len, SEQUENCES)), model.width)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(model.hidden_after([3], SEQUENCES), model.hidden_after([4], SEQUENCES))


def test_presets_have_the_size_they_are_named_by() -> None:
    counts = {name: shape.parameter_count for name, shape in PRESETS.items()}
    sizes = {"5m": 5_180_672, "64m": 63_582_720, "135m": 134_515_008, "200m": 200_780_544, "360m": 361_821_120, "500m": 494_032_768}
    assert counts == sizes


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_saved_decoder_is_a_checkpoint_of_transformers(tmp_path: Path, dtype: torch.dtype | None) -> None:
    from transformers import AutoModelForCausalLM

    for name, options in (("tied", {"tie_word_embeddings": True}), ("untied", {"tie_word_embeddings": False})):
        model = llama(**options)
        model.save(tmp_path / name, dtype=dtype)
        read = AutoModelForCausalLM.from_pretrained(str(tmp_path / name)).eval()
        assert read.dtype == (dtype or torch.float32)
        expected = reference(read.float(), SEQUENCES[0])
        stored = {key: tensor.to(dtype or torch.float32).float() for key, tensor in model.parameters().items()}
        again = DecoderLM(model.config, stored, None, name="again")
        torch.testing.assert_close(again.logits(again.hidden(Packed.of([SEQUENCES[0]]))), expected, atol=1e-4, rtol=0)
