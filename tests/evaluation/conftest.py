"""A tiny random decoder with a tokenizer of its own."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retain.adapters import Adapter, AdapterInjection, AdapterSpec, inject, new_lora, select_sites
from retain.evaluation import load_control
from retain.lm.decoder import DecoderLM
from retain.lm.shapes import DecoderConfig, initial_weights

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def model() -> DecoderLM:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bare.train_from_iterator(load_control().texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", additional_special_tokens=special[1:2])
    tokenizer.chat_template = CHATML
    config = DecoderConfig(
        vocabulary=500, width=32, layers=2, heads=4, kv_heads=2, head_width=8, feed_forward=48, context=160, tied=False
    )  # fmt: skip
    weights = {name: value if "norm" in name else value * 10 for name, value in initial_weights(config, seed=3).items()}
    return DecoderLM(config, weights, tokenizer, name="tiny")


@pytest.fixture(scope="session")
def adapter(model: DecoderLM) -> Adapter:
    sites = select_sites(model)
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in new_lora(model, sites, rank=2, alpha=4, seed=1).items()
    }  # fmt: skip
    return Adapter(tensors, AdapterSpec("lora", model.fingerprint, sites, 2, 4.0))


@pytest.fixture
def injection(model: DecoderLM, adapter: Adapter) -> AdapterInjection:
    compiled = inject([(adapter, 1.0)], model.dtype)
    assert compiled is not None
    return compiled
