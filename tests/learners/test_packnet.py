"""PackNet on the tiny model: documents share one set of entries, owned ones never move, capacity is counted and runs out with an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learners.chained import lesson, logits, right, settings, silent
from tests.tiny_models import lora
from torch import Tensor

from retain.adapters import Adapter, AdapterSpec
from retain.learners.base import Learned, LearnerError, Lesson, Memory
from retain.learners.packnet import Masked, PackNet, prune
from retain.learners.skills import load_adapter, save_adapter
from retain.retention.base import Params, Retention, Task
from retain.training.loop import TrainingError, TrainingSettings, train
from retain.training.objective import AdapterObjective

BRIEF = {"learn": {"layers": "last-quarter", "epochs": 1}}


def learned(model: Any, task: Lesson, packnet: dict[str, Any] | None = None, **more: Any) -> tuple[Adapter, Learned]:
    found = PackNet().learn(model, task, settings(packnet={"rank": 16} | (packnet or {}), **more), silent)
    assert isinstance(found.memory, Adapter)
    return found.memory, found


def owned(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor != 0 for name, tensor in adapter.tensors.items()}


def test_documents_are_learned_in_turn_and_the_first_is_as_it_was(tiny_model: Any, tmp_path: Path) -> None:
    assert right(tiny_model, 0, None) == 0 and right(tiny_model, 1, None) == 0
    first, one = learned(tiny_model, lesson(tiny_model, 0))
    assert right(tiny_model, 0, first) >= 0.75
    digest, before = first.digest, logits(tiny_model, 0, first)
    second, two = learned(tiny_model, lesson(tiny_model, 1, [("a", first)]))
    assert right(tiny_model, 1, second) >= 0.75
    assert Adapter(first.tensors, first.spec).digest == digest and torch.equal(logits(tiny_model, 0, first), before)
    mine, later = owned(first), owned(second)
    for name, mask in mine.items():
        assert torch.equal(second.tensors[name][mask], first.tensors[name][mask]), "an entry of the first document moved"
        assert int(mask.sum()) == round(0.25 * mask.numel())
        assert int((later[name] & ~mask).sum()) == round(0.25 * int((~mask).sum()))
    assert second.spec.kind == "lora" and second.spec.scale == 2.0 and second.byte_count == first.byte_count == two.cost["bytes"]
    assert one.cost["entries_taken"] == pytest.approx(0.25, abs=1e-3)
    assert two.cost["entries_free"] == pytest.approx(0.5625, abs=1e-3) and two.cost["underflowed"] == 0
    assert two.cost["documents_that_still_fit"] == one.cost["documents_that_still_fit"] - 1
    assert two.cost["last_loss"] < two.cost["pruned_loss"] and two.cost["trained_loss"] < two.cost["first_loss"]
    save_adapter(second, tmp_path / "packed.safetensors")
    assert load_adapter(tmp_path / "packed.safetensors").digest == second.digest


@pytest.mark.parametrize(
    "how", [TrainingSettings(0.01, epochs=6, batch_tokens=64, weight_decay=0.5),
            TrainingSettings(0.05, epochs=6, batch_tokens=64, weight_decay=0.1, optimizer="sgd", momentum=0.9)],
)  # fmt: skip
def test_masked_entries_do_not_move(tiny_model: Any, how: TrainingSettings) -> None:
    class GradientOnly(Retention):
        name = "gradient-only"

        def adjust_gradients(self, params: Params, gradients: Params) -> None:
            for name, gradient in gradients.items():
                gradient.mul_(trained[name])

    start = lora(tiny_model, rank=4, sites=list(tiny_model.sites)[-7:])
    trained = {name: torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, tensor in start.tensors.items()}
    task = Task("t", lesson(tiny_model, 0).examples, AdapterObjective(tiny_model, start.spec.sites, 2.0))
    moved = {}
    for method in (Masked(trained), GradientOnly()):
        params = {name: tensor.clone() for name, tensor in start.tensors.items()}
        train(task, params, how, [method])
        change = {name: params[name] != start.tensors[name] for name in params}
        moved[method.name] = sum(int(change[name][~mask].sum()) for name, mask in trained.items())
        assert all(change[name][mask].float().mean() > 0.9 for name, mask in trained.items())
    assert moved["masked"] == 0 and moved["gradient-only"] > 0, moved


def test_the_smallest_free_entries_are_given_back() -> None:
    values = torch.tensor([[5.0, -0.1, 0.4, -3.0], [0.2, 9.0, -0.3, 0.0]])
    free = torch.tensor([[True, True, True, True], [True, False, True, True]])
    params = {"w": values.clone()}
    kept = prune(params, {"w": free}, 4 / 7)
    assert kept["w"].tolist() == [[True, False, True, True], [False] * 4]
    assert torch.equal(params["w"], torch.tensor([[5.0, 0.0, 0.4, -3.0], [0.0, 9.0, 0.0, 0.0]]))


def test_capacity_is_counted_runs_out_and_grows_with_the_rank(tiny_model: Any) -> None:
    half = {"prune": 0.5, "least": 0.2}
    chain: list[tuple[str, Adapter]] = []
    for left in (1, 0):
        adapter, found = learned(tiny_model, lesson(tiny_model, len(chain), chain), half, **BRIEF)
        assert found.cost["documents_that_still_fit"] == left
        chain.append((str(left), adapter))
    with pytest.raises(TrainingError, match=r"only 25\.0% of the weights are free; raise packnet\.rank or use another learner") as caught:
        learned(tiny_model, lesson(tiny_model, 2, chain), half, **BRIEF)
    assert "\n" not in str(caught.value)
    wide, found = learned(tiny_model, lesson(tiny_model, 2, chain), half | {"rank": 32}, **BRIEF)
    assert wide.spec.rank == 32 and wide.spec.scale == chain[-1][1].spec.scale
    for name, mask in owned(chain[-1][1]).items():
        part = wide.tensors[name][: mask.shape[0], : mask.shape[1]]
        assert torch.equal(part[mask], chain[-1][1].tensors[name][mask])
    everything, found = learned(tiny_model, lesson(tiny_model, 0), {"prune": 0.0}, **BRIEF)
    assert found.cost["documents_that_still_fit"] == 0
    with pytest.raises(TrainingError, match="are free; raise"):
        learned(tiny_model, lesson(tiny_model, 1, [("a", everything)]), {"prune": 0.0}, **BRIEF)


def test_further_sites_and_a_smaller_rank_keep_what_is_there(tiny_model: Any) -> None:
    first, _ = learned(tiny_model, lesson(tiny_model, 0), **BRIEF)
    second, _ = learned(tiny_model, lesson(tiny_model, 1, [("a", first)]), {"rank": 8}, learn={"layers": "last-half", "epochs": 1})
    assert set(first.spec.sites) < set(second.spec.sites) and second.spec.rank == 16
    assert [site for site in tiny_model.sites if site in second.spec.sites] == list(second.spec.sites)
    for name, mask in owned(first).items():
        assert torch.equal(second.tensors[name][mask], first.tensors[name][mask])


def test_what_half_precision_loses_is_counted(tiny_model: Any) -> None:
    _, found = learned(tiny_model, lesson(tiny_model, 0), learn={"layers": "last-quarter", "epochs": 1, "learning_rate": 1e-8})
    assert found.cost["underflowed"] > 0 and found.cost["entries_taken"] < 0.25
    with pytest.raises(TrainingError, match=r"left in half precision; raise learn\.learning_rate"):
        learned(tiny_model, lesson(tiny_model, 0), learn={"layers": "last-quarter", "epochs": 1, "learning_rate": 1e-10})


def test_what_cannot_be_built_on_is_said_in_a_line(tiny_model: Any) -> None:
    good = lora(tiny_model, sites=list(tiny_model.sites)[-7:])
    odd = {name: torch.ones(3, 5) if name.endswith("o_proj.lora_A.weight") else tensor for name, tensor in good.tensors.items()}
    for earlier, message in (
        (Memory(), "what was learned of a is no lora adapter, so nothing can be built on it"),
        (Adapter(odd, good.spec), "what was learned of a does not fit: site .* do not fit the model's"),
        (Adapter(good.tensors, AdapterSpec("lora", "0" * 64, good.spec.sites, 3, 6.0)), "was made for base 000000000000"),
    ):
        with pytest.raises(LearnerError, match=message) as caught:
            learned(tiny_model, lesson(tiny_model, 1, [("a", earlier)]), **BRIEF)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="no training examples"):
        learned(tiny_model, replace(lesson(tiny_model, 0), examples=()), **BRIEF)
