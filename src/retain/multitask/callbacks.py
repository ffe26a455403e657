"""What may look on and stop a training: callbacks by name, each with settings, a state that is saved, and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from retain.config.section import Count, NonNegative, Positive, Section
from retain.multitask.registry import Registry


@dataclass
class Progress:
    """Where a training stands. ``phase`` counts from 0; ``step`` and ``steps`` are of the phase; ``losses``: the tasks of the latest
    step; ``value``: the latest of what the best step is chosen by (higher is better), ``best`` the best so far, ``best_loss`` the
    validation loss there; ``evaluation``: the latest metrics, by task; ``seconds`` since the training began, with those before an
    interruption."""

    phase: int = 0
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    rate: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    value: float | None = None
    best: float | None = None
    best_loss: float = 0.0
    best_step: int = 0
    evaluation: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0


class Callback:
    """Base of all callbacks; every hook does nothing. A hook that gives a text ends the phase, and the text is the reason. The state of a
    callback that is registered is saved with a checkpoint, by its name."""

    kind: ClassVar[str] = ""
    Config: ClassVar[type[Section]] = Section

    def __init__(self, settings: Section) -> None:
        self.settings = settings

    def on_phase(self, at: Progress) -> None:
        """A phase begins."""

    def on_step(self, at: Progress) -> str | None:
        """An optimizer step was made."""

    def on_evaluation(self, at: Progress) -> str | None:
        """The validation records were measured."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values that a resumed training needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


CALLBACKS: Registry[Callback] = Registry("callback")


class EarlyStoppingConfig(Section):
    """When to give up."""

    patience: Count = Field(3, description="Evaluations without improvement after which a phase ends")
    least: NonNegative = Field(0.0, description="Smallest rise that counts as an improvement")


@CALLBACKS.register("early-stopping")
class EarlyStopping(Callback):
    """Ends a phase when what the best step is chosen by has not improved for a while."""

    Config = EarlyStoppingConfig

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        self.best: float | None = None
        self.waited = 0

    def on_phase(self, at: Progress) -> None:
        self.best, self.waited = None, 0

    def on_evaluation(self, at: Progress) -> str | None:
        assert isinstance(self.settings, EarlyStoppingConfig) and at.value is not None
        if self.best is None or at.value > self.best + self.settings.least:
            self.best, self.waited = at.value, 0
            return None
        self.waited += 1
        return f"no improvement in {self.waited} evaluations" if self.waited >= self.settings.patience else None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], int(state["waited"])


class TimeLimitConfig(Section):
    """How long a training may take."""

    minutes: Positive = Field(description="Minutes after which a phase ends")


@CALLBACKS.register("time-limit")
class TimeLimit(Callback):
    """Ends a training that takes too long; what is best by then is kept."""

    Config = TimeLimitConfig

    def on_step(self, at: Progress) -> str | None:
        assert isinstance(self.settings, TimeLimitConfig)
        return f"{self.settings.minutes:g} minutes have passed" if at.seconds >= 60 * self.settings.minutes else None
