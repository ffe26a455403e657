"""The default learner: one low-rank adapter per document, trained on its study set, with the study skill frozen underneath."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.config import LearnConfig
from retain.data.examples import Example
from retain.lm.model import LanguageModel
from retain.retention.base import Retention, Task
from retain.retention.consolidation import consolidate
from retain.training.loop import Progress, TrainingReport, TrainingSettings, train
from retain.training.objective import AdapterObjective

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
    return select_sites(model, config.layers, config.targets[0] if len(config.targets) == 1 else config.targets)


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
        {name: tensor.float().clone() for name, tensor in start.items()}
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
