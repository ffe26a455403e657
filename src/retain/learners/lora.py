"""The default learner: one low-rank adapter per document, trained on its study set, with the study skill frozen underneath."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from retain.adapters import Adapter, AdapterError, AdapterSpec, new_lora, select_sites
from retain.config import Config, LearnConfig
from retain.config.settings import place_of
from retain.data.examples import Example
from retain.learners.base import LearnerError
from retain.lm.model import LanguageModel
from retain.retention.base import Retention, Task
from retain.retention.consolidation import consolidate
from retain.training.loop import Progress, TrainingReport, TrainingSettings, train
from retain.training.objective import AdapterObjective

ALL = "all-linear"
PREFIX_BYTES = 1 << 30  # hidden states below the first trained layer are kept up to this size; many documents at once have more


@dataclass(frozen=True)
class Candidate:
    """A trained adapter that nobody uses yet, what its training did, and what its retention methods remember of it, by method."""

    adapter: Adapter
    report: TrainingReport
    memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def settings_of(config: LearnConfig) -> TrainingSettings:
    """Training settings from the configuration."""
    return TrainingSettings(
        learning_rate=config.learning_rate, epochs=config.epochs, batch_tokens=config.batch_tokens, warmup=config.warmup,
        weight_decay=config.weight_decay, clip=config.clip, seed=config.seed,
    )  # fmt: skip


def sites_of(model: LanguageModel, config: LearnConfig) -> tuple[str, ...]:
    """The places of an adapter in the model, from the configuration."""
    return select_sites(model, config.layers, ALL if ALL in config.targets else config.targets)


def check_layers(model: LanguageModel, config: Config) -> None:
    """Raise LearnerError, with where it was set, when learn.layers counts more layers than the model has."""
    wanted = config.learn.layers
    if isinstance(wanted, int) and wanted > model.layers:
        raise LearnerError(f"{place_of(config, 'learn.layers')}: learn.layers: {model.name} has {model.layers} layers, not {wanted}")


def check_sites(model: LanguageModel, config: Config) -> None:
    """Raise LearnerError, with where it was set, unless the model has the layers of learn.layers and in them each of learn.targets."""
    check_layers(model, config)
    for target in config.learn.targets or [""]:
        try:
            select_sites(model, config.learn.layers, target)
        except AdapterError as error:
            raise LearnerError(f"{place_of(config, 'learn.targets')}: learn.targets: {error}") from None


def train_adapter(
    model: LanguageModel, name: str, examples: Sequence[Example], config: LearnConfig, *, skill: Adapter | None = None,
    retention: Sequence[Retention] = (), start: Mapping[str, Tensor] | None = None, lineage: Mapping[str, Any] | None = None,
    on_step: Callable[[Progress], None] | None = None, refresh: bool = False,
) -> Candidate:  # fmt: skip
    """Train a LoRA adapter on examples; ``start`` goes on from existing float32 tensors instead of fresh ones.

    The adapter is stored in half precision; the candidate is what will be stored, so that what is checked is what is committed.
    Retention methods that go on from task to task (EWC, replay, DER++ ...) are told of
    the finished task, and with ``refresh`` measure anew what they remember. Raises TrainingError (see :func:`retain.training.loop.train`).
    """
    sites = sites_of(model, config)
    params = (
        {name: start[name].float().clone() for name in sorted(start)}  # one order, kept in memory or read: sums depend on it
        if start
        else new_lora(model, sites, config.rank, config.alpha, config.seed)
    )
    prefix = sum(len(example.tokens) for example in examples) * model.width * model.dtype.itemsize
    objective = AdapterObjective(
        model, sites, config.alpha / config.rank, [(skill, 1.0)] if skill else [], cache_prefix=prefix <= PREFIX_BYTES
    )
    task = Task(name, examples, objective)
    report = train(task, params, settings_of(config), retention, on_step)
    for method in retention:
        method.after_task(task, params)
    if refresh:
        consolidate(retention, objective, params)
    spec = AdapterSpec("lora", model.fingerprint, sites, config.rank, config.alpha, lineage={"task": name, **(lineage or {})})
    return Candidate(Adapter(params, spec).half(), replace(report), {method.name: method.state_dict() for method in retention})
