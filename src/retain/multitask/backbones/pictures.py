"""Images to numbers: files that Pillow reads, or nested lists of levels in a record, all of one size. Defects are told with their line."""

from __future__ import annotations

import json
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.config import ConfigError
from retain.data.errors import did_you_mean
from retain.multitask.records import Row

GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")  # Pillow's modes without colour


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Picture:
    """A decoded image: ``pixels`` uint8 [channels, height, width], and the ``name`` it has in messages."""

    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Reading:
    """How images become arrays of one size. ``size``: height and width; ``channels``: 1 or 3; ``short``: the shorter side before the
    middle is cut out, where 0 stretches to the size; ``resample``: Pillow's number of the filter; ``white``: the level of white in
    nested lists."""

    size: tuple[int, int]
    channels: int
    white: float = 255.0
    short: int = 0
    resample: int = 2  # bilinear


class Reader:
    """Images of records by a :class:`Reading`. An image that several tasks read is decoded once, as long as somebody holds it."""

    def __init__(self, reading: Reading, folder: Path) -> None:
        self.reading, self.folder = reading, folder
        self._held: weakref.WeakValueDictionary[tuple[str, int], Picture] = weakref.WeakValueDictionary()

    def read(self, row: Row, column: str) -> Picture:
        """The image of a record. Raises DataError with file, line and field for one that is missing or damaged."""
        found = path_or_levels(row, column, self.folder)
        if not isinstance(found, Path):
            return Picture(f"levels {' × '.join(map(str, found.shape))}", self._scaled(row, column, found))
        key = (str(found), found.stat().st_mtime_ns)
        held = self._held.get(key)
        if held is None:
            image = opened(row, column, found)
            with image:
                held = self._held[key] = Picture(found.name, self._fitted(self._decoded(row, column, image)))
        return held

    def _scaled(self, row: Row, column: str, levels: np.ndarray[Any, Any]) -> Tensor:
        from PIL import Image

        white = self.reading.white
        if levels.dtype != np.uint8 or white != 255.0:
            low, high = float(levels.min()), float(levels.max())
            if not (low >= 0.0 and high <= white):
                fix = "backbone.white is the level of white"
                raise row.error(f"levels are between 0 and {white:g}, not {low:g} to {high:g}", column, fix)
            levels = np.rint(levels.astype(np.float64) * (255.0 / white)).astype(np.uint8)
        return self._fitted(Image.fromarray(levels).convert("L" if self.reading.channels == 1 else "RGB"))

    def _decoded(self, row: Row, column: str, image: Any) -> Any:
        from PIL import Image, ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16"):  # Pillow would cut its levels off at 255
                    image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
                return image.convert("L" if self.reading.channels == 1 else "RGB")
        except Exception as error:  # decoders raise whatever they stumble over
            raise row.error(f"{row.values[column]} is a damaged image: {_line(error)}", column) from None

    def _fitted(self, image: Any) -> Tensor:
        """Of the wanted size: stretched, or by the shorter side and the middle of that."""
        height, width = self.reading.size
        if self.reading.short:
            between = tuple(self.reading.short * side // min(image.size) for side in image.size)
            image = image.resize(between, self.reading.resample) if between != image.size else image
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        elif image.size != (width, height):
            image = image.resize((width, height), self.reading.resample)
        levels = np.array(image, dtype=np.uint8)
        return torch.from_numpy(levels[None] if levels.ndim == 2 else np.ascontiguousarray(levels.transpose(2, 0, 1)))


def path_or_levels(row: Row, column: str, folder: Path) -> Path | np.ndarray[Any, Any]:
    """The file that a record names, relative to the record's own file or to ``folder``; or its levels, [height, width] or
    [height, width, 3]. Raises DataError."""
    value = row.values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):  # as a CSV file holds a list
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise row.error("must be a path, or levels as a list of lists", column) from None
    if isinstance(value, list | tuple | np.ndarray):
        return _levels(row, column, value)
    return file_of(row, column, folder, "an image")


def file_of(row: Row, column: str, folder: Path, what: str) -> Path:
    """The file that a record names, relative to the record's own file or to ``folder``. Raises DataError when it is not there."""
    name = Path(row.text(column).strip()).expanduser()
    places = [Path(row.path).parent / name, folder / name]
    for place in places:
        if place.is_file():
            return place
    where = next((place for place in places if place.exists()), None)
    if where is not None:
        raise row.error(f"{name} is a folder, not {what}", column)
    near = next((did_you_mean(name.name, [file.name for file in place.parent.iterdir()]) for place in places if place.parent.is_dir()), "")
    raise row.error(f"there is no file {name}", column, near or "paths are relative to the records' file or to the experiment's")


def opened(row: Row, column: str, path: Path) -> Any:
    """A Pillow image whose header was read. Raises DataError."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError("backbone.kind: vision reads images with Pillow: pip install 'retain[multitask]'") from None
    try:
        return Image.open(path)
    except Exception as error:  # also Pillow's own about sizes that are an attack
        damaged = "cannot identify" not in str(error)
        what = f"is a damaged image: {_line(error)}" if damaged else "is no image that can be read"
        raise row.error(f"{row.values[column]} {what}", column) from None


def common_shape(rows: Sequence[Row], column: str, folder: Path) -> tuple[tuple[int, int], bool]:
    """Of the images of records the most frequent height and width, and whether any has colours. Only headers of files are read."""
    sizes: Counter[tuple[int, int]] = Counter()
    coloured = False
    for row in rows:
        found = path_or_levels(row, column, folder)
        if isinstance(found, Path):
            with opened(row, column, found) as image:
                sizes[image.size[1], image.size[0]] += 1
                coloured |= image.mode not in GREY
        else:
            sizes[found.shape[0], found.shape[1]] += 1
            coloured |= found.ndim == 3
    return max(sizes, key=lambda size: (sizes[size], size)), coloured


def reading_of(model: dict[str, Any], white: float) -> tuple[Reading, tuple[float, ...], tuple[float, ...]]:
    """What a model's ``preprocessor_config.json`` and ``config.json``, as one dictionary, say of its images; with means and deviations."""
    channels = int(model.get("num_channels") or 3)
    size = model.get("size") or model.get("image_size") or 224
    cut = model.get("crop_size")
    short = 0
    if isinstance(size, dict) and size.get("shortest_edge"):
        short = int(size["shortest_edge"])
        if cut is None and model.get("crop_pct"):  # ConvNeXt: the size is that of the middle, below 384 cut from a larger image
            cut, short = short, (round(short / float(model["crop_pct"])) if short < 384 else 0)
    sides = _sides(cut if cut is not None else (short or size))
    mean, std = (model.get(f"image_{name}") or plain for name, plain in (("mean", [0.5]), ("std", [0.5])))
    resample = int(model["resample"]) if model.get("resample") is not None else 2
    return (
        Reading(sides, channels, white, max(short, *sides) if short else 0, resample),
        tuple(map(float, mean)),
        tuple(map(float, std)),
    )


def described(directory: Path, model_config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with what its ``preprocessor_config.json`` adds. Raises ConfigError for a damaged one."""
    file = directory / "preprocessor_config.json"
    if not file.is_file():
        return dict(model_config)
    try:
        return {**model_config, **json.loads(file.read_text(encoding="utf-8"))}
    except ValueError as error:
        raise ConfigError(f"{file}: cannot be read: {_line(error)}") from None


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        size = [size[key] for key in ("height", "width")] if "height" in size else next(iter(size.values()))
    if isinstance(size, int | float):
        size = [size, size]
    return int(size[0]), int(size[-1])


def _levels(row: Row, column: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(value)
        found = found if found.dtype == np.uint8 else found.astype(np.float64)
    except (ValueError, TypeError):
        raise row.error("levels must be rows of numbers, all of one length", column) from None
    if found.ndim == 3 and found.shape[2] == 1:
        found = found[:, :, 0]
    right = found.size and (found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 3))
    if not right:
        shape = " × ".join(map(str, found.shape))
        raise row.error(f"levels have height and width, or height, width and 3 colours, not {shape}", column)
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
