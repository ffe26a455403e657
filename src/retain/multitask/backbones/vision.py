"""Images: a small convolutional network of the project's own, any vision model of transformers, or one of timm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from retain.config import ConfigError
from retain.config.section import Count, Fraction, Names, Positive, Section
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, Inputs, States, masked_mean
from retain.multitask.backbones.pictures import Picture, Reader, Reading, common_shape, described, reading_of
from retain.multitask.backbones.pretrained import check_adapters, find_model, load_pretrained, reload, save_shape, settle
from retain.multitask.config import BackboneConfig
from retain.multitask.records import Row, check_columns

CNN, TIMM = "cnn", "timm:"
MOST_SIDE = 96  # pixels of a side up to which the small network takes images as they are
LEAST_SIDE = 8  # positions of a side from which the small network halves it


class AugmentConfig(Section):
    """Random changes of the training images; each is off until it is asked for, as flips or shifts change what some images show."""

    flip: bool = Field(False, description="Mirror half of the images, left to right")
    shift: Fraction = Field(0.0, description="Furthest shift, as a share of the image's sides")
    crop: Fraction = Field(0.0, description="Largest share of the sides that is cut off; what is left fills the image", lt=1.0)


class VisionConfig(BackboneConfig):
    """Images, as files or as levels in the records."""

    model: str = Field(CNN, description="cnn, a directory or hub name of a transformers model, or timm:NAME")
    input: Names = Field(default_factory=lambda: ["image"], description="Column with an image's path, or with its levels as a nested list")
    size: Count | tuple[Count, Count] | None = Field(
        None, description="Height and width that images are brought to; null is the model's own, for cnn that of the training images"
    )
    colour: Literal["auto", "grey", "rgb"] = Field("auto", description="auto: as the model has it; for cnn rgb if any image has colours")
    mean: list[float] | None = Field(None, description="Mean of each channel, white is 1; null is the model's own, for cnn 0.5")
    std: list[Positive] | None = Field(None, description="Deviation of each channel; null is the model's own, for cnn 0.5")
    white: Positive = Field(255.0, description="Level of white in nested lists")
    channels: list[Count] = Field(default_factory=lambda: [32, 64, 128], description="Width of each block of cnn")
    dropout: Fraction = Field(0.1, description="Dropout after each block of cnn")
    checkpoint: str | None = Field(None, description="File with weights of a timm model; null begins at random")
    pooling: Literal["auto", "mean", "first"] = Field("auto", description="auto is the class token where the model has one, else the mean")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="Random changes of the training images")


class Convolutions(nn.Module):
    """Blocks of two 3 x 3 convolutions with group norms and ReLU. A block halves sides of 8 or more; no result depends on the batch."""

    def __init__(self, channels: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in widths:
            layers: list[nn.Module] = []
            for inputs in (channels, width):
                groups = next(count for count in (8, 4, 2, 1) if width % count == 0)
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers, nn.Dropout2d(dropout)))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to a map [B, width, h, w]."""
        for block in self.blocks:
            x = block(x)
            if min(x.shape[-2:]) >= LEAST_SIDE:
                x = F.max_pool2d(x, 2)
        return x


class Seeing(nn.Module):
    """A vision model of transformers as a function of pixels alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to states, [B, L, width] or [B, width, h, w]."""
        return self.model(pixel_values=x).last_hidden_state


class TimmSeeing(nn.Module):
    """A model of timm without its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to states, [B, L, width] or [B, width, h, w]."""
        found = self.model.forward_features(x)
        last = found.ndim == 4 and found.shape[-1] == self.model.num_features != found.shape[1]  # Swin has its channels last
        return found.permute(0, 3, 1, 2) if last else found


@BACKBONES.register("vision")
class Vision(Backbone):
    """A pretrained network of transformers on images; the positions of its last map, or its patches, are the states."""

    Config: ClassVar[type[BackboneConfig]] = VisionConfig
    learning_rate = 1e-4
    adapted_rate = 5e-4

    def __init__(
        self, config: VisionConfig, network: nn.Module, reading: Reading, mean: Sequence[float], std: Sequence[float], folder: Path,
        source: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        check_adapters(network, config)
        self.config, self.network, self.reading, self.folder, self.source = config, network, reading, folder, dict(source)
        self.model_config: Any = getattr(getattr(network, "model", None), "config", None)
        self.reader = Reader(reading, folder)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, reading.channels):
                raise ConfigError(f"backbone.{name}: {len(values)} numbers for images of {reading.channels} channels")
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False) for values in (mean, std)
        )
        self.first = config.pooling == "first" or (config.pooling == "auto" and _has_class_token(network))
        self.width = self._probe()

    @classmethod
    def build(cls, config: BackboneConfig, rows: Sequence[Row], taken: Collection[str], folder: Path, hides: bool) -> Vision:
        assert isinstance(config, VisionConfig)
        if len(config.input) != 1:
            raise ConfigError(f"backbone.input: one column of images, not {len(config.input)}")
        if config.input[0] in taken:
            raise ConfigError(f"backbone.input: {config.input[0]} is a label of a task")
        if config.checkpoint is not None and not config.model.startswith(TIMM):
            raise ConfigError("backbone.checkpoint: is for timm models; a transformers model is named by its directory")
        if config.model == CNN:
            reading = _own_reading(config, rows, folder)
            return SmallVision(
                config, Convolutions(reading.channels, config.channels, config.dropout), reading, *_scale(config), folder, {}
            )
        if config.model.startswith(TIMM):
            network, told = timm_network(config, folder)
            reading, mean, std = _changed(config, *reading_of(told, config.white))
            return SmallVision(config, network, reading, mean, std, folder, {})
        directory = find_model(config.model, folder)
        network, source = load_pretrained(config.model, directory, vision_part)
        reading, mean, std = _changed(config, *reading_of(described(directory, network.config.to_dict()), config.white))
        return Vision(config, Seeing(network), reading, mean, std, folder, source)

    @classmethod
    def restore(cls, config: BackboneConfig, saved: Mapping[str, Any], directory: Path) -> Vision:
        assert isinstance(config, VisionConfig)
        values = saved["reading"]
        reading = Reading(**{**values, "size": tuple(values["size"])})
        seen = (reading, saved["mean"], saved["std"], Path(saved["folder"]))
        if config.model == CNN:
            return SmallVision(config, Convolutions(reading.channels, config.channels, config.dropout), *seen, {})
        if config.model.startswith(TIMM):
            return SmallVision(config, timm_network(config.model_copy(update={"checkpoint": None}), directory)[0], *seen, {})
        network, source = reload(config.model, saved, directory, vision_part)
        return Vision(config, Seeing(network), *seen, source)

    def save(self, directory: Path, whole: bool) -> dict[str, Any]:
        if whole and self.source:
            save_shape(self.model_config, directory)
        mean, std = (values.flatten().tolist() for values in (self.mean, self.std))
        seen = {"reading": asdict(self.reading), "mean": mean, "std": std, "folder": str(self.folder.absolute())}
        return {**seen, "source": self.source, "whole": whole}

    def columns(self, chosen: Sequence[str] | None) -> list[str]:
        columns = list(chosen or self.config.input)
        if len(columns) != 1:
            raise ConfigError(f"input: one column of images, not {len(columns)}")
        return columns

    def read(self, row: Row, chosen: Sequence[str] | None) -> Picture:
        return self.reader.read(row, self.columns(chosen)[0])

    def encode(self, raws: Sequence[Any]) -> list[Encoded]:
        return [Encoded({"pixels": raw.pixels}) for raw in raws]

    def collate(self, encoded: Sequence[Encoded]) -> Inputs:
        """Levels as they are stored, [B, channels, H, W] uint8."""
        return {"pixels": torch.stack([item.inputs["pixels"] for item in encoded])}

    def forward(self, inputs: Inputs) -> States:
        """``inputs``: ``pixels`` uint8; they are scaled here, and in training changed at random as the configuration asks."""
        x = (inputs["pixels"].to(torch.float32) / 255.0 - self.mean) / self.std
        if self.training:
            x = augmented(x, self.config.augment)
        states = self.network(x)
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        return States(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    def pool(self, states: States) -> Tensor:
        return states.tokens[:, 0] if self.first else masked_mean(states)

    def train(self, mode: bool = True) -> Vision:
        """Frozen batch norms stay as they are."""
        super().train(mode)
        settle(self.network)
        return self

    def show(self, raw: Any) -> str:
        channels, height, width = raw.pixels.shape
        return f"{raw.name} ({height} × {width} {'grey' if channels == 1 else 'rgb'}, mean level {raw.pixels.float().mean():.0f})"

    @torch.no_grad()
    def _probe(self) -> int:
        """Numbers in a state, from an empty image. Raises ConfigError for a model that does not take images of this size."""
        height, width = self.reading.size
        empty = torch.zeros(1, self.reading.channels, height, width)
        self.network.eval()
        try:
            found = self.network(empty)
        except Exception as error:  # of the network's own
            size = f"{self.reading.channels} channels, {height} × {width}"
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"backbone.model: {self.config.model} does not take images of {size}: {why}") from None
        finally:
            self.network.train()
        return int(found.shape[1] if found.ndim == 4 else found.shape[2])


class SmallVision(Vision):
    """The project's own small network, or one of timm: all its weights are in the saved model."""

    pretrained = False
    learning_rate = adapted_rate = 2e-3


def augmented(x: Tensor, config: AugmentConfig) -> Tensor:
    """Images [B, channels, H, W], each changed by itself, the edge repeated where a shift leaves nothing. Random numbers are torch's own
    of the device, which checkpoints hold."""
    if not (config.flip or config.shift or config.crop):
        return x
    count, device = len(x), x.device
    mirrored = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0) if config.flip else torch.ones(count, device=device)
    scale = 1.0 - config.crop * torch.rand(count, device=device)
    sides = torch.tensor([x.shape[3], x.shape[2]], device=device, dtype=torch.float32)
    most = config.shift * sides + (1.0 - scale[:, None]) * sides / 2.0  # pixels; a smaller part may lie anywhere in the image
    moved = torch.round((2.0 * torch.rand(count, 2, device=device) - 1.0) * most) * 2.0 / sides
    turn = torch.zeros(count, 2, 3, device=device)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = scale * mirrored, scale, moved
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)


def vision_part(model: Any) -> Any:
    """A model that reads pixels and gives states, without a pooler that nothing here uses. Raises ConfigError for others."""
    if getattr(model, "main_input_name", "") != "pixel_values" or model.config.is_encoder_decoder:
        raise ConfigError(f"backbone.model: {model.config.model_type} is no vision model")
    if isinstance(getattr(model, "pooler", None), nn.Module) and any(True for _ in model.pooler.parameters()):
        model.pooler = None
    return model


def timm_network(config: VisionConfig, folder: Path) -> tuple[TimmSeeing, dict[str, Any]]:
    """A network of timm, at random or with the weights of the checkpoint, and what it says of its images. Raises ConfigError."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone.model: {config.model} needs the library timm: pip install 'retain[vision]'") from None
    except Exception as error:  # of a torchvision that does not fit torch
        raise ConfigError(f"backbone.model: {config.model}: timm cannot be imported: {' '.join(str(error).split())[:200]}") from None
    path = folder / Path(config.checkpoint).expanduser() if config.checkpoint is not None else None
    if path is not None and not path.is_file():
        raise ConfigError(f"backbone.checkpoint: there is no file {path}")
    channels = {"grey": 1, "rgb": 3, "auto": 3}[config.colour]
    sized = {"img_size": config.size} if config.size is not None else {}
    network = None
    for options in (sized, {}):  # only some take a size
        try:
            network = timm.create_model(
                config.model.removeprefix(TIMM), pretrained=False, num_classes=0, in_chans=channels,
                checkpoint_path=str(path) if path is not None else "", **options,
            )  # fmt: skip
            break
        except TypeError:
            continue
        except Exception as error:  # unknown names, weights of another shape
            raise ConfigError(f"backbone.model: {config.model}: {' '.join(str(error).split())[:200]}") from None
    if network is None:
        raise ConfigError(f"backbone.model: {config.model} cannot be made by timm")
    told = network.pretrained_cfg
    side = {"height": told["input_size"][1], "width": told["input_size"][2]}
    scale = {"image_mean": list(told["mean"])[:channels], "image_std": list(told["std"])[:channels]}
    return TimmSeeing(network), {"num_channels": channels, "size": side, **scale}


def _own_reading(config: VisionConfig, rows: Sequence[Row], folder: Path) -> Reading:
    """Of the small network: what the configuration leaves open is that of the training images."""
    size, coloured = config.size, config.colour == "rgb"
    if size is None or config.colour == "auto":
        check_columns(rows, config.input)
        found, any_colour = common_shape(rows, config.input[0], folder)
        coloured = any_colour if config.colour == "auto" else coloured
        if size is None and max(found) > MOST_SIDE:
            raise ConfigError(f"backbone.size: is missing: the images are {found[0]} × {found[1]}, cnn is for about 32 × 32")
        size = size or found
    return Reading((size, size) if isinstance(size, int) else size, 3 if coloured else 1, config.white)


def _scale(config: VisionConfig) -> tuple[Sequence[float], Sequence[float]]:
    return config.mean or (0.5,), config.std or (0.5,)


def _changed(
    config: VisionConfig, reading: Reading, mean: Sequence[float], std: Sequence[float]
) -> tuple[Reading, Sequence[float], Sequence[float]]:
    """A model's own reading with what the configuration says instead."""
    if config.size is not None:
        reading = replace(reading, size=(config.size, config.size) if isinstance(config.size, int) else config.size, short=0)
    if config.colour != "auto" and {"grey": 1, "rgb": 3}[config.colour] != reading.channels:
        raise ConfigError(f"backbone.colour: {config.model} takes images of {reading.channels} channels, not {config.colour}")
    return reading, config.mean or mean, config.std or std


def _has_class_token(network: nn.Module) -> bool:
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in network.named_parameters())
