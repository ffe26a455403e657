"""Progressive columns on the tiny model: documents are learned in turn, nothing of earlier ones moves, laterals are read and help."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.learners.chained import lesson, logits, right, settings, silent
from tests.tiny_models import lora

from retain.adapters import Adapter
from retain.learners.base import Learned, LearnerError, Lesson, Memory
from retain.learners.progressive import Progressive
from retain.training.loop import TrainingError
from retain.training.objective import AdapterObjective


def learned(model: Any, task: Lesson, **more: Any) -> tuple[Adapter, Learned]:
    found = Progressive().learn(model, task, settings(**more), silent)
    assert isinstance(found.memory, Adapter)
    return found.memory, found


@pytest.fixture(scope="module")
def first(tiny_model: Any) -> Adapter:
    return learned(tiny_model, lesson(tiny_model, 0))[0]


@pytest.fixture(scope="module")
def second(tiny_model: Any, first: Adapter) -> tuple[Adapter, Learned]:
    return learned(tiny_model, lesson(tiny_model, 1, [("a", first)]))


def test_documents_are_learned_in_turn_and_the_first_is_as_it_was(tiny_model: Any, first: Adapter) -> None:
    assert right(tiny_model, 0, None) == 0 and right(tiny_model, 1, None) == 0
    assert right(tiny_model, 0, first) >= 0.75
    digest, before = first.digest, logits(tiny_model, 0, first)
    adapter, found = learned(tiny_model, lesson(tiny_model, 1, [("a", first)]))
    assert right(tiny_model, 1, adapter) >= 0.75
    assert Adapter(first.tensors, first.spec).digest == digest and torch.equal(logits(tiny_model, 0, first), before)
    for site in first.spec.sites:
        assert torch.equal(adapter.tensors[f"{site}.earlier.A"], first.tensors[f"{site}.A"])
    assert all(tensor.dtype == torch.float16 for tensor in adapter.tensors.values())
    width, sites = tiny_model.width, len(first.spec.sites)
    assert found.cost["columns"] == 2 and found.cost["bytes"] == adapter.byte_count
    assert found.cost["bytes_of_earlier_columns"] == 2 * sites * 16 * width == adapter.byte_count - first.byte_count - 2 * sites * 16 * 16
    assert found.cost["bytes_added_by_next"] == 2 * sites * (16 * width + 2 * 16 * 16)
    assert found.cost["last_loss"] < found.cost["first_loss"] and found.cost["parameter_change"] > 0 and found.cost["tokens"] > 0


def test_lateral_connections_are_read(tiny_model: Any, second: tuple[Adapter, Learned]) -> None:
    adapter = second[0]
    cut = Adapter({n: torch.zeros_like(t) if n.endswith(".U") else t for n, t in adapter.tensors.items()}, adapter.spec)
    assert (logits(tiny_model, 1, adapter) - logits(tiny_model, 1, cut)).abs().max() > 0.1


def test_lateral_connections_help_where_the_earlier_document_says_the_same(tiny_model: Any, first: Adapter) -> None:
    def loss_after_little_training(number: int, earlier: list[tuple[str, Adapter]]) -> float:
        task = lesson(tiny_model, number, earlier, seed=7 - len(earlier))  # so that A starts from the same values
        adapter, _ = learned(tiny_model, task, learn={"epochs": 5})
        objective = AdapterObjective(tiny_model, adapter.spec.sites, adapter.spec.scale, kind="column")
        with torch.no_grad():
            return float(objective.loss(task.examples, dict(adapter.tensors)))

    assert loss_after_little_training(0, [("a", first)]) < 0.9 * loss_after_little_training(0, [])
    with_other, alone = loss_after_little_training(1, [("a", first)]), loss_after_little_training(1, [])
    assert with_other < 1.1 * alone, "the column of another document is in the way"


def test_a_third_column_reads_both_and_a_skill_stays_frozen_underneath(
    tiny_model: Any, first: Adapter, second: tuple[Adapter, Learned]
) -> None:
    skill = lora(tiny_model, 3, size=0.02)
    task = lesson(tiny_model, 2, [("a", first), ("b", second[0])])
    with_skill, _ = learned(tiny_model, replace(task, skill=skill), learn={"epochs": 2})
    alone, _ = learned(tiny_model, task, learn={"epochs": 2})
    site = first.spec.sites[0]
    assert torch.equal(with_skill.tensors[f"{site}.earlier.U.2"], second[0].tensors[f"{site}.U"])
    assert with_skill.tensors[f"{site}.U"].shape == (16, 32)
    assert not torch.equal(with_skill.tensors[f"{site}.A"], alone.tensors[f"{site}.A"]), "the skill was not underneath"


def test_what_cannot_be_learned_is_said_in_a_line(tiny_model: Any, first: Adapter) -> None:
    bare = copy.copy(tiny_model)
    bare.blocks = {}
    other = copy.copy(tiny_model)
    other.fingerprint = "0" * 64
    for model, task, error, message in (
        (bare, lesson(tiny_model, 0), LearnerError, "has no MLP that a column could sit beside: use the learner lora"),
        (tiny_model, lesson(tiny_model, 0, [("a", Memory())]), LearnerError, "what was learned of a is no column adapter"),
        (tiny_model, lesson(tiny_model, 0, [("a", lora(tiny_model))]), LearnerError, "is no column adapter"),
        (other, lesson(tiny_model, 0, [("a", first)]), LearnerError, "what was learned of a does not fit: the adapter was made for base"),
        (tiny_model, replace(lesson(tiny_model, 0), examples=()), TrainingError, "no training examples"),
    ):
        with pytest.raises(error, match=message) as caught:
            learned(model, task)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"nothing of the column is left in half precision; raise progressive\.learning_rate"):
        learned(tiny_model, lesson(tiny_model, 0), learn={"epochs": 1}, progressive={"learning_rate": 1e-10})
