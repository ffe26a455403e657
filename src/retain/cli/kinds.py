"""The kinds of configuration files: how they are told apart, checked and described, and the examples of them that ship with retain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from retain.data.errors import did_you_mean

KINDS = {
    "workspace": "retain config",
    "train": "retain train",
    "pretrain": "retain pretrain",
    "distill": "retain distill",
    "hypernetwork": "retain train-hypernetwork",
}
_FOLDERS = ("multitask", "pretraining")


def kind_of(values: Mapping[str, Any]) -> str:
    """Which command a file is for: the kind that knows most of its sections; of equals, the first of :data:`KINDS`."""
    from retain.config import Config

    if set(values) <= set(Config.model_fields):
        return "workspace"
    return max(KINDS, key=lambda kind: _known(values, kind))


def _known(values: Mapping[str, Any], kind: str) -> int:
    return sum(key in section_of(kind).model_fields for key in values)


@contextlib.contextmanager
def meant_for(kind: str, path: Path) -> Iterator[None]:
    """Read a file of this kind in the block. What is wrong with it is told as it is, unless the file is rather one for another command."""
    from retain.cli.errors import CommandError
    from retain.config import ConfigError, parse_yaml
    from retain.data.errors import DataError

    try:
        yield
    except (ConfigError, DataError):
        try:
            values = parse_yaml(path.expanduser().read_text(encoding="utf-8"))
        except Exception:  # unreadable, or not YAML: that has been said
            values = None
        other = kind_of(values) if isinstance(values, Mapping) else kind
        if _known(values or {}, other) > _known(values or {}, kind):
            raise CommandError(f"{path}: this is a file for {KINDS[other]}, and {KINDS[kind]} wants another") from None
        raise


def section_of(kind: str) -> Any:
    """The class that holds a kind's keys."""
    if kind == "workspace":
        from retain.config import Config

        return Config
    if kind == "train":
        from retain.multitask import ExperimentConfig

        return ExperimentConfig
    if kind == "hypernetwork":
        from retain.learners.doc2lora.settings import HypernetworkSettings

        return HypernetworkSettings
    from retain.pretraining import DistillConfig, PretrainConfig

    return PretrainConfig if kind == "pretrain" else DistillConfig


def check(path: Path) -> str:
    """Check a file without loading a model; its kind. Raises ConfigError with file and line."""
    from retain.config import ConfigError, parse_yaml, read_file
    from retain.config.lines import located

    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text)
    except Exception:  # unreadable, or not YAML: read_file has the words
        read_file(path)
        raise
    kind = kind_of(values) if isinstance(values, Mapping) else "workspace"
    try:
        _read(kind, path)
    except ConfigError as error:
        raise located(str(error), str(path), text) from None
    return kind


def _read(kind: str, path: Path) -> None:
    if kind == "workspace":
        from retain.cli.configuration import known_names
        from retain.config import file_config

        known_names(file_config(path))
    elif kind == "train":
        from retain.multitask import load_experiment

        load_experiment(path)
    elif kind == "hypernetwork":
        from retain.learners.doc2lora.settings import load_settings

        load_settings(path)
    else:
        from retain.pretraining import read_config
        from retain.pretraining.config import preset

        config = read_config(section_of(kind), path)
        shape = config.model if kind == "pretrain" else config.student
        if shape is not None:
            shape.shape(preset(shape.preset).vocabulary)


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind of file."""
    if kind == "train":
        from retain.multitask.schema import experiment_schema

        return experiment_schema()
    found: dict[str, Any] = section_of(kind).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def examples() -> dict[str, Traversable]:
    """The files that ship, by name. No module is imported."""
    folders = [files("retain").joinpath(folder, "examples") for folder in _FOLDERS]
    found = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file for file in sorted(found, key=lambda file: file.name)}


def about(text: str) -> str:
    """What an example is: its first line."""
    return text.partition("\n")[0].lstrip("# ")


def one_of(name: str, known: Mapping[str, Any], what: str) -> str:
    """A name that is known. Raises CommandError with the nearest one."""
    from retain.cli.errors import CommandError

    if name not in known:
        raise CommandError(f"there is no {what} {name!r}: {did_you_mean(name, known) or 'there is ' + ', '.join(known)}")
    return name
