"""Texts of any length: pieces give what one pass gives, and what has left the window is gone, in the memory that the window has."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import LLAMA, hugging_face, llama, lora, own

from retain.adapters import inject
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed
from retain.lm.streaming import SINKS, Reading, SlidingCache, overlapping, streaming_loss

TEXT = torch.randint(3, 61, (600,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def read(model: DecoderLM | TransformersLM, tokens: list[int], window: int, piece: int, below: int = 0) -> list[torch.Tensor]:
    reading, found = Reading(model, window, piece, below), []
    for first in range(0, len(tokens), piece):
        part = tokens[first : first + piece]
        found.append(reading.upper(part, None, reading.lower(part, None)))
        reading.move(part)
    return found


@pytest.mark.parametrize("below", [0, 2])
@pytest.mark.parametrize("bridged", [False, True])
def test_pieces_of_a_text_that_fits_are_one_pass_over_it(bridged: bool, below: int) -> None:
    module = hugging_face("llama", 0, **LLAMA)
    model = TransformersLM(module, None, name="tiny") if bridged else own(module)
    with torch.no_grad():
        whole = model.hidden(Packed.of([TEXT[:61]]))
    torch.testing.assert_close(torch.cat(read(model, TEXT[:61], 80, 9, below)), whole, atol=1e-4, rtol=1e-4)


def test_adapters_are_read_with() -> None:
    model = llama()
    injection = inject([(lora(model), 1.0)], model.dtype)
    reading = Reading(model, 64, 8, below=2)
    with torch.no_grad():
        whole = model.hidden(Packed.of([TEXT[:16]]), injection)
        first = reading.upper(TEXT[:8], injection, reading.lower(TEXT[:8], injection))
        reading.move(TEXT[:8])
        second = reading.upper(TEXT[8:16], injection, reading.lower(TEXT[8:16], injection))
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rope", [None, {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                         "high_freq_factor": 4.0, "original_max_position_embeddings": 16}])  # fmt: skip
def test_the_window_slides_over_a_text_longer_than_the_context(rope: dict[str, object] | None) -> None:
    """In a model of one layer a key depends on its token alone, so that every piece must read as if the text were what its window holds."""
    model = llama(num_hidden_layers=1, **({"rope_parameters": rope} if rope else {}))
    window, piece = 40, 7
    pieces = read(model, TEXT, window, piece)
    assert len(TEXT) > 6 * model.context
    held: list[int] = []
    for number, found in enumerate(pieces):
        part = TEXT[number * piece : (number + 1) * piece]
        with torch.no_grad():
            expected = model.hidden(Packed.of([[*held, *part]]))[-len(part) :]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        held = [*held, *part]
        held = held if len(held) <= window else [*held[:SINKS], *held[SINKS + len(held) - window :]]


def test_its_memory_does_not_grow() -> None:
    model = llama()
    cache = SlidingCache(model, 32)
    sizes = set()
    with torch.no_grad():
        for first in range(0, 600, 8):
            model.hidden(Packed.of([TEXT[first : first + 8]], offset=cache.held), cache=cache)
            cache.slide(8)
            sizes.add((cache.keys.numel(), cache.values.numel(), len(cache._aside)))
    assert len(sizes) == 1 and cache.held == 32


def test_every_token_but_the_first_is_a_target_once() -> None:
    pieces = overlapping(TEXT, 32)
    assert [token for piece in pieces for token in piece[1:]] == TEXT[1:] and all(len(piece) <= 33 for piece in pieces)
    assert [len(piece) for piece in overlapping(TEXT[:65], 32)] == [33, 33] and [len(piece) for piece in overlapping(TEXT[:66], 32)][
        -1
    ] == 2


def test_the_loss_of_a_text_is_the_mean_over_its_tokens() -> None:
    model = llama()
    with torch.no_grad():
        hidden = model.hidden(Packed.of([TEXT[:70]]))
        expected = float(model.token_loss(hidden[:-1], torch.tensor(TEXT[1:70])))
    assert streaming_loss(model, TEXT[:70], window=80, piece=16) == pytest.approx(expected, rel=1e-5)
    assert streaming_loss(model, TEXT) > 0.0


def test_gradients_go_through_the_context() -> None:
    """What a piece reads of the window has no gradient of its own, and the window moves on without disturbing a gradient to come."""
    model = llama()
    reading = Reading(model, 64, 8, below=2)
    with torch.no_grad():
        reading.upper(TEXT[:8], None, reading.lower(TEXT[:8], None))
    reading.move(TEXT[:8])
    states = reading.lower(TEXT[8:16], None)
    assert states is not None and not states.requires_grad
    leaf = states.clone().requires_grad_()
    final = reading.upper(TEXT[8:16], None, leaf)
    reading.move(TEXT[8:16])
    final.square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for pieces of 60"):
        Reading(llama(), 512, 60)
