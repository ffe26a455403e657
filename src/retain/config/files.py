"""Where configuration comes from and goes to: files, the environment, the command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retain.config.errors import ConfigError, explain, unknown_key
from retain.config.schema import Config
from retain.config.settings import explicit, known_keys
from retain.config.values import dump_yaml, leaves, merge, parse_yaml, put

FILE = "config.yaml"
ENVIRONMENT = "RETAIN_"


def user_file() -> Path:
    """The user's configuration file: $RETAIN_CONFIG, else ~/.config/retain/config.yaml."""
    return Path(os.environ.get("RETAIN_CONFIG") or f"~/.config/retain/{FILE}").expanduser()


def workspace_file(workspace: Path | str) -> Path:
    """A workspace's configuration file."""
    return Path(workspace).expanduser() / FILE


def load_config(workspace: Path | str | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration in force.

    workspace: the workspace chosen on the command line, if any. overrides: dotted key -> value from the command line; None means not
    given (write "null" for nothing). Raises ConfigError.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if workspace is not None:
        given["workspace"] = str(workspace)
    user = user_file()
    environment, command_line = _from_environment(), _from_pairs(given, "command line")
    layers = [(str(user), read_file(user)), ("environment", environment), ("command line", command_line)]
    place = next((values["workspace"] for _, values in reversed(layers) if "workspace" in values), Config().workspace)
    local = workspace_file(place)
    if local != user:
        layers.insert(1, (str(local), _read_workspace_file(local)))
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, values in layers:
        merge(merged, values)
        sources.update(dict.fromkeys(leaves(values), source))
    config = _validated(merged, "configuration")
    config._sources.update(sources)
    return config


def read_file(path: Path) -> dict[str, Any]:
    """The checked content of a configuration file; empty when there is none. Raises ConfigError."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold sections, such as `learn:`")
    _validated(values, str(path))
    return values


def save(config: Config, path: Path) -> None:
    """Write the values that were set, by a file, a variable or the program, and leave out the defaults. Atomic."""
    _write(path, explicit(config))


def file_config(path: Path) -> Config:
    """The content of a configuration file over the defaults; its values remember the file. Raises ConfigError."""
    return _sourced(read_file(path), path)


def set_value(path: Path, dotted_key: str, value: Any, check: Callable[[Config], None] | None = None) -> Config:
    """Set one key in a configuration file, checked before anything is written. Text is converted ("8", "true", "null", "a,b").

    ``check``: asked with the new value alone, over the defaults; for what only the rooms above know. Returns the file's content over the
    defaults. Raises ConfigError.
    """
    values = read_file(path)
    given = _from_pairs({dotted_key: value}, str(path))
    if check is not None:
        check(_sourced(given, path))
    merge(values, given)
    config = _sourced(values, path)
    _write(path, values)
    return config


def _read_workspace_file(path: Path) -> dict[str, Any]:
    values = read_file(path)
    if "workspace" in values:
        raise ConfigError(f"{path}: workspace: cannot be set in a workspace's own file")
    return values


def _from_pairs(pairs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Dotted keys and values, which may be text, to a checked and typed nested dictionary."""
    values: dict[str, Any] = {}
    known = known_keys()
    for key, value in pairs.items():
        if key not in known:
            raise unknown_key(where, key, known)
        put(values, key, None if value == "null" else value)
    return explicit(_validated(values, where))


def _from_environment() -> dict[str, Any]:
    """RETAIN_WORKSPACE and RETAIN_SECTION__KEY. Other RETAIN_ variables, such as RETAIN_CACHE, are no settings."""
    values: dict[str, Any] = {}
    for name, text in sorted(os.environ.items()):
        key = name.removeprefix(ENVIRONMENT)
        if name.startswith(ENVIRONMENT) and ("__" in key or key == "WORKSPACE"):
            merge(values, _from_pairs({key.lower().replace("__", "."): text}, f"environment variable {name}"))
    return values


def _sourced(values: Mapping[str, Any], path: Path) -> Config:
    """The values of a file over the defaults, which know the file."""
    config = _validated(values, str(path))
    config._sources.update(dict.fromkeys(leaves(values), str(path)))
    return config


def _validated(values: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explain(error, where, known_keys()) from None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file as a whole, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump_yaml(values))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
