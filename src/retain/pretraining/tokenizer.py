"""Tokenizers: a byte-level BPE trained on the corpus, with the special tokens of ChatML, or one that exists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retain.lm.loading import load_tokenizer
from retain.pretraining.errors import PretrainingError

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PIECE = 100_000  # characters that are counted at a time


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE (Sennrich et al., 1508.07909; on bytes as in GPT-2) of at most ``vocabulary`` tokens, as transformers has it.

    Every text can be written in it, every digit is a token of its own, and nothing is normalised, so decoding gives the text back. Token 0
    ends a document (and is the padding), 1 and 2 open and close a turn of ChatML. The same texts give the same tokenizer. Raises
    PretrainingError when there is no room for the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END, TURN, TURN_END]
    if vocabulary < 256 + len(special):
        raise PretrainingError(
            f"tokenizer.vocabulary: {vocabulary} tokens have no room for the 256 bytes and {len(special)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    pieces = (text[first : first + _PIECE] for text in texts for first in range(0, len(text), _PIECE))
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, additional_special_tokens=[TURN, TURN_END], chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def existing_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, which must have a token that ends a text. Raises LanguageModelError or PretrainingError."""
    if not folder.is_dir():
        raise PretrainingError(f"tokenizer.path: there is no folder {folder}")
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise PretrainingError(f"tokenizer.path: the tokenizer in {folder} has no end token, which has to stand between documents")
    return tokenizer
