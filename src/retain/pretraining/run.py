"""Pre-training of the own decoder, from a configuration to a model: `retain pretrain`."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retain.data.chat import affixes, tokenise
from retain.lm.decoder import DecoderLM
from retain.lm.generation import Sampling, generate
from retain.lm.loading import Checkpoint
from retain.lm.shapes import DecoderConfig, initial_weights
from retain.pretraining.checkpoints import Checkpoints
from retain.pretraining.config import ChecksConfig, PretrainConfig, TrainConfig
from retain.pretraining.dataset import Dataset, WindowStream, prepare
from retain.pretraining.decoder import NextToken, TrainableDecoder
from retain.pretraining.errors import PretrainingError
from retain.pretraining.folder import SILENT, RunFolder, Watch
from retain.pretraining.loop import Job, Stream, train
from retain.pretraining.optimizer import make_optimizer
from retain.pretraining.processes import Processes, joined


@dataclass(frozen=True)
class Plan:
    """What a run would do. ``seconds`` and ``memory`` (bytes) come from steps that were measured; ``state`` (bytes): weights, gradients
    and moments."""

    parameters: int
    documents: int
    tokens: int
    held_out: int
    steps: int
    step_tokens: int
    state: int
    memory: int
    seconds: float
    device: str
    precision: str
    dropped: Mapping[str, int]


def pretrain(config: PretrainConfig, resume: bool = False, watch: Watch = SILENT) -> dict[str, Any] | None:
    """Pre-train and give the results; None in the other processes of torchrun.

    With ``resume`` the run that is there goes on from its last checkpoint (or begins). Raises DataError, ConfigError, PretrainingError and
    TrainingError, each one line; the first three before any training.
    """
    place = Path(config.out or "runs/pretrain")
    with ExitStack() as stack:
        here = stack.enter_context(joined(config.training))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        folder = stack.enter_context(RunFolder(place, config, resume, watch)) if here.first else None
        dataset = _dataset(config, place, here, watch)
        stream, steps, shape = _planned(config, dataset)
        checkpoints = Checkpoints(place / "checkpoints", {"data": dataset.facts["key"]})
        start = checkpoints.latest() if resume else None
        decoder = build_decoder(shape, dataset.tokenizer, config.seed, here.device, start)
        job = Job(
            NextToken(decoder), stream, steps, config.training, config.seed, config.checks.every,
            save=lambda place, parameters: decoder.save(place, without(parameters, "decoder.")),
            look=lambda parameters: {"samples": samples(decoder.frozen(without(parameters, "decoder.")), config.checks, config.seed)},
        )  # fmt: skip
        last = train(job, here, checkpoints, start, folder)
        if folder is None:
            return None
        return folder.finish(checkpoints, {**last, "parameters": shape.parameter_count, "vocabulary": shape.vocabulary})


def plan(config: PretrainConfig, watch: Watch = SILENT) -> Plan:
    """What :func:`pretrain` would do, with the time of a step measured. The dataset is made if it is not there; the run finds it."""
    place = Path(config.out or "runs/pretrain")
    with joined(config.training) as here, torch.random.fork_rng(devices=[]):
        if here.world > 1:
            raise PretrainingError("--dry-run measures one process: call it without torchrun")
        with RunFolder(place, config, resume=True):
            dataset = _dataset(config, place, here, watch)
        stream, steps, shape = _planned(config, dataset)
        module = NextToken(build_decoder(shape, dataset.tokenizer, config.seed, here.device))
        seconds, memory = measure(module, stream, config.training, here)
        halves = [dataset.facts[half] for half in ("train", "validation") if half in dataset.facts]
        return Plan(
            parameters=shape.parameter_count, documents=sum(half["documents"] for half in halves), tokens=len(dataset.train),
            held_out=sum(half["tokens"] for half in halves[1:]), steps=steps, step_tokens=stream.step_tokens,
            state=16 * shape.parameter_count, memory=memory, seconds=seconds * steps, device=str(here.device),
            precision=str(here.precision).removeprefix("torch."), dropped=dataset.facts["dropped"],
        )  # fmt: skip


def build_decoder(shape: DecoderConfig, tokenizer: Any, seed: int, device: torch.device, start: Path | None = None) -> TrainableDecoder:
    """A decoder with fresh weights, or with those of the checkpoint ``start``."""
    weights = initial_weights(shape, seed) if start is None else Checkpoint([start / "model.safetensors"])
    return TrainableDecoder(shape, weights, tokenizer, device)


def samples(model: DecoderLM, config: ChecksConfig, seed: int) -> list[dict[str, str]]:
    """How the model continues the configured beginnings."""
    if not config.length or not config.prompts:
        return []
    before = affixes(model.tokenizer)[0]
    prompts = [[*before, *tokenise(model.tokenizer, text)][-(model.context // 2) :] for text in config.prompts]
    prompts = [prompt or [int(model.tokenizer.eos_token_id)] for prompt in prompts]
    texts = generate(model, prompts, Sampling(config.length, config.temperature, 0.95, seed))
    return [{"prompt": prompt, "text": text} for prompt, text in zip(config.prompts, texts, strict=True)]


def measure(module: nn.Module, stream: Stream, settings: TrainConfig, here: Processes) -> tuple[float, int]:
    """Seconds of a step, the mean of two after one that is not counted, and the most memory (bytes) that was used."""
    optimizer, began = make_optimizer(module, settings), 0.0
    for step in range(3):
        if step == 1:
            began = time.perf_counter()
        for piece, share in stream.pieces(0, here.rank, here.world):
            with here.autocast():
                loss = share * module(piece)["loss"]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())  # a GPU is done by then
    seconds = (time.perf_counter() - began) / 2
    if here.device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(here.device)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def without(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors with a prefix of their names taken away; those without it are left out."""
    return {name.removeprefix(prefix): tensor for name, tensor in parameters.items() if name.startswith(prefix)}


def _dataset(config: PretrainConfig, place: Path, here: Processes, watch: Watch) -> Dataset:
    """The dataset; the first process makes it while the others wait."""
    if here.first:
        prepare(config, place / "data", watch.stage)
    here.wait()
    return Dataset(place / "data")


def _planned(config: PretrainConfig, dataset: Dataset) -> tuple[WindowStream, int, DecoderConfig]:
    """The data, the number of steps and the shape. Raises ConfigError and PretrainingError."""
    shape, training = config.model.shape(dataset.facts["vocabulary"]), config.training
    stream = WindowStream(dataset, shape.context, training.batch, training.accumulation, config.seed, config.checks.tokens)
    steps = training.steps or max(1, training.epochs * stream.windows.count // training.batch)
    return stream, steps, shape
