"""Experience replay: examples of earlier tasks are trained beside the new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.data.examples import Example
from retain.retention.base import Objective, Params, Retention, Task
from retain.retention.buffer import ReplayBuffer, Strategy
from retain.retention.positions import example_losses
from retain.retention.registry import RetentionError, method


@method(
    "replay", paper="1902.10486", kind="rehearsal", summary="trains stored examples of earlier tasks beside the new ones",
    build=lambda config, resources: Replay(
        config.replay.capacity, config.replay.strategy, config.replay.fraction, seed=resources.seed
    ),
)  # fmt: skip
class Replay(Retention):
    """Experience replay (Chaudhry et al., 1902.10486, algorithm 1) from a :class:`ReplayBuffer`.

    A step of n new examples gets n * fraction / (1 - fraction) stored ones: n at the default of one half. The loop adds the mean loss of
    the replayed to the mean loss of the new ones (two means, not the mean over both, which would halve the rate of the new).

    A task's examples are offered to the buffer when it has been kept, so a task that is rolled back leaves nothing, and new data is never
    replayed to itself: what the buffer holds of the running task, from an earlier visit, is not drawn until it ends.
    """

    def __init__(self, capacity: int = 10_000, strategy: Strategy = "hybrid", fraction: float = 0.5, seed: int = 0) -> None:
        if not 0.0 <= fraction < 1.0:
            raise RetentionError(f"replay.fraction is {fraction}: it must be at least 0 and below 1, so that new examples are learned too")
        self.buffer = ReplayBuffer(capacity, strategy, seed)
        self.fraction = fraction

    def before_task(self, task: Task, params: Params) -> None:
        self.buffer.hide(task.examples, task.id)

    def replay(self, n: int) -> list[Example]:
        return self.buffer.sample(round(n * self.fraction / (1.0 - self.fraction)))

    def after_task(self, task: Task, params: Params) -> None:
        scored = self.buffer.strategy in ("importance", "hybrid")
        self.buffer.add(task.examples, task.id, example_losses(task.objective, task.examples, params) if scored else None)
        self.buffer.hide(())

    def remembered(self) -> list[Example]:
        return list(self.buffer.items)

    def refresh(self, objective: Objective, examples: Sequence[Example], params: Params) -> None:
        """Measure the losses of all stored examples again, so that the rubric's "high loss" is today's."""
        if len(self.buffer):
            self.buffer.rescore(example_losses(objective, self.buffer.items, params))

    def remove(self, document: str) -> int:
        """Forget a document: take its examples out; returns how many there were."""
        return self.buffer.remove(document)

    def state_dict(self) -> dict[str, Any]:
        return self.buffer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)
