"""Methods of an experiment by the names that papers give them, joined with + where several act together."""

from __future__ import annotations

from collections.abc import Callable

from retain.data.errors import DataError, did_you_mean
from retain.evaluation.sequences.config import MethodsConfig
from retain.evaluation.sequences.language import AdapterSequence, StackedAdapters
from retain.evaluation.sequences.sequence import NetworkSequence, TaskSequence
from retain.evaluation.sequences.ways import Joint, PackNet, Progressive, Sequential, Way
from retain.retention import EWC, L2, AveragedGem, DarkReplay, Distillation, OrthogonalGradient, Replay, Retention
from retain.training.loop import TrainingSettings

_ALIASES = {"er": "replay", "der": "der++", "derpp": "der++", "lwf": "kl", "a-gem": "agem", "olora": "o-lora", "fine-tuning": "naive"}
_RETENTION: dict[str, Callable[[MethodsConfig, int], Retention]] = {
    "replay": lambda c, seed: Replay(c.memory, c.strategy, seed=seed),
    "der++": lambda c, seed: DarkReplay(
        c.derpp_alpha, c.derpp_beta, distance=c.derpp_distance, capacity=c.memory, strategy=c.strategy, seed=seed
    ),
    "ewc": lambda c, seed: EWC(c.ewc_lambda, form=c.ewc_form, labels=c.ewc_labels, samples=2000, seed=seed),
    "l2": lambda c, seed: L2(c.l2),
    "agem": lambda c, seed: AveragedGem(c.agem_examples, capacity=c.memory, seed=seed),
    "ogd": lambda c, seed: OrthogonalGradient(seed=seed),
    "kl": lambda c, seed: Distillation((), c.kl, 0.0),
}
_NETWORKS: dict[str, Callable[[NetworkSequence, TrainingSettings], Way]] = {"packnet": PackNet, "progressive": Progressive}
METHODS = ("naive", *_RETENTION, "o-lora", *_NETWORKS, "joint")


def parts_of(name: str) -> list[str]:
    """The methods that a name such as "er+kl" joins. Raises DataError for a name that is not known, with a suggestion."""
    joined = name.strip().lower().replace("der++", "derpp")
    parts = [_ALIASES.get(part, part) for part in joined.split("+")]
    for part in parts:
        if part not in METHODS:
            hint = did_you_mean(part, [*METHODS, *_ALIASES]) or f"there are {', '.join(METHODS)}"
            raise DataError(f"there is no method {part!r}: {hint}")
    alone = [part for part in parts if part not in _RETENTION]
    if len(parts) > 1 and (alone or len(set(parts)) < len(parts)):
        raise DataError(f"{name!r}: {alone[0] if alone else parts[0]} cannot be joined with another method like this")
    if "kl" in parts and "replay" not in parts:
        raise DataError(f"{name!r}: kl needs examples of earlier tasks to compare on: er+kl")
    return parts


def build_way(name: str, sequence: TaskSequence, settings: TrainingSettings, config: MethodsConfig, seed: int) -> Way:
    """The named way to learn a sequence. Raises DataError for a method that this kind of model cannot use."""
    parts = parts_of(name)
    if parts == ["joint"]:
        return Joint(sequence, settings)
    if parts[0] in _NETWORKS:
        if not isinstance(sequence, NetworkSequence):
            raise DataError(f"{parts[0]} needs a network on a table, such as permuted-digits; this is a language model with an adapter")
        return _NETWORKS[parts[0]](sequence, settings)
    if parts == ["o-lora"]:
        if not isinstance(sequence, AdapterSequence):
            raise DataError("o-lora needs adapters of a language model; this is a network on a table")
        return StackedAdapters(sequence, settings, config.olora)
    return Sequential(sequence, settings, [_RETENTION[part](config, seed) for part in parts if part != "naive"])
