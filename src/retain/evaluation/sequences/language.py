"""Sequences of language tasks: questions from files, learned by one adapter that goes on, or by a new adapter for each task."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from retain.adapters import Adapter, AdapterSpec, inject_trainable, new_lora
from retain.adapters.adapter import LORA_A, LORA_B
from retain.data.answers import contains
from retain.data.errors import DataError
from retain.data.examples import Example
from retain.data.tasks import LanguageTask, TaskItem
from retain.evaluation.probes import answer_questions
from retain.evaluation.qa import choice_scores
from retain.evaluation.sequences.ways import OnStep, State, steps_of
from retain.lm.model import LanguageModel
from retain.retention import OrthogonalLora
from retain.retention.base import Params, Task
from retain.retention.positions import example_losses
from retain.training.loop import TrainingReport, TrainingSettings, train
from retain.training.objective import AdapterObjective


class AdapterSequence:
    """A frozen language model with a LoRA adapter at ``sites`` on tasks of questions; the loss is on the answers alone.

    A task's score is the share of held-out questions answered right: multiple choice by likelihood, others by whether the greedy answer
    contains the expected one. With ``measure`` "learned" the questions that were learned are asked instead, for tasks of facts, none of
    which follows from the others.
    """

    def __init__(
        self, model: LanguageModel, tasks: Sequence[LanguageTask], sites: Sequence[str], *, rank: int = 16, alpha: float = 32.0,
        dropout: float = 0.0, seed: int = 0, max_tokens: int = 24, name: str = "language",
        measure: Literal["held-out", "learned"] = "held-out",
    ) -> None:  # fmt: skip
        self.model, self.sites, self.rank, self.alpha, self.seed, self.max_tokens = model, tuple(sites), rank, alpha, seed, max_tokens
        self.name, self.tasks, self.base = name, [task.name for task in tasks], model.fingerprint
        self.dropout = dropout
        self.objective = AdapterObjective(model, self.sites, self.scale)
        self.examples = [_examples(task.train, task.name, model) for task in tasks]
        self.items = [task.train if measure == "learned" else task.test for task in tasks]
        self.held_out = self.examples if measure == "learned" else [_examples(task.test, task.name, model) for task in tasks]
        self.notes = [
            f"{task.name}: {task.left_out} questions were left out, which are nearly the same as held-out ones"
            for task in tasks
            if task.left_out
        ]
        kinds = {item.choice is not None for items in self.items for item in items}
        self.score_name = "accuracy" if kinds == {True} else "recall" if kinds == {False} else "score"

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def start(self) -> Params:
        return new_lora(self.model, self.sites, self.rank, self.alpha, self.seed)

    def task(self, number: int) -> Task:
        return Task(self.tasks[number], self.examples[number], self._objective(number))

    def joint(self, number: int) -> Task:
        examples = [example for part in self.examples[: number + 1] for example in part]
        return Task(f"up to {self.tasks[number]}", examples, self._objective(number))

    def _objective(self, number: int) -> AdapterObjective:
        """With dropout an objective of its own, so that a task draws the same whether or not a run was interrupted before it."""
        if not self.dropout:
            return self.objective
        return AdapterObjective(self.model, self.sites, self.scale, dropout=self.dropout, seed=1000 * self.seed + number)

    def score(self, number: int, params: Params) -> float:
        injection = inject_trainable(params, self.sites, self.scale, self.model.dtype)
        right: list[bool] = []
        items = self.items[number]
        for letters in (True, False):
            choices = [item.choice for item in items if item.choice is not None and item.letters == letters]
            scores = choice_scores(self.model, choices, injection, score="letters" if letters else "options") if choices else []
            right += [row.index(max(row)) == choice.correct for row, choice in zip(scores, choices, strict=True)]
        asked = [item for item in items if item.choice is None]
        answers = answer_questions(self.model, [item.question for item in asked], injection, max_tokens=self.max_tokens) if asked else []
        right += [contains(text, item.answers) for text, item in zip(answers, asked, strict=True)]
        return sum(right) / len(right)

    def loss(self, number: int, params: Params) -> float:
        return float(example_losses(self.objective, self.held_out[number], params).mean())

    def asked(self, number: int) -> int:
        return len(self.items[number])

    def chance(self, number: int) -> float | None:
        shares = [1 / len(item.choice.options) if item.choice is not None else 0.0 for item in self.items[number]]
        return math.fsum(shares) / len(shares) if any(shares) else None

    def identity(self) -> str:
        rows = [(example.tokens, example.supervised) for part in (*self.examples, *self.held_out) for example in part]
        return hashlib.sha256(repr((self.model.fingerprint, self.tasks, rows)).encode()).hexdigest()

    def shown(self, number: int, place: int) -> str:
        example = self.examples[number][min(place, len(self.examples[number]) - 1)]
        parts: dict[bool, list[int]] = {False: [], True: []}
        for token, learned in zip(example.tokens, example.supervised, strict=True):
            parts[learned].append(token)
        prompt, answer = (self.model.tokenizer.decode(parts[learned]) for learned in (False, True))
        return f"{prompt.strip()} → {answer.strip()}"


class StackedAdapters:
    """O-LoRA (2310.14152): every task gets an adapter of its own, in directions that earlier ones do not use; all of them stay active."""

    knows_task = False

    def __init__(self, sequence: AdapterSequence, settings: TrainingSettings, weight: float) -> None:
        self.sequence, self.settings, self.weight = sequence, settings, weight
        self.adapters: list[Params] = []

    def learn(self, number: int, on_step: OnStep | None = None) -> TrainingReport:
        here = self.sequence
        fresh = new_lora(here.model, here.sites, here.rank, here.alpha, here.seed + number)
        spec = AdapterSpec("lora", here.model.fingerprint, here.sites, here.rank, here.alpha)
        frozen = [(Adapter(tensors, spec), 1.0) for tensors in self.adapters]
        objective = AdapterObjective(here.model, here.sites, here.scale, frozen)
        method = OrthogonalLora(self.adapters, self.weight)
        report = train(Task(here.tasks[number], here.examples[number], objective), fresh, self.settings, [method], on_step)
        self.adapters.append(fresh)
        return report

    def steps(self, number: int) -> int:
        return steps_of(len(self.sequence.examples[number]), self.settings)

    @property
    def params(self) -> Params:
        """All adapters as one of the sum of their ranks, which is exact."""
        return stacked(self.adapters) if self.adapters else self.sequence.start()

    def score(self, number: int) -> float:
        return self.sequence.score(number, self.params)

    def loss(self, number: int) -> float:
        return self.sequence.loss(number, self.params)

    def state_dict(self) -> State:
        return {f"{place}/{name}": tensor for place, tensors in enumerate(self.adapters) for name, tensor in tensors.items()}

    def load_state_dict(self, state: State) -> None:
        self.adapters = _by_place(state)

    @property
    def values(self) -> int:
        return sum(tensor.numel() for tensors in self.adapters for tensor in tensors.values())

    @property
    def memory_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.adapters[:-1] for tensor in tensors.values())


def stacked(adapters: Sequence[Mapping[str, Tensor]]) -> Params:
    """Several LoRA adapters of the same sites as one of the sum of their ranks, which is exact."""
    return {
        name: torch.cat([tensors[name] for tensors in adapters], 0 if name.endswith(LORA_A) else 1)
        for name in adapters[0]
        if name.endswith((LORA_A, LORA_B))
    }


def stored_adapter(tensors: Mapping[str, Tensor]) -> Params:
    """The adapter among the tensors that a run keeps of a finished task, see :meth:`Way.state_dict`. Raises DataError."""
    found = {name.removeprefix("params/"): tensor for name, tensor in tensors.items() if name.startswith("params/")}
    if not found:
        found = stacked(_by_place({name: tensor for name, tensor in tensors.items() if name.partition("/")[0].isdigit()}) or [{}])
    if not any(name.endswith(LORA_A) for name in found):
        raise DataError("no adapter was learned there: this is a run of networks on a table")
    return dict(sorted(found.items()))  # safetensors gives them in any order, and sums depend on it


def _by_place(state: Mapping[str, Any]) -> list[Params]:
    """Tensors "0/NAME", "1/NAME" ... as a list."""
    count = 1 + max((int(name.partition("/")[0]) for name in state), default=-1)
    return [{name.partition("/")[2]: tensor for name, tensor in state.items() if name.startswith(f"{place}/")} for place in range(count)]


def _examples(items: Sequence[TaskItem], task: str, model: LanguageModel) -> list[Example]:
    found = [item.example(model.tokenizer, max_tokens=model.context) for item in items]
    if not found:
        raise DataError(f"task {task} has no questions")
    return found
