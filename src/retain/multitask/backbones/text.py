"""Any encoder or causal language model of transformers, by directory or hub name: token states and their padding mask."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Count, Names
from retain.data.errors import DataError
from retain.lm.embedded import cache_root
from retain.lm.loading import load_tokenizer, locate, quiet, read_config, remembered_digest, weight_files
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs, States, last_state, masked_mean
from retain.multitask.config import BackboneConfig
from retain.multitask.records import Row

ModelKind = Literal["encoder", "causal", "seq2seq"]


class TextConfig(BackboneConfig):
    """A pretrained encoder or causal language model."""

    model: str = Field(description="Directory, GGUF file, embedded model's name or hub name")
    input: Names = Field(default_factory=lambda: ["text"], description="Columns with the text; two are a pair")
    max_length: Count = Field(256, description="Longest input in tokens; what is longer is cut off, and told")
    pooling: Literal["auto", "mean", "first", "last"] = Field(
        "auto", description="State that stands for a text; auto is mean for encoders and last for causal models"
    )


def model_kind(config: Mapping[str, Any]) -> ModelKind:
    """What a model is, from its ``config.json``: by its architecture, and where that says nothing by the model's type."""
    from transformers.models.auto import modeling_auto

    if config.get("is_encoder_decoder"):
        return "seq2seq"
    names = " ".join(config.get("architectures") or [])
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "causal"
    kind = config.get("model_type")
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "causal" if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked else "encoder"


@BACKBONES.register("text")
class Text(Backbone):
    """The last hidden states of a transformer. Padding is on the right, and never attended to."""

    Config: ClassVar[type[BackboneConfig]] = TextConfig
    gives = frozenset({"tokens", "offsets"})
    learning_rate = 5e-5
    adapted_rate = 5e-4

    def __init__(self, config: TextConfig, network: Any, tokenizer: Any, source: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.network, self.tokenizer, self.source = config, network, tokenizer, dict(source)
        self.model_config: Any = network.config
        self.model_kind: ModelKind = source["kind"]
        self.width = int(self.model_config.hidden_size)
        self.padding = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
        longest = min(tokenizer.model_max_length, getattr(self.model_config, "max_position_embeddings", None) or tokenizer.model_max_length)
        if config.max_length > longest:
            raise ConfigError(f"backbone.max_length: {config.model} reads at most {longest} tokens, not {config.max_length}")
        if len(config.input) not in (1, 2):
            raise ConfigError(f"backbone.input: one column of text, or two for pairs, not {len(config.input)}")

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Text:
        assert isinstance(config, TextConfig)
        beside = folder / config.model
        directory = locate(str(beside) if beside.exists() else config.model, cache_root()).directory
        return cls._load(config, directory, load_tokenizer(directory))

    @classmethod
    def _load(cls, config: TextConfig, directory: Path, tokenizer: Any) -> Text:
        """With the pretrained weights. Raises ConfigError where weights are missing: a network half at random would seem to work."""
        from transformers import AutoModel

        found = model_kind(read_config(directory))
        if found == "seq2seq":
            raise ConfigError(f"backbone.kind: {config.model} is an encoder-decoder, and text takes encoders and causal models")
        with quiet():
            try:
                network, report = AutoModel.from_pretrained(
                    str(directory), dtype=torch.float32, local_files_only=True, output_loading_info=True
                )
            except Exception as error:  # transformers raises whatever it stumbles over
                raise ConfigError(f"backbone.model: {config.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        missing = sorted(name for name in report.get("missing_keys") or () if not name.startswith("pooler."))
        if missing:
            raise ConfigError(f"backbone.model: {config.model} lacks {len(missing)} tensors, the first is {missing[0]}")
        source = {"kind": found, "directory": str(directory.resolve()), "fingerprint": fingerprint(directory)}
        return cls(config, _without_pooler(network), tokenizer, source)

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Text:
        from transformers import AutoConfig, AutoModel

        assert isinstance(config, TextConfig)
        tokenizer = load_tokenizer(directory / "tokenizer")
        if saved["whole"]:  # every weight was trained, and is loaded afterwards
            with quiet():
                network = AutoModel.from_config(AutoConfig.from_pretrained(str(directory / "backbone"), local_files_only=True))
            return cls(config, _without_pooler(network.float()), tokenizer, saved["source"])
        there = Path(saved["source"]["directory"])
        made = cls._load(config, there if there.is_dir() else locate(config.model, cache_root()).directory, tokenizer)
        if made.source["fingerprint"] != saved["source"]["fingerprint"]:
            raise ConfigError(f"{directory}: the model {config.model} is not the one that this was trained on: its weights differ")
        return made

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        with quiet():
            self.tokenizer.save_pretrained(str(directory / "tokenizer"))
            if whole:
                self.model_config.save_pretrained(str(directory / "backbone"))
        return {"source": self.source, "whole": whole}

    def columns(self, chosen: Sequence[str] | None) -> list[str]:
        columns = list(chosen or self.config.input)
        if len(columns) not in (1, 2):
            raise ConfigError(f"input: one column of text, or two for pairs, not {len(columns)}")
        return columns

    def read(self, row: Row, chosen: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(row.text(column) for column in self.columns(chosen))

    def encode(self, raws: Sequence[Any]) -> list[Encoded]:
        if not raws:
            return []
        if len({len(raw) for raw in raws}) > 1:
            raise DataError("some inputs are pairs of texts and others are not")
        fast = bool(self.tokenizer.is_fast)
        texts = [[raw[place] for raw in raws] for place in range(len(raws[0]))]
        found = self.tokenizer(*texts, truncation=True, max_length=self.config.max_length, return_offsets_mapping=fast)
        names = [name for name in ("input_ids", "token_type_ids") if name in found]
        made = []
        for number in range(len(raws)):
            inputs = {name: torch.tensor(found[name][number] or [self.padding], dtype=torch.int64) for name in names}
            offsets = tuple(_trimmed(raws[number][0], *span) for span in found["offset_mapping"][number]) if fast else ()
            cut = fast and bool(found.encodings[number].overflowing)
            made.append(Encoded(inputs, len(inputs["input_ids"]), offsets, cut))
        return made

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        fill = {"input_ids": float(self.padding)}
        batch = {
            name: pad_sequence([item.inputs[name] for item in encoded], batch_first=True, padding_value=fill.get(name, 0.0))
            for name in encoded[0].inputs
        }
        lengths = torch.tensor([item.length for item in encoded])
        batch["attention_mask"] = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        return batch

    def forward(self, inputs: Inputs) -> States:
        return States(self.network(**inputs).last_hidden_state, inputs["attention_mask"].bool())

    def pool(self, states: States) -> Tensor:
        way = self.config.pooling
        if way == "auto":
            way = "last" if self.model_kind == "causal" else "mean"
        if way == "first":
            return states.tokens[:, 0]
        return last_state(states) if way == "last" else masked_mean(states)

    def show(self, raw: Any) -> str:
        return " | ".join(raw)


def _trimmed(text: str, first: int, last: int) -> tuple[int, int]:
    """The characters of a token without spaces around them, which some tokenizers count in."""
    while first < last and text[first : first + 1].isspace():
        first += 1
    while first < last and text[last - 1 : last].isspace():
        last -= 1
    return first, last


def fingerprint(directory: Path) -> str:
    """Digest of a model's weights."""
    files = weight_files(directory)
    return remembered_digest(files or sorted(directory.glob("pytorch_model*.bin")), cache_root(), tensors=bool(files))


def _without_pooler(network: Any) -> Any:
    """Without the layer over the first state, which nothing here uses, and without a cache of keys and values."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    network.config.use_cache = False
    return network
