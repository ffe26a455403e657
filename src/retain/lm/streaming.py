"""Reading a text of any length in pieces, each with the causal context of the pieces before it, in bounded memory.

The own decoder keeps keys and values in a sliding window: those of the last tokens, and those of the first few, without which attention
loses its footing once the beginning has left the window (attention sinks, StreamingLLM, 2309.17453, section 3.2). A key is rotated by its
place in the window and not by its place in the text, so that no position is ever beyond what the model was trained on. As long as the whole
text fits the window, this is what one pass over it gives. Models that run through transformers read the window again with every piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retain.lm.attention import KeyValueCache
from retain.lm.decoder import DecoderLM
from retain.lm.elementwise import rotate
from retain.lm.model import Injection, LanguageModel
from retain.lm.packing import Packed, targets

SINKS = 4


class SlidingCache(KeyValueCache):
    """Keys and values of the first tokens and of the last ones, ``window`` in all, of one text. What a pass stores is held aside until
    :meth:`slide` takes it in."""

    def __init__(self, model: DecoderLM, window: int, sinks: int = SINKS) -> None:
        room = KeyValueCache.empty(model, 1, window)
        super().__init__(room.keys, room.values)
        self.model, self.sinks, self.held = model, sinks, 0
        self._rotated = torch.zeros(window, dtype=torch.int64, device=model.device)  # position that each key was rotated by
        self._aside: dict[int, tuple[Tensor, Tensor]] = {}
        self._slid = False

    def store(self, layer: int, packed: Packed, k: Tensor, v: Tensor) -> None:
        """Hold the keys and values [T, KV, D] of one piece aside."""
        self._aside[layer] = (k.detach().transpose(0, 1), v.detach().transpose(0, 1))

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [KV, P, D] of the window, the keys rotated to the positions 0 to P - 1."""
        if not self.held:
            return None
        keys, values = self.keys[layer, 0, :, : self.held], self.values[layer, 0, :, : self.held]
        if self._slid:
            back = self._rotated[: self.held] - torch.arange(self.held, device=keys.device)
            cos, sin = (table[back][:, None, :] for table in self.model.rotary)
            keys = rotate(keys.transpose(0, 1), cos, -sin).transpose(0, 1)
        return keys, values

    def slide(self, count: int) -> None:
        """Take in the piece of ``count`` tokens that was read last; the oldest but the first few make room."""
        window = self.keys.shape[3]
        over = max(0, self.held + count - window)
        kept = slice(self.sinks + over, self.held)
        start = self.held - over
        places = torch.arange(self.held, self.held + count, device=self._rotated.device)
        if over:
            self._rotated[self.sinks : start] = self._rotated[kept].clone()
        self._rotated[start : start + count] = places
        for layer, (k, v) in self._aside.items():
            for table, new in ((self.keys, k), (self.values, v)):
                if over:
                    table[layer, 0, :, self.sinks : start] = table[layer, 0, :, kept].clone()
                table[layer, 0, :, start : start + count] = new
        self.held, self._slid = start + count, self._slid or over > 0
        self._aside.clear()


class Reading:
    """A text that is read in pieces of at most ``piece`` tokens; the ``window`` is made smaller where the model's context asks for it.
    ``below``: the number of layers whose states can be kept and handed in again (own decoder only)."""

    def __init__(self, model: LanguageModel, window: int, piece: int, below: int = 0) -> None:
        self.model, self.window = model, min(window, model.context - piece)
        if self.window < piece + SINKS:
            raise ValueError(f"a window of {self.window} tokens has no room for pieces of {piece}")
        self.below = below if isinstance(model, DecoderLM) else 0
        self._cache = SlidingCache(model, self.window) if isinstance(model, DecoderLM) else None
        self._tokens: list[int] = []

    def lower(self, tokens: Sequence[int], injection: Injection | None) -> Tensor | None:
        """States [T, width] of the next piece after the layers ``below``, without gradient; None where there are none."""
        if self._cache is None or not self.below:
            return None
        with torch.no_grad():
            return self._run(tokens, injection, 0, self.below, None)

    def upper(self, tokens: Sequence[int], injection: Injection | None, states: Tensor | None = None) -> Tensor:
        """Final hidden states [T, width] of the same piece; ``states``: what :meth:`lower` gave, now or when the text was read before."""
        if self._cache is not None:
            return self._run(tokens, injection, self.below if states is not None else 0, None, states)
        return self.model.hidden(Packed.of([[*self._tokens, *tokens]], self.model.device), injection)[-len(tokens) :]

    def loss(self, piece: Sequence[int], injection: Injection | None, states: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of the tokens of ``piece`` after the first. All but the last are read and are context from now on: the
        next piece begins with this one's last token."""
        hidden = self.upper(piece[:-1], injection, states)
        self.move(piece[:-1])
        positions, labels = targets(Packed.of([piece], self.model.device), [[False, *[True] * (len(piece) - 1)]])
        return self.model.token_loss(hidden[positions], labels)

    def move(self, tokens: Sequence[int]) -> None:
        """Go on: ``tokens``, those just read, are context from now on."""
        if self._cache is not None:
            self._cache.slide(len(tokens))
        else:
            read = [*self._tokens, *tokens]
            self._tokens = read if len(read) <= self.window else read[-self.window :]

    def _run(self, tokens: Sequence[int], injection: Injection | None, start: int, stop: int | None, states: Tensor | None) -> Tensor:
        assert isinstance(self.model, DecoderLM) and self._cache is not None
        packed = Packed.of([tokens], self.model.device, self._cache.held)
        return self.model.hidden(packed, injection, start, stop, states, self._cache)


def overlapping(tokens: Sequence[int], piece: int) -> list[Sequence[int]]:
    """A text in pieces of ``piece`` tokens and the one after them, which the next piece begins with: each token but the first is a target
    once."""
    return [tokens[first : first + piece + 1] for first in range(0, len(tokens) - 1, piece)]


@torch.no_grad()
def streaming_loss(
    model: LanguageModel, tokens: Sequence[int], injection: Injection | None = None, window: int = 512, piece: int = 32
) -> float:  # fmt: skip
    """Mean cross-entropy in nats of the tokens of a text of any length after its first, read in pieces of ``piece`` tokens."""
    reading = Reading(model, window, piece)
    total = sum(float(reading.loss(part, injection)) * (len(part) - 1) for part in overlapping(tokens, piece))
    return total / (len(tokens) - 1)
