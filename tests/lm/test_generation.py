"""Sampling draws from what top_p leaves, in the right proportions, on peaked and on flat distributions."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import SEQUENCES, llama

from retain.lm.generation import Sampling, _most_probable, pick, stream


def nucleus(probabilities: torch.Tensor, mass: float) -> torch.Tensor:
    """By sorting everything: the smallest set of tokens that holds the mass."""
    ordered, places = probabilities.sort(descending=True)
    return places[(ordered.cumsum(0) - ordered) < mass]


@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_the_most_probable_hold_the_mass(spread: float) -> None:
    """A flat distribution over 3,000 tokens needs nearly all of them, a peaked one a few."""
    probabilities = torch.softmax(spread * torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)), -1)
    top, places = _most_probable(probabilities, 0.9)
    assert bool((top.sum(-1) >= 0.9).all())
    assert top.shape[1] == {0.0: 3000, 0.5: 3000, 6.0: 64}[spread]
    assert torch.equal(top, probabilities.gather(1, places))


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_draws_follow_the_probabilities_inside_the_nucleus(spread: float) -> None:
    logits = spread * torch.randn(200, generator=torch.Generator().manual_seed(1))
    sampling, generator = Sampling(temperature=0.8, top_p=0.8), torch.Generator().manual_seed(2)
    probabilities = torch.softmax(logits / 0.8, -1)
    allowed = nucleus(probabilities, 0.8)
    drawn = pick(logits.expand(20_000, -1), sampling, generator)
    assert set(drawn.tolist()) <= set(allowed.tolist())
    expected = probabilities[allowed] / probabilities[allowed].sum()
    frequency = torch.bincount(drawn, minlength=200)[allowed] / 20_000
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)


def test_the_same_seed_draws_the_same() -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.95, seed=3)
    model = _with_tokenizer()
    first, again = list(stream(model, SEQUENCES, sampling)), list(stream(model, SEQUENCES, sampling))
    assert first == again
    other = list(stream(model, SEQUENCES, Sampling(max_tokens=12, temperature=1.0, top_p=0.95, seed=4)))
    assert first != other


def _with_tokenizer() -> object:
    """A tiny model whose token 59 ends a text."""

    class Marks:
        eos_token_id, unk_token_id = 59, None

        def convert_tokens_to_ids(self, mark: str) -> None:
            return None

    model = llama()
    model.tokenizer = Marks()
    return model
