"""Tokenizers small enough to be trained in the test session, one for each family of chat templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|header|>",
    "<|/header|>",
    "<|eot|>",
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Question: what is it? Answer: a cat. user assistant system model",
    "one two three four",
] * 20

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named Tiny<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{%
set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{
'<|header|>system<|/header|>\n\nToday Date: 26 Jul 2024\n\n' + system + '<|eot|>' }}{% for m in messages %}{{
'<|header|>' + m['role'] + '<|/header|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{
'<|header|>assistant<|/header|>\n\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{%
for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{
raise_exception('Conversation roles must alternate') }}{% endif %}{{ '<start_of_turn>' +
('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{%
if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

THINKING = """{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{
'<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}{% else %}{{
'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{
'<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{%
endif %}{% endif %}"""

FAMILIES: dict[str, dict[str, Any]] = {
    "chatml": {"chat_template": CHATML, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "llama3": {"chat_template": LLAMA3, "bos_token": "<bos>", "eos_token": "<|eot|>"},
    "gemma": {"chat_template": GEMMA, "bos_token": "<bos>", "eos_token": "<eos>"},
    "thinking": {"chat_template": THINKING, "eos_token": "<|im_end|>"},
    "plain": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """A tokenizer for each family: "chatml", "llama3", "gemma", "thinking", "plain"; llama3 puts bos before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = {}
    for name, settings in FAMILIES.items():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        core.train_from_iterator(CORPUS, trainer)
        if name == "llama3":
            core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))])
        found[name] = PreTrainedTokenizerFast(tokenizer_object=core, **settings)
    return found


@pytest.fixture
def supervised_text() -> Callable[[Any, Any], str]:
    """What an example teaches, as text."""

    def read(tokenizer: Any, example: Any) -> str:
        return str(tokenizer.decode([token for token, mark in zip(example.tokens, example.supervised, strict=True) if mark]))

    return read
