"""Backbones in 4 bits, for ``backbone.peft.method: qlora`` (2305.14314): NF4 with double quantisation, by bitsandbytes."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import ConfigError
from retain.lm.devices import choose_precision
from retain.multitask.config import BackboneConfig

METHOD = "qlora"
DEVICES = ("cuda", "cpu")


def quantised(config: BackboneConfig) -> bool:
    """Whether a backbone is asked for in 4 bits."""
    return config.peft is not None and config.peft.method == METHOD


def place_quantised(config: BackboneConfig, device: torch.device) -> None:
    """Before anything is loaded: take down where a backbone in 4 bits is to be. Raises ConfigError where it cannot be had there."""
    if not quantised(config):
        return
    if device.type not in DEVICES:
        raise ConfigError(f"backbone.peft.method: qlora needs CUDA or a CPU, not {device.type}: set training.device to cpu, or take lora")
    for library, extra in (("bitsandbytes", "cuda"), ("peft", "peft")):
        if find_spec(library) is None:
            raise ConfigError(f"backbone.peft.method: qlora needs the library {library}: pip install 'retain[{extra}]'")
    config._device = str(device)


def loading_options(config: BackboneConfig) -> dict[str, Any]:
    """What ``from_pretrained`` of transformers is told so that the linear layers are in 4 bits; nothing for other methods. All else is
    float32. The type that a layer is computed in is the device's; for inputs of float32 bitsandbytes takes theirs, or that of autocast."""
    if not quantised(config):
        return {}
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advice to install kernels for what hold_still leaves out
    kind = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choose_precision(torch.device(config._device)),
    )  # fmt: skip
    return {"quantization_config": kind, "device_map": {"": config._device}}


def hold_still(network: nn.Module) -> None:
    """Keep layers in 4 bits as they are. Where a CPU has AVX512-bf16, bitsandbytes packs them otherwise for their first answer, and that
    changes the scales of the blocks: a saved network would not answer as the trained one does."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def count(value: Tensor) -> int:
    """Numbers in a parameter; one in 4 bits holds two in a byte."""
    state = getattr(value, "quant_state", None)
    return value.numel() if state is None else int(torch.Size(state.shape).numel())
