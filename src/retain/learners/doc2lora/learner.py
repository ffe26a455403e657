"""The learner doc2lora: a document becomes an adapter in one forward pass for each of its chunks, without any training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retain.adapters import Adapter
from retain.config import Config
from retain.data.document import Document
from retain.learners.base import Aid, Form, Learned, LearnerError, Lesson, Memory, Passage, Tell
from retain.learners.doc2lora.files import WEIGHTS, load_network
from retain.learners.doc2lora.hypernetwork import Hypernetwork
from retain.learners.doc2lora.reading import chunk_tokens, layer_states
from retain.learners.doc2lora.trainer import mixed
from retain.lm.model import LanguageModel


class Doc2Lora:
    """See :class:`retain.learners.base.Learner`. It reads ``document.text`` below its title."""

    name = "doc2lora"
    form: Form = "document"
    studies = False
    injected = True

    def __init__(self) -> None:
        self._loaded: tuple[tuple[Any, ...], Hypernetwork, dict[str, Any]] | None = None

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError where there is no trained hypernetwork that reads documents for the model."""
        network, _ = self.network(model, config)
        if network.config.mode != "document":
            raise LearnerError(f"{weights_path(model, config)}: this hypernetwork reads descriptions of tasks, not documents")

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """The adapter of a document. Raises LearnerError where there is no trained hypernetwork for the model."""
        began = time.perf_counter()
        self.check(model, config)
        network, trained = self.network(model, config)
        tokens = chunk_tokens(model, network.config, text_of(lesson.document))
        about = {"learner": self.name, "task": lesson.document.id, "steps": trained.get("steps")}
        adapter = write_adapter(network, model, tokens, about, lambda number: tell("reading", number, len(tokens), {})).half()
        skill = [lesson.skill.digest] if lesson.skill else []
        cost = {
            "training_seconds": time.perf_counter() - began, "tokens": sum(map(len, tokens)), "steps": 0, "chunks": len(tokens),
            "rank": adapter.spec.rank, "hypernetwork_parameters": network.parameter_count,
            "skill_as_trained": trained.get("skill", skill) == skill,
        }  # fmt: skip
        return Learned(adapter, cost)

    def network(self, model: LanguageModel, config: Config) -> tuple[Hypernetwork, dict[str, Any]]:
        """The trained network for a model and how it was trained; read once and kept. Raises LearnerError."""
        path = weights_path(model, config)
        stat = path.stat() if path.is_file() else None
        key = (path, stat.st_mtime_ns, stat.st_size, model.device) if stat else (path,)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = (key, *load_network(path, model.device))
        network, trained = self._loaded[1:]
        check_base(network, model, path)
        network.mixed = mixed(model)
        return network, trained

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """Nothing: its memories are adapters."""
        return Aid()

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Every document has a memory of its own, so nothing is left."""
        return None


def describe_adapter(network: Hypernetwork, model: LanguageModel, description: str) -> Adapter:
    """The adapter of a task's description, by a network that was trained in text mode. Raises LearnerError."""
    check_base(network, model, "the network")
    if network.config.mode != "text":
        raise LearnerError("this hypernetwork reads documents, not descriptions of tasks: train one with mode: text")
    return write_adapter(network, model, chunk_tokens(model, network.config, description), {"description": description})


@torch.no_grad()
def write_adapter(
    network: Hypernetwork, model: LanguageModel, chunks: Sequence[Sequence[int]], about: Mapping[str, Any],
    tell: Callable[[int], None] = lambda number: None,
) -> Adapter:  # fmt: skip
    """The adapter of a text in chunks of tokens, one forward pass for each, with the network's bias as its last ``rank`` rows."""
    parts = []
    for number, chunk in enumerate(chunks, 1):
        parts.append(network(*layer_states(model, [chunk], network.places.layers)))
        tell(number)
    tensors, rank = network.tensors(*parts, network.bias), network.config.rank
    spec = network.spec(rank * (len(parts) + 1), {**about, "chunks": len(parts), "bias_rank": rank})
    return Adapter({name: tensor.contiguous() for name, tensor in tensors.items()}, spec)


def weights_path(model: LanguageModel, config: Config) -> Path:
    """The file of the hypernetwork for a model: the configured one, else the one that comes with retain. Raises LearnerError."""
    if config.doc2lora.weights is not None:
        return Path(config.doc2lora.weights).expanduser()
    shipped = WEIGHTS / f"doc2lora-{model.fingerprint[:12]}.safetensors"
    if not shipped.exists():
        raise LearnerError(
            f"no trained hypernetwork comes with retain for {model.name}: train one (retain train-hypernetwork), set doc2lora.weights to it"
        )
    return shipped


def check_base(network: Hypernetwork, model: LanguageModel, path: Path | str) -> None:
    """Raise LearnerError where a network was made for another base model."""
    places = network.places
    if places.base != model.fingerprint:
        made, here = f"{places.name} ({places.base[:12]})", f"{model.name} ({model.fingerprint[:12]})"
        raise LearnerError(f"{path}: this hypernetwork was made for {made}, the model here is {here}: train or name one for it")


def text_of(document: Document) -> str:
    """What is read of a document: its text, below its title where the text does not begin with it."""
    return document.text if document.text.lstrip("# \n").startswith(document.title) else f"{document.title}\n\n{document.text}"
