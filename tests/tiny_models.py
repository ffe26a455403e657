"""Tiny language models made from a configuration, with weights large enough that every mistake shows in the logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.shapes import DecoderConfig

LLAMA: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NEOX: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SEQUENCES = [[5, 9, 31, 7, 12, 44, 3, 18, 27], [8, 51, 6, 33], [60, 2, 17, 40, 21, 9, 9, 13, 55, 30, 4, 19], [11], [22, 35, 48, 7, 50, 10]]


def hugging_face(kind: str, seed: int = 0, **options: Any) -> Any:
    """A transformers model of a kind, on its own configuration."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()
    for name, parameter in module.named_parameters():
        if "norm" not in name and "ln_" not in name:
            nn.init.normal_(parameter, 0, 0.2)
    return module


def own(module: Any) -> DecoderLM:
    """The own decoder with a transformers model's weights."""
    weights = {name: value for name, value in module.state_dict().items() if "rotary" not in name}
    return DecoderLM(DecoderConfig.from_hugging_face(module.config.to_dict()), weights, None, name="tiny")


def llama(seed: int = 0, **options: Any) -> DecoderLM:
    """A tiny Llama in the own decoder."""
    return own(hugging_face("llama", seed, **LLAMA | options))


def gpt2(seed: int = 0) -> TransformersLM:
    """A tiny GPT-2 through transformers."""
    return TransformersLM(hugging_face("gpt2", seed, **GPT2), None, name="tiny-gpt2")


def lora(model: LanguageModel, seed: int = 0, rank: int = 3, sites: Sequence[str] | None = None, size: float = 0.1, **spec: Any) -> Adapter:
    """A random adapter that changes something everywhere."""
    sites = tuple(sites or select_sites(model))
    generator = torch.Generator().manual_seed(seed + 1000)
    tensors = new_lora(model, sites, rank, 2.0 * rank, seed)
    filled = {name: torch.randn(t.shape, generator=generator) * size if name.endswith("B.weight") else t for name, t in tensors.items()}
    return Adapter(filled, AdapterSpec("lora", model.fingerprint, sites, rank, 2.0 * rank, **spec))


def bytes_of(model: LanguageModel) -> dict[str, Tensor]:
    """A copy of every base parameter, to compare bit by bit later."""
    return {name: parameter.clone() for name, parameter in model.parameters().items()}


def same_bytes(model: LanguageModel, before: dict[str, Tensor]) -> bool:
    """True when no base parameter changed in any bit."""
    now = model.parameters()
    return set(now) == set(before) and all(torch.equal(now[name].view(torch.int32), before[name].view(torch.int32)) for name in before)


def save_words(directory: Path, words: Sequence[str], ends: bool, longest: int = 64) -> int:
    """A tokenizer of whole words; ``ends`` puts the end token after every text. Returns the number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*names.values(), *dict.fromkeys(words)])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1), ("<pad>", 0)]
        )
    read = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, model_input_names=read, **names).save_pretrained(
        str(directory)
    )
    return made.get_vocab_size()


def save_writer(directory: Path, kind: str, words: Sequence[str], seed: int = 0, **options: Any) -> Path:
    """A random small language model of a kind (t5, bart, marian, gpt2, llama, bloom) with a tokenizer of these words, as a directory."""
    reads_first = kind in ("t5", "bart", "marian")
    ids = {"vocab_size": save_words(directory, words, reads_first), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    positions = {"max_position_embeddings": 64}
    wide = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 0, "forced_eos_token_id": None, **positions,
    }  # fmt: skip
    shapes: dict[str, dict[str, Any]] = {
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "dropout_rate": 0.0},
        "bart": wide,
        "marian": wide,
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "llama": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
            **positions,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    }  # fmt: skip
    torch.manual_seed(seed)
    loads = AutoModelForSeq2SeqLM if reads_first else AutoModelForCausalLM
    model = loads.from_config(AutoConfig.for_model(kind, **{**ids, **shapes[kind], **options}))
    for name, parameter in model.named_parameters():
        if kind != "t5" and parameter.ndim > 1 and "position" not in name and "wpe" not in name:
            nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(str(directory))
    return directory
