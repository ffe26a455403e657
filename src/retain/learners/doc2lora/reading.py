"""What a hypernetwork reads: the frozen model's hidden states of a text, at the input of every layer that gets an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from retain.data.chat import tokenise
from retain.data.chunking import chunks
from retain.data.examples import prompt_tokens
from retain.learners.base import LearnerError
from retain.learners.doc2lora.hypernetwork import Hypernetwork, NetworkConfig, Written
from retain.lm.bridge import TransformersLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed


def chunk_tokens(model: LanguageModel, config: NetworkConfig, text: str, parts: int = 1) -> list[tuple[int, ...]]:
    """The text as chunks of at most ``config.chunk_tokens`` tokens, cut between sentences, each as a user's turn in the model's chat form
    (or between the tokens ``config.around``); about ``parts`` of them or more. Raises LearnerError where the form leaves no room."""

    def size(part: str) -> int:
        return len(tokenise(model.tokenizer, part, literal=True))

    def framed(part: str) -> tuple[int, ...]:
        if config.around is None:
            return prompt_tokens(model.tokenizer, part)
        return (*config.around[0], *tokenise(model.tokenizer, part, literal=True), *config.around[1])

    most, frame = min(config.chunk_tokens, model.context), len(framed("a")) - size("a")
    room = most - frame - 2  # a word may be one token more beside the template's marks
    if room < 1:
        raise LearnerError(f"chunks of {most} tokens have no room for a text beside the {frame} tokens of the chat form")
    room = min(room, max(1, math.ceil(size(text) / parts))) if parts > 1 else room
    return [framed(chunk.text) for chunk in chunks(text, size, room)]


@torch.no_grad()
def layer_states(model: LanguageModel, sequences: Sequence[Sequence[int]], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states [S, L, T, width] that enter each of ``layers`` for S sequences, padded on the right, and where they are real [S, T]."""
    packed = Packed.of(sequences, model.device)
    valid = torch.arange(max(packed.lengths), device=model.device)[None] < torch.tensor(packed.lengths, device=model.device)[:, None]
    if isinstance(model, TransformersLM):
        tokens = torch.zeros(valid.shape, dtype=torch.int64, device=model.device).masked_scatter(valid, packed.tokens)
        rows = torch.arange(len(sequences), device=model.device)[:, None].expand(valid.shape)
        found = model.run(tokens, valid, rows, None, use_cache=False, output_hidden_states=True).hidden_states
        return torch.stack([found[layer] for layer in layers], 1) * valid[:, None, :, None], valid
    entering: dict[int, Tensor] = {}
    below, x = 0, None
    for layer in sorted(layers):
        x = model.hidden(packed, start=below, stop=layer, inputs=x if below else None)
        entering[layer], below = x, layer
    states = torch.zeros((len(sequences), len(layers), *valid.shape[1:], model.width), dtype=model.dtype, device=model.device)
    for place, layer in enumerate(layers):
        states[:, place][valid] = entering[layer]
    return states, valid


def read(network: Hypernetwork, model: LanguageModel, text: str, batch: int = 8) -> Written:
    """What the network writes for every chunk of a text: one forward pass of the model for each, ``batch`` of them at a time."""
    tokens, found = chunk_tokens(model, network.config, text), []
    for first in range(0, len(tokens), batch):
        states, valid = layer_states(model, tokens[first : first + batch], network.places.layers)
        found.append(network(states, valid))
    modules = range(len(network.places.sizes))
    return Written(*(tuple(torch.cat([part[module] for part in parts]) for module in modules)
                     for parts in ([written.a for written in found], [written.b for written in found])))  # fmt: skip
