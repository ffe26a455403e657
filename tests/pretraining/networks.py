"""Tiny models of every kind, saved as Hugging Face directories with a tokenizer of the small world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.pretraining.material import TOWNS, sentence

from retain.pretraining.tokenizer import train_tokenizer


def world_tokenizer(vocabulary: int = 320) -> Any:
    """A tokenizer with a mask token, for all kinds."""
    tokenizer = train_tokenizer([sentence(town) for town in TOWNS], vocabulary)
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return tokenizer


def tiny_network(folder: Path, kind: str, *, seed: int = 0, width: int = 32, vocabulary: int = 320) -> Path:
    """A random model: gpt2 (causal), t5 (seq2seq) or bert (encoder), dropout 0.1, with weights large enough to say something."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    tokenizer = world_tokenizer(vocabulary)
    size, end = len(tokenizer), tokenizer.eos_token_id
    common = {"vocab_size": size, "pad_token_id": end, "eos_token_id": end, "bos_token_id": end}
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "gpt2": (AutoModelForCausalLM, {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 128}),
        "t5": (
            AutoModelForSeq2SeqLM,
            {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": end},
        ),
        "bert": (
            AutoModelForMaskedLM,
            {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width,
             "max_position_embeddings": 64},
        ),
    }  # fmt: skip
    maker, own = options[kind]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = maker.from_config(AutoConfig.for_model(kind, **common, **own))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.0 if kind == "t5" else 0.3)  # t5 divides its logits by the root of the width
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
