"""The folder of a run of pre-training or distillation.

run.yaml        what was asked for
log.jsonl       one JSON object a line: steps (every tenth), checks with validation and sample texts
data/           tokenizer and tokens, made once
checkpoints/    step-00000500/ ...: the last two and the best one
model/          what came out: the best checkpoint as a Hugging Face model
results.json    only once the run is finished
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from retain.config import parse_yaml
from retain.config.values import dump_yaml, leaves
from retain.data.durable import TEMPORARY, sync
from retain.pretraining.config import RunConfig
from retain.pretraining.durable import Lines, sweep, whole_folder, write_json
from retain.pretraining.errors import PretrainingError

if TYPE_CHECKING:
    from retain.pretraining.checkpoints import Checkpoints

LOG_EVERY = 10  # steps between two lines of the log
_MAY_DIFFER = ("out", "corpus.paths", "corpus.prompts", "tokenizer.path", "training.threads")  # what they name is compared elsewhere
_NOT_MODEL = ("optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Step:
    """What is told of a step: its number (1 for the first) of ``steps``, the loss, the learning rate, the gradient's norm before clipping,
    tokens learned so far, and over the last steps tokens a second and the seconds that are left at this speed."""

    step: int
    steps: int
    loss: float
    rate: float
    norm: float
    tokens: int
    speed: float
    left: float


@dataclass(frozen=True)
class Watch:
    """Who is told: of the stages of preparation with a count, of steps, of checks."""

    stage: Callable[[str, int], None] = lambda stage, count: None
    step: Callable[[Step], None] = lambda step: None
    check: Callable[[dict[str, Any]], None] = lambda record: None


SILENT = Watch()


class RunFolder:
    """One writer's hold on the folder of a run. It must be new, or empty, or hold what ``--dry-run`` prepared; with ``resume`` it may hold
    a run of the same configuration.

    Attributes: ``place``; ``log``. Raises PretrainingError.
    """

    def __init__(self, place: Path, config: RunConfig, resume: bool = False, watch: Watch = SILENT) -> None:
        self.place, self.watch = place, watch
        self._losses: list[float] = []
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PretrainingError(f"{place}: cannot be made: {error.strerror}; choose another with --out") from error
        self._lock = FileLock(place / "run.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise PretrainingError(f"{place}: another process is writing to this run: wait for it, or choose another with --out") from None
        try:
            self._take(config.model_dump(mode="json"), resume)
            sweep(place)
            self.log = Lines(place / "log.jsonl")
        except BaseException:
            self._lock.release()
            raise

    def _take(self, config: dict[str, Any], resume: bool) -> None:
        file, begun = self.place / "run.yaml", (self.place / "log.jsonl").exists()
        if not file.exists():
            foreign = sorted(path.name for path in self.place.iterdir() if path.name != "run.lock" and not path.name.startswith(TEMPORARY))
            if foreign:
                raise PretrainingError(f"{self.place}: there are other files here ({foreign[0]}): choose another with --out")
        elif begun:
            difference = _difference(parse_yaml(file.read_text(encoding="utf-8")), config)
            if difference:
                raise PretrainingError(f"{self.place}: holds a run of another configuration ({difference}): choose another with --out")
            if not resume:
                raise PretrainingError(f"{self.place}: holds this run already: --resume goes on with it, --out makes another")
        if not begun:
            file.write_text(dump_yaml(config), encoding="utf-8")
            sync(file)

    def begin(self, step: int) -> None:
        """Training begins after so many steps: what was logged later was lost with the interruption."""
        if step:
            self.log.keep(lambda record: record["step"] <= step)
        else:
            self.log.keep(lambda record: False)

    def step(self, step: Step) -> None:
        """Tell of a step, and log every tenth, the first and the last, with the mean loss since the line before (or the check, so that the
        log of a resumed run is that of a straight one)."""
        self.watch.step(step)
        self._losses.append(step.loss)
        if step.step % LOG_EVERY == 0 or step.step in (1, step.steps):
            kept = {name: value for name, value in asdict(step).items() if name not in ("steps", "left")}
            self.log.append({"event": "step", **kept, "loss": sum(self._losses) / len(self._losses)})
            self._losses.clear()

    def check(self, record: dict[str, Any]) -> None:
        """Tell of a check and log it."""
        self.watch.check(record)
        self._losses.clear()
        self.log.append({"event": "check", **record}, durable=True)

    def finish(self, checkpoints: Checkpoints, results: Mapping[str, Any]) -> dict[str, Any]:
        """Put the best checkpoint's model (the last one's where nothing was held out) into model/, and write the results."""
        chosen = checkpoints.best() or checkpoints.all()[-1]
        with whole_folder(self.place / "model") as scratch:
            shutil.copytree(chosen, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_MODEL))
        found = {**results, "model": str(self.place / "model"), "model_step": int(chosen.name.removeprefix("step-"))}
        self.record(found)
        return found

    def record(self, results: Mapping[str, Any]) -> None:
        """Write the results: the run is finished."""
        write_json(self.place / "results.json", dict(results))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first key in which two configurations differ, with both values; "" when they are the same."""
    for key in dict.fromkeys([*leaves(known), *leaves(wanted)]):
        first, second = _at(known, key), _at(wanted, key)
        if first != second and key not in _MAY_DIFFER:
            return f"{key}: {first!r} there, {second!r} here"
    return ""


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
