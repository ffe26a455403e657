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
        self._stored: Stored = (torch.zeros(0, k, dtype=torch.float16), torch.zeros(0, k, dtype=torch.int32), torch.zeros(0))
        self._places: dict[Key, range] = {}  # where each example's are

    def before_task(self, task: Task, params: Params) -> None:
        self.buffer.hide(task.examples, task.id)

    def consult(self, n: int) -> list[Example]:
        return self.buffer.sample(n)

    def loss(self, batch: Batch, params: Params) -> Tensor | None:
        if batch.logits is None:
            return None
        term = self.alpha * self._distance(batch.logits, list(batch.consulted))
        if self.beta:
            term = term + self.beta * F.cross_entropy(batch.logits, labels_of(batch.consulted, batch.logits.device))
        return term

    def after_task(self, task: Task, params: Params) -> None:
        self.buffer.add(task.examples, task.id)
        self.buffer.hide(())
        self._keep()
        self._store([example for example in self.buffer.items if key_of(example) not in self._places], task.objective, params)

    def remembered(self) -> list[Example]:
        return list(self.buffer.items)

    def refresh(self, objective: Objective, examples: Sequence[Example], params: Params) -> None:
        """Take the logits of everything stored anew from the model as it is."""
        self._places = {}
        self._keep()
        self._store(self.buffer.items, objective, params)

    def remove(self, document: str) -> int:
        """Forget a document: take its examples and their logits out; returns how many there were."""
        removed = self.buffer.remove(document)
        self._keep()
        return removed

    @property
    def bytes(self) -> int:
        """Memory that the stored logits take."""
        return sum(part.nbytes for part in self._stored)

    def _keep(self) -> None:
        """Drop the logits of examples that the buffer does not hold any more."""
        kept = [example for example in self.buffer.items if key_of(example) in self._places]
        rows = torch.tensor(self._rows(kept), dtype=torch.int64)
        self._stored = tuple(column[rows.to(column.device)] for column in self._stored)  # type: ignore[assignment]
        self._place(kept)

    def _place(self, examples: list[Example]) -> None:
        """The stored logits are those of these examples, in this order."""
        first, self._places = 0, {}
        for example in examples:
            size = example.n_supervised()
            self._places[key_of(example)] = range(first, first + size)
            first += size

    def stored(self, example: Example) -> Stored:
        """What is kept of one example: log-probabilities and ids of its k likeliest tokens [n, k], and the logs of the sums [n]."""
        rows = list(self._places[key_of(example)])
        logs, tokens, sums = self._stored
        return logs[rows], tokens[rows], sums[rows]

    def _rows(self, examples: list[Example]) -> list[int]:
        return [row for example in examples for row in self._places[key_of(example)]]

    @torch.no_grad()
    def _store(self, examples: list[Example], objective: Objective, params: Params) -> None:
        there = [example for example in self.buffer.items if key_of(example) in self._places]
        columns: list[list[Tensor]] = [[column] for column in self._stored]
        for numbers in by_tokens(examples, 2048):
            chosen = [examples[number] for number in numbers]
            logits, _ = objective.logits(chosen, params)
            top = logits.topk(min(self.k, logits.shape[1]), -1)
            if self.k >= logits.shape[1]:  # all of them, in their order
                top = torch.return_types.topk((logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)))
            sums = logits.logsumexp(-1)
            if not there:  # a vocabulary may be smaller than k
                columns = [[part[:, : top.values.shape[1]] if part.ndim == 2 else part for part in column] for column in columns]
            fresh = ((top.values - sums[:, None]).to(torch.float16), top.indices.to(torch.int32), sums.float())
            for column, part in zip(columns, fresh, strict=True):
                column.append(part.cpu())
            there += chosen
        self._stored = tuple(torch.cat(column) for column in columns)  # type: ignore[assignment]
        self._place(there)

    def _distance(self, logits: Tensor, memory: list[Example]) -> Tensor:
        rows = torch.tensor(self._rows(memory))
        logs, tokens, sums = (column[rows].to(logits.device) for column in self._stored)
        here = logits if tokens.shape == logits.shape else logits.gather(1, tokens.long())
        if self.distance == "mse":
            return F.mse_loss(here, logs.float() + sums[:, None])
        then = logs.float()
        now = here - logits.logsumexp(-1, keepdim=True)
        inside = (then.exp() * (then - now)).sum(1)
        rest_then, rest_now = _rest(then), _rest(now)
        return (inside + rest_then * (rest_then.log() - rest_now.log())).mean()

    def state_dict(self) -> dict[str, Any]:
        rows = torch.tensor(self._rows(self.buffer.items), dtype=torch.int64)
        names = ("stored/logs", "stored/tokens", "stored/sums")
        return self.buffer.state_dict() | {name: column[rows] for name, column in zip(names, self._stored, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)
        count = sum(example.n_supervised() for example in self.buffer.items)
        self._stored = (state["stored/logs"], state["stored/tokens"], state["stored/sums"])
        if len(self._stored[0]) != count:
            raise RetentionError(f"{len(self._stored[0])} stored logits for {count} positions: the saved state is damaged")
        self._place(list(self.buffer.items))


def _rest(logs: Tensor) -> Tensor:
    """Probability of everything but the listed outcomes."""
    return (1.0 - logs.exp().sum(1)).clamp_min(1e-6)
