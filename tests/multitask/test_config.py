"""What an experiment file may say, and what is wrong with it: one line, before anything is loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from retain.config import ConfigError
from retain.multitask import BACKBONES, TASKS, load_experiment, parse_experiment

GOOD: dict[str, Any] = {
    "backbone": {"kind": "sequential"},
    "data": {"train": "a.csv"},
    "tasks": {"risk": {"kind": "classification", "label": "risk"}, "price": {"kind": "regression", "label": "price"}},
}


def changed(**values: Any) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    for key, value in values.items():
        section = made
        *path, last = key.split("__")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(training__epoch=2), "training.epoch: unknown key; did you mean training.epochs?"),
        (changed(backbone__hiden=[3]), "backbone: hiden: unknown key; did you mean hidden?"),
        (changed(tasks__risk__lable="x"), "tasks.risk: lable: unknown key; did you mean label?"),
        (changed(backbone__peft={"rnak": 3}), "backbone: peft.rnak: unknown key; did you mean peft.rank?"),
        (changed(backbone__kind="sequental"), "backbone: kind: there is no kind of backbone 'sequental': did you mean 'sequential'?"),
        (changed(tasks__risk__kind="clasification"), "did you mean 'classification'?"),
        (changed(tasks__risk={"label": "x"}), "tasks.risk: kind: is missing; there is anomaly, classification"),
        (changed(backbone={"kind": "text"}), "backbone: model: is missing"),
        (changed(training__metric="risk.acuracy"), "there is no metric 'risk.acuracy': did you mean 'risk.accuracy'?"),
        (changed(training__learning_rate=-1), "training.learning_rate: must be greater than 0"),
        (changed(training__batch="many"), "training.batch: must be a valid integer"),
        (changed(sampling__phases=[["risk"]]), "sampling.phases: price is in no phase"),
        (changed(sampling__phases=[["risk"], ["prise"]]), "there is no task 'prise': did you mean 'price'?"),
        (changed(conflicts__kind="pcgrad", training__accumulation=1), "pcgrad needs batches of two tasks in a step"),
        (changed(conflicts__kind="pcgrad", sampling__phases=[["risk"], ["price"]]), "two tasks that learn together"),
        (changed(retention__methods=["ewc"]), "there are no earlier tasks to protect"),
        (changed(retention__methods=["ewcc"]), "did you mean 'ewc'?"),
        (changed(retention__methods=["olora"], sampling__phases=[["risk"], ["price"]]), "take ewc or replay"),
        (changed(retention__methods=["kl"], sampling__phases=[["risk"], ["price"]]), "add replay"),
        (changed(training__metric="risk.accuracy", sampling__phases=[["risk"], ["price"]]), "with phases it is mean or loss"),
        (changed(training__callbacks={"early-stoping": {}}), "did you mean 'early-stopping'?"),
        (changed(training__callbacks={"early-stopping": {"patiense": 1}}), "patiense: unknown key; did you mean patience?"),
        (changed(tasks={}), "tasks: is missing"),
        ({"backbon": GOOD["backbone"], "tasks": GOOD["tasks"]}, "backbon: unknown key; did you mean backbone?"),
        ({"backbone": GOOD["backbone"], "task": GOOD["tasks"]}, "task: unknown key; did you mean tasks?"),
        (changed(backbone__peft={"method": "qlora"}), "backbone.peft.method: qlora is for seq2seq and text; for sequential take lora"),
        (changed(**{"tasks__a b": {"kind": "regression"}}), "a name has letters, digits, - and _ only"),
        (["nothing"], "must hold sections"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(values, where="e.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("e.yaml: ") and "\n" not in str(caught.value)


def test_a_file_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        "backbone: {kind: sequential}\ndata: {train: 'a.csv,b.csv'}\ntasks: {t: {kind: regression}}\ntraining: {learning_rate: 2e-4}\n"
    )
    config = load_experiment(file, {"tasks.t.weight": 3, "training.clip": "null", "name": "mine"})
    assert config.data.train == ["a.csv", "b.csv"] and config.folder == tmp_path and config.name == "mine"
    assert (config.training.learning_rate, config.training.clip, config.tasks["t"].weight) == (2e-4, None, 3.0)
    with pytest.raises(ConfigError, match=r"tasks\.s\.weight: unknown key; did you mean tasks\.t\.weight\?"):
        load_experiment(file, {"tasks.s.weight": 3})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path / "other.yaml")
    file.write_text("backbone: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_experiment(file)


def test_what_is_recorded_is_read_back() -> None:
    sections = {"kind": "multihead", "heads": {"a": {"weight": 2}, "b": {"multilabel": True}}}
    config = parse_experiment(changed(tasks__h=sections, backbone__peft={"rank": 3}, sampling__phases=[["risk"], ["price", "h"]]))
    again = parse_experiment(config.recorded())
    assert again == config and again.recorded() == config.recorded() and again.phases == [["risk"], ["price", "h"]]


def test_kinds_are_registered_once() -> None:
    assert {"text", "sequential"} <= set(BACKBONES)
    assert {"classification", "multilabel", "multihead", "ner", "regression", "anomaly"} <= set(TASKS)
    with pytest.raises(ConfigError, match="registered twice"):
        TASKS.register("ner")(TASKS.find("ner", ""))
