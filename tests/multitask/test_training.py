"""Training: it learns, it goes on where it stopped with the same bits, it keeps the best, and it says so when nothing is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import entity_rows, table, topic_rows, write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.lm.devices import Machine
from retain.multitask import Callback, Predictor, Progress, assemble, train
from retain.multitask.tasks.heads import Heads
from retain.training.loop import TrainingError

FAST = {"epochs": 3, "batch": 16, "learning_rate": 2e-3}


@pytest.mark.parametrize(("name", "least"), [("digits", 0.9), ("breast_cancer", 0.92), ("wine", 0.92)])
def test_tables_are_learned(name: str, least: float, tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", table(name)[:1000])
    sections = {"data": {"train": ["t.jsonl"], "test_share": 0.2}, "training": {"epochs": 12, "batch": 16, "head_learning_rate": 3e-3}}
    results = train(experiment({"kind": "sequential", "hidden": [64]}, {"t": {"kind": "classification"}}, **sections), tmp_path / "run")
    found = results["tasks"]["t"]
    assert found["test"]["accuracy"] >= least and found["before"]["accuracy"] < 0.7
    assert found["test"]["auroc"] > 0.97 and found["test"]["loss"] < found["before"]["loss"] / 2


TEXTS = {
    "topic": {"kind": "classification", "label": "topic"},
    "names": {"kind": "ner", "words": "words", "tags": "tags", "data": {"train": ["names.jsonl"]}},
}


@pytest.fixture(params=["bert", "gpt2"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A backbone for text, and files for two tasks."""
    write(tmp_path / "topic.jsonl", topic_rows(240))
    write(tmp_path / "names.jsonl", entity_rows(160))
    return {"kind": "text", "model": str(request.getfixturevalue(request.param)), "max_length": 32}


@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_two_tasks_are_learned_at_once(fusion: str, text: dict[str, Any], tmp_path: Path, experiment: Any) -> None:
    config = experiment(text, TEXTS, data={"train": ["topic.jsonl"]}, fusion={"kind": fusion}, training={**FAST, "epochs": 5})
    results = train(config, tmp_path / "run")
    topic, names = results["tasks"]["topic"], results["tasks"]["names"]
    assert topic["before"]["accuracy"] < 0.6 < 0.9 < topic["validation"]["accuracy"]
    assert names["before"]["f1"] < 0.3 < 0.85 < names["validation"]["f1"]


class Interrupt(Callback):
    """Stops as Ctrl-C does."""

    def __init__(self, step: int, phase: int = 0) -> None:
        self.step, self.phase = step, phase

    def on_step(self, at: Progress) -> str | None:
        if (at.phase, at.step) == (self.phase, self.step):
            raise KeyboardInterrupt
        return None


SEQUENCES: dict[str, dict[str, Any]] = {
    "plain": {"conflicts": {"kind": "pcgrad"}, "fusion": {"kind": "attention"}},
    "ewc": {"sampling": {"phases": [["a"], ["b"]]}, "retention": {"methods": ["ewc"]}},
    "replay": {"sampling": {"phases": [["a"], ["b"]]}, "retention": {"methods": ["replay", "kl"], "replay": {"strategy": "hybrid"}}},
    "derpp": {"sampling": {"phases": [["a"], ["b"]]}, "retention": {"methods": ["derpp", "agem"]}},
}


@pytest.mark.parametrize("way", SEQUENCES)
def test_a_resumed_training_has_the_same_bits(way: str, tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", [{**row, "size": row.pop("c0")} for row in table("wine")])
    training = {"epochs": 3, "batch": 16, "checkpoint_every": 10, "callbacks": {"early-stopping": {"patience": 50}}}
    tasks = {"a": {"kind": "classification"}, "b": {"kind": "regression", "label": "size"}}
    config = experiment(
        {"kind": "sequential", "hidden": [16, 16], "dropout": 0.2}, tasks,
        data={"train": ["t.jsonl"]}, training=training, **SEQUENCES[way],
    )  # fmt: skip
    straight = train(config, tmp_path / "straight")
    phase = 0 if way == "plain" else 1
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken", callbacks=[Interrupt(23, phase)])
    assert not (tmp_path / "broken" / "model").exists() and [path.name for path in (tmp_path / "broken").iterdir()] == [
        f"checkpoint-{phase}-20"
    ]
    with pytest.raises(ConfigError, match="holds a run that was interrupted: go on with --resume"):
        train(config, tmp_path / "broken")
    (tmp_path / "broken" / ".part-1-left").mkdir()  # what a power cut leaves
    heard: list[int] = []
    resumed = train(
        config, tmp_path / "broken", resume=True, tell=lambda event, fields: heard.append(fields["step"]) if event == "step" else None
    )
    assert heard[0] == 21 and [path.name for path in (tmp_path / "broken").iterdir()] == [
        "model"
    ]  # not from the beginning; nothing is left
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    for results in (straight, resumed):
        results.pop("seconds")
    assert straight == resumed


def test_resume_with_another_configuration(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", table("wine"))
    backbone, tasks, data = {"kind": "sequential", "hidden": [4]}, {"t": {"kind": "classification"}}, {"train": ["t.jsonl"]}
    training = {"epochs": 2, "batch": 8, "checkpoint_every": 4}
    with pytest.raises(KeyboardInterrupt):
        train(experiment(backbone, tasks, data=data, training=training), tmp_path / "run", callbacks=[Interrupt(6)])
    other = experiment(backbone, tasks, data=data, training={**training, "epochs": 3})
    with pytest.raises(ConfigError, match=r"training\.epochs was 2 and is 3: go on with the configuration that it began with"):
        train(other, tmp_path / "run", resume=True)
    with pytest.raises(DataError, match="the training was interrupted: go on with retain train"):
        Predictor.load(tmp_path / "run")


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_adapters_resume_with_the_same_bits(method: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    write(tmp_path / "t.jsonl", topic_rows(120))
    text = {"kind": "text", "model": str(bert), "max_length": 32, "peft": {"method": method, "dropout": 0.1}}
    config = experiment(
        text,
        {"t": {"kind": "classification", "label": "topic"}},
        data={"train": ["t.jsonl"]},
        training={"epochs": 4, "batch": 16, "checkpoint_every": 3},
    )
    train(config, tmp_path / "straight")
    for stop in (8, 19):  # the second time from a checkpoint of a resumed training
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken", resume=True, callbacks=[Interrupt(stop)])
    train(config, tmp_path / "broken", resume=True)
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Watch(Callback):
    """Remembers what decided."""

    def __init__(self, network: Any = None) -> None:
        self.values: list[tuple[int, float]] = []
        self.network = network

    def on_evaluation(self, at: Progress) -> str | None:
        assert at.value is not None
        self.values.append((at.step, at.value))
        return None


def test_the_best_step_is_kept_by_the_metric_that_was_asked_for(tmp_path: Path, experiment: Any) -> None:
    """A rate that is far too high in the end: the last weights are not the best."""
    write(tmp_path / "t.jsonl", table("wine"))
    for metric in ("t.auroc", "loss", "mean"):
        training = {
            "epochs": 6,
            "batch": 8,
            "schedule": "constant",
            "learning_rate": 0.03,
            "head_learning_rate": 0.03,
            "metric": metric,
            "evaluate_every": 5,
        }
        config = experiment(
            {"kind": "sequential", "hidden": [8]}, {"t": {"kind": "classification"}}, data={"train": ["t.jsonl"]}, training=training
        )
        watch = Watch()
        results = train(config, tmp_path / metric, callbacks=[watch])
        best = max(value for _, value in watch.values)
        assert results["best"] == best and results["best_step"] in [step for step, value in watch.values if value == best]
        kept = results["tasks"]["t"]["validation"]
        assert {"t.auroc": kept["auroc"], "loss": -kept["loss"], "mean": kept["accuracy"]}[metric] == best


def test_early_stopping_and_time_limit(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.jsonl", table("wine"))
    for callbacks, reason in (
        ({"early-stopping": {"patience": 2, "least": 0.5}}, "no improvement in 2"),
        ({"time-limit": {"minutes": 1e-6}}, "minutes have passed"),
    ):
        training = {"epochs": 50, "batch": 32, "callbacks": callbacks}
        config = experiment(
            {"kind": "sequential", "hidden": [8]}, {"t": {"kind": "classification"}}, data={"train": ["t.jsonl"]}, training=training
        )
        watch = Watch()
        results = train(config, tmp_path / reason.split()[0], callbacks=[watch])
        assert reason in results["phases"][0]["stopped"] and len(watch.values) <= 4


def wine(tmp_path: Path, experiment: Any, **training: Any) -> Any:
    write(tmp_path / "t.jsonl", table("wine"))
    sections = {"data": {"train": ["t.jsonl"]}, "training": {"epochs": 2, "batch": 16, **training}}
    return experiment({"kind": "sequential", "hidden": [8]}, {"t": {"kind": "classification"}}, **sections)


def test_a_loss_that_is_always_zero_stops_training(tmp_path: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened where the names of labels did not match: every loss 0.0, every epoch a success."""
    monkeypatch.setattr(Heads, "loss", lambda self, outputs, targets: outputs["label"].sum() * 0.0)
    with pytest.raises(TrainingError, match="task t: its loss was exactly 0 in all of 9 batches"):
        train(wine(tmp_path, experiment), tmp_path / "run")
    assert list((tmp_path / "run").glob("*")) == []


def test_training_that_changes_nothing_is_an_error(tmp_path: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    with pytest.raises(TrainingError, match="training changed nothing in backbone"):
        train(wine(tmp_path, experiment), tmp_path / "run")


def test_fusion_that_is_never_called_is_an_error(tmp_path: Path, experiment: Any, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.multitask.network import MultitaskNetwork, View

    def without(self: Any, task: Any, inputs: Any) -> View:
        states = self.backbone(inputs)
        return View(self.backbone.pool(states), states.mask)

    write(tmp_path / "t.jsonl", topic_rows(60))
    monkeypatch.setattr(MultitaskNetwork, "view", without)
    text = {"kind": "text", "model": str(bert), "max_length": 32}
    config = experiment(
        text,
        {"t": {"kind": "classification", "label": "topic"}},
        data={"train": ["t.jsonl"]},
        fusion={"kind": "attention"},
        training={"epochs": 1, "weight_decay": 0.0},
    )
    with pytest.raises(TrainingError, match="training changed nothing in fusion"):
        train(config, tmp_path / "run")


def test_a_loss_that_is_not_finite(tmp_path: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Heads.loss
    monkeypatch.setattr(Heads, "loss", lambda self, *given: loss(self, *given) * (float("nan") if torch.is_grad_enabled() else 1.0))
    with pytest.raises(TrainingError, match=r"task t: the loss became nan at step 1: lower training\.learning_rate"):
        train(wine(tmp_path, experiment), tmp_path / "run")


def test_weights_that_are_not_saved_are_noticed(tmp_path: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model that would answer with an untrained head is never given its name."""
    from retain.multitask.network import MultitaskNetwork

    load = MultitaskNetwork.load
    monkeypatch.setattr(
        MultitaskNetwork, "load", lambda self, tensors, where: None if where.endswith(".safetensors") else load(self, tensors, where)
    )
    with pytest.raises(TrainingError, match="the saved model answers validation record 1 differently; nothing was saved"):
        train(wine(tmp_path, experiment), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("checkpoint")] == []
    with pytest.raises(DataError, match="holds no finished model"):
        Predictor.load(tmp_path / "run")


def test_a_metric_that_the_records_do_not_define(tmp_path: Path, experiment: Any) -> None:
    rows = table("wine")
    write(tmp_path / "t.jsonl", rows)
    write(tmp_path / "dev.jsonl", [row for row in rows if row["label"] == "class_0"])
    config = experiment(
        {"kind": "sequential"},
        {"t": {"kind": "classification"}},
        data={"train": ["t.jsonl"], "validation": ["dev.jsonl"]},
        training={"metric": "t.auroc"},
    )
    with pytest.raises(DataError, match=r"tasks\.t: auroc cannot be had: the validation records all have the same label"):
        assemble(config)


def test_the_same_seed_gives_the_same_model_and_leaves_the_random_state_alone(tmp_path: Path, experiment: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name in ("one", "two"):
        train(wine(tmp_path, experiment), tmp_path / name)
    assert torch.equal(before, torch.get_rng_state())
    one, two = ((tmp_path / name / "model" / "weights.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    with pytest.raises(ConfigError, match="holds a finished run already"):
        train(wine(tmp_path, experiment), tmp_path / "one")


def test_everything_is_in_the_directory_and_nothing_is_pickled(tmp_path: Path, experiment: Any) -> None:
    train(wine(tmp_path, experiment), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file()) == ["model.json", "weights.safetensors"]
    manifest = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert manifest["tasks"]["t"]["label"]["labels"] == ["class_0", "class_1", "class_2"]
    assert {column["kind"] for column in manifest["backbone"]["features"]} == {"numeric"}
    assert manifest["experiment"]["training"]["batch"] == 16 and manifest["results"]["best_step"] > 0


def test_bfloat16_learns_too_and_answers_in_it(tmp_path: Path, experiment: Any, bert: Path) -> None:
    """Products in bfloat16, weights in float32: on a CPU as on a GPU."""
    write(tmp_path / "t.jsonl", topic_rows(200))
    text = {"kind": "text", "model": str(bert), "max_length": 32}
    task = {"t": {"kind": "classification", "label": "topic"}}
    results = train(experiment(text, task, data={"train": ["t.jsonl"]}, training={**FAST, "precision": "bfloat16"}), tmp_path / "run")
    model = Predictor.load(tmp_path / "run")
    assert results["tasks"]["t"]["validation"]["accuracy"] > 0.8 and model.precision == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in model.network.parameters())
    assert model.predict(["the goal"])[0]["t"]["label"] in ("food", "space", "sport")


def test_precision_follows_the_processor_for_pretrained_networks_alone(
    tmp_path: Path, experiment: Any, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rule as for language models; a small network that begins at random gains nothing from bfloat16."""
    write(tmp_path / "t.jsonl", topic_rows(40))
    write(tmp_path / "digits.jsonl", table("digits")[:40])
    keys: dict[str, Any] = {"training": {"precision": "auto", "device": "cpu"}}
    text = experiment(
        {"kind": "text", "model": str(bert), "max_length": 32}, {"t": {"kind": "classification", "label": "topic"}},
        data={"train": ["t.jsonl"]}, **keys,
    )  # fmt: skip
    rows = experiment({"kind": "sequential"}, {"t": {"kind": "classification"}}, data={"train": ["digits.jsonl"]}, **keys)
    for flags, expected in (({"avx512_bf16"}, torch.bfloat16), ({"avx512f"}, torch.float32)):
        here = Machine("a processor", 2, frozenset(flags), 2**34, None, False, False)
        monkeypatch.setattr("retain.lm.devices.machine", lambda here=here: here)
        assert assemble(text).precision == expected and assemble(rows).precision == torch.float32
