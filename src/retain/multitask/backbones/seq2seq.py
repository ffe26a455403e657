"""Encoder-decoders of transformers (T5, BART, Marian): the encoder's states for every task, and a decoder that writes text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from retain.config import ConfigError
from retain.multitask.backbones.base import BACKBONES, Inputs, States
from retain.multitask.backbones.text import Language, ModelKind, TextConfig
from retain.multitask.backbones.writing import KNOWN, TARGET, greedy
from retain.multitask.config import BackboneConfig


class Seq2SeqConfig(TextConfig):
    """A pretrained encoder-decoder."""


@BACKBONES.register("seq2seq")
class Seq2Seq(Language):
    """The encoder's last hidden states; for tasks that write, the decoder too, which reads them. Without such a task there is none."""

    Config: ClassVar[type[BackboneConfig]] = Seq2SeqConfig
    reads = ("input_ids",)
    continues = False
    learning_rate = 3e-4
    adapted_rate = 1e-3

    @classmethod
    def check_kind(cls, name: str, kind: ModelKind, model_type: str) -> None:
        from transformers.models.auto import modeling_auto

        if kind != "seq2seq":
            what = "an encoder without a decoder" if kind == "encoder" else "a causal language model"
            raise ConfigError(f"backbone.kind: {name} is {what}, and seq2seq takes encoder-decoders: write kind: text")
        if model_type not in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(f"backbone.model: {name} ({model_type}) does not read text and write text")

    def __init__(self, config: TextConfig, network: Any, tokenizer: Any, source: Any) -> None:
        super().__init__(config, network, tokenizer, source)
        if self.model_config.decoder_start_token_id is None:
            raise ConfigError(f"backbone.model: {config.model} does not say what its decoder starts with (decoder_start_token_id)")

    def reader(self) -> Any:
        return self.core.get_encoder()

    def forward(self, inputs: Inputs) -> States:
        encoder = self.core.get_encoder() if self.writes else self.network
        read = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        return States(encoder(**read).last_hidden_state, inputs["attention_mask"].bool())

    def spell(self, texts: list[str], most: int) -> list[Tensor]:
        """Tokens of texts as the decoder writes them; see :class:`retain.multitask.backbones.writing.Writer`."""
        found = self.tokenizer(text_target=texts)["input_ids"] if texts else []
        return [self._ended(ids, most) for ids in found]

    def capacity(self) -> int | None:
        """Positions of the decoder, where they are limited."""
        return getattr(self.model_config, "max_position_embeddings", None)

    def continued(self, inputs: Inputs) -> Tensor:
        """Logits of each target token, [B, T, vocabulary]: the decoder reads the target one place later, after its start token."""
        target = inputs[TARGET].masked_fill(~inputs[KNOWN], self.padding)
        start = torch.full_like(target[:, :1], int(self.model_config.decoder_start_token_id))
        made = self.network(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], decoder_input_ids=torch.cat([start, target[:, :-1]], 1),
            use_cache=False,
        )  # fmt: skip
        return made.logits

    def write(self, inputs: Inputs, most: int) -> Tensor:
        """The text for each input; see :class:`retain.multitask.backbones.writing.Writer`. The input is read once."""
        mask = inputs["attention_mask"]
        core = self.core
        states = core.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask)
        tokens = torch.full_like(mask[:, 0], int(self.model_config.decoder_start_token_id))
        cache: Any = None

        def step(tokens: Tensor, place: int) -> Tensor:
            nonlocal cache
            made = core(
                encoder_outputs=states, attention_mask=mask, decoder_input_ids=tokens[:, None], past_key_values=cache, use_cache=True
            )
            cache = made.past_key_values
            return made.logits[:, -1]

        return greedy(step(tokens, -1), step, int(self.tokenizer.eos_token_id), most)
