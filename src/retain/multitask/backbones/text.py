"""Any encoder or causal language model of transformers, by directory or hub name: token states and their padding mask, and, of a causal
model, the text that it writes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Count, Names
from retain.data.errors import DataError
from retain.lm.embedded import cache_root
from retain.lm.loading import load_tokenizer, locate, quiet, read_config, remembered_digest, weight_files
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs, States, last_state, masked_mean
from retain.multitask.backbones.writing import KNOWN, TARGET, greedy
from retain.multitask.config import BackboneConfig
from retain.multitask.quantising import hold_still, loading_options
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
    """What a model is, from its ``config.json``: by its architecture, and where that says nothing by the model's type. The encoder of an
    encoder-decoder alone (T5EncoderModel) is an encoder, whatever its configuration says of itself."""
    from transformers.models.auto import modeling_auto

    names = " ".join(config.get("architectures") or [])
    if config.get("is_encoder_decoder"):
        return "encoder" if names.endswith("EncoderModel") else "seq2seq"
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "causal"
    kind = config.get("model_type")
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "causal" if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked else "encoder"


class Language(Backbone):
    """A transformer with its tokenizer: what :class:`Text` and the encoder-decoders share. Padding is on the right, and never attended to.

    It is loaded as a language model, where it is one. :meth:`prepare` takes off what no task needs: the part that writes.
    """

    Config: ClassVar[type[BackboneConfig]] = TextConfig
    gives = frozenset({"tokens", "offsets", "generation"})
    learning_rate = 5e-5
    adapted_rate = 5e-4
    four_bits = True
    reads: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")  # of what a tokenizer gives
    continues: ClassVar[bool] = True  # what is written follows the input in one text

    def __init__(self, config: TextConfig, network: Any, tokenizer: Any, source: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.network, self.tokenizer, self.source = config, network, tokenizer, dict(source)
        self.model_config: Any = network.config
        self.model_config.use_cache = False
        self.model_kind: ModelKind = source["kind"]
        self.writes = False  # whether the part that writes is there: see prepare
        self.width = int(self.model_config.hidden_size)
        self.vocabulary = int(self.model_config.vocab_size)
        self.padding = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
        self.longest = min(
            tokenizer.model_max_length, getattr(self.model_config, "max_position_embeddings", None) or tokenizer.model_max_length
        )
        if config.max_length > self.longest:
            raise ConfigError(f"backbone.max_length: {config.model} reads at most {self.longest} tokens, not {config.max_length}")
        if len(config.input) not in (1, 2):
            raise ConfigError(f"backbone.input: one column of text, or two for pairs, not {len(config.input)}")

    # loading

    @classmethod
    def check_kind(cls, name: str, kind: ModelKind, model_type: str) -> None:
        """Raise ConfigError for a model that is not of this kind of backbone."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Language:
        assert isinstance(config, TextConfig)
        beside = folder / config.model
        directory = locate(str(beside) if beside.exists() else config.model, cache_root()).directory
        return cls._load(config, directory, load_tokenizer(directory))

    @classmethod
    def _load(cls, config: TextConfig, directory: Path, tokenizer: Any) -> Language:
        """With the pretrained weights. Raises ConfigError where weights are missing: a network half at random would seem to work."""
        found = read_config(directory)
        kind = model_kind(found)
        cls.check_kind(config.model, kind, str(found.get("model_type")))
        with quiet():
            try:
                network, report = _class_for(kind, found).from_pretrained(
                    str(directory), dtype=torch.float32, local_files_only=True, output_loading_info=True, **loading_options(config)
                )
            except Exception as error:  # transformers raises whatever it stumbles over
                raise ConfigError(f"backbone.model: {config.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        hold_still(network)
        of_head = _names_of_head(network, kind)
        missing = sorted(name for name in report.get("missing_keys") or () if not name.startswith("pooler."))
        needed = [name for name in missing if name not in of_head]
        if needed:
            raise ConfigError(f"backbone.model: {config.model} lacks {len(needed)} tensors, the first is {needed[0]}")
        source = {"kind": kind, "directory": str(directory.resolve()), "fingerprint": fingerprint(directory), "headless": bool(missing)}
        return cls(config, _without_pooler(network), tokenizer, source)

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Language:
        from transformers import AutoConfig

        assert isinstance(config, TextConfig)
        tokenizer = load_tokenizer(directory / "tokenizer")
        if saved["whole"]:  # every weight was trained, and is loaded afterwards
            with quiet():
                shape = AutoConfig.from_pretrained(str(directory / "backbone"), local_files_only=True)
                network = _class_for(saved["source"]["kind"], shape.to_dict()).from_config(shape)
            return cls(config, _without_pooler(network.float()), tokenizer, saved["source"])
        there = Path(saved["source"]["directory"])
        made = cls._load(config, there if there.is_dir() else locate(config.model, cache_root()).directory, tokenizer)
        if made.source["fingerprint"] != saved["source"]["fingerprint"]:
            raise ConfigError(f"{directory}: the model {config.model} is not the one that this was trained on: its weights differ")
        return made

    def prepare(self, needs: Collection[str]) -> None:
        self.writes = "generation" in needs
        if not self.writes:
            self.network = self.reader()
            return
        if self.model_kind == "encoder":
            raise ConfigError(
                f"backbone.model: {self.config.model} is an encoder and writes no text: take a causal model, or an encoder-decoder with "
                "kind seq2seq"
            )
        if self.source.get("headless"):
            raise ConfigError(f"backbone.model: {self.config.model} was saved without the layer that writes text")
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"backbone.model: the tokenizer of {self.config.model} has no end token (eos_token): a text would never end")

    def reader(self) -> Any:
        """The part of the network that gives states."""
        raise NotImplementedError

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        with quiet():
            self.tokenizer.save_pretrained(str(directory / "tokenizer"))
            if whole:
                self.model_config.save_pretrained(str(directory / "backbone"))
        return {"source": self.source, "whole": whole}

    # reading

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
        made = []
        for number in range(len(raws)):
            inputs = self._inputs(found, number)
            offsets = tuple(_trimmed(raws[number][0], *span) for span in found["offset_mapping"][number]) if fast else ()
            cut = fast and bool(found.encodings[number].overflowing)
            made.append(Encoded(inputs, len(inputs["input_ids"]), offsets, cut))
        return made

    def windows(self, pairs: Sequence[tuple[str, str]], overlap: int) -> list[list[Encoded]]:
        """Each pair as windows of at most ``max_length`` tokens: the first text in full, the second in parts of which neighbours share
        ``overlap`` tokens. ``offsets`` are those of the second text, (0, 0) for all other tokens. A first text that would take more than
        half of a window is cut off. Raises ConfigError where a window has no room."""
        if not pairs:
            return []
        half = self.config.max_length // 2
        firsts = self.tokenizer([first for first, _ in pairs], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cut = [len(spans) > half for spans in firsts]
        shown = [first[: spans[half - 1][1]] if long else first for (first, _), spans, long in zip(pairs, firsts, cut, strict=True)]
        used = max(min(len(spans), half) for spans in firsts) + int(self.tokenizer.num_special_tokens_to_add(pair=True))
        if overlap >= self.config.max_length - used:
            room = self.config.max_length - used
            raise ConfigError(f"backbone.max_length: leaves a window {room} tokens of the text, and overlap asks for {overlap}: raise it")
        found = self.tokenizer(
            shown, [second for _, second in pairs], truncation="only_second", max_length=self.config.max_length, stride=overlap,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        made: list[list[Encoded]] = [[] for _ in pairs]
        for number, owner in enumerate(found["overflow_to_sample_mapping"]):
            inputs, parts = self._inputs(found, number), found.sequence_ids(number)
            spans = zip(found["offset_mapping"][number], parts, strict=True)
            offsets = tuple(_trimmed(pairs[owner][1], *span) if part == 1 else (0, 0) for span, part in spans)
            made[owner].append(Encoded(inputs, len(offsets), offsets, cut[owner]))
        return made

    def _inputs(self, found: Any, number: int) -> Inputs:
        names = [name for name in self.reads if name in found]
        return {name: torch.tensor(found[name][number] or [self.padding], dtype=torch.int64) for name in names}

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        fill = {"input_ids": float(self.padding)}
        batch = {
            name: pad_sequence([item.inputs[name] for item in encoded], batch_first=True, padding_value=fill.get(name, 0.0))
            for name in encoded[0].inputs
        }
        lengths = torch.tensor([len(item.inputs["input_ids"]) for item in encoded])
        batch["attention_mask"] = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        return batch

    def pool(self, states: States) -> Tensor:
        way = self.config.pooling
        if way == "auto":
            way = "last" if self.model_kind == "causal" else "mean"
        if way == "first":
            return states.tokens[:, 0]
        return last_state(states) if way == "last" else masked_mean(states)

    def show(self, raw: Any) -> str:
        return " | ".join(raw)

    # writing

    @property
    def core(self) -> Any:
        """The network without what peft puts around it; adapters are in its layers."""
        network: Any = self.network
        return network.get_base_model() if hasattr(network, "get_base_model") else network

    def complete(self, tokens: Tensor) -> bool:
        """Whether the tokens of a text have an end."""
        return bool(tokens[-1] == self.tokenizer.eos_token_id)

    def text_of(self, tokens: Tensor) -> str:
        """The text of tokens, up to the first end token or -1."""
        kept = tokens.tolist()
        ends = [place for place, token in enumerate(kept) if token in (-1, self.tokenizer.eos_token_id)]
        found = self.tokenizer.decode(kept[: ends[0]] if ends else kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(found).strip()

    def _ended(self, ids: Sequence[int], most: int) -> Tensor:
        """A text's tokens with one end token, or as many as there is room for."""
        end = int(self.tokenizer.eos_token_id)
        own = list(ids[:-1]) if ids and ids[-1] == end else list(ids)
        return torch.tensor([*own, end][:most], dtype=torch.int64)


@BACKBONES.register("text")
class Text(Language):
    """The last hidden states of an encoder or causal model. A causal model writes too: the input is the prompt, and what follows it."""

    @classmethod
    def check_kind(cls, name: str, kind: ModelKind, model_type: str) -> None:
        if kind == "seq2seq":
            raise ConfigError(
                f"backbone.kind: {name} is an encoder-decoder, and text takes encoders and causal models: write kind: seq2seq"
            )

    def reader(self) -> Any:
        return self.network.base_model if self.model_kind == "causal" else self.network

    def forward(self, inputs: Inputs) -> States:
        mask = inputs["attention_mask"]
        if not self.writes:
            return States(self.network(**inputs).last_hidden_state, mask.bool())
        found = self.network(**inputs, output_hidden_states=True, **self._only(0, 1))
        return States(found.hidden_states[-1], mask.bool())

    def spell(self, texts: list[str], most: int) -> list[Tensor]:
        """Tokens of texts that follow a prompt, each with the end token; see :class:`retain.multitask.backbones.writing.Writer`."""
        found = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [self._ended(ids, most) for ids in found]

    def capacity(self) -> int | None:
        """Positions left after the longest prompt, and a prefix of peft."""
        asked = self.config.peft
        prefix = asked.tokens if asked is not None and asked.method == "prefix" else 0
        return int(self.longest) - self.config.max_length - prefix

    def continued(self, inputs: Inputs) -> Tensor:
        """Logits of each target token, [B, T, vocabulary]. Prompt and target stand in a row without padding between them."""
        target, known, mask = inputs[TARGET], inputs[KNOWN], inputs["attention_mask"]
        before, lengths = mask.sum(1), mask.sum(1) + known.sum(1)
        places = torch.arange(int(lengths.max()), device=mask.device).expand(len(mask), -1)
        inside = (places - before[:, None]).clamp(0, target.shape[1] - 1)
        prompts = F.pad(inputs["input_ids"], (0, places.shape[1] - mask.shape[1]))
        ids = torch.where(places < before[:, None], prompts, target.gather(1, inside))
        ids = ids.masked_fill(places >= lengths[:, None], self.padding)
        first, last = int(before.min()) - 1, places.shape[1] - 1
        kept = self._only(first, last)
        logits = self.network(input_ids=ids, attention_mask=(places < lengths[:, None]).long(), **kept).logits
        asked = before[:, None] - 1 + torch.arange(target.shape[1], device=mask.device)[None]
        asked = asked.clamp(max=last - 1) - (first if kept else 0)
        return logits[torch.arange(len(logits), device=mask.device)[:, None], asked]

    def write(self, inputs: Inputs, most: int) -> Tensor:
        """The text after each prompt; see :class:`retain.multitask.backbones.writing.Writer`. A row's positions go on from its own last
        token, and padding is never attended to, so that a row is written as it would be alone. Rows of a network that takes no positions
        are written in groups of the same length."""
        lengths = inputs["attention_mask"].sum(1)
        if self._takes("position_ids") or bool((lengths == lengths[0]).all()):
            return self._write(inputs, lengths, most)
        made = torch.full((len(lengths), most), -1, device=lengths.device)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            found = self._write({name: value[rows, :length] for name, value in inputs.items()}, lengths[rows], most)
            made[rows, : found.shape[1]] = found
        return made

    def _write(self, inputs: Inputs, lengths: Tensor, most: int) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        first, last = int(lengths.min()) - 1, ids.shape[1]
        kept = self._only(first, last)
        found = self.network(input_ids=ids, attention_mask=mask, use_cache=True, **kept)
        cache, rows = found.past_key_values, torch.arange(len(ids), device=ids.device)
        prefix = int(cache.get_seq_length()) - ids.shape[1]  # virtual tokens of prefix tuning
        seen = torch.cat([mask.new_ones(len(mask), prefix), mask], 1)

        def step(tokens: Tensor, place: int) -> Tensor:
            attended = torch.cat([seen, seen.new_ones(len(seen), place + 1)], 1)
            positions = {"position_ids": (lengths + prefix + place)[:, None]} if self._takes("position_ids") else {}
            made = self.core(input_ids=tokens[:, None], attention_mask=attended, past_key_values=cache, use_cache=True, **positions)
            return made.logits[:, -1]

        return greedy(found.logits[rows, lengths - 1 - (first if kept else 0)], step, int(self.tokenizer.eos_token_id), most)

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self.core.forward).parameters

    def _only(self, first: int, last: int) -> dict[str, Tensor]:
        """Options for logits of these positions alone, where the network can leave out the others."""
        device = next(self.network.parameters()).device
        return {"logits_to_keep": torch.arange(first, last, device=device)} if self._takes("logits_to_keep") else {}


def _class_for(kind: ModelKind, config: Mapping[str, Any]) -> Any:
    """The class of transformers that loads a model with all that a backbone can use of it."""
    import transformers
    from transformers.models.auto import modeling_auto

    if kind == "encoder":
        half = config.get("model_type") in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES  # of an encoder-decoder
        return transformers.AutoModelForTextEncoding if half else transformers.AutoModel
    return transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForSeq2SeqLM


def _names_of_head(network: Any, kind: ModelKind) -> set[str]:
    """Parameters of the layer that writes, and of nothing else."""
    if kind == "encoder":
        return set()
    head = network.get_output_embeddings()
    own = {id(value) for value in head.parameters()} if head is not None else set()
    return {name for name, value in network.named_parameters(remove_duplicate=False) if id(value) in own}


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
    """Without the layer over the first state, which nothing here uses."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network
