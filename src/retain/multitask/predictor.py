"""Answers from a saved model: the same network, heads, thresholds and scales as in training."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retain.config import ConfigError
from retain.config.schema import ModelConfig
from retain.data.errors import DataError, did_you_mean
from retain.lm.devices import choose_device
from retain.multitask.adapting import adapt
from retain.multitask.assembly import network_of
from retain.multitask.backbones.base import BACKBONES
from retain.multitask.config import ExperimentConfig
from retain.multitask.files import read_json, read_tensors
from retain.multitask.loading import parse_experiment
from retain.multitask.network import MultitaskNetwork
from retain.multitask.quantising import place_quantised
from retain.multitask.records import Row, check_columns, read_rows, rows_of
from retain.multitask.scoring import scores
from retain.multitask.tasks.base import TASKS, Task

MODEL, MANIFEST, WEIGHTS = "model", "model.json", "weights.safetensors"
FORMAT = 1
TOGETHER = 32  # batches of records that are read into memory, answered and written together


class Predictor:
    """A saved model. Attributes: ``config``; ``results`` of the training; ``network``; ``tasks``, the names of the tasks."""

    def __init__(self, config: ExperimentConfig, network: MultitaskNetwork, manifest: Mapping[str, Any], device: torch.device) -> None:
        self.config, self.network, self.device = config, network, device
        self.results: dict[str, Any] = manifest["results"]
        self.precision: torch.dtype = getattr(torch, manifest["precision"])

    @classmethod
    def load(cls, run: Path | str, device: str = "auto") -> Predictor:
        """The model of a finished run, by the run's directory or the folder ``model`` in it. Raises DataError and ConfigError."""
        place = Path(run).expanduser()
        folder = place / MODEL if (place / MODEL / MANIFEST).is_file() else place
        if not (folder / MANIFEST).is_file():
            begun = any(place.glob("checkpoint-*"))
            fix = "the training was interrupted: go on with retain train ... --resume" if begun else "it is what retain train leaves"
            raise DataError("holds no finished model", path=place, fix=fix)
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise DataError(f"is of format {manifest.get('format')}, and this retain reads {FORMAT}", path=folder / MANIFEST)
        config = parse_experiment(manifest["experiment"], folder, str(folder / MANIFEST))
        tasks = [TASKS.find(task.kind, "tasks").__call__(name, task) for name, task in config.tasks.items()]
        for task in tasks:
            task.restore(manifest["tasks"][task.name])
        where = choose_device(ModelConfig.model_validate({"device": device}))
        place_quantised(config.backbone, where)
        with torch.random.fork_rng(devices=[]):
            backbone = BACKBONES.find(config.backbone.kind, "backbone.kind").restore(config.backbone, manifest["backbone"], folder)
            backbone.prepare({need for task in tasks for need in task.needs})
            adapt(backbone, config.backbone, 0, config.adapters)
            network = network_of(config, backbone, tasks)
        network.load(read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
        return cls(config, network.to(where).eval(), manifest, where)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.network.tasks)

    def predict(
        self, records: Iterable[Mapping[str, Any] | str], tasks: Sequence[str] | None = None, tell: Callable[[int, int], None] | None = None
    ) -> list[dict[str, Any]]:
        """For each record the answers of all tasks, or of those named, by task. A text stands for a record with that text alone.

        ``tell(done, all)`` hears of progress. Raises DataError with the position of a record that lacks what the backbone reads.
        """
        column = getattr(self.config.backbone, "input", ["text"])[0]
        return self.answers(rows_of(records, column), tasks, tell)

    def answers(
        self, rows: Sequence[Row], tasks: Sequence[str] | None = None, tell: Callable[[int, int], None] | None = None
    ) -> list[dict[str, Any]]:
        """The same for records that know where they stand."""
        found: list[dict[str, Any]] = [{} for _ in rows]
        chosen = self._chosen(tasks)
        for number, task in enumerate(chosen):

            def said(done: int, records: int, before: int = number) -> None:
                if tell is not None:
                    tell((before * records + done) // len(chosen), records)

            check_columns(rows, task.inputs(self.network.backbone))
            raws = [task.raw(row, self.network.backbone) for row in rows]
            encoded = task.encode(self.network.backbone, raws)
            results, _ = scores(self.network, task, encoded, self.config.training.batch, self.device, self.precision, tell=said)
            for answers, result, row, raw in zip(found, results, rows, raws, strict=True):
                answers[task.name] = task.predict(result, row, raw)
        return found

    def predict_file(
        self, source: Path | str, out: Path | str, tasks: Sequence[str] | None = None, tell: Callable[[int, int], None] | None = None
    ) -> int:
        """Answer the records of a file: one JSON line each with the record's own fields and, under ``predictions``, the answers. The file
        ``out`` is there in full or not at all. Returns how many records there were."""
        rows, target = read_rows(Path(source).expanduser()), Path(out).expanduser()
        size = self.config.training.batch * TOGETHER
        temporary = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                for first in range(0, len(rows), size):
                    part = rows[first : first + size]

                    def said(done: int, _: int, before: int = first) -> None:
                        if tell is not None:
                            tell(before + done, len(rows))

                    for row, answers in zip(part, self.answers(part, tasks, said), strict=True):
                        file.write(json.dumps({**row.values, "predictions": answers}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return len(rows)

    def evaluate(self, rows: Sequence[Row] | Path | str, task: str | None = None) -> dict[str, float | None]:
        """The metrics of a task (the only one, unless named) on labelled records, with the thresholds of the training.

        On the training's own validation or test records these are the figures that it reported. Raises DataError for a record
        without label.
        """
        if task is None and len(self.tasks) > 1:
            raise ConfigError(f"there are several tasks: name one of {', '.join(self.tasks)}")
        chosen = self._chosen([task] if task is not None else None)[0]
        found = read_rows(Path(rows).expanduser()) if isinstance(rows, str | Path) else rows
        truths = [chosen.truth(row) for row in found]
        for row, truth in zip(found, truths, strict=True):
            if truth is None:
                raise row.error("has no label", chosen.columns()[0])
        check_columns(found, [*chosen.columns(), *chosen.inputs(self.network.backbone)])
        raws = [chosen.raw(row, self.network.backbone) for row in found]
        encoded = chosen.encode(self.network.backbone, raws)
        targets = chosen.targets(self.network.backbone, truths, encoded)
        size = self.config.training.batch
        results, loss = scores(self.network, chosen, encoded, size, self.device, self.precision, targets)
        return {"loss": loss, **chosen.metrics(results, truths)}

    def _chosen(self, names: Sequence[str] | None) -> list[Task]:
        for name in names or ():
            if name not in self.network.tasks:
                raise ConfigError(f"there is no task {name!r}: {did_you_mean(name, self.tasks) or 'there is ' + ', '.join(self.tasks)}")
        return [self.network.tasks[name] for name in names or self.tasks]
