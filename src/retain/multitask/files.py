"""Folders that are there in full or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from retain.data.errors import DataError

TEMPORARY = ".part-"


def publish(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a new folder: filled under another name, made durable, then renamed. Nothing is left when ``fill`` raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        fill(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def sweep(directory: Path) -> None:
    """Remove what an interruption left unfinished."""
    for left in directory.glob(f"{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises DataError."""
    try:
        return load_file(path)
    except Exception as error:  # what safetensors raises has no common base
        raise DataError(f"cannot be read: {' '.join(str(error).split())}", path=path) from None


def write_json(path: Path, value: Any) -> None:
    """A JSON file. Raises ValueError for what JSON has not."""
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {' '.join(str(error).split())}", path=path) from None


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix/``, without it."""
    return {name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`under`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
