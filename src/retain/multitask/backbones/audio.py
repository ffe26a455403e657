"""Sound: a small network of the project's own on log-mel spectrograms, Whisper's encoder, or a model of the kind of wav2vec 2.0."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Count, Fraction, Names, Positive
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs, States
from retain.multitask.backbones.pretrained import check_adapters, find_model, load_pretrained, reload, save_shape
from retain.multitask.backbones.sounds import HOP, Listener, Sound, log_mel
from retain.multitask.config import BackboneConfig
from retain.multitask.records import Row

CNN = "cnn"
RATE = 16_000  # of every pretrained model here
FRAMES = round(1 / HOP)  # a second
KERNEL, STRIDE = 5, 2  # of each layer of the small network


class AudioConfig(BackboneConfig):
    """Sounds, as .wav files."""

    model: str = Field(CNN, description="cnn, or a directory or hub name of a Whisper or a wav2vec 2.0 (HuBERT, WavLM) of transformers")
    input: Names = Field(default_factory=lambda: ["audio"], description="Column with a sound's path")
    seconds: Positive = Field(30.0, description="Longest sound; what is longer is cut off, and told")
    rate: Count = Field(RATE, description="Samples in a second, to which others are resampled; pretrained models take 16000", ge=4000)
    bands: Count = Field(80, description="Bands of cnn's spectrogram")
    channels: list[Count] = Field(default_factory=lambda: [64, 128, 128], description="Width of each layer of cnn")
    dropout: Fraction = Field(0.1, description="Dropout after each layer of cnn")


class Hearing(nn.Module):
    """Convolutions over time with layer norms and GELU, each of which halves the frames. Nothing is heard of padding."""

    def __init__(self, bands: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        inputs = [bands, *widths[:-1]]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv1d(before, width, KERNEL, STRIDE, KERNEL // 2), "norm": nn.LayerNorm(width)})
            for before, width in zip(inputs, widths, strict=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrograms [B, frames, bands], 0 from their ``lengths`` [B] on, to states [B, L, width] and their lengths."""
        for block in self.blocks:
            x = block["norm"](block["conv"](x.transpose(1, 2)).transpose(1, 2))  # type: ignore[index]
            lengths = (lengths - 1) // STRIDE + 1
            x = self.dropout(F.gelu(x)) * mask_of(lengths, x.shape[1])[:, :, None]
        return x, lengths


class Positions(nn.Module):
    """Whisper's fixed positions, as many as are needed; they never learn and are saved with what does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.detach().clone())

    def forward(self, count: int) -> Tensor:
        """The first ``count`` of them."""
        return self.weight[:count]


class WhisperHearing(nn.Module):
    """Whisper's encoder on sounds of any length up to 30 seconds. Where Whisper fills 30 seconds up with silence and attends to it, here
    padding is left out of attention, so that a short sound costs little and its states depend on nothing else in the batch."""

    def __init__(self, encoder: Any, longest: int) -> None:
        super().__init__()
        encoder.embed_positions = Positions(encoder.embed_positions.weight[:longest])
        self.model = encoder

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrograms [B, frames, bands], 0 from their ``lengths`` [B] on, to states [B, L, width], one for 20 ms, and their lengths."""
        model: Any = self.model
        x = F.gelu(model.conv1(x.transpose(1, 2))) * mask_of(lengths, x.shape[1])[:, None]
        x = F.gelu(model.conv2(x)).transpose(1, 2)
        lengths = (lengths - 1) // 2 + 1
        mask = mask_of(lengths, x.shape[1])
        x = F.dropout(x + model.embed_positions(x.shape[1]), model.dropout, self.training)
        attended = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for layer in model.layers:
            x = layer(x, attended)
        return model.layer_norm(x), lengths


class RawHearing(nn.Module):
    """A model of the kind of wav2vec 2.0 on samples. ``alone``: its first layer normalises over time, so that padding would change what it
    gives; such a model takes one sound after another."""

    def __init__(self, model: Any, alone: bool) -> None:
        super().__init__()
        self.model, self.alone = model, alone

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [B, N], 0 from their ``lengths`` [B] on, to states [B, L, width] and their lengths."""
        model: Any = self.model
        found = model._get_feat_extract_output_lengths(lengths)
        if self.alone:
            each = [model(sound[None, :length]).last_hidden_state[0] for sound, length in zip(x, lengths.tolist(), strict=True)]
            return pad_sequence(each, batch_first=True), found
        return model(x, attention_mask=mask_of(lengths, x.shape[1]).long()).last_hidden_state, found


@BACKBONES.register("audio")
class Audio(Backbone):
    """A pretrained network of transformers on sound; its states follow the time."""

    Config: ClassVar[type[BackboneConfig]] = AudioConfig
    limit = "seconds"
    learning_rate = 5e-5
    adapted_rate = 5e-4

    def __init__(self, config: AudioConfig, network: nn.Module, width: int, folder: Path, source: Mapping[str, Any]) -> None:
        super().__init__()
        check_adapters(network, config)
        self.config, self.network, self.width, self.folder, self.source = config, network, width, folder, dict(source)
        self.model_config: Any = getattr(getattr(network, "model", None), "config", None)
        self.raw = isinstance(network, RawHearing)
        self.listener = Listener(config.rate, config.seconds, folder, self._values)

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Audio:
        assert isinstance(config, AudioConfig)
        if len(config.input) != 1:
            raise ConfigError(f"backbone.input: one column of sounds, not {len(config.input)}")
        if config.input[0] in taken:
            raise ConfigError(f"backbone.input: {config.input[0]} is a label of a task")
        if config.model == CNN:
            return SmallAudio(config, Hearing(config.bands, config.channels, config.dropout), config.channels[-1], folder, {})
        if config.rate != RATE:
            raise ConfigError(f"backbone.rate: {config.model} takes {RATE} samples a second, not {config.rate}")
        directory = find_model(config.model, folder)
        model, source = load_pretrained(config.model, directory, audio_part)
        return cls._pretrained(config, model, folder, {**source, "normalised": _normalised(directory)})

    @classmethod
    def _pretrained(cls, config: AudioConfig, model: Any, folder: Path, source: Mapping[str, Any]) -> Audio:
        shape = model.config
        if shape.model_type == "whisper":
            longest = shape.max_source_positions * 2 / FRAMES
            if config.seconds > longest:
                raise ConfigError(f"backbone.seconds: {config.model} hears at most {longest:g} seconds, not {config.seconds:g}")
            return Audio(config, WhisperHearing(model, shape.max_source_positions), int(shape.d_model), folder, source)
        shape.apply_spec_augment = False  # its random numbers are no part of a checkpoint
        width = int(getattr(shape, "output_hidden_size", None) or shape.hidden_size)
        return Audio(config, RawHearing(model, getattr(shape, "feat_extract_norm", "layer") == "group"), width, folder, source)

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Audio:
        assert isinstance(config, AudioConfig)
        folder = Path(saved["folder"])
        if config.model == CNN:
            return SmallAudio(config, Hearing(config.bands, config.channels, config.dropout), config.channels[-1], folder, {})
        model, source = reload(config.model, saved, directory, audio_part)
        return cls._pretrained(config, model, folder, source)

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        if whole and self.source:
            save_shape(self.model_config, directory)
        return {"source": self.source, "whole": whole, "folder": str(self.folder.absolute())}

    def columns(self, chosen: Sequence[str] | None) -> list[str]:
        columns = list(chosen or self.config.input)
        if len(columns) != 1:
            raise ConfigError(f"input: one column of sounds, not {len(columns)}")
        return columns

    def read(self, row: Row, chosen: Sequence[str] | None) -> Sound:
        column = self.columns(chosen)[0]
        sound = self.listener.read(row, column)
        if self.raw and len(sound.values) < self._least:
            raise row.error(f"{row.values[column]} is too short: {self.config.model} needs {self._least / RATE * 1000:.0f} ms", column)
        return sound

    def encode(self, raws: Sequence[Any]) -> list[Encoded]:
        return [Encoded({"sound": raw.values}, len(raw.values), truncated=raw.cut) for raw in raws]

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        sounds = pad_sequence([item.inputs["sound"] for item in encoded], batch_first=True)
        return {"sound": sounds, "lengths": torch.tensor([item.length for item in encoded])}

    def forward(self, inputs: Inputs) -> States:
        states, lengths = self.network(inputs["sound"], inputs["lengths"])
        return States(states, mask_of(lengths, states.shape[1]))

    def show(self, raw: Any) -> str:
        return f"{raw.name} ({raw.seconds:.2f} s)"

    def notes(self) -> list[str]:
        return self.listener.notes()

    @property
    def _least(self) -> int:
        """Samples that give a state."""
        least, pairs = 1, zip(self.model_config.conv_kernel, self.model_config.conv_stride, strict=True)
        for kernel, stride in reversed(list(pairs)):
            least = (least - 1) * stride + kernel
        return least

    def _values(self, samples: Tensor) -> Tensor:
        """What the network takes of samples [N]: frames [L, bands], or the samples, scaled where the model wants that."""
        if self.raw:
            return (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7) if self.source["normalised"] else samples
        bands = self.config.bands if self.model_config is None else int(self.model_config.num_mel_bins)
        return log_mel(samples, self.config.rate, bands).t().contiguous()


class SmallAudio(Audio):
    """The project's own small network: all its weights are in the saved model."""

    pretrained = False
    learning_rate = adapted_rate = 2e-3


def mask_of(lengths: Tensor, most: int) -> Tensor:
    """True [B, most] before each length [B]."""
    return torch.arange(most, device=lengths.device)[None] < lengths[:, None]


def audio_part(model: Any) -> Any:
    """Whisper's encoder, or a model that reads samples. Raises ConfigError for others."""
    if model.config.model_type == "whisper":
        encoder = model.get_encoder()
        encoder.config._attn_implementation = "sdpa"  # its masks are those that are made here
        encoder.requires_grad_(True)
        return encoder
    if getattr(model, "main_input_name", "") != "input_values" or not hasattr(model, "_get_feat_extract_output_lengths"):
        raise ConfigError(f"backbone.model: {model.config.model_type} is no Whisper and no model of the kind of wav2vec 2.0")
    return model


def _normalised(directory: Path) -> bool:
    """Whether a model takes samples of mean 0 and deviation 1; those of wav2vec's kind do unless they say otherwise."""
    file = directory / "preprocessor_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("do_normalize", True)) if file.is_file() else True
    except ValueError as error:
        raise ConfigError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
