"""Networks of transformers for images and sound, from a directory or hub name: loaded with all their weights or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain.config import ConfigError
from retain.data.errors import did_you_mean
from retain.lm.embedded import cache_root
from retain.lm.loading import locate, quiet, read_config
from retain.multitask.adapting import linear_layers
from retain.multitask.backbones.text import fingerprint
from retain.multitask.config import BackboneConfig

BACKBONE = "backbone"  # folder of a saved model with the shape of a network that was trained whole
Chosen = Callable[[Any], Any]  # of a loaded model the part that is used; raises ConfigError for one without it


def find_model(name: str, folder: Path) -> Path:
    """The directory of a model: a path relative to ``folder`` or absolute, else a hub name. Raises ConfigError and LanguageModelError."""
    for path in (folder / Path(name).expanduser(), Path(name).expanduser()):
        if path.is_dir():
            return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        wanted = folder / Path(name).expanduser()
        near = did_you_mean(wanted.name, [path.name for path in wanted.parent.iterdir()]) if wanted.parent.is_dir() else ""
        raise ConfigError(f"backbone.model: there is no directory {name}" + (f": {near}" if near else ""))
    return locate(name, cache_root()).directory


def load_pretrained(name: str, directory: Path, chosen: Chosen) -> tuple[Any, dict[str, Any]]:
    """The part of a model that ``chosen`` takes, in float32, and what identifies it. Raises ConfigError where weights of it are missing:
    a network half at random would seem to work."""
    from transformers import AutoModel

    read_config(directory)
    with quiet():
        try:
            model, report = AutoModel.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True, output_loading_info=True)
        except Exception as error:  # transformers raises whatever it stumbles over
            raise ConfigError(f"backbone.model: {name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    network = chosen(model)
    used = {id(value) for value in network.state_dict(keep_vars=True).values()}
    own = {key for key, value in model.state_dict(keep_vars=True).items() if id(value) in used}
    missing = sorted(key for key in report.get("missing_keys") or () if key in own)
    if missing:
        raise ConfigError(f"backbone.model: {name} lacks {len(missing)} tensors, the first is {missing[0]}")
    return network, {"directory": str(directory.resolve()), "fingerprint": fingerprint(directory)}


def blank(directory: Path, chosen: Chosen) -> Any:
    """A network of the shape that :func:`save_shape` wrote, for weights that are loaded afterwards."""
    from transformers import AutoConfig, AutoModel

    with quiet():
        config = AutoConfig.from_pretrained(str(directory / BACKBONE), local_files_only=True)
        return chosen(AutoModel.from_config(config).float())


def save_shape(model_config: Any, directory: Path) -> None:
    """Write a network's shape into a saved model."""
    with quiet():
        model_config.save_pretrained(str(directory / BACKBONE))


def reload(name: str, saved: Mapping[str, Any], directory: Path, chosen: Chosen) -> tuple[Any, dict[str, Any]]:
    """The network of a saved model: its shape where all was trained, else the base model again, which must have the same weights."""
    source = dict(saved["source"])
    if saved["whole"]:
        return blank(directory, chosen), source
    there = Path(source["directory"])
    network, found = load_pretrained(name, there if there.is_dir() else find_model(name, directory), chosen)
    if found["fingerprint"] != source["fingerprint"]:
        raise ConfigError(f"{directory}: the model {name} is not the one that this was trained on: its weights differ")
    return network, source


def check_adapters(network: nn.Module, config: BackboneConfig) -> None:
    """Raise ConfigError where adapters are asked for, and the network has nothing that they could go on."""
    if config.peft is not None and not linear_layers(network):
        raise ConfigError("backbone.peft: this network has no linear layers to adapt, only convolutions: leave it out, freeze works")


def settle(network: nn.Module) -> None:
    """Batch norms whose weights are all frozen keep their statistics too, in training as well."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(value.requires_grad for value in module.parameters()):
            module.eval()
