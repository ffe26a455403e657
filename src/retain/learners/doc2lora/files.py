"""Files of hypernetworks: a finished network, and a checkpoint that training goes on from. Safetensors with JSON in their header, never
pickle; a file is there in full or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retain.learners.base import LearnerError
from retain.learners.doc2lora.hypernetwork import Hypernetwork, NetworkConfig, Places, config_to_dict

FORMAT = 1
KEY = "retain_hypernetwork"
WEIGHTS = Path(__file__).parent.parent / "weights"


def description_of(network: Hypernetwork, trained: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its network: sizes, base model and places, and how it came to be."""
    return {"format": FORMAT, "config": config_to_dict(network.config), "places": asdict(network.places), "trained": dict(trained)}


def save_network(network: Hypernetwork, path: Path, trained: Mapping[str, Any]) -> None:
    """Write a network. ``trained``: steps, documents, settings, measurements, as JSON values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_tensors(path, tensors, description_of(network, trained))


def load_network(path: str | Path, device: torch.device | str = "cpu") -> tuple[Hypernetwork, dict[str, Any]]:
    """A network and its description. Raises LearnerError in one line: no file, damaged, not a hypernetwork, never trained."""
    place = Path(path).expanduser()
    tensors, about = read_tensors(place)
    network = network_of(about, place)
    fill(network, tensors, place)
    if network.silent:
        raise LearnerError(f"{place}: this hypernetwork was never trained, its adapters change nothing: train it, or name another file")
    return network.to(device).eval().requires_grad_(False), about["trained"]


def network_of(about: Mapping[str, Any], path: Path) -> Hypernetwork:
    """A fresh network of the sizes in a file's description. Raises LearnerError."""
    try:
        if about["format"] != FORMAT:
            raise LearnerError(f"{path}: format {about['format']} of a hypernetwork, this version of retain reads {FORMAT}")
        return Hypernetwork(NetworkConfig(**about["config"]), Places.from_dict(about["places"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LearnerError(f"{path}: the description of the hypernetwork is damaged: {error}") from error


def fill(network: Hypernetwork, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights. Raises LearnerError where they do not fit or are not finite."""
    own = network.state_dict()
    problems = [f"lacks {name}" for name in sorted(set(own) - set(tensors))]
    problems += [f"{name} is unknown" for name in sorted(set(tensors) - set(own))]
    problems += [f"{name} has another shape" for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if problems:
        raise LearnerError(f"{path}: not the weights of this hypernetwork: {problems[0]}")
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise LearnerError(f"{path}: {broken[0]} holds values that are not finite")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Put tensors with a description at ``path``; durable, and in full, when it returns."""

    def write(temporary: Path) -> None:
        save_file(dict(tensors), str(temporary), metadata={KEY: json.dumps(about)})

    _replace(path, write)


def write_text(path: Path, text: str) -> None:
    """Put a text at ``path`` in the same way."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote. Raises LearnerError."""
    if not path.is_file():
        raise LearnerError(f"{path}: there is no such file of a hypernetwork")
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            return {name: file.get_tensor(name) for name in list(file.keys())}, about
    except KeyError as error:
        raise LearnerError(f"{path}: no hypernetwork of retain; retain.learners.doc2lora.published converts published ones") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise LearnerError(f"{path}: damaged, it cannot be read ({' '.join(str(error).split())[:120]}): copy or train it again") from error


def _replace(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(8)}")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot sync folders
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
