"""The forgetting experiment: a model learns task 1, then task 2; what that costs task 1, and what the curvature at w1 says of it.

w1 are the adapter's tensors when task 1 was learned, w2 when task 2 was. Forgetting is R[1, 1] - R[2, 1] in the score and L[2, 1] - L[1, 1]
in the loss (:mod:`retain.evaluation.metrics`). Curvature, bound and prediction (:mod:`retain.evaluation.curvature.bound`) are of the mean
loss of a few examples of task 1, and what they are measured against is the rise of that same mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from retain.data.examples import Example
from retain.evaluation.curvature import Spectrum, forgetting_bound, loss_along_path
from retain.evaluation.curvature.lanczos import Eigenpair
from retain.evaluation.forgetting.checkpoints import Checkpoint, checkpoint, moved
from retain.evaluation.forgetting.config import ForgettingConfig, Space
from retain.evaluation.forgetting.curvature import (
    TellProduct,
    ToldOperator,
    curvature_facts,
    in_space,
    memory_needed,
    operator_at,
    plan_search,
    sample,
    space_size,
    spectrum_at,
)
from retain.evaluation.runs import Run
from retain.evaluation.sequences import AdapterSequence, learn_sequence, make_sequence
from retain.evaluation.sequences.experiment import Tell, TellStep
from retain.lm.model import LanguageModel


class Move(NamedTuple):
    """One method from one seed: where task 1 left the parameters, and where task 2 did."""

    method: str
    seed: int
    w1: Checkpoint
    w2: Checkpoint

    @property
    def key(self) -> str:
        """Part of a unit's key."""
        return f"{self.method}-seed{self.seed}"


def run_forgetting(
    config: ForgettingConfig, run: Run, model: LanguageModel, tell: Tell | None = None, tell_step: TellStep | None = None,
    tell_product: TellProduct | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Learn, measure, record it in ``run`` and return the results. Raises DataError before any training for what does not fit."""
    learned = learn_sequence(config, run, model, tell, tell_step)
    learned.pop("stream")
    moves = [
        Move(name, int(seed), *(checkpoint(run, name, int(seed), task) for task in (0, 1)))
        for name, method in learned["methods"].items() if name != "joint" for seed in method["seeds"]
    ]  # fmt: skip
    curvature, bounds, said = _curvature(config, run, model, moves, learned["tasks"][0], tell_product)
    for message in said:
        run.warn(message)
    rows = [_row(move, learned["methods"][move.method]["seeds"][str(move.seed)]) for move in moves]
    if not bounds:
        bounds = _displacements(rows)
    matrices = {name: _mean([row["loss_matrix"] for row in method["seeds"].values()]) for name, method in learned["methods"].items()}
    results = {
        "kind": "forgetting", **learned, "loss_matrix": matrices, "moves": rows, "curvature": curvature, "bound": bounds,
        "warnings": [*learned["warnings"], *said],
    }  # fmt: skip
    run.complete(results)
    return results


def _row(move: Move, record: dict[str, Any]) -> dict[str, Any]:
    """What a move cost task 1, in the score and in the loss, and how far it went."""
    (_, before, after), (_, low, high) = ([row[0] for row in record[key]] for key in ("matrix", "loss_matrix"))
    distance = moved(move.w1, move.w2)
    return {
        "method": move.method, "seed": move.seed, "forgetting_score": before - after, "forgetting_loss": high - low,
        "forgetting_rate": (before - after) / before if before > 0 else None,
        "distance_factors": distance["factors"], "distance_product": distance["product"],
    }  # fmt: skip


def _displacements(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without curvature: how far the weights moved, and what the loss on the questions of the task rose by."""
    return [
        {"label": _label(row["method"], row["seed"]), "method": row["method"], "seed": row["seed"], "space": "product",
         "displacement": row["distance_product"], "measured": row["forgetting_loss"]}
        for row in rows
    ]  # fmt: skip


def _curvature(
    config: ForgettingConfig, run: Run, model: LanguageModel, moves: Sequence[Move], task: str, tell: TellProduct | None
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Spectra at every w1 and the bound of every move, in each space; and what was left out and why."""
    spectra: dict[str, Any] = {}
    bounds: list[dict[str, Any]] = []
    said: dict[str, None] = {}
    groups: dict[str, list[Move]] = {}
    for move in moves:  # methods that do nothing before there is an earlier task share their w1
        groups.setdefault(f"{_digest(move.w1)}-seed{move.seed}", []).append(move)
    for space in config.curvature.spaces if config.curvature.compute != "no" else ():
        for digest, members in groups.items():
            top = _possible(config, model, members[0].w1, space, said)
            if top is None:
                continue
            able = [move for move in members if space == "product" or moved(move.w1, move.w2)["factors"] is not None]
            for move in members:
                if move not in able:
                    said[f"{move.method}: its adapter grew with task 2, so there is no way from w1 to w2 among the factors"] = None
            several = len({move.seed for move in moves}) > 1
            distinct = len({key for key in groups if key.endswith(f"-seed{members[0].seed}")}) > 1
            about = ", ".join([*([members[0].method] if distinct else []), *([f"seed {members[0].seed}"] if several else [])])
            name = f"after {task} ({space}{f', {about}' if about else ''})"
            found, entries = _of_group(config, run, model, able, space, top, f"{digest}-{space}", tell)
            if found is not None:
                spectra[name] = found
                if not all(found["converged"]):
                    missing = f"{len(found['converged']) - sum(found['converged'])} of {len(found['converged'])} eigenvalues"
                    said[f"{name}: {missing} did not converge in {found['products']} products: raise curvature.products"] = None
            bounds += entries
    return spectra, bounds, list(said)


def _possible(
    config: ForgettingConfig, model: LanguageModel, w1: Checkpoint, space: Space, said: dict[str, None]
) -> tuple[int, int] | None:
    """How many eigenvalues with how many vectors; None, with the reason, where it is not computed."""
    settings, adapter, size = config.curvature, space_size(model, w1, "factors"), space_size(model, w1, space)
    if settings.compute == "auto" and adapter > settings.limit:
        reason = f"the curvature was left out: the adapter has {adapter:,} parameters, more than curvature.limit ({settings.limit:,})"
        said[f"{reason}; --curvature computes it, with at least {memory_needed(adapter):.1f} GB for the factors"] = None
        return None
    if torch.finfo(model.dtype).bits < 32:
        said[f"the curvature was left out: it needs precision float32, and the model is in {str(model.dtype).removeprefix('torch.')}"] = (
            None
        )
        return None
    plan = plan_search(size, settings)
    if plan is None:
        said[
            f"the curvature in {space} space was left out: {size:,} parameters need {memory_needed(size):.1f} GB at least, and "
            f"curvature.memory is {settings.memory:g}"
        ] = None
    elif plan[0] < min(settings.top, size):
        said[f"{space} space has {size:,} parameters: only the largest eigenvalue fits into curvature.memory ({settings.memory:g} GB)"] = (
            None
        )
    return plan


def _of_group(
    config: ForgettingConfig, run: Run, model: LanguageModel, moves: Sequence[Move], space: Space, plan: tuple[int, int], key: str,
    tell: TellProduct | None,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:  # fmt: skip
    """The spectrum at one w1 and the bounds of the moves that begin there; what is recorded is not computed again."""
    if not moves:
        return None, []
    unit, settings, seed = f"curvature-{key}", config.curvature, moves[0].seed
    operator: ToldOperator | None = None
    chosen = task_examples(config, model, seed)

    def at_w1() -> ToldOperator:
        nonlocal operator
        if operator is None:
            operator = operator_at(model, moves[0].w1, chosen, space, settings, tell)
        return operator

    facts = run.finished(unit)
    if facts is None:
        spectrum = spectrum_at(at_w1(), settings, *plan, about=f"in {space} space", seed=seed)
        facts = curvature_facts(at_w1(), spectrum, settings, chosen, space, f"in {space} space", seed)
        run.finish(unit, facts)
    entries = []
    for move in moves:
        part = f"bound-{move.key}-{space}"
        entry = run.finished(part)
        if entry is None:
            entry = _bound(move, at_w1(), facts, space, settings.points)
            run.finish(part, entry)
        entries.append(entry)
    if operator is not None:
        operator.release()
    return facts, entries


def _bound(move: Move, operator: ToldOperator, facts: dict[str, Any], space: Space, points: int) -> dict[str, Any]:
    after = in_space(move.w2, space, operator)
    operator.purpose(f"{move.method} in {space} space", 2)
    found = forgetting_bound(operator, after, spectrum=_spectrum(facts))
    path = loss_along_path(operator, operator.params, after, points)
    rest = found.to_dict()
    return {
        "label": _label(move.method, move.seed), "method": move.method, "seed": move.seed, "space": space,
        "displacement": rest.pop("distance"), "second_order": rest.pop("prediction"), **rest,
        "path": {"points": list(path.t), "loss": list(path.losses), "quadratic": list(path.predictions)},
    }  # fmt: skip


def task_examples(config: ForgettingConfig, model: LanguageModel, seed: int) -> list[Example]:
    """The examples of task 1 that the loss is taken on."""
    sequence = make_sequence(config, seed, model)
    assert isinstance(sequence, AdapterSequence)
    pool = sequence.examples[0] if config.curvature.examples == "learned" else sequence.held_out[0]
    return sample(pool, config.curvature.tokens, seed)


def _spectrum(facts: dict[str, Any]) -> Spectrum:
    """The eigenvalues of results as a spectrum without vectors."""
    values = zip(facts["eigenvalues"], facts["residuals"], facts["converged"], strict=True)
    pairs = tuple(Eigenpair(value, residual, converged, torch.zeros(0)) for value, residual, converged in values)
    return Spectrum(pairs, len(pairs), ("largest",), facts["parameters"], facts["products"], 0.0, 0, facts["complete"])


def _digest(at: Checkpoint) -> str:
    sha = hashlib.sha256(repr(at.scale).encode())
    for name in sorted(at.params):
        sha.update(name.encode() + at.params[name].cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _label(method: str, seed: int) -> str:
    return method if seed == 0 else f"{method}, seed {seed}"


def _mean(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return [[sum(values) / len(values) for values in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
