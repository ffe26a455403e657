"""A tiny decoder and synthetic tasks that compete for the same parameters: each task is a table of random answers under its own opening
token, learned by one adapter that goes on from task to task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retain.adapters import Adapter, new_lora, select_sites
from retain.data.examples import Example
from retain.lm.decoder import DecoderLM
from retain.lm.shapes import DecoderConfig, initial_weights
from retain.retention.base import Params, Retention, Task
from retain.training.loop import TrainingReport, TrainingSettings, train
from retain.training.objective import AdapterObjective

CONFIG = DecoderConfig(
    vocabulary=48, width=32, layers=2, heads=4, kv_heads=2, head_width=8, feed_forward=64, context=64, rope_theta=10_000.0
)
SETTINGS = TrainingSettings(learning_rate=1e-2, epochs=40, batch_tokens=64, clip=1.0, spike=1e9)
SCALE = 2.0


def tiny_model(seed: int = 0) -> DecoderLM:
    """A decoder with random weights large enough for its layers and its head to matter."""
    weights = initial_weights(CONFIG, seed)
    scaled = {name: tensor * (20.0 if "embed" in name else 6.0 if "proj" in name else 1.0) for name, tensor in weights.items()}
    return DecoderLM(CONFIG, scaled, tokenizer=None, name="tiny")


def tiny_params(model: DecoderLM, seed: int = 0, rank: int = 4, layers: int | str = "all") -> Params:
    return new_lora(model, select_sites(model, layers), rank, SCALE * rank, seed)


def noisy(params: Params, seed: int = 0) -> Params:
    """The parameters with B no longer zero, so that both factors have gradients."""
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in params.items()}


def objective_of(model: DecoderLM, params: Params, frozen: Sequence[tuple[Adapter, float]] = ()) -> AdapterObjective:
    sites = tuple(sorted({name.rsplit(".", 2)[0] for name in params}))
    return AdapterObjective(model, sites, SCALE, frozen)


def table(number: int, questions: int = 12, answer: int = 3) -> list[Example]:
    """Task ``number``: [its opening token, a question] -> random answer tokens."""
    generator = torch.Generator().manual_seed(100 + number)
    found = []
    for question in range(questions):
        answers = torch.randint(24, CONFIG.vocabulary, (answer,), generator=generator).tolist()
        tokens = (number, 8 + question, *answers)
        found.append(Example(tokens, (False, False) + (True,) * answer, f"d{number}"))
    return found


def task_of(model: DecoderLM, number: int, params: Params, frozen: Sequence[tuple[Adapter, float]] = ()) -> Task:
    return Task(f"t{number}", table(number), objective_of(model, params, frozen))


def ragged(count: int = 7, seed: int = 0) -> list[Example]:
    """Examples of different lengths, some with unsupervised beginnings."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = 3 + int(torch.randint(0, 18, (1,), generator=generator))
        tokens = torch.randint(0, CONFIG.vocabulary, (length,), generator=generator).tolist()
        found.append(Example(tuple(tokens), tuple(place > number % 2 for place in range(length)), f"r{number}"))
    return found


def loss_on(model: DecoderLM, number: int, params: Params) -> float:
    with torch.no_grad():
        return float(objective_of(model, params).loss(table(number), params))


def learn(
    model: DecoderLM, number: int, params: Params, methods: Sequence[Retention], settings: TrainingSettings = SETTINGS
) -> TrainingReport:
    """One task: train and tell the methods that it was kept."""
    task = task_of(model, number, params)
    report = train(task, params, settings, methods)
    for method in methods:
        method.after_task(task, params)
    return report


def through_disk(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a workspace does with a state: tensors into safetensors, the rest into JSON, and back. Nothing else may be in it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value for name, value in state.items() if isinstance(value, Tensor)}, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({name: value for name, value in state.items() if not isinstance(value, Tensor)}))
    return {**load_file(folder / "state.safetensors"), **json.loads((folder / "state.json").read_text())}
