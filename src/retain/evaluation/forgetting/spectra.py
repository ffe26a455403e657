"""The curvature of checkpoints by themselves: what `retain experiment curvature` computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retain.data.errors import DataError
from retain.data.examples import Example
from retain.data.tasks import load_tasks
from retain.evaluation.forgetting.checkpoints import Checkpoint
from retain.evaluation.forgetting.config import CurvatureConfig, ForgettingConfig
from retain.evaluation.forgetting.curvature import (
    TellProduct,
    curvature_facts,
    memory_needed,
    operator_at,
    plan_search,
    sample,
    space_size,
    spectrum_at,
)
from retain.evaluation.forgetting.study import CELLS
from retain.evaluation.runs import Run
from retain.evaluation.sequences import AdapterSequence, SequenceConfig, make_sequence
from retain.lm.model import LanguageModel, LanguageModelError


def run_curvature(
    config: CurvatureConfig, run: Run, model: LanguageModel, found: Sequence[Checkpoint], examples: Sequence[Example], tasks: Sequence[str],
    seed: int = 0, tell: TellProduct | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Eigenvalues, and where asked for trace and density, of the loss of ``examples`` at every checkpoint, in every space; recorded in
    ``run`` one by one. Raises LanguageModelError where the model's precision or the memory does not allow it."""
    if torch.finfo(model.dtype).bits < 32:
        raise LanguageModelError(f"curvature needs float32, and {model.name} is in {str(model.dtype).removeprefix('torch.')}")
    chosen = sample(examples, config.tokens, seed)
    curvature: dict[str, Any] = {}
    warnings = []
    for number, at in enumerate(found):
        for space in config.spaces:
            name = at.name if len(config.spaces) == 1 else f"{at.name} ({space})"
            size = space_size(model, at, space)
            plan = plan_search(size, config)
            if plan is None:
                needed = f"{size:,} parameters need {memory_needed(size):.1f} GB at least"
                raise LanguageModelError(f"{name}: {needed}, and curvature.memory is {config.memory:g}: raise it, or take the other space")
            if plan[0] < min(config.top, size):
                warnings.append(f"{name}: only the largest eigenvalue fits into {config.memory:g} GB ({size:,} parameters)")
            key = f"{number}-{space}"
            facts = run.finished(key)
            if facts is None:
                operator = operator_at(model, at, chosen, space, config, tell)
                spectrum = spectrum_at(operator, config, *plan, about=name, seed=seed)
                facts = curvature_facts(operator, spectrum, config, chosen, space, name, seed)
                operator.release()
                run.finish(key, facts)
            if not all(facts["converged"]):
                missing = f"{len(facts['converged']) - sum(facts['converged'])} of {len(facts['converged'])} eigenvalues"
                warnings.append(f"{name}: {missing} did not converge in {facts['products']} products: raise --products")
            curvature[name] = facts
    for message in warnings:
        run.warn(message)
    results = {"kind": "curvature", "tasks": list(tasks), "curvature": curvature, "warnings": warnings}
    run.complete(results)
    return results


def settings_of(run: Run) -> SequenceConfig:
    """The configuration of a run whose checkpoints can be used. Raises DataError for other runs."""
    config = run.config
    if "study" in config:
        raise DataError(f"{run.directory}: is a study: name one of its runs in {run.directory / CELLS}")
    if not config.get("tasks") or "rank" not in config:
        raise DataError(f"{run.directory}: holds no adapters: give a run of tasks of language, or a folder with adapter_config.json")
    kind = ForgettingConfig if "curvature" in config else SequenceConfig
    return kind.model_validate(config)


def run_examples(
    config: SequenceConfig, model: LanguageModel, seed: int, chosen: Sequence[str]
) -> tuple[list[str], list[Example], list[str]]:
    """Of tasks of a run (by default the first), their names, the examples learned, and the names of all. Raises DataError."""
    sequence = make_sequence(config, seed, model)
    assert isinstance(sequence, AdapterSequence)
    places = []
    for name in chosen or sequence.tasks[:1]:
        place = next((n for n, names in enumerate(zip(sequence.tasks, config.tasks, strict=True)) if name in names), None)
        if place is None:
            names, examples = file_examples([*chosen], model, data=config.data, seed=seed, limit=config.limit)
            return names, examples, list(sequence.tasks)
        places.append(place)
    return [sequence.tasks[n] for n in places], [example for n in places for example in sequence.examples[n]], list(sequence.tasks)


def file_examples(
    specs: Sequence[str], model: LanguageModel, *, data: str | Path | None = None, seed: int = 0, limit: int | None = None
) -> tuple[list[str], list[Example]]:
    """The examples to learn of tasks from files. Raises DataError."""
    tasks = load_tasks(specs, data=data, seed=seed, limit=limit)
    return [task.name for task in tasks], [
        example for task in tasks for example in task.examples(model.tokenizer, max_tokens=model.context)
    ]
