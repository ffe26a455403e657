"""The events of a run, sent to MLflow or TensorBoard as well. Neither is imported before it is asked for.

    Run.create(directory, config, writers=[TensorBoardWriter(directory / "tensorboard"), MLflowWriter("runs/mlflow.db")])

Every number in an event becomes the point EVENT/FIELD at the event's `step`, or at the count of such events so far where it has none.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol


class EventWriter(Protocol):
    """What a run tells its events to."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """The run begins or goes on."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One event: time, event, fields."""

    def close(self) -> None:
        """The run is closed."""


class MissingExtra(RuntimeError):
    """Something that has to be installed first. The message is one line with the command."""


class TensorBoardWriter:
    """Numbers as scalars of TensorBoard, the configuration as text."""

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("TensorBoard is not installed: pip install tensorboard") from None
        self._board = SummaryWriter(str(directory))
        self._points = _Points()

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Show the configuration as a table."""
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in _leaves(config))
        self._board.add_text("config", f"| key | value |\n|---|---|\n{rows}")

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the event's numbers."""
        for key, value, step in self._points.of(record):
            self._board.add_scalar(key, value, step, walltime=_seconds(record))
        if record["event"] == "warning":
            self._board.add_text("warning", str(record.get("message", "")))

    def close(self) -> None:
        """Write what is left."""
        self._board.close()


class MLflowWriter:
    """Numbers as metrics and the configuration as parameters of an MLflow run in a SQLite file."""

    def __init__(self, database: str | Path, experiment: str = "retain") -> None:
        try:
            import sqlalchemy  # noqa: F401 - the store needs it, and says so less clearly
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtra("MLflow is not installed: pip install 'retain[mlflow]'") from None
        self._database = Path(database).absolute()
        self._database.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{self._database}")
        self._experiment, self._run, self._state = experiment, "", "KILLED"
        self._points = _Points()

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Begin an MLflow run of this name; a run that is resumed gets another of the same name."""
        found = self._client.get_experiment_by_name(self._experiment)
        artifacts = (self._database.parent / "mlflow-artifacts").as_uri()
        identity = found.experiment_id if found else self._client.create_experiment(self._experiment, artifact_location=artifacts)
        self._run = self._client.create_run(identity, run_name=name).info.run_id
        for key, value in _leaves(config):
            self._client.log_param(self._run, _allowed(key), str(value)[:6000])

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the event's numbers; the last event decides the run's state."""
        for key, value, step in self._points.of(record):
            self._client.log_metric(self._run, _allowed(key), value, timestamp=round(_seconds(record) * 1000), step=step)
        if record["event"] in ("finished", "interrupted"):
            self._state = "FINISHED" if record["event"] == "finished" else "FAILED"

    def close(self) -> None:
        """End the MLflow run."""
        if self._run:
            self._client.set_terminated(self._run, self._state)


class _Points:
    """Numbers of events, each with its step."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
        """(EVENT/FIELD, value, step) of every finite number in an event, nested ones with dots."""
        name, given = str(record["event"]), record.get("step")
        step = given if isinstance(given, int) and not isinstance(given, bool) else self._seen[name]
        self._seen[name] += 1
        for key, value in _leaves({key: value for key, value in record.items() if key not in ("time", "event", "step")}):
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                yield f"{name}/{key}", float(value), step


def _leaves(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _seconds(record: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(str(record["time"])).timestamp()


def _allowed(key: str) -> str:
    """A name in the characters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key)[:250]
