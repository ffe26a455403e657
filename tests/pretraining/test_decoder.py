"""The decoder that learns: the same logits as the frozen one, and the gradients that transformers' Llama gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed
from retain.lm.shapes import DecoderConfig, initial_weights
from retain.pretraining.decoder import NextToken, TrainableDecoder

SHAPES = {"tied": {}, "untied": {"tied": False}, "with bias": {"qkv_bias": True}}


def made(name: str) -> tuple[TrainableDecoder, dict[str, torch.Tensor]]:
    shape = DecoderConfig(97, 32, 3, 4, 2, 8, 48, 40, **SHAPES[name])  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    weights = {key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in initial_weights(shape).items()}
    return TrainableDecoder(shape, weights), weights


def transformers_model(decoder: TrainableDecoder, weights: dict[str, torch.Tensor]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**decoder.config.to_hugging_face()))
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_frozen_decoder(name: str) -> None:
    decoder, weights = made(name)
    packed = Packed.of([list(range(20)), [5, 6, 7]])
    frozen = DecoderLM(decoder.config, weights, None, name="frozen")
    with torch.no_grad():
        expected = frozen.logits(frozen.hidden(packed))
        assert torch.equal(decoder.logits(decoder.hidden(packed)), expected)
        again = decoder.frozen(dict(decoder.named_parameters()))
        assert torch.equal(again.logits(again.hidden(packed)), expected)
    assert {key: tuple(tensor.shape) for key, tensor in decoder.named(dict(decoder.named_parameters())).items()} == decoder.config.shapes()


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_transformers(name: str) -> None:
    decoder, weights = made(name)
    windows = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(0))
    loss = NextToken(decoder)(windows)["loss"]
    loss.backward()
    model = transformers_model(decoder, weights)
    expected = model(input_ids=windows, labels=windows).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = {key: tensor.grad for key, tensor in decoder.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    ours = decoder.named(gradients)  # type: ignore[arg-type]
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(ours[key], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_frozen_decoder_does_not_follow(tmp_path: Path) -> None:
    """What was taken or saved before a step stays as it was, and a saved model is what was learned."""
    decoder, _ = made("untied")
    packed = Packed.of([list(range(20))])
    before = decoder.frozen(dict(decoder.named_parameters()))
    with torch.no_grad():
        was = before.hidden(packed)
        for parameter in decoder.parameters():
            parameter.add_(0.05)
        assert torch.equal(before.hidden(packed), was)
        now = decoder.logits(decoder.hidden(packed))
        decoder.save(tmp_path, dict(decoder.named_parameters()))
        model = transformers_model(decoder, {})
        read = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(read(input_ids=packed.tokens[None]).logits[0], now, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(now, before.logits(was), atol=1e-2)
