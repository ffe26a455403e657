"""Backbones, pooling and fusion: kinds are detected, padding has no effect, fusion is called and changes the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.multitask.conftest import entity_rows, save_model, topic_rows, write

from retain.config import ConfigError
from retain.lm.model import LanguageModelError
from retain.multitask import Experiment, States, assemble, model_kind
from retain.multitask.network import TaskFusion


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "causal"),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2"}, "causal"),
        ({"architectures": None, "model_type": "gpt2"}, "causal"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "causal"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"model_type": "bert"}, "encoder"),
        ({"architectures": ["DistilBertForSequenceClassification"], "model_type": "distilbert"}, "encoder"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}, "causal"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}, "seq2seq"),
        ({"architectures": ["BartModel"], "model_type": "bart", "is_encoder_decoder": True}, "seq2seq"),
    ],
)
def test_the_kind_of_a_model(config: dict[str, Any], kind: str) -> None:
    assert model_kind(config) == kind


@pytest.fixture(params=["bert", "gpt2"])
def text(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"kind": "text", "model": str(request.getfixturevalue(request.param)), "max_length": 32}


def made(tmp_path: Path, experiment: Any, text: dict[str, Any], **sections: Any) -> Experiment:
    rows = [{**a, **{key: b[key] for key in ("words", "tags")}} for a, b in zip(topic_rows(40), entity_rows(40), strict=True)]
    write(tmp_path / "t.jsonl", rows)
    tasks = {"topic": {"kind": "classification", "label": "topic"}, "names": {"kind": "ner", "words": "words", "tags": "tags"}}
    return assemble(experiment(text, tasks, data={"train": ["t.jsonl"]}, **sections))


@pytest.mark.parametrize("fusion", ["none", "attention"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_has_no_effect(fusion: str, pooling: str, tmp_path: Path, experiment: Any, text: dict[str, Any]) -> None:
    """A record alone, and beside one that is three times as long: the same logits."""
    given = made(tmp_path, experiment, text | {"pooling": pooling}, fusion={"kind": fusion})
    network, backbone = given.network.eval(), given.network.backbone
    short, long = backbone.encode([("the goal was seen",), ("a match and the coach then it was near again today with anna in new york",)])
    alone, beside = backbone.collate([short]), backbone.collate([short, long])
    assert alone["input_ids"].shape[1] < beside["input_ids"].shape[1]
    beside["input_ids"][0, short.length :] = 7  # whatever stands in the padding
    for task, name in (("topic", "label"), ("names", "tags")):
        one, two = network(task, alone)[name][0], network(task, beside)[name][0]
        assert torch.allclose(one, two[: len(one)] if task == "names" else two, atol=2e-6)


def test_fusion_is_called_and_changes_the_result(tmp_path: Path, experiment: Any, text: dict[str, Any]) -> None:
    plain, fused = made(tmp_path, experiment, text), made(tmp_path, experiment, text, fusion={"kind": "attention"})
    assert plain.network.fusion is None and fused.network.fusion is not None
    calls: list[str] = []
    fused.network.fusion.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    for task, name in (("topic", "label"), ("names", "tags")):
        inputs, targets = fused.batch(task, "train", [0, 1, 2])
        outputs = fused.network.eval()(task, inputs)
        fused.network.load_state_dict({**fused.network.state_dict(), **plain.network.state_dict()})  # the same backbone and heads
        assert not torch.allclose(outputs[name], plain.network.eval()(task, inputs)[name], atol=1e-3)
        fused.network.zero_grad()
        fused.task(task).loss(fused.network(task, inputs), targets).backward()
        gradients = {key: value.grad for key, value in fused.network.fusion.named_parameters()}
        assert all(gradient is not None and bool(gradient.any()) for key, gradient in gradients.items() if key != "key.bias")
    assert calls == ["topic", "topic", "names", "names"]


def test_fusion_attends_as_softmax_over_what_is_not_padding() -> None:
    """Against the plain formula, one head, one record at a time without its padding."""
    torch.manual_seed(0)
    fusion = TaskFusion(["a", "b"], 8, 1)
    states = States(torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool())
    start = torch.randn(3, 1, 8)
    found = fusion("b", states, start)
    for number in range(3):
        x = states.tokens[number][states.mask[number]]
        scores = fusion.query(start[number] + fusion.tasks[1]) @ fusion.key(x).t() / 8**0.5
        expected = fusion.norm(start[number] + fusion.out(torch.softmax(scores, -1) @ fusion.value(x)))
        assert torch.allclose(found[number], expected, atol=1e-6)
    assert not torch.allclose(found, fusion("a", states, start), atol=1e-3)  # each task looks elsewhere
    with pytest.raises(ConfigError, match="3 heads do not divide the backbone's width of 8"):
        TaskFusion(["a"], 8, 3)


def test_fusion_over_slots_of_a_table(tmp_path: Path, experiment: Any) -> None:
    write(tmp_path / "t.csv", [{"x": float(number % 7), "y": number % 3, "label": "yn"[number % 2]} for number in range(40)])
    backbone = {"kind": "sequential", "hidden": [8, 8], "slots": 3}
    given = assemble(experiment(backbone, {"t": {"kind": "classification"}}, data={"train": ["t.csv"]}, fusion={"kind": "attention"}))
    states = given.network.backbone(given.batch("t", "train", [0, 1])[0])
    assert states.tokens.shape == (2, 3, 8) and bool(states.mask.all())


def test_pairs_and_long_texts(tmp_path: Path, experiment: Any, bert: Path) -> None:
    rows = [{"a": "the goal " * 3, "b": "a soup " * (1 + number), "label": "yn"[number % 2]} for number in range(30)]
    write(tmp_path / "t.jsonl", rows)
    text = {"kind": "text", "model": str(bert), "max_length": 20, "input": ["a", "b"]}
    given = assemble(experiment(text, {"t": {"kind": "classification"}}, data={"train": ["t.jsonl"]}))
    inputs, _ = given.batch("t", "train", [0, 1, 2])
    assert inputs["token_type_ids"].any() and int(inputs["attention_mask"].sum(1).max()) <= 20
    assert any("are longer than backbone.max_length and are cut off" in note for note in given.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 99}, "reads at most 64 tokens, not 99"),
        ({"input": ["a", "b", "c"]}, "one column of text, or two for pairs"),
        ({"input": ["txet"]}, "field 'txet': there is no such column (did you mean 'text'?)"),
        ({"peft": {"targets": ["qurey"]}}, "'qurey' matches no linear layer: did you mean 'query'?"),
        ({"freeze": {"patterns": ["embedings.*"]}}, "matches no parameter"),
        ({"freeze": {"layers": 3}}, "this backbone has 2 layers, not 3"),
        ({"freeze": {"layers": 2}, "peft": {}}, "every layer that would be adapted is frozen"),
        ({"peft": {"method": "prefix"}}, "prefix needs a causal language model"),
    ],
)
def test_mistakes_about_backbones(change: dict[str, Any], message: str, tmp_path: Path, experiment: Any, bert: Path) -> None:
    write(tmp_path / "t.jsonl", topic_rows(30))
    text = {"kind": "text", "model": str(bert), "max_length": 32, **change}
    with pytest.raises(ValueError) as caught:
        assemble(experiment(text, {"t": {"kind": "classification", "label": "topic"}}, data={"train": ["t.jsonl"]}))
    assert message in str(caught.value)


def test_models_that_do_not_fit(tmp_path: Path, experiment: Any, bert: Path) -> None:
    write(tmp_path / "t.jsonl", topic_rows(30))
    save_model(tmp_path / "t5", "t5")
    shutil.copytree(bert, tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if "layer.1.output" not in name}
    save_file(left, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    tasks = {"t": {"kind": "classification", "label": "topic"}}
    for model, message in (
        ("t5", "encoder-decoder"),
        ("half", "lacks 4 tensors, the first is encoder.layer.1.output"),
        ("./nowhere", "there is no model at"),
    ):
        with pytest.raises((ValueError, LanguageModelError), match=message):
            assemble(experiment({"kind": "text", "model": model, "max_length": 32}, tasks, data={"train": ["t.jsonl"]}))


def test_tasks_that_a_backbone_cannot_serve(tmp_path: Path, experiment: Any, bert: Path) -> None:
    write(tmp_path / "t.jsonl", entity_rows(30))
    data = {"train": ["t.jsonl"]}
    with pytest.raises(ConfigError, match=r"tasks\.t: ner needs offsets, which a backbone of kind sequential has not"):
        assemble(experiment({"kind": "sequential"}, {"t": {"kind": "ner", "words": "words", "tags": "tags"}}, data=data))
    with pytest.raises(ConfigError, match=r"tasks\.t: anomaly needs features, which a backbone of kind text has not"):
        assemble(experiment({"kind": "text", "model": str(bert)}, {"t": {"kind": "anomaly"}}, data=data))
