"""Nested learning: groups of parameters at several frequencies do exactly what is said of them, and slow ones keep what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import table, topic_rows, write
from tests.multitask.test_training import Interrupt

from retain.config import ConfigError
from retain.multitask import assemble, plan_experiment, train
from retain.multitask.nested import updates_of

TASKS = {"a": {"kind": "classification", "label": "low"}, "b": {"kind": "classification", "label": "even"}}
PHASES = {"phases": [["a"], ["b"]]}


def digits(count: int = 600) -> list[dict[str, Any]]:
    """Two tasks on the same images: is the digit below 5, and is it even."""
    rows = table("digits")[:count]
    for row in rows:
        number = int(row.pop("label"))
        row |= {"low": "yes" if number < 5 else "no", "even": "even" if number % 2 == 0 else "odd"}
    return rows


@pytest.fixture
def made(tmp_path: Path, experiment: Any) -> Any:
    """``made(groups, ...)``: the configuration of a perceptron with these nested groups."""
    write(tmp_path / "t.jsonl", digits(300))

    def make(groups: dict[str, Any], **sections: Any) -> Any:
        backbone = {"kind": "sequential", "hidden": [16, 16], "dropout": 0.0, **sections.pop("backbone", {})}
        return experiment(backbone, {"a": TASKS["a"]}, data={"train": ["t.jsonl"]}, nested={"groups": groups}, **sections)

    return make


def test_a_slow_group_takes_the_mean_of_its_steps(made: Any) -> None:
    """Plain gradient descent by hand: seven steps in threes, the last update with what is left."""
    groups = {"slow": {"layers": [0], "every": 3, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "weight_decay": 0.0}}
    built = assemble(made(groups))
    updates, params = updates_of(built.network, built.config, 1e-3), built.network.learning()
    slow = "backbone.network.layers.0.weight"
    start, draw = params[slow].detach().clone(), torch.Generator().manual_seed(0)
    drawn = [torch.randn(start.shape, generator=draw) for _ in range(7)]
    seen = []
    for number, gradient in enumerate(drawn):
        updates.zero_grad()
        params[slow].grad = gradient.clone()
        updates.step(last=number == 6)
        seen.append(params[slow].detach().clone())
    assert torch.equal(seen[0], start) and torch.equal(seen[1], start) and torch.equal(seen[3], seen[2])
    expected = start - 0.1 * (torch.stack(drawn[:3]).mean(0) + torch.stack(drawn[3:6]).mean(0) + drawn[6])
    assert torch.allclose(seen[6], expected, atol=1e-6)


def test_every_parameter_is_in_one_group(made: Any) -> None:
    groups = {
        "first": {"layers": [0]},
        "all": {"part": "backbone", "every": 2},
        "bias": {"patterns": ["heads.*.bias"], "optimizer": "adafactor"},
    }
    built = assemble(made(groups))
    updates, params = updates_of(built.network, built.config, 1e-3), built.network.learning()
    names = {id(value): name for name, value in params.items()}
    found = {
        group.name: sorted(names[id(value)].removeprefix("backbone.network.") for value in group.parameters) for group in updates.groups
    }
    assert found == {
        "first": ["layers.0.bias", "layers.0.weight"], "all": ["layers.1.bias", "layers.1.weight"],
        "bias": ["heads.task_a.linears.0.bias"], "rest": ["heads.task_a.linears.0.weight"],
    }  # fmt: skip
    assert [type(group.optimizer).__name__ for group in updates.groups] == ["AdamW", "AdamW", "Adafactor", "AdamW"]


def test_groups_at_every_step_change_nothing(made: Any, tmp_path: Path) -> None:
    """The same optimizer in two groups gives the same bits as in one."""
    training = {"epochs": 2, "batch": 16}
    for name, groups in (("one", {}), ("two", {"slow": {"part": "layers"}})):
        train(made(groups, training=training), tmp_path / name)
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_resumed_in_the_middle_of_a_group_with_the_same_bits(optimizer: str, made: Any, tmp_path: Path) -> None:
    groups = {"slow": {"layers": [0], "every": 7, "optimizer": optimizer}, "middle": {"layers": [1], "every": 2}}
    config = made(groups, training={"epochs": 3, "batch": 16, "checkpoint_every": 10, "evaluate_every": 100})
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken", callbacks=[Interrupt(23)])  # the checkpoint of step 20 has 6 of 7 gradients
    train(config, tmp_path / "broken", resume=True)
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"g": {"patterns": ["backbone.network.layer.0.*"]}}, r"g\.patterns: 'backbone.network.layer.0.\*' matches no parameter: did you"),
        ({"g": {}}, r"nested\.groups\.g: names nothing: give part, layers or patterns"),
        ({"g": {"layers": [2]}}, r"nested\.groups\.g\.layers: this backbone has 2 layers, the last is 1, not 2"),
        ({"g": {"part": "embeddings"}}, r"nested\.groups\.g\.part: this backbone has no embeddings"),
        ({"g": {"part": "fusion"}}, r"nested\.groups\.g\.part: this experiment has no fusion"),
        ({"rest": {"part": "heads"}}, r"nested\.groups\.rest: is the name of what no group names"),
        ({"f": {"part": "heads"}, "g": {"part": "heads"}}, r"nested\.groups\.g: no parameter is left for it"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_learned(groups: dict[str, Any], message: str, made: Any, tmp_path: Path) -> None:
    for call in (lambda: train(made(groups), tmp_path / "run"), lambda: plan_experiment(made(groups))):
        with pytest.raises(ConfigError, match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_unknown_keys_and_adalora(made: Any, tmp_path: Path, experiment: Any, bert: Path) -> None:
    with pytest.raises(ConfigError, match="evry"):
        made({"g": {"part": "heads", "evry": 2}})
    write(tmp_path / "topic.jsonl", topic_rows(40))
    text = {"kind": "text", "model": str(bert), "max_length": 32, "peft": {"method": "adalora"}}
    config = experiment(
        text, {"t": {"kind": "classification", "label": "topic"}}, data={"train": ["topic.jsonl"]},
        nested={"groups": {"slow": {"part": "heads", "every": 2}}},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="nested: adalora prunes by the gradients of every step"):
        train(config, tmp_path / "run")


def sequence(groups: dict[str, Any], place: Path, experiment: Any, seed: int) -> tuple[float, float]:
    """Rise of the first task's loss while the second is learned, and the second's accuracy."""
    sections = {
        "data": {"train": ["t.jsonl"]}, "sampling": PHASES, "nested": {"groups": groups}, "seed": seed,
        "training": {"epochs": 12, "batch": 16, "metric": "loss", "evaluate_every": 10_000, "learning_rate": 0.01},
    }  # fmt: skip
    results = train(experiment({"kind": "sequential", "hidden": [32], "dropout": 0.0}, TASKS, **sections), place)
    _, first, last = results["matrix"]
    assert first["a"]["accuracy"] > 0.85
    return last["a"]["loss"] - first["a"]["loss"], last["b"]["accuracy"]


def test_slow_layers_keep_what_was_learned(tmp_path: Path, experiment: Any) -> None:
    """They do, and the second task is learned a little less; docs/train.md says that a lower rate in every step does as much."""
    write(tmp_path / "t.jsonl", digits())
    ways: dict[str, dict[str, Any]] = {"one": {}, "slow": {"slow": {"part": "layers", "every": 8}}}
    mean = {}
    for name, groups in ways.items():
        runs = [sequence(groups, tmp_path / f"{name}{seed}", experiment, seed) for seed in range(2)]
        mean[name] = [sum(column) / len(runs) for column in zip(*runs, strict=True)]
    assert mean["one"][0] > 0.1 and mean["slow"][0] < 0.6 * mean["one"][0], mean
    assert mean["slow"][1] > mean["one"][1] - 0.05, mean
