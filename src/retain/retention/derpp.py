"""Dark experience replay for language models: earlier examples with the logits that the model had when it learned them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.data.examples import Example
from retain.retention.base import Batch, Objective, Params, Retention, Task
from retain.retention.buffer import ReplayBuffer, Strategy
from retain.retention.positions import Key, by_tokens, key_of, labels_of
from retain.retention.registry import RetentionError, method

Distance = Literal["kl", "mse"]
# log-probabilities [N, k] float16 (most exact where the probability is), token ids [N, k] int32, log of the sum of exponentials [N] float32
Stored = tuple[Tensor, Tensor, Tensor]


@method(
    "derpp", paper="2004.07211", kind="rehearsal", summary="replays stored examples with their labels and their stored top-k logits",
    build=lambda config, resources: DarkReplay(config.derpp.alpha, config.derpp.beta, seed=resources.seed),
)  # fmt: skip
class DarkReplay(Retention):
    """DER++ (Buzzega et al., 2004.07211, equation 6): alpha * distance(stored logits, logits) + beta * CE(labels) on the memory.

    For a language model the stored logits are the ``k`` largest at every supervised position of the stored tokens (there is no
    augmentation, so the view that is stored is the view that is replayed), taken at the end of the task. ``distance`` "kl": the KL
    divergence over k + 1 outcomes, the k tokens with their true probabilities and all others together, so it is 0 only when those agree
    and never pulls the others down; "mse": the paper's squared difference of the k logits, mean over them.

    One sample of the memory (as many examples as the batch has new ones) serves both terms: the paper draws two, which costs a second pass.
    Nothing is replayed before a first task has been kept.
    """

    def __init__(
        self, alpha: float = 0.5, beta: float = 0.5, *, k: int = 16, distance: Distance = "kl", capacity: int = 2000,
        strategy: Strategy = "reservoir", seed: int = 0,
    ) -> None:  # fmt: skip
        self.alpha, self.beta, self.k, self.distance = alpha, beta, k, distance
        self.buffer = ReplayBuffer(capacity, strategy, seed)
        self._stored: dict[Key, Stored] = {}

    def before_task(self, task: Task, params: Params) -> None:
        self.buffer.hide(task.examples, task.id)

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        memory = self.buffer.sample(len(batch.new))
        if not memory:
            return None
        logits, _ = batch.objective.logits(memory, params)
        term = self.alpha * self._distance(logits, [self._stored[key_of(example)] for example in memory])
        if self.beta:
            term = term + self.beta * F.cross_entropy(logits, labels_of(memory, logits.device))
        return term

    def after_task(self, task: Task, params: Params) -> None:
        self.buffer.add(task.examples, task.id)
        self.buffer.hide(())
        kept = {key_of(example) for example in self.buffer.items}
        self._stored = {key: stored for key, stored in self._stored.items() if key in kept}
        self._store([example for example in self.buffer.items if key_of(example) not in self._stored], task.objective, params)

    def remembered(self) -> list[Example]:
        return list(self.buffer.items)

    def refresh(self, objective: Objective, examples: Sequence[Example], params: Params) -> None:
        """Take the logits of everything stored anew from the model as it is."""
        self._store(self.buffer.items, objective, params)

    def remove(self, document: str) -> int:
        """Forget a document: take its examples and their logits out; returns how many there were."""
        removed = self.buffer.remove(document)
        kept = {key_of(example) for example in self.buffer.items}
        self._stored = {key: stored for key, stored in self._stored.items() if key in kept}
        return removed

    @property
    def bytes(self) -> int:
        """Memory that the stored logits take."""
        return sum(part.nbytes for stored in self._stored.values() for part in stored)

    @torch.no_grad()
    def _store(self, examples: list[Example], objective: Objective, params: Params) -> None:
        for numbers in by_tokens(examples, 2048):
            chosen = [examples[number] for number in numbers]
            logits, _ = objective.logits(chosen, params)
            top = logits.topk(min(self.k, logits.shape[1]), -1)
            sums = logits.logsumexp(-1)
            columns = ((top.values - sums[:, None]).to(torch.float16), top.indices.to(torch.int32), sums)
            counts = [sum(example.supervised) for example in chosen]
            # clones: a piece of a split keeps the storage of the whole batch alive
            for example, *parts in zip(chosen, *(column.cpu().split(counts) for column in columns), strict=True):
                self._stored[key_of(example)] = (parts[0].clone(), parts[1].clone(), parts[2].clone())

    def _distance(self, logits: Tensor, stored: list[Stored]) -> Tensor:
        logs, tokens, sums = (torch.cat(list(column)).to(logits.device) for column in zip(*stored, strict=True))
        here = logits.gather(1, tokens.long())
        if self.distance == "mse":
            return F.mse_loss(here, logs.float() + sums[:, None])
        then = logs.float()
        now = here - logits.logsumexp(-1, keepdim=True)
        inside = (then.exp() * (then - now)).sum(1)
        rest_then, rest_now = _rest(then), _rest(now)
        return (inside + rest_then * (rest_then.log() - rest_now.log())).mean()

    def state_dict(self) -> dict[str, Any]:
        state = self.buffer.state_dict()
        stored = [self._stored[key_of(example)] for example in self.buffer.items]
        names = ("stored/logs", "stored/tokens", "stored/sums")
        columns = [torch.cat(list(column)) for column in zip(*stored, strict=True)] if stored else [torch.zeros(0)] * 3
        return state | {name: column.clone() for name, column in zip(names, columns, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)
        counts = [sum(example.supervised) for example in self.buffer.items]
        columns = [state[name] for name in ("stored/logs", "stored/tokens", "stored/sums")]
        if len(columns[0]) != sum(counts):
            raise RetentionError(f"{len(columns[0])} stored logits for {sum(counts)} positions: the saved state is damaged")
        parts = [column.split(counts) for column in columns] if counts else [(), (), ()]
        self._stored = {
            key_of(example): (logs.clone(), tokens.clone(), sums.clone())
            for example, logs, tokens, sums in zip(self.buffer.items, *parts, strict=True)
        }


def _rest(logs: Tensor) -> Tensor:
    """Probability of everything but the listed outcomes."""
    return (1.0 - logs.exp().sum(1)).clamp_min(1e-6)
