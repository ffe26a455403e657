"""Sound to numbers: .wav files as mono samples of one rate, and their log-mel spectrograms. Every defect is told with its line."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.config import ConfigError
from retain.multitask.backbones.pictures import file_of
from retain.multitask.records import Row

FULL = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "int32": (0.0, 2147483648.0)}  # silence and full scale by type of sample
BREAK, STEP = 1000.0, 27.0 / math.log(6.4)  # Slaney's scale: linear up to 1000 Hz, then 27 steps to 6.4 times the frequency
WINDOW, HOP = 0.025, 0.010  # seconds of a frame, and between frames
FLOOR, RANGE = 1e-10, 8.0  # least power, and powers of ten below the loudest that are told apart


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Sound:
    """A sound as a network takes it. ``values``: what was made of its samples; ``seconds``: of the file; ``cut``: whether it was longer
    than is heard."""

    name: str
    seconds: float
    values: Tensor
    cut: bool


class Listener:
    """Sounds of records: samples at ``rate``, at most ``seconds`` of them, through ``made``. A file that several tasks read is read once,
    as long as somebody holds it. ``rates`` counts files by a rate that was changed."""

    def __init__(self, rate: int, seconds: float, folder: Path, made: Callable[[Tensor], Tensor]) -> None:
        self.rate, self.seconds, self.folder, self.made = rate, seconds, folder, made
        self.rates: Counter[int] = Counter()
        self._held: weakref.WeakValueDictionary[tuple[str, int], Sound] = weakref.WeakValueDictionary()

    def read(self, row: Row, column: str) -> Sound:
        """The sound of a record. Raises DataError with file, line and field for one that is missing or damaged."""
        path = file_of(row, column, self.folder, "a sound")
        key = (str(path), path.stat().st_mtime_ns)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._heard(row, column, path)
        return held

    def _heard(self, row: Row, column: str, path: Path) -> Sound:
        try:
            rate, samples = read_wav(path)
        except ConfigError:
            raise
        except Exception as error:  # the reader's own, of many kinds
            why = " ".join(str(error).split())[:200]
            raise row.error(
                f"{row.values[column]} is no .wav file that can be read: {why}", column, "PCM or float; convert others"
            ) from None
        if not len(samples):
            raise row.error(f"{row.values[column]} holds no sound", column)
        if not np.isfinite(samples).all():
            raise row.error(f"{row.values[column]} holds samples that are no numbers", column)
        seconds = len(samples) / rate
        samples = samples[: math.ceil(self.seconds * rate)]
        if rate != self.rate:
            self.rates[rate] += 1
            samples = resampled(samples, rate, self.rate)
        heard = torch.from_numpy(np.ascontiguousarray(samples[: round(self.seconds * self.rate)], dtype=np.float32))
        return Sound(path.name, seconds, self.made(heard), seconds > self.seconds)

    def notes(self) -> list[str]:
        """How many files had another rate."""
        return [
            f"{count} sounds of {rate:,} Hz were resampled to {self.rate:,} Hz"
            + (f": nothing above {rate // 2:,} Hz is in them" if rate < self.rate else "")
            for rate, count in sorted(self.rates.items())
        ]


def read_wav(path: Path) -> tuple[int, np.ndarray[Any, np.dtype[np.float32]]]:
    """The rate of a .wav file and its samples [N], float32 of full scale 1: PCM of 8, 16, 24 and 32 bits, or floats; channels are averaged.
    Raises ValueError for other files, and for one that is cut short."""
    try:
        from scipy.io import wavfile
    except ImportError:
        raise ConfigError("backbone.kind: audio reads sounds with SciPy: pip install 'retain[multitask]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)
        warnings.filterwarnings("ignore", message=".*not understood.*")  # chunks with titles and the like
        rate, samples = wavfile.read(path)
    kind = samples.dtype.name
    if kind in FULL:
        silence, full = FULL[kind]
        samples = (samples.astype(np.float64) - silence) / full
    elif kind not in ("float32", "float64"):
        raise ValueError(f"samples of type {kind}")
    if rate <= 0:
        raise ValueError(f"a rate of {rate} Hz")
    return int(rate), (samples.mean(1) if samples.ndim == 2 else samples).astype(np.float32)


def resampled(samples: np.ndarray[Any, Any], before: int, after: int) -> np.ndarray[Any, Any]:
    """Samples at another rate, by a polyphase filter that leaves nothing above half of the lower rate."""
    from scipy.signal import resample_poly

    shared = math.gcd(before, after)
    return resample_poly(samples, after // shared, before // shared)


def log_mel(samples: Tensor, rate: int, bands: int) -> Tensor:
    """Log-mel spectrogram [bands, frames] of samples [N], one frame for each 10 ms begun, as Whisper takes it: windows of 25 ms, powers
    of ten within 8 of the loudest, moved and scaled by 4 (2212.04356, section 2.2).

    Frames are those of transformers' WhisperFeatureExtractor, which goes on with silence after the sound's end; the last frame of a sound
    that fills its 30 seconds differs a little, as there it goes on with the sound's mirror image.
    """
    window, hop = round(WINDOW * rate), round(HOP * rate)
    frames = math.ceil(len(samples) / hop)
    padded = torch.nn.functional.pad(samples, (0, frames * hop + window - len(samples)))
    shape = torch.hann_window(window)
    power = torch.stft(padded, window, hop, window=shape, pad_mode="reflect", return_complex=True)[:, :frames].abs() ** 2
    logs = torch.clamp(mel_filters(rate, window, bands) @ power, min=FLOOR).log10()
    return (torch.maximum(logs, logs.max() - RANGE) + 4.0) / 4.0


@lru_cache(maxsize=8)
def mel_filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangles [bands, window // 2 + 1] of equal width on Slaney's mel scale from 0 to half the rate, at most 8000 Hz, each of area 1."""
    highest = min(8000.0, rate / 2)
    corners = _to_hertz(np.linspace(0.0, _to_mel(highest), bands + 2))
    bins = np.linspace(0.0, rate / 2, window // 2 + 1)
    rising = (bins[None] - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins[None]) / (corners[2:] - corners[1:-1])[:, None]
    area = 2.0 / (corners[2:] - corners[:-2])
    return torch.from_numpy((np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32))


def _to_mel(hertz: float) -> float:
    return hertz * 3.0 / 200.0 if hertz < BREAK else 15.0 + STEP * math.log(hertz / BREAK)


def _to_hertz(mel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(mel < 15.0, mel * 200.0 / 3.0, BREAK * np.exp((np.maximum(mel, 15.0) - 15.0) / STEP))
