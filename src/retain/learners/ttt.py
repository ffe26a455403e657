"""Test-time training of a second MLP (TTT-E2E, 2512.23675) whose neurons are gated (sparse memory fine-tuning, 2510.15103).

The document streams through the model in mini-batches of 32 tokens. Each is read with the keys and values of the tokens before it, its loss
is noted, and then one step of plain gradient descent, clipped, moves the MLPs beside the frozen ones of the last quarter of the layers. The
layers below run once per mini-batch, without gradient. A neuron that is general keeps its values bit by bit: its gate is applied to the
update, never to what the MLP computes, and is fixed before the first step. The paper meta-trains the start and throws the result away at
the end of the text; here the start is a zero effect, and the result is kept.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from retain.adapters import Adapter, AdapterError, AdapterSpec, first_layer, inject, inject_trainable
from retain.adapters.dual_mlp import KIND, dual_mlp_sites, new_dual_mlp
from retain.adapters.injection import AdapterInjection
from retain.config import Config
from retain.config.learners import TttConfig
from retain.data.document import Document
from retain.data.examples import Example, text_examples
from retain.learners.base import Aid, Form, Learned, LearnerError, Lesson, Memory, Passage, Tell
from retain.learners.gates import Gates, background, choose, scores
from retain.lm.model import LanguageModel
from retain.lm.streaming import Reading, overlapping
from retain.training.loop import TrainingError
from retain.training.objective import AdapterObjective

KEPT_BYTES = 256 << 20  # states below the trained layers are kept from pass to pass up to this size
RISE = 1.5  # a pass whose loss is this many times the first one's, or above twice that of guessing, is an error

Piece = tuple[int, ...]


class Job(NamedTuple):
    """A mini-batch: its ``loss``, given the blend, its ``tokens``, and whether it is of the ``study`` set."""

    loss: Callable[[float], Tensor]
    tokens: int
    study: bool


class TestTimeTraining:
    """One MLP beside the frozen one in each of the last quarter of the layers, for each document; see docs/learners/ttt.md."""

    name = "ttt"
    form: Form = "document"
    studies = True
    injected = True

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError for a model without gated MLPs."""
        _places(model)

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """Learn a document of any length. Raises LearnerError for a model without gated MLPs, TrainingError when the loss rose or nothing
        changed, DataError for a text of less than two tokens."""
        started = time.perf_counter()
        tokens = document_tokens(model, lesson.document)
        gates = find_gates(model, tokens, config, tell)
        ready = time.perf_counter()
        training = Training(model, gates, config.ttt, lesson.skill)
        done = training.run(tokens, study_of(lesson.examples, config.ttt), lesson.seed, tell, lesson.document.title)
        adapter = training.adapter(lesson.document.id)
        return Learned(adapter, {**done, "training_seconds": time.perf_counter() - ready, "gate_seconds": ready - started,
                                 "open_neurons": gates.share, "bytes": adapter.byte_count})  # fmt: skip

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """Nothing: the adapter is all that helps."""
        return Aid()

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Nothing: no memory is shared."""
        return None


def document_tokens(model: LanguageModel, document: Document) -> Piece:
    """The whole document with its title in front, however long. Raises DataError for a text of less than two tokens."""
    return text_examples(model.tokenizer, f"{document.title}\n\n{document.text}", None, end=False)[0].tokens


def _places(model: LanguageModel) -> tuple[str, ...]:
    """The MLPs that get one beside them. Raises LearnerError for a model without gated MLPs."""
    try:
        return dual_mlp_sites(model)
    except AdapterError as error:
        raise LearnerError(f"{error}; learn with lora instead") from error


def find_gates(model: LanguageModel, tokens: Sequence[int], config: Config, tell: Tell) -> Gates:
    """The neurons that learn; calibrates the base model at its first use. Raises LearnerError for a model without gated MLPs."""
    sites, ttt = _places(model), config.ttt
    known = background(
        model, sites, ttt.calibration_samples, config.model.cache_dir,
        lambda done, total: tell(f"calibrating the gates of {model.name} (once)", done, total, {}),
    )  # fmt: skip
    gates = choose(scores(model, tokens, known), ttt.width, ttt.gate_threshold)
    if not gates.share:
        raise TrainingError(f"no neuron's score reaches {ttt.gate_threshold} of the mean, so that none can learn; lower ttt.gate_threshold")
    return gates


def study_of(examples: Sequence[Example], config: TttConfig) -> list[Example]:
    """The examples to train on; beside the stream, which has the text, those that are text alone are left out."""
    if config.material == "text":
        return []
    return [example for example in examples if config.material == "study" or not is_text(example)]


def is_text(example: Example) -> bool:
    """Whether an example is text to be continued rather than a question."""
    return all(example.supervised[1:])


def blend_at(step: int, steps: int, config: TttConfig) -> float:
    """The blend alpha in a step. "rise": from 0 to alpha over the first half of the steps, so that early steps, whose gradients shrink with
    it, are small; "fall": from twice alpha to alpha over all steps; "constant"."""
    factors = {"constant": 1.0, "rise": min(1.0, 2 * (step + 1) / steps), "fall": 2.0 - (step + 1) / steps}
    return config.alpha * factors[config.schedule]


class Stream:
    """A document as mini-batches in order, each with the causal context of those before it."""

    def __init__(self, model: LanguageModel, tokens: Piece, config: TttConfig, below: int, frozen: AdapterInjection | None) -> None:
        size = min(config.minibatch, max(1, model.context // 4))
        self.model, self.frozen, self.below = model, frozen, below
        self.pieces = overlapping(tokens, size)
        self._new_reading = lambda: Reading(model, max(config.window, 2 * size + 4), size, below)
        self._reading = self._new_reading()
        self._keeps = len(tokens) * model.width * model.dtype.itemsize <= KEPT_BYTES
        self._kept: dict[int, Tensor] = {}

    def loss(self, number: int, injection: AdapterInjection | None) -> Tensor:
        """Mean loss of a mini-batch's tokens; to be asked for in order, from 0 at every pass."""
        if number == 0:
            self._reading = self._new_reading()
        piece, states = self.pieces[number], self._kept.get(number)
        if states is None:
            states = self._reading.lower(piece[:-1], self.frozen)
            if self._keeps and states is not None:
                self._kept[number] = states
        return self._reading.loss(piece, injection, states)


@dataclass
class Pass:
    """Losses of one pass: of the mini-batches of the document and of those of its study set, each before its update."""

    text: list[float]
    study: list[float]
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Mean over all mini-batches."""
        return math.fsum(chain(self.text, self.study)) / (len(self.text) + len(self.study))


class Training:
    """The second MLPs of one document while they are trained; ``params`` by name. ``rate``: the step size, ``ttt.learning_rate`` times the
    square root of the number n of values, so that a clipped step moves a value by about as much in a small MLP as in a large one."""

    def __init__(self, model: LanguageModel, gates: Gates, config: TttConfig, skill: Adapter | None = None) -> None:
        self.model, self.config, self.sites = model, config, tuple(gates.chosen)
        self.width = max(len(chosen) for chosen in gates.chosen.values())
        self.params = new_dual_mlp(model, gates.chosen)
        self._start = {name: tensor.clone() for name, tensor in self.params.items()}
        self._shut: dict[str, Tensor] = {}  # of every tensor, where its entries are masked, in a shape that broadcasts
        for site, gate in gates.open.items():
            self._shut |= {f"{site}.gate": ~gate[:, None], f"{site}.up": ~gate[:, None], f"{site}.down": ~gate[None, :]}
        self.rate = config.learning_rate * math.sqrt(sum(tensor.numel() for tensor in self.params.values()))
        self._frozen = inject([(skill, 1.0)], model.dtype, model.device) if skill else None
        self._skill = [(skill, 1.0)] if skill else []

    def run(self, tokens: Piece, study: Sequence[Example], seed: int, tell: Tell, title: str) -> dict[str, float]:
        """All passes; the certificate's numbers. Raises TrainingError."""
        plan = self._plan(tokens, study, random.Random(seed))
        steps = sum(map(len, plan))
        for tensor in self.params.values():
            tensor.requires_grad_(True)
        passes: list[Pass] = []
        step, started = 0, time.perf_counter()
        for jobs in plan:
            passes.append(Pass([], []))
            for job in jobs:
                loss = self.step(job.loss(blend_at(step, steps, self.config)), title)
                (passes[-1].study if job.study else passes[-1].text).append(loss)
                step += 1
                passes[-1].tokens += job.tokens
                speed = sum(done.tokens for done in passes) / max(time.perf_counter() - started, 1e-9)
                tell(title, step, steps, {"loss": loss, "tokens_per_second": speed})
            if passes[-1].mean > min(RISE * max(passes[0].mean, 1.0), 2 * math.log(self.model.vocabulary)):
                rose = f"the loss rose to {passes[-1].mean:.2f} in pass {len(passes)} (first pass: {passes[0].mean:.2f})"
                raise TrainingError(f"{title}: {rose}; lower ttt.learning_rate")
        return self._report(passes, title)

    def _plan(self, tokens: Piece, study: Sequence[Example], order: random.Random) -> list[list[Job]]:
        """The mini-batches of every pass."""
        text: list[Job] = []
        if self.config.material != "study" or not study:
            stream = Stream(self.model, tokens, self.config, first_layer(self.sites), self._frozen)
            text = [self._text_job(stream, number) for number in range(len(stream.pieces))]
        objective = self._objective(study)
        passes = [mini_batches(study, self.config.minibatch, order) for _ in range(self.config.epochs)]
        return [spread(text, [self._study_job(objective, batch) for batch in batches]) for batches in passes]

    def step(self, loss: Tensor, title: str) -> float:
        """One step of gradient descent, after which masked neurons are what they were; the loss before it. Raises TrainingError."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"{title}: the loss became {value}; lower ttt.learning_rate")
        loss.backward()
        with torch.no_grad():
            torch.nn.utils.clip_grad_norm_(list(self.params.values()), self.config.clip)
            for name, tensor in self.params.items():
                assert tensor.grad is not None
                moved = tensor - self.rate * tensor.grad
                tensor.copy_(torch.where(self._shut[name], tensor, moved))
                tensor.grad = None
        return value

    def adapter(self, document: str) -> Adapter:
        """What was learned, in half precision."""
        spec = AdapterSpec(KIND, self.model.fingerprint, self.sites, self.width, self.config.alpha * self.width,
                           lineage={"task": document, "learner": TestTimeTraining.name})  # fmt: skip
        return Adapter({name: tensor.detach() for name, tensor in self.params.items()}, spec).half()

    def injection(self, blend: float) -> AdapterInjection:
        """The frozen skill and the MLPs being trained."""
        trained = inject_trainable(self.params, self.sites, blend, self.model.dtype, kind=KIND)
        return trained if self._frozen is None else AdapterInjection([*self._frozen.parts, *trained.parts], self.model.dtype)

    def _text_job(self, stream: Stream, number: int) -> Job:
        return Job(lambda blend: stream.loss(number, self.injection(blend)), len(stream.pieces[number]) - 1, False)

    def _study_job(self, objective: AdapterObjective, batch: Sequence[Example]) -> Job:
        def loss(blend: float) -> Tensor:
            objective.scale = blend
            return objective.loss(batch, self.params)

        return Job(loss, sum(map(len, batch)), True)

    def _objective(self, study: Sequence[Example]) -> AdapterObjective:
        """The loss of examples; the states of all of them below the trained layers are made at once where they can be kept."""
        size = sum(map(len, study)) * self.model.width * self.model.dtype.itemsize
        objective = AdapterObjective(self.model, self.sites, self.config.alpha, self._skill, kind=KIND, cache_prefix=size <= KEPT_BYTES)
        objective.prepare(study)
        return objective

    def _report(self, passes: Sequence[Pass], title: str) -> dict[str, float]:
        kept = {name: tensor.detach().half() for name, tensor in self.params.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in kept.values()):
            raise TrainingError(f"{title}: values grew beyond what float16 holds; lower ttt.learning_rate")
        if not any(bool(tensor.any()) for name, tensor in kept.items() if name.endswith(".down")):
            raise TrainingError(f"{title}: training changed nothing that is kept; raise ttt.learning_rate")
        change = math.sqrt(sum(float((tensor.detach() - self._start[name]).square().sum()) for name, tensor in self.params.items()))
        report = {
            "steps": sum(len(done.text) + len(done.study) for done in passes), "tokens": sum(done.tokens for done in passes),
            "first_loss": passes[0].mean, "last_loss": passes[-1].mean, "parameter_change": change,
        }  # fmt: skip
        if passes[0].text:
            report["score_first_nll"] = math.fsum(passes[0].text) / len(passes[0].text)
        return report


def mini_batches(examples: Sequence[Example], tokens: int, order: random.Random) -> list[list[Example]]:
    """The examples in a new order, whole, in batches of at most ``tokens`` tokens or of one."""
    shuffled = order.sample(list(examples), len(examples))
    batches: list[list[Example]] = []
    room = 0
    for example in shuffled:
        if not batches or len(example) > room:
            batches.append([])
            room = tokens
        batches[-1].append(example)
        room -= len(example)
    return batches


def spread(text: Sequence[Job], study: Sequence[Job]) -> list[Job]:
    """One stream of both, each in its order, evenly mixed."""
    places = [((number + 0.5) / len(jobs), job) for jobs in (text, study) for number, job in enumerate(jobs)]
    return [job for _, job in sorted(places, key=lambda place: place[0])]
