"""Models that run through transformers: the architectures that people use, with adapters, batches and decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import GPT2, LLAMA, NEOX, SEQUENCES, bytes_of, gpt2, hugging_face, lora, same_bytes

from retain.adapters import inject
from retain.lm.bridge import TransformersLM
from retain.lm.model import LanguageModelError
from retain.lm.packing import Packed

PLAIN = {key: value for key, value in LLAMA.items() if key != "head_dim"}
GEMMA2 = {**LLAMA, "sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {  # kind, configuration, sites in a block
    "gpt2": ("gpt2", GPT2, 4),
    "gpt_neox": ("gpt_neox", NEOX, 4),
    "phi": ("phi", PLAIN, 6),
    "gemma2, capped, sliding": ("gemma2", GEMMA2, 7),
    "gemma3, sliding": ("gemma3_text", {**LLAMA, "sliding_window": 4}, 7),
    "mistral beyond its window": ("mistral", {**LLAMA, "sliding_window": 3}, 7),
    "granite, scaled logits": ("granite", {**PLAIN, "logits_scaling": 7.0}, 7),
    "cohere, scaled logits": ("cohere", {**PLAIN, "logit_scale": 0.0625}, 7),
    "opt, projected": ("opt", {**NEOX, "ffn_dim": 64, "word_embed_proj_dim": 16, "pad_token_id": 1}, 6),
    "bloom, positions not given": ("bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 4),
    "mixture of experts": ("mixtral", {**LLAMA, "num_local_experts": 4}, 4),
}


def bridged(name: str) -> TransformersLM:
    kind, options, _ = KINDS[name]
    module = hugging_face(kind, **options)
    if "capped" in name:
        module.set_attn_implementation("eager")
    return TransformersLM(module, None, name=kind)


def alone(model: TransformersLM, tokens: list[int]) -> torch.Tensor:
    return model.module(input_ids=torch.tensor([tokens])).logits[0].float()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_every_architecture(name: str) -> None:
    """Packed logits are the model's own, each row takes its own adapter, and decoding continues what a whole pass says."""
    model = bridged(name)
    assert len(model.sites) == model.layers * KINDS[name][2] and not any("lm_head" in site or "embed" in site for site in model.sites)
    before, packed = bytes_of(model), Packed.of(SEQUENCES)
    for row, own in enumerate(model.logits(model.hidden(packed)).split(packed.lengths)):
        torch.testing.assert_close(own, alone(model, SEQUENCES[row]), atol=1e-4, rtol=1e-4)
    adapter, weights = lora(model, 1), [1.0, 0.0, 0.5, 2.0, 1.0]
    injection = inject([(adapter, weights)], model.dtype)
    adapted = model.logits(model.hidden(packed, injection)).split(packed.lengths)
    assert injection is not None and injection.applied == set(model.sites)
    torch.testing.assert_close(adapted[1], alone(model, SEQUENCES[1]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted[0], alone(model, SEQUENCES[0]), atol=1e-2)

    decoding = model.decode(SEQUENCES, injection, 40)
    written = [list(tokens) for tokens in SEQUENCES]
    for step in range(7):
        for place, row in enumerate(decoding.rows.tolist()):
            single = inject([(adapter, weights[row])], model.dtype)
            whole = model.logits(model.hidden(Packed.of([written[row]]), single))[-1]
            torch.testing.assert_close(decoding.logits[place], whole, atol=1e-4, rtol=1e-4)
        chosen = decoding.logits.argmax(-1)
        for row, token in zip(decoding.rows.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        decoding.advance(chosen, ~torch.isin(decoding.rows, torch.tensor({1: [0], 3: [1, 3]}.get(step, [-1]))))
    assert decoding.rows.tolist() == [2, 4] and same_bytes(model, before)


def test_gpt2_in_particular() -> None:
    model = gpt2()
    assert model.sites["transformer.h.0.attn.c_attn"] == (32, 96) and model.sites["transformer.h.1.mlp.c_proj"] == (128, 32)
    assert model.transposed == set(model.sites) and (model.layers, model.width, model.context) == (2, 32, 96)
    with pytest.raises(ValueError, match="goes through all of its layers"):
        model.hidden(Packed.of([[1, 2]]), stop=1)
    with pytest.raises(LanguageModelError, match="context of 96"):
        model.hidden(Packed.of([[1] * 97]))
    with pytest.raises(LanguageModelError, match="the model has 96"):
        model.decode([[1] * 90], None, 100)


def test_the_hooks_sleep_outside_a_call() -> None:
    """Also when a call fails in its middle, and for another model that shares nothing but the process."""
    model, other = gpt2(), gpt2(seed=1)
    plain = alone(model, SEQUENCES[0])

    def failing(sites: tuple[str, ...], x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if "h.1" in sites[0]:
            assert torch.equal(alone(other, [1, 2]), expected)
            raise RuntimeError("in the middle")
        return y * 0

    expected = alone(other, [1, 2])
    with pytest.raises(RuntimeError, match="in the middle"):
        model.hidden(Packed.of(SEQUENCES), failing)
    assert torch.equal(alone(model, SEQUENCES[0]), plain)


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(LanguageModelError, match="sees later tokens"):
        TransformersLM(hugging_face("bert", **NEOX), None, name="bert")
    module = hugging_face("gpt2", **GPT2)
    with pytest.raises(LanguageModelError, match="not a causal language model"):
        TransformersLM(module.base_model, None, name="headless")
    forward = module.forward
    module.forward = lambda **inputs: _shifted(forward(**inputs))
    with pytest.raises(LanguageModelError, match="in a way that retain does not know"):
        TransformersLM(module, None, name="odd")


def _shifted(output: Any) -> Any:
    output.logits = output.logits.flip(-1)
    return output


def test_a_model_without_linear_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.lm import bridge

    monkeypatch.setattr(bridge, "find_linear", lambda module: {})
    with pytest.raises(LanguageModelError, match="no linear layer"):
        gpt2()
