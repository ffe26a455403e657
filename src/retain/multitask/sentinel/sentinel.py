"""The sentinel: every check on every batch that is learned, what is suspected, and what is done about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retain.config import ConfigError
from retain.multitask.assembly import Experiment
from retain.multitask.config import Check, SentinelConfig
from retain.multitask.conflicts import Seen
from retain.multitask.files import named, under
from retain.multitask.sampling import Batch
from retain.multitask.sentinel.flips import Margins, margins_of
from retain.multitask.sentinel.gradients import GradientNorms
from retain.multitask.sentinel.outliers import LatestValues
from retain.multitask.sentinel.perturbation import unsteady
from retain.multitask.sentinel.triggers import Trigger, patterns_of, triggers
from retain.multitask.tasks.heads import Heads
from retain.training.loop import TrainingError

SUSPECTS = "suspects.jsonl"
CHECKS: tuple[Check, ...] = ("loss", "gradient", "flips", "triggers", "perturbation")


@dataclass(frozen=True)
class Suspect:
    """A training record that a check suspects. ``record``: its number among the task's training records; ``file`` and ``line``: where it
    stands; ``score``: what the check measured; ``reason``: the same in words; ``action``: what was done; ``phase`` and ``step``: when."""

    task: str
    record: int
    file: str
    line: int
    check: Check
    score: float
    reason: str
    action: str
    phase: int
    step: int


class Sentinel:
    """Looks at the records while they are learned. What a task has no use for is not looked at: flips, triggers and perturbation need
    labels of a list (:class:`retain.multitask.tasks.heads.Heads`), triggers need tokens or columns too."""

    def __init__(self, experiment: Experiment, config: SentinelConfig, directory: Path) -> None:
        self.experiment, self.config, self.directory = experiment, config, directory
        self.suspects: list[Suspect] = []
        self.phase = self.step = 0
        self._out: dict[str, set[int]] = {task.name: set() for task in experiment.tasks}  # records that are left out
        self._known: set[tuple[str, int, str]] = set()
        self._searched: set[str] = set()  # tasks whose records were searched for triggers
        self._labels: dict[str, list[tuple[int, ...]]] = {}
        self._latest: dict[tuple[str, str], LatestValues] = {}
        self._margins: dict[str, Margins] = {}
        self._norms: GradientNorms | None = None
        self._seen: list[tuple[str, list[int], float]] = []  # batches of the step, or pieces of them, and their share
        self._judged: list[tuple[str, int, Check, float, str]] = []  # task, record, check, score, reason
        wrong = [name for name in config.actions if getattr(config, name) is None]
        if wrong:
            raise ConfigError(f"sentinel.actions.{wrong[0]}: the check is not made: give sentinel.{wrong[0]} a value")

    def begin(self, phase: int, tasks: Sequence[str], step: int) -> None:
        """A phase begins, or goes on after a step: search the records of its tasks for triggers, once, and act on what is found."""
        self.phase, self.step = phase, step
        if not self.suspects and phase == step == 0:
            (self.directory / SUSPECTS).unlink(missing_ok=True)  # of a training that was stopped before its first checkpoint
        if self._norms is not None:
            self._norms.close()
        self._norms = GradientNorms(self.experiment.network) if self.config.gradient is not None else None
        for name in tasks:
            part, task = self.experiment.parts[name]["train"], self.experiment.task(name)
            self._labels[name] = [task.labels(target) for target in part.targets]
            self._margins.setdefault(name, Margins(len(part)))
            if self.config.triggers is not None and name not in self._searched and isinstance(task, Heads):
                self._search(name, task, self.config.triggers)
            self._searched.add(name)
        self._act()

    def left(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches without records that are left out, and without batches of which nothing is left."""
        found = [(name, [number for number in numbers if number not in self._out[name]]) for name, numbers in batches]
        return [(name, numbers) for name, numbers in found if numbers]

    def dropped(self, name: str) -> set[int]:
        """Numbers of a task's training records that are left out."""
        return self._out[name]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the batches of a step inside the block."""
        self.step += 1
        self._seen, self._judged = [], []
        if self._norms is not None:
            self._norms.watch(True)
        try:
            yield
        finally:
            if self._norms is not None:
                self._norms.watch(False)

    @torch.no_grad()
    def look(self, seen: Seen, loss: Tensor) -> Tensor:
        """A batch after its pass through the network; its loss stays as it is."""
        self._seen.append((seen.task, seen.numbers, seen.share))
        if self._norms is not None:
            self._norms.batch = len(self._seen)
        task = self.experiment.task(seen.task)
        logits, known = task.logits({name: value.detach() for name, value in seen.outputs.items()}, seen.targets)
        flat = logits[known].float()
        labels = torch.tensor([label for number in seen.numbers for label in self._labels[seen.task][number]], device=flat.device)
        if self.config.loss is not None:
            self._outliers(seen.task, seen.numbers, "loss", _by_record(flat, labels, known), self.config.loss)
        margins = self._margins[seen.task]
        if isinstance(task, Heads):
            margins.add(seen.numbers, margins_of(flat, labels, known))
            if self.config.flips is not None:
                self._flips(seen, margins)
            if self.config.perturbation is not None:
                self._perturbed(seen, margins.visits[seen.numbers] == self.config.visits)
        return loss

    def judge(self) -> bool:
        """After the backward pass of a step: judge the gradients, then act. Whether records of this step are left out from here on. Raises
        TrainingError where the action is to halt."""
        if self._norms is not None and self.config.gradient is not None:
            for batch, (name, numbers, share) in enumerate(self._seen):
                norms = self._norms.norms(batch, len(numbers)) / share
                if len(norms):
                    self._outliers(name, numbers, "gradient", norms, self.config.gradient)
        return self._act()

    def _outliers(self, name: str, numbers: Sequence[int], check: Check, values: Tensor, limit: float) -> None:
        latest = self._latest.setdefault((name, check), LatestValues(self.config.window))
        what = "loss" if check == "loss" else "gradient norm"
        for number, value, score in zip(numbers, values.tolist(), latest.scores(values).tolist(), strict=True):
            if score >= limit:
                self._judged.append((name, number, check, score, f"{what} {value:.3g}, {score:.3g} robust deviations above the median"))

    def _flips(self, seen: Seen, margins: Margins) -> None:
        for number, mean in zip(seen.numbers, margins.means(seen.numbers).tolist(), strict=True):
            visits = int(margins.visits[number])
            if visits >= self.config.visits and -mean >= (self.config.flips or 0.0):
                reason = f"another label is likelier by {-mean:.2f} in the mean over {visits} visits"
                self._judged.append((seen.task, number, "flips", -mean, reason))

    def _perturbed(self, seen: Seen, due: Tensor) -> None:
        rows = due.nonzero()[:, 0]
        if not len(rows):
            return
        shares = unsteady(self.experiment, seen, rows.to(self.experiment.device), self.config.noise, self.config.copies)
        for row, share in zip(rows.tolist(), shares.tolist(), strict=True):
            if share >= (self.config.perturbation or 0.0):
                reason = f"{share:.0%} of {self.config.copies} slightly changed copies are decided otherwise"
                self._judged.append((seen.task, seen.numbers[row], "perturbation", share, reason))

    def _search(self, name: str, task: Heads, share: float) -> None:
        part = self.experiment.parts[name]["train"]
        patterns = patterns_of(part.inputs)
        if patterns is None:
            return
        for head in task.heads:
            truths = [truth[head.name] for truth in part.truths]
            if head.multi:  # each label is a question of its own, of which the answer yes can be planted
                answers = [[-1 if t is None else int(place in t) for t in truths] for place in range(len(head.labels))]
                asked = [(np.array(column), {1: label}) for column, label in zip(answers, head.labels, strict=True)]
            else:
                asked = [(np.array([-1 if t is None else t[0] for t in truths]), dict(enumerate(head.labels)))]
            for labels, planted in asked:
                for found in triggers(patterns, labels, share, self.config.rare):
                    if found.label in planted:
                        what = f"{self._shown(found)} comes {found.share:.0%} with {planted[found.label]!r}"
                        reason = f"{what}, and the rest of {found.against:.0%} of such records says otherwise"
                        self._judged += [(name, number, "triggers", found.digits, reason) for number in found.records]

    def _shown(self, found: Trigger) -> str:
        """A pattern as a person reads it."""
        backbone: Any = self.experiment.network.backbone
        features = getattr(backbone, "features", None)
        if features is not None:
            column = next(column for column, own in zip(features.columns, features.slices, strict=True) if own.stop > found.parts[0])
            return f"the column {column.name!r} at {found.parts[1]:.4g} (scaled)"
        ids = [int(part) for part in found.parts]
        tokenizer = getattr(backbone, "tokenizer", None)
        return repr(tokenizer.decode(ids)) if tokenizer is not None else f"tokens {ids}"

    def _act(self) -> bool:
        """Write down what was judged, and do what is to be done. Whether a record is left out that was not before."""
        judged, self._judged = self._judged, []
        halted: Suspect | None = None
        new = []
        for name, number, check, score, reason in judged:
            if (name, number, check) in self._known:
                continue
            self._known.add((name, number, check))
            row = self.experiment.parts[name]["train"].rows[number]
            action = self.config.actions.get(check, self.config.action)
            new.append(Suspect(name, number, row.path, row.line, check, min(score, 1e30), reason, action, self.phase, self.step))
            halted = halted or (new[-1] if action == "halt" else None)
        self.suspects += new
        if new:
            self._write(new)
        before = sum(map(len, self._out.values()))
        for suspect in new:
            if suspect.action == "drop":
                self._out[suspect.task].add(suspect.record)
        for name, out in self._out.items():
            records = len(self.experiment.parts[name]["train"])
            if len(out) > self.config.most * records:
                raise TrainingError(
                    f"sentinel: task {name}: {len(out)} of {records} training records would be left out, more than sentinel.most: "
                    f"look at {self.directory / SUSPECTS}"
                )
        if halted is not None:
            where = f"{halted.file}, line {halted.line}"
            raise TrainingError(f"sentinel: task {halted.task}: {where}: {halted.reason}; halted before it was learned")
        return sum(map(len, self._out.values())) > before

    def _write(self, new: Sequence[Suspect]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / SUSPECTS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(suspect), ensure_ascii=False) + "\n" for suspect in new)

    def summary(self) -> dict[str, Any]:
        """How many records each check suspects, and how many are left out of training, by task."""
        counts = {name: {check: 0 for check in CHECKS if getattr(self.config, check) is not None} for name in self._out}
        for suspect in self.suspects:
            counts[suspect.task][suspect.check] += 1
        return {name: {"suspects": found, "left_out": len(self._out[name])} for name, found in counts.items()}

    def state(self) -> dict[str, Any]:
        """JSON values that a resumed training needs, beside :meth:`tensors`."""
        return {"suspects": [asdict(suspect) for suspect in self.suspects], "searched": sorted(self._searched)}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a resumed training needs."""
        found: dict[str, Tensor] = {}
        for (name, check), latest in self._latest.items():
            found |= named(f"latest/{name}/{check}", latest.tensors())
        for name, margins in self._margins.items():
            found |= named(f"margins/{name}", margins.tensors())
        return found

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Inverse of both, before :meth:`begin`. The file of suspects is written anew: an interrupted training may have found more."""
        self.suspects = [Suspect(**values) for values in state["suspects"]]
        self._searched = set(state["searched"])
        self._known = {(suspect.task, suspect.record, suspect.check) for suspect in self.suspects}
        for suspect in self.suspects:
            if suspect.action == "drop":
                self._out[suspect.task].add(suspect.record)
        (self.directory / SUSPECTS).unlink(missing_ok=True)
        if self.suspects:
            self._write(self.suspects)
        for key in {key.rpartition("/")[0] for key in tensors}:
            group, name, *check = key.split("/")
            if group == "margins":
                self._margins[name] = Margins(0)
                self._margins[name].load(under(key, tensors))
            else:
                self._latest[name, check[0]] = LatestValues(self.config.window)
                self._latest[name, check[0]].load(under(key, tensors))


def _by_record(flat: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy [B] over a record's positions; 0 for a record without any."""
    losses = F.cross_entropy(flat, labels, reduction="none")
    rows = known.nonzero()[:, 0]
    sums = torch.zeros(len(known), device=flat.device).index_add_(0, rows, losses)
    return sums / known.sum(1).clamp(min=1)
