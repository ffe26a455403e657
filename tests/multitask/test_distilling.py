"""A teacher beside the labels: what is added to the loss, that it helps, and that it keeps what was learned before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.multitask.conftest import table, topic_rows, write
from tests.multitask.test_training import Interrupt

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import assemble, plan_experiment, train
from retain.multitask.conflicts import Seen
from retain.multitask.distilling import Distiller, outcomes, translated

TASK = {"t": {"kind": "classification", "dropout": 0.0}}
LAST = {"epochs": 15, "batch": 16, "metric": "loss", "evaluate_every": 10_000}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits: many with right labels, few of which a third have a wrong one; and a teacher that learned the many."""
    from retain.multitask import parse_experiment

    folder, rows = tmp_path_factory.mktemp("teacher"), table("digits")
    draw = random.Random(0)
    draw.shuffle(rows)
    noisy = [{**row, "label": str(draw.randrange(10)) if number % 3 == 0 else row["label"]} for number, row in enumerate(rows[800:1000])]
    for name, part in (("many", rows[:800]), ("few", noisy), ("validation", rows[1000:1200]), ("test", rows[1200:])):
        write(folder / f"{name}.jsonl", part)
    data = {"train": ["many.jsonl"], "validation": ["validation.jsonl"], "test": ["test.jsonl"]}
    backbone = {"kind": "sequential", "hidden": [64], "dropout": 0.0}
    train(
        parse_experiment({"backbone": backbone, "data": data, "tasks": TASK, "training": {"epochs": 8, "batch": 16}}, folder),
        folder / "teacher",
    )
    return folder


def student(place: Path, task: dict[str, Any] | None = None, **sections: Any) -> Any:
    from retain.multitask import parse_experiment

    data = {"train": ["few.jsonl"], "validation": ["validation.jsonl"], "test": ["test.jsonl"]}
    backbone = {"kind": "sequential", "hidden": [12], "dropout": 0.0, **sections.pop("backbone", {})}
    tasks = {"t": {**TASK["t"], **(task or {})}}
    return parse_experiment({"backbone": backbone, "data": data, "tasks": tasks, "training": LAST, **sections}, place)


def test_a_student_of_a_teacher_is_better_than_one_alone(place: Path, tmp_path: Path) -> None:
    accuracy = {}
    for name, distill in (("alone", None), ("beside", {"weight": 4.0, "labels": 0.2}), ("hidden", {"labels": 0.0, "hidden": 0.1})):
        settings: dict[str, Any] = {"distill": {"teacher": "teacher", **distill}} if distill is not None else {}
        settings["training"] = {**LAST, "epochs": 40}
        accuracy[name] = train(student(place, **settings), tmp_path / name)["tasks"]["t"]["test"]["accuracy"]
    assert min(accuracy["beside"], accuracy["hidden"]) > accuracy["alone"] + 0.05, accuracy
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("alone", "hidden"))
    assert one.keys() == two.keys()  # the projection is no part of the model


def test_the_term(place: Path) -> None:
    """labels * loss + weight * T^2 KL + hidden * squared distance, by hand."""
    built = assemble(student(place, distill={"teacher": "teacher", "temperature": 3.0, "weight": 0.7, "labels": 0.4, "hidden": 0.3}))
    distiller, network, task = Distiller(built, built.config.distill), built.network.train(), built.task("t")  # type: ignore[arg-type]
    inputs, targets = built.batch("t", "train", [4, 1, 7])
    outputs = network("t", inputs)
    loss = task.loss(outputs, targets)
    found = distiller.look(Seen("t", [4, 1, 7], inputs, outputs, targets), loss)
    rows = [built.parts["t"]["train"].rows[number] for number in (4, 1, 7)]
    teacher = distiller.teacher.eval()
    given = teacher.backbone.collate(teacher.backbone.encode(rows))
    then = torch.log_softmax(teacher("t", given)["label"] / 3.0, -1)
    now = torch.log_softmax(outputs["label"] / 3.0, -1)
    divergence = 9.0 * (then.exp() * (then - now)).sum(-1).mean()
    assert distiller.projection is not None
    states = distiller.projection(network.backbone.pool(network.backbone(inputs)))
    distance = F.mse_loss(states, teacher.backbone.pool(teacher.backbone(given)))
    assert found.item() == pytest.approx((0.4 * loss + 0.7 * divergence + 0.3 * distance).item(), rel=1e-5)
    found.backward()
    assert distiller.projection.weight.grad is not None and all(value.grad is None for value in teacher.parameters())


def test_labels_are_matched_by_name(place: Path, tmp_path: Path) -> None:
    """In another order the teacher says the same."""
    backwards = [str(number) for number in range(9, -1, -1)]
    built = assemble(student(place, {"labels": backwards}, distill={"teacher": "teacher"}))
    distiller = Distiller(built, built.config.distill)  # type: ignore[arg-type]
    logits = torch.randn(3, 10)
    found = translated(distiller.teacher.tasks["t"], built.task("t"), {"label": logits})
    assert torch.equal(found["label"], logits.flip(1)) and outcomes(built.task("t"), found).shape == (3, 1, 10)


@pytest.mark.parametrize(
    ("task", "distill", "message"),
    [
        ({"labels": [*map(str, range(10)), "10"]}, {"teacher": "teacher"}, "no training record has the label '10'"),
        ({}, {"teacher": "nothing"}, "holds no finished model"),
        ({}, {"teacher": "teacher", "tasks": {"t": "u"}}, "distill.tasks: there is no task 'u' in .*teacher: "),
        ({}, {"teacher": "teacher", "tasks": {"x": "t"}}, "distill.tasks: there is no task 'x' here: "),
        ({}, {}, "distill.teacher: null is the network before a phase, and there is one phase"),
        ({}, {"teacher": "teacher", "temperatur": 2}, "temperatur"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_learned(task: Any, distill: Any, message: str, place: Path, tmp_path: Path) -> None:
    for call in (
        lambda: train(student(place, task, distill=distill), tmp_path / "run"),
        lambda: plan_experiment(student(place, task, distill=distill)),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_other_labels_are_an_error(place: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": "zero" if row["label"] == "0" else row["label"]} for row in table("digits")[:200]]
    write(place / "other.jsonl", rows)
    config = student(place, data={"train": ["other.jsonl"]}, distill={"teacher": "teacher"})
    with pytest.raises(ConfigError, match=r"distill: task t: the teacher in .* has other labels: only the teacher has '0'"):
        train(config, tmp_path / "run")


def test_resumed_with_the_same_bits(place: Path, tmp_path: Path) -> None:
    config = student(
        place, backbone={"dropout": 0.2}, distill={"teacher": "teacher", "hidden": 0.1},
        training={"epochs": 4, "batch": 16, "checkpoint_every": 10},
    )  # fmt: skip
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken", callbacks=[Interrupt(23)])
    train(config, tmp_path / "broken", resume=True)
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_freezing_then_adapters_then_a_teacher(tmp_path: Path, experiment: Any, bert: Path, gpt2: Path) -> None:
    """In one experiment, with a teacher of another architecture: only adapters and heads change, and they follow the teacher."""
    write(tmp_path / "many.jsonl", topic_rows(300))
    write(tmp_path / "few.jsonl", topic_rows(40, seed=5))
    write(tmp_path / "test.jsonl", topic_rows(200, seed=9))
    task = {"t": {"kind": "classification", "label": "topic"}}
    data = {"validation": ["test.jsonl"], "test": ["test.jsonl"]}
    fast = {"epochs": 5, "batch": 16, "learning_rate": 2e-3}
    text = {"kind": "text", "model": str(gpt2), "max_length": 32}
    train(experiment(text, task, data={"train": ["many.jsonl"], **data}, training=fast), tmp_path / "teacher")
    small = {
        "kind": "text",
        "model": str(bert),
        "max_length": 32,
        "freeze": {"layers": 1, "embeddings": True},
        "peft": {"method": "lora", "rank": 4},
    }
    loss = {}
    for name, settings in (("alone", {}), ("taught", {"distill": {"teacher": "teacher", "labels": 0.0, "hidden": 0.1}})):
        config = experiment(
            small, task, data={"train": ["few.jsonl"], **data}, training={**fast, "epochs": 8, "metric": "loss"}, **settings
        )
        built = assemble(config)
        frozen = {key: value.clone() for key, value in built.network.named_parameters() if not value.requires_grad}
        loss[name] = train(built, tmp_path / name)["tasks"]["t"]["test"]["loss"]
        after = dict(built.network.named_parameters())
        assert frozen and all(torch.equal(value, after[key]) for key, value in frozen.items())
        assert all("lora_" in key or key.startswith("heads.") for key in built.network.learning())
    assert loss["taught"] < loss["alone"], loss


def test_a_number_is_learned_from_a_teacher_in_another_scale(tmp_path: Path, experiment: Any) -> None:
    rows = [{**row, "size": row.pop("c0")} for row in table("wine")]
    write(tmp_path / "all.jsonl", rows)
    write(tmp_path / "some.jsonl", [row for row in rows if row["size"] > 12.8])
    task = {"size": {"kind": "regression", "label": "size", "dropout": 0.0}}
    net = {"kind": "sequential", "hidden": [8], "dropout": 0.0}
    train(experiment(net, task, data={"train": ["all.jsonl"]}, training={"epochs": 3, "batch": 16}), tmp_path / "teacher")
    built = assemble(experiment(net, task, data={"train": ["some.jsonl"]}, distill={"teacher": "teacher"}))
    distiller = Distiller(built, built.config.distill)  # type: ignore[arg-type]
    theirs, ours = distiller.teacher.tasks["size"], built.task("size")
    assert theirs.scale != ours.scale  # type: ignore[attr-defined]
    found = translated(theirs, ours, {"value": torch.tensor([0.3])})
    assert ours.results(found, None, [])[0] == pytest.approx(theirs.results({"value": torch.tensor([0.3])}, None, [])[0], rel=1e-5)
