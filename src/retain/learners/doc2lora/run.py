"""Training a hypernetwork from settings: what would be done, doing it, going on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.adapters import Adapter
from retain.data.errors import DataError
from retain.learners.base import LearnerError
from retain.learners.doc2lora.files import description_of, fill, read_tensors, save_network, write_tensors, write_text
from retain.learners.doc2lora.measures import Quiz, measure
from retain.learners.doc2lora.settings import HypernetworkSettings
from retain.learners.doc2lora.sources import Source, World, held_out, invented_sources, invented_subject, read_sources
from retain.learners.doc2lora.trainer import Progress, State, Trainer, Watch
from retain.learners.skills import shipped_skill
from retain.lm.loading import load_model
from retain.lm.model import LanguageModel
from retain.training.loop import TrainingError

CHECKPOINT, NETWORK, METRICS = "checkpoint.safetensors", "hypernetwork.safetensors", "metrics.jsonl"
SAMPLED = 64  # texts whose tokens are counted for a plan


@dataclass(frozen=True)
class Plan:
    """What would be trained: ``parameters`` of the network; ``texts`` to train on and ``held_out``; ``questions`` to train on; ``tokens``
    that go through the base in the training, about; ``steps``; ``memory_bytes`` of base, network and optimizer, without activations."""

    model: str
    mode: str
    parameters: int
    texts: int
    held_out: int
    questions: int
    tokens: int
    steps: int
    memory_bytes: int
    out: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """A finished training: the ``network``'s file, ``steps``, ``seconds``, ``tokens``, the last ``loss`` and what was ``measured``."""

    network: str
    steps: int
    seconds: float
    tokens: int
    loss: float
    measured: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Run:
    """One training of a hypernetwork: its data, its trainer and its directory. ``world``: makes documents up, for training without a file
    and for needles; ``control``: texts for the perplexity."""

    def __init__(
        self, settings: HypernetworkSettings, model: LanguageModel | None = None, *, world: World = invented_subject,
        control: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.settings, self.world, self.control = settings, world, list(control)[: settings.evaluation.control]
        self.sources, self.unseen = load_data(settings, world)
        self.model = model or load_model(settings.model, precision=settings.precision)
        skill = shipped_skill(self.model) if settings.skill else None
        self.frozen: tuple[Adapter, ...] = (skill,) if skill else ()
        self.trainer = Trainer(settings, self.model, self.sources, self.frozen)

    def plan(self) -> Plan:
        """What would be done."""
        network, t = self.trainer.network, self.settings.training
        sample = self.sources[:SAMPLED]

        def size(text: str) -> int:
            return len(self.model.tokenizer(text, add_special_tokens=False).input_ids)

        a_text = sum(size(source.text) for source in sample) / len(sample)
        asked = [size(f"{asked.question} {asked.answer or ''}") for source in sample for asked in source.questions]
        in_step = t.batch * (a_text + min(t.questions, len(asked) / len(sample)) * sum(asked) / len(asked))
        base = sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in self.model.parameters().values()}.values())
        return Plan(
            self.model.name, self.settings.mode, network.parameter_count, len(self.sources), len(self.unseen),
            sum(len(source.questions) for source in self.sources), round(t.steps * in_step), t.steps,
            base + 16 * network.parameter_count, str(self.settings.out),
        )  # fmt: skip

    def train(self, watch: Watch | None = None, resume: bool = False) -> Trained:
        """Train, measure, and write the network. With ``resume`` it goes on from the directory's checkpoint.

        Raises LearnerError (nothing to resume, or a run of other settings is there), TrainingError, DataError.
        """
        settings, trainer = self.settings, self.trainer
        if resume:
            self._load()
        elif (settings.out / CHECKPOINT).exists():
            raise LearnerError(f"{settings.out} holds a training already: resume it, or choose another directory (out)")
        every, steps, last = settings.evaluation.every, settings.training.steps, self._last_measured()
        while trainer.state.step < steps:
            stops = [step for step in (settings.training.save_every, every) if step]
            trainer.run(min([steps, *((trainer.state.step // stop + 1) * stop for stop in stops)]), watch)
            if trainer.state.step == steps or (every and trainer.state.step % every == 0):
                last = self._measure(watch)
            self._save()
        if trainer.network.silent:
            raise TrainingError("training changed nothing: the adapters of the network still have no effect")
        return self._finish(last or self._measure(watch))

    def _finish(self, measured: dict[str, Any]) -> Trained:
        state, path = self.trainer.state, self.settings.out / NETWORK
        told = [row for row in state.history if "loss" in row]
        trained = {
            "steps": state.step, "tokens": state.tokens, "texts": len(self.sources), "seconds": round(state.seconds, 1),
            "settings": self._settings(), "data": self._data_digest(), "skill": [adapter.digest for adapter in self.frozen],
            "measured": measured,
        }  # fmt: skip
        save_network(self.trainer.network, path, trained)
        return Trained(str(path), state.step, state.seconds, state.tokens, told[-1]["loss"] if told else float("nan"), measured)

    def _measure(self, watch: Watch | None) -> dict[str, Any]:
        """Measure on held-out texts, keep it in the history and tell it."""
        trainer, state, e = self.trainer, self.trainer.state, self.settings.evaluation
        quizzes = [quiz for source in self.unseen[: e.texts] if (quiz := self._quiz(source)).pairs]
        if not quizzes:
            raise DataError("no held-out question has an answer to measure by", path=self.settings.data.held_out or "")
        found = measure(trainer.network, self.model, quizzes, e, frozen=self.frozen, world=self.world, control=self.control)
        state.history.append({"step": state.step, "measured": found})
        if watch:
            watch(Progress(state.step, self.settings.training.steps, float("nan"), float("nan"), float("nan"), 0.0, state.tokens,
                           state.seconds, found))  # fmt: skip
        return found

    def _quiz(self, source: Source) -> Quiz:
        """Questions of a held-out text with their right answers: the given ones, else those that the base gives with the text before it."""
        most = self.settings.evaluation.questions
        asked = source.questions[:: max(1, len(source.questions) // most)][:most]
        if all(item.answer for item in asked):
            return Quiz(source, tuple((item.question, item.answer or "") for item in asked))
        lessons = self.trainer.teacher.lessons(replace(source, questions=asked))
        return Quiz(source, tuple((lesson.question, lesson.answer) for lesson in lessons))

    def _last_measured(self) -> dict[str, Any] | None:
        last = self.trainer.state.history[-1:] or [{}]
        return last[0].get("measured")

    def _settings(self) -> dict[str, Any]:
        """The settings that decide what is trained, as JSON values."""
        found = self.settings.model_dump(mode="json", exclude={"out": True, "evaluation": True, "data": True})
        found["training"] = {key: value for key, value in found["training"].items() if key not in ("save_every", "tell_every")}
        return found

    def _data_digest(self) -> str:
        parts = [[source.text, *map(list, source.questions)] for source in self.sources]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    def _save(self) -> None:
        """Write the checkpoint and the metrics."""
        trainer, state, tensors = self.trainer, self.trainer.state, dict[str, Tensor]()
        for name, parameter in trainer.network.named_parameters():
            moments, none = trainer.optimizer.state.get(parameter, {}), torch.zeros_like(parameter)
            pairs = (("network", parameter), ("mean", moments.get("exp_avg", none)), ("square", moments.get("exp_avg_sq", none)))
            for kind, tensor in pairs:
                tensors[f"{kind}.{name}"] = tensor.detach().cpu().contiguous()
        about = {**description_of(trainer.network, {"settings": self._settings(), "data": self._data_digest()}), "state": asdict(state)}
        write_tensors(self.settings.out / CHECKPOINT, tensors, about)
        write_text(self.settings.out / METRICS, "".join(json.dumps(row) + "\n" for row in state.history))

    def _load(self) -> None:
        """Go on from the checkpoint. Raises LearnerError where it is of another run."""
        path, trainer = self.settings.out / CHECKPOINT, self.trainer
        if not path.is_file():
            raise LearnerError(f"{self.settings.out} holds no checkpoint to resume from: start without resuming")
        tensors, about = read_tensors(path)
        self._check_same(about, path)
        fill(trainer.network, _of(tensors, "network"), path)
        means, squares = _of(tensors, "mean"), _of(tensors, "square")
        trainer.state = State(**about["state"])
        for name, parameter in trainer.network.named_parameters():
            trainer.optimizer.state[parameter] = {
                "step": torch.tensor(float(trainer.state.step)),
                "exp_avg": means[name].to(parameter.device),
                "exp_avg_sq": squares[name].to(parameter.device),
            }

    def _check_same(self, about: dict[str, Any], path: Path) -> None:
        now, then = self._settings(), about["trained"]["settings"]
        for key, before, after in _differences(then, now):
            raise LearnerError(f"{path}: the run there was made with {key} {before!r}, not {after!r}: use the same settings to resume it")
        if about["places"]["base"] != self.model.fingerprint:
            raise LearnerError(f"{path}: the run there was made for {about['places']['name']}, another base model than {self.model.name}")
        if about["trained"]["data"] != self._data_digest():
            raise LearnerError(f"{path}: the run there was made with other training data")


def load_data(settings: HypernetworkSettings, world: World = invented_subject) -> tuple[list[Source], list[Source]]:
    """The texts to train on and those held out. Raises DataError."""
    answers, data = settings.training.labels != "own", settings.data
    if data.train is None:
        sources = invented_sources(world, data.invented, settings.training.seed)
    else:
        sources = read_sources(data.train, settings.mode, answers)
    if data.held_out is None:
        return held_out(sources, data.held_out_share, settings.training.seed)
    unseen = read_sources(data.held_out, settings.mode, answers)
    seen = {source.text for source in sources}
    for source in unseen:
        if source.text in seen:
            raise DataError("this text is in the training file too, so nothing would be measured on it", path=source.origin)
    return sources, unseen


def train_hypernetwork(
    settings: HypernetworkSettings, on_progress: Watch | None = None, resume: bool = False, *, model: LanguageModel | None = None,
    world: World = invented_subject, control: Sequence[str] = (),
) -> Trained:  # fmt: skip
    """Train a hypernetwork as the settings say and write it to ``settings.out``; see :class:`Run`."""
    return Run(settings, model, world=world, control=control).train(on_progress, resume)


def _of(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}


def _differences(then: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*then, *now]))
        return [found for name in names for found in _differences(then.get(name), now.get(name), f"{key}.{name}".lstrip("."))]
    return [] if then == now else [(key, then, now)]
