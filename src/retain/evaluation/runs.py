"""A run of an experiment as a directory: what was asked for, where it ran, what happened, what came out, and where to go on.

    config.yaml        the exact configuration
    environment.json   machine, versions, command line, seeds
    events.jsonl       one JSON object a line: time, event, fields
    tasks/             finished units of work: KEY.json, and KEY.safetensors beside it where there are tensors
    results.json       only once the run is finished

Every file but the events is written to a temporary name, synced, renamed, and its folder synced, so that it is there in full or not at all.
JSON has no NaN and no infinity: both are written as null. A null inside a list is read as NaN, one that stands for a whole value as None.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.data.durable import TEMPORARY
from retain.evaluation.durable import make_folder, open_log, write_atomically

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor

    from retain.evaluation.writers import EventWriter

CONFIG, ENVIRONMENT, EVENTS, RESULTS, TASKS, LOCK = "config.yaml", "environment.json", "events.jsonl", "results.json", "tasks", "run.lock"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class RunError(ValueError):
    """A run that cannot be made, continued or read. The message is one line."""


class Run:
    """One run. `create` gives the only writer of a directory, `open` any number of readers.

        with Run.create("runs/digits", config, resume=True) as run:
            for task in tasks:
                if (done := run.finished(task.name)) is None:
                    done = train(task)
                    run.finish(task.name, done)
            run.complete(results)

    Attributes: `directory`; `config` as it was given, in plain values; `writable`.
    """

    def __init__(
        self, directory: Path, config: dict[str, Any], lock: BaseFileLock | None = None, writers: Sequence[EventWriter] = ()
    ) -> None:
        self.directory, self.config = directory, config
        self._lock, self._writers = lock, tuple(writers)
        self._events: int | None = None

    @classmethod
    def create(
        cls,
        directory: str | Path,
        config: Mapping[str, Any],
        resume: bool = False,
        *,
        seeds: Sequence[int] = (),
        writers: Sequence[EventWriter] = (),
    ) -> Run:
        """A new run, or with `resume` the one that the directory already holds, provided its configuration is the same."""
        from filelock import FileLock, Timeout

        place, wanted = Path(directory), _plain(config, "config", finite=False)
        make_folder(place)
        lock = FileLock(place / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{place}: another process is writing to this run: wait for it, or choose another directory") from None
        try:
            run = cls(place, wanted, lock, writers)
            resumed = run._take(resume)
            make_folder(place / TASKS)
            here = environment(seeds)
            if not (place / ENVIRONMENT).exists():
                write_atomically(place / ENVIRONMENT, _json(here))
            run._events = open_log(place / EVENTS)
            for writer in run._writers:
                writer.start(place.name, wanted)
            started, volatile = run.environment, ("started", "command")
            moved = {name: value for name, value in here.items() if resumed and name not in volatile and started.get(name) != value}
            run.event("resumed" if resumed else "started", **({"environment": moved} if moved else {}))
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """A run to read, whether it is finished, interrupted or under way."""
        place = Path(directory)
        config = _config_of(place)
        if config is None or not (place / EVENTS).exists():  # a workspace has a configuration as well
            raise RunError(f"{place}: this is not a run (there is no {EVENTS if config is not None else CONFIG} in it)")
        return cls(place, config)

    @property
    def writable(self) -> bool:
        """Whether this object may write."""
        return self._events is not None

    @property
    def environment(self) -> dict[str, Any]:
        """Machine, versions, command line and seeds; empty when the run was interrupted before they were written."""
        return _read(self.directory / ENVIRONMENT) or {}

    @property
    def results(self) -> dict[str, Any] | None:
        """What came out; None while the run is not finished."""
        return _read(self.directory / RESULTS)

    @property
    def tasks(self) -> list[str]:
        """Keys of the finished units of work, sorted."""
        return sorted(path.name.removesuffix(".json") for path in (self.directory / TASKS).glob("[!.]*.json"))

    def event(self, name: str, /, **fields: Any) -> None:
        """Append one line to the events and tell the writers."""
        if {"time", "event"} & set(fields):
            raise RunError("a field of an event can be called neither time nor event")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"time": now, "event": name, **_plain(fields, name)}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        descriptor, view = self._writing(), memoryview(line)
        while view:
            view = view[os.write(descriptor, view) :]
        for writer in self._writers:
            writer.write(record)

    def warn(self, message: str) -> None:
        """Record something that whoever reads the results should know."""
        self.event("warning", message=message)

    def events(self) -> list[dict[str, Any]]:
        """Every event, oldest first. A last line that was torn by an interruption is left out."""
        path = self.directory / EVENTS
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(_object(line))
            except ValueError:
                raise RunError(f"{path}, line {number}: not a JSON object: the file was changed by something else") from None
        return found

    def finished(self, key: str) -> dict[str, Any] | None:
        """What was recorded for a finished unit of work; None when it is still to be done."""
        stored = _read(self._task(key, ".json"))
        if stored is not None and stored.get("key") != key:  # a file system that does not tell small letters from capitals
            raise RunError(f"{self.directory}: the keys {key} and {stored.get('key')} share a file here: use names that differ in more")
        return None if stored is None else stored["value"]

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The tensors of a finished unit of work; empty when it had none."""
        from safetensors.torch import load

        stored = _read(self._task(key, ".json"))
        if stored is None:
            raise RunError(f"{self.directory}: {key} is not finished")
        return load(self._task(key, ".safetensors").read_bytes()) if stored["tensors"] else {}

    def finish(self, key: str, value: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Record a unit of work as done, durably: an interrupted run does not do it again. What is recorded stays as it is."""
        path = self._task(key, ".json")
        self._writing()
        if path.exists():
            raise RunError(f"{self.directory}: {key} is finished already: ask finished({key!r}) before doing it")
        if tensors:
            from safetensors.torch import save

            write_atomically(
                self._task(key, ".safetensors"), save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            )
        write_atomically(
            path, _json({"key": key, "tensors": sorted(tensors or ()), "value": _plain(value, key)})
        )  # last: this makes it count
        self.event("task", key=key)

    def complete(self, results: Mapping[str, Any]) -> None:
        """Write the results: the run is finished."""
        self._writing()
        write_atomically(self.directory / RESULTS, _json(_plain(results, "results")))
        self.event("finished")

    def close(self) -> None:
        """Stop writing and let another process do so; harmless when done already."""
        descriptor, self._events = self._events, None
        if descriptor is not None:
            os.close(descriptor)
            for writer in self._writers:
                writer.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self.writable:
            with contextlib.suppress(OSError):
                self.event("interrupted", error=f"{type(error).__name__}: {error}".rstrip(": "))
        self.close()

    def _take(self, resume: bool) -> bool:
        """Make the directory this run's own; True when it was already."""
        found = _config_of(self.directory)
        if found is None:
            foreign = sorted(path.name for path in self.directory.iterdir() if path.name != LOCK and not path.name.startswith(TEMPORARY))
            if foreign:
                raise RunError(f"{self.directory}: there are other files here ({foreign[0]}): choose a directory that is empty or new")
        elif (difference := _difference(found, self.config)) is not None:
            raise RunError(f"{self.directory}: holds a run of another configuration ({difference}): choose another directory")
        elif not resume:
            raise RunError(f"{self.directory}: holds this run already: resume it, or choose another directory")
        for left in [*self.directory.glob(f"{TEMPORARY}*"), *self.directory.glob(f"{TASKS}/{TEMPORARY}*")]:
            left.unlink(missing_ok=True)
        if found is None:
            import yaml

            text = yaml.safe_dump(self.config, sort_keys=False, default_flow_style=False, allow_unicode=True)
            write_atomically(self.directory / CONFIG, text.encode())
        return found is not None

    def _writing(self) -> int:
        if self._events is None:
            raise RunError(f"{self.directory}: this run was opened for reading, or closed: Run.create(..., resume=True) goes on with it")
        return self._events

    def _task(self, key: str, ending: str) -> Path:
        if not KEY.fullmatch(key):
            raise RunError(f"{key!r} cannot be the key of a task: letters, digits and . _ + - only, 128 at most, a letter or digit first")
        return self.directory / TASKS / f"{key}{ending}"


def environment(seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Facts that decide what a run computes: versions, machine, command line, seeds. Nothing that names the machine or its user."""
    from importlib.metadata import version

    from retain.lm.devices import machine_facts

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    facts = machine_facts()
    return {"retain": version("retain"), **facts, "seeds": [int(seed) for seed in seeds], "command": command_line(sys.argv), "started": now}


def command_line(arguments: Sequence[str]) -> str:
    """The command line as others can repeat it: the program by name, paths under the current or the home directory from there."""
    program, *rest = arguments or [""]
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = Path(program).name == "__main__.py" and spec is not None
    start = f"python -m {spec.parent}" if module and spec is not None else Path(program).name
    return " ".join([start, *(word if re.fullmatch(r"[\w@%+=:,./~-]+", word) else shlex.quote(word) for word in map(_portable, rest))])


def _portable(word: str) -> str:
    """An argument whose absolute path, if it is one, starts at the current directory or at ~; of others only the name is left."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = Path(value)
    if not path.is_absolute():
        return word
    for base, start in ((Path.cwd(), ""), (Path.home(), "~/")):
        if base != Path(base.anchor) and path.is_relative_to(base):
            return f"{option}{equals}{start}{path.relative_to(base).as_posix()}"
    return f"{option}{equals}{path.name}"


def _plain(value: Any, where: str, finite: bool = True) -> Any:
    """A value in the types of JSON. Arrays and tensors become lists; with `finite` what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", finite) for index, item in enumerate(value)]
    if isinstance(value, float) and type(value) is float:
        return value if math.isfinite(value) or not finite else None
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist(), where, finite)
    raise RunError(f"{where}: a {type(value).__name__} cannot be written to a run: numbers, texts, lists and dictionaries can")


def _restored(value: Any, in_list: bool = False) -> Any:
    """Inverse of `_plain`: a null in a list is NaN."""
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, True) for item in value]
    return math.nan if value is None and in_list else value


def _difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first place where two plain values differ, in words; None when they are the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            dotted = f"{name}.{key}" if name else key
            if key not in here or key not in there:
                return f"{dotted}: only {'there' if key in there else 'here'}"
            if (found := _difference(there[key], here[key], dotted)) is not None:
                return found
        return None
    first, second = json.dumps(there), json.dumps(here)  # as text: 1 is not true here, and nan is nan
    return None if first == second else f"{name}: {_short(first)} there, {_short(second)} here"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _config_of(directory: Path) -> dict[str, Any] | None:
    """The configuration that a directory holds; None where there is none."""
    import yaml

    path = directory / CONFIG
    if not path.is_file():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{path}: not the configuration of a run: restore the file, or choose another directory")
    return found


def _object(data: bytes) -> dict[str, Any]:
    value = _restored(json.loads(data))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file."""
    try:
        return _object(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise RunError(f"{path}: not a JSON object: the file was changed by something else") from None


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"
