"""Text that is written: the loss is transformers' own, on the target alone; what is written does not depend on the batch; what was learned
is saved, measured and answered alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.multitask.conftest import FILLER, TOPICS, topic_rows, write
from tests.tiny_models import save_writer

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import Predictor, assemble, plan_experiment, train
from retain.multitask.backbones.writing import KNOWN, TARGET
from retain.multitask.retaining import RecordObjective
from retain.multitask.tasks.texts import text_scores
from retain.retention.positions import labels_of

WORDS = [*FILLER, *(word for words in TOPICS.values() for word in words), *TOPICS, "about", "one", ":"]
SAID = {"sport": "about sport", "food": "about the food again", "space": "it was seen near one star"}
KINDS = ["t5", "bart", "marian", "gpt2", "llama"]
READS_FIRST = ("t5", "bart", "marian")


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``writer(kind)``: the directory of a tiny random model that writes."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_writer(tmp_path_factory.mktemp("writers") / kind, kind, WORDS)
        return made[kind]

    return get


def said_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{**row, "target": SAID[row["topic"]]} for row in topic_rows(count, seed)]


@pytest.fixture
def setup(tmp_path: Path, experiment: Any, writer: Any) -> Any:
    write(tmp_path / "t.jsonl", said_rows(160))

    def make(kind: str, task: dict[str, Any] | None = None, tasks: dict[str, Any] | None = None, **sections: Any) -> Any:
        backbone = {"kind": "seq2seq" if kind in READS_FIRST else "text", "model": str(writer(kind)), "max_length": 32}
        backbone |= sections.pop("backbone", {})
        training = {"epochs": 10, "batch": 16, "learning_rate": 1e-2, **sections.pop("training", {})}
        chosen = tasks or {"t": {"kind": "generation", **(task or {})}}
        return experiment(backbone, chosen, data={"train": ["t.jsonl"]}, training=training, **sections)

    return make


def own_loss(kind: str, made: Any, numbers: list[int]) -> float:
    """The loss as transformers' model computes it from labels, for records one by one, weighted by their tokens."""
    core, part = made.network.backbone.core.eval(), made.parts["t"]["train"]
    total, tokens = 0.0, 0
    for number in numbers:
        ids, target = part.inputs[number].inputs["input_ids"], part.targets[number][TARGET]
        if kind in READS_FIRST:
            loss = core(input_ids=ids[None], labels=target[None]).loss
        else:
            labels = torch.cat([torch.full_like(ids, -100), target])
            loss = core(input_ids=torch.cat([ids, target])[None], labels=labels[None]).loss
        total += loss.item() * len(target)
        tokens += len(target)
    return total / tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(kind: str, setup: Any) -> None:
    """In one padded batch of prompts and targets of different lengths; padding and prompt take no part, and labels are shifted once."""
    made = assemble(setup(kind))
    numbers = list(range(12))
    inputs, targets = made.batch("t", "train", numbers)
    assert len({len(made.parts["t"]["train"].inputs[number].inputs["input_ids"]) for number in numbers}) > 3
    assert len(set(inputs[KNOWN].sum(1).tolist())) == 3 and not bool((inputs["attention_mask"] == 1).all())
    made.network.eval()
    outputs = made.network("t", inputs)
    assert outputs["logits"].shape == (*inputs[TARGET].shape, made.network.backbone.vocabulary)
    assert made.task("t").loss(outputs, targets).item() == pytest.approx(own_loss(kind, made, numbers), rel=1e-5)
    other = {**inputs, TARGET: inputs[TARGET].masked_fill(~inputs[KNOWN], 5)}
    other["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
    assert torch.allclose(made.network("t", other)["logits"][inputs[KNOWN]], outputs["logits"][inputs[KNOWN]], atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "bloom"])
def test_what_is_written_does_not_depend_on_the_batch(kind: str, setup: Any) -> None:
    """Records together, alone, and by transformers' own greedy search without padding, say the same."""
    made = assemble(setup(kind, {"max_new_tokens": 12}))
    backbone, part = made.network.backbone.eval(), made.parts["t"]["train"]
    encoded = part.inputs[:9]
    for parameter in backbone.parameters():
        parameter.data.mul_(3.0 if kind == "bart" and parameter.ndim > 1 else 1.0)  # else all of its texts are alike
    assert len({item.length for item in encoded}) > 3
    with torch.no_grad():
        together = backbone.write(backbone.collate(encoded), 12)
        for row, item in zip(together, encoded, strict=True):
            alone = backbone.write(backbone.collate([item]), 12)[0]
            ids = item.inputs["input_ids"][None]
            theirs = backbone.core.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, num_beams=1, use_cache=True, pad_token_id=0
            )[0]
            theirs = theirs[1:] if kind in READS_FIRST else theirs[ids.shape[1] :]
            kept = row[row != -1].tolist()
            assert kept == alone[alone != -1].tolist() == theirs[: len(kept)].tolist()
            assert len(kept) == 12 or kept[-1] == 1
    assert len({tuple(row.tolist()) for row in together}) > 1  # they are not all the same text


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_it_learns_to_write(kind: str, setup: Any, tmp_path: Path) -> None:
    """What is saved answers as the training measured, one by one and from files."""
    results = train(setup(kind), tmp_path / "run")
    task = results["tasks"]["t"]
    assert task["main"] == "rougeL" and task["before"]["exact"] < 0.2 and task["before"]["perplexity"] > 5
    assert task["validation"]["exact"] > 0.8 and task["validation"]["rougeL"] > 0.85 and task["validation"]["chrf"] > 0.85
    assert 1.0 <= task["validation"]["perplexity"] < 1.5
    model = Predictor.load(tmp_path / "run")
    rows = assemble(setup(kind)).parts["t"]["validation"].rows
    assert model.evaluate(rows) == task["validation"]
    answers = model.predict([row.values for row in rows])
    right = sum(answer["t"]["text"] == row.values["target"] for answer, row in zip(answers, rows, strict=True)) / len(rows)
    assert right == pytest.approx(task["validation"]["exact"])
    assert [model.predict([row.values])[0] for row in rows[:5]] == answers[:5]  # alone
    write(tmp_path / "in.jsonl", [{"text": row.values["text"]} for row in rows])
    model.predict_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = [json.loads(line)["predictions"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == answers


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_adapters_of_a_causal_model(method: str, setup: Any, tmp_path: Path) -> None:
    """The base learns nothing, the file is small, and a batch still does not matter: a prefix takes places of its own."""
    config = setup("gpt2", backbone={"peft": {"method": method, "rank": 8, "tokens": 6}}, training={"epochs": 15, "learning_rate": 3e-2})
    made = assemble(config)
    results = train(made, tmp_path / "run")
    assert results["tasks"]["t"]["validation"]["loss"] < (0.4 if method == "lora" else 0.7) * results["tasks"]["t"]["before"]["loss"]
    kept = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert kept and not any("wte" in name or "lm_head" in name for name in kept)
    backbone, encoded = made.network.backbone.eval(), made.parts["t"]["train"].inputs[:8]
    with torch.no_grad():
        together = backbone.write(backbone.collate(encoded), 8)
        for row, item in zip(together, encoded, strict=True):
            alone = backbone.write(backbone.collate([item]), 8)[0]
            assert row[row != -1].tolist() == alone[alone != -1].tolist()
            ids = item.inputs["input_ids"][None]  # without a cache: every token from all before it
            for token in alone[alone != -1].tolist():
                logits = backbone.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                assert int(logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_prompts(setup: Any, tmp_path: Path) -> None:
    """Columns in a sentence; nothing of it is in the loss, and it is what the plan shows beside the target."""
    write(tmp_path / "t.jsonl", [{**row, "a": row["text"], "b": "again"} for row in said_rows(60)])
    config = setup("gpt2", {"prompt": "{b} : {a} one :"})
    plan = plan_experiment(config)
    shown, wanted = plan.tasks[0].samples[0]
    assert shown.startswith("again : ") and shown.endswith(" one :") and wanted in SAID.values()
    assert plan.tasks[0].counts == {"2 to 6 words": 48}
    made = assemble(config)
    assert made.parts["t"]["train"].targets[0][TARGET].shape[0] == len(wanted.split()) + 1
    with pytest.raises(DataError, match="field 'b': there is no such column"):
        write(tmp_path / "t.jsonl", said_rows(60))
        assemble(setup("gpt2", {"prompt": "{b} : {text}"}))


def test_texts_are_as_long_as_those_learned(setup: Any) -> None:
    made = assemble(setup("t5"))
    assert made.task("t").state() == {"most": 7}  # six words and the end
    assert assemble(setup("t5", {"max_new_tokens": 3})).task("t").state() == {"most": 3}
    cut = assemble(setup("t5", {"max_target_length": 4}))
    assert any("training" in note or ("train records:" in note and "longer than max_target_length" in note) for note in cut.notes)
    tokens = [target[TARGET].tolist() for target in cut.parts["t"]["train"].targets]
    assert {len(own) for own in tokens} == {3, 4} and all((own[-1] == 1) == (len(own) == 3) for own in tokens)  # what is cut has no end


def test_the_language_model_head_is_there_for_this_task_alone(setup: Any) -> None:
    topic = {"kind": "classification", "label": "topic"}
    without = assemble(setup("llama", tasks={"topic": topic})).network
    both = assemble(setup("llama", tasks={"topic": topic, "t": {"kind": "generation"}}))
    assert not any("lm_head" in name for name, _ in without.named_parameters())
    assert any("lm_head" in name for name, _ in both.network.named_parameters())
    inputs, _ = both.batch("topic", "train", [0, 1, 2])
    without.eval()
    both.network.eval()
    assert torch.allclose(without.backbone(inputs).tokens, both.network.backbone(inputs).tokens, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_with_a_classification_on_the_same_model(kind: str, setup: Any, tmp_path: Path) -> None:
    tasks = {"topic": {"kind": "classification", "label": "topic"}, "t": {"kind": "generation"}}
    results = train(setup(kind, tasks=tasks, fusion={"kind": "attention"}), tmp_path / "run")["tasks"]
    assert results["topic"]["validation"]["accuracy"] > 0.9 and results["t"]["validation"]["exact"] > 0.8


def test_what_retention_methods_see(setup: Any) -> None:
    """Every target token is a position with an outcome, and their cross-entropy is the loss."""
    for kind in ("t5", "gpt2"):
        made = assemble(setup(kind))
        objective = RecordObjective(made)
        examples = objective.chosen("t", [3, 0, 5])
        logits, rows = objective.logits(examples, made.network.learning())
        assert rows.tolist() == sorted(rows.tolist()) and logits.shape[1] == made.network.backbone.vocabulary
        inputs, targets = made.batch("t", "train", [3, 0, 5])
        expected = made.task("t").loss(made.network.eval()("t", inputs), targets)
        assert torch.allclose(torch.nn.functional.cross_entropy(logits, labels_of(examples)), expected, atol=1e-5)


def test_metrics_by_their_definition() -> None:
    """ROUGE-1 and ROUGE-L by counting (Lin 2004); chrF of one pair by its n-grams (Popović 2015); exact but for spaces."""
    wanted, written = ["the cat sat on the mat"], ["the cat on the red mat"]
    found = text_scores(written, wanted)
    assert found["rouge1"] == pytest.approx(2 * 5 / 12) and found["rougeL"] == pytest.approx(2 * 5 / 12)
    assert text_scores(["on the cat"], ["the cat on"])["rouge1"] == 1.0
    assert text_scores(["on the cat"], ["the cat on"])["rougeL"] == pytest.approx(2 / 3)
    assert text_scores(["a  b "], ["a b"])["exact"] == 1.0 and text_scores(["a c"], ["a b"])["exact"] == 0.0

    def grams(text: str, n: int) -> list[str]:
        joined = text.replace(" ", "")
        return [joined[place : place + n] for place in range(len(joined) - n + 1)]

    precision, recall = [], []
    for n in range(1, 7):
        own, theirs = grams(written[0], n), grams(wanted[0], n)
        both = sum(min(own.count(gram), theirs.count(gram)) for gram in set(own))
        precision.append(both / len(own))
        recall.append(both / len(theirs))
    p, r = sum(precision) / 6, sum(recall) / 6
    assert found["chrf"] == pytest.approx(5 * p * r / (4 * p + r), abs=1e-6)


def test_perplexity_is_over_all_tokens(setup: Any) -> None:
    """Long texts count more than short ones: exp of all nats by all tokens, whatever the batches."""
    made = assemble(setup("t5"))
    from retain.multitask.scoring import evaluate

    found = evaluate(made, "t", "validation", tune=False)
    part = made.parts["t"]["validation"]
    made.parts["t"]["train"] = part
    expected = own_loss("t5", made, list(range(len(part))))
    assert math.log(found["perplexity"] or 0.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("gpt2", {"task": {"prompt": "{text"}}, "tasks.t.prompt: "),
        ("gpt2", {"task": {"prompt": "no column"}}, "tasks.t.prompt: names no column: write {text} where"),
        ("gpt2", {"task": {"prompt": "{text.x}"}}, "tasks.t.prompt: {text.x} is no column"),
        ("gpt2", {"task": {"prompt": "{text}", "input": ["text"]}}, "tasks.t.input: the prompt names the columns"),
        ("gpt2", {"task": {"max_new_tokens": 60}}, "up to 60 tokens are to be written, and the model has room for 32"),
        ("bart", {"task": {"max_new_tokens": 100}}, "up to 100 tokens are to be written, and the model has room for 64"),
        ("t5", {"backbone": {"freeze": {"all": True}}}, "tasks.t: is learned in the backbone, and all of that is frozen"),
        ("t5", {"fusion": {"kind": "attention"}}, "fusion.kind: generation reads no fused states"),
        ("t5", {"backbone": {"peft": {"method": "prefix"}}}, "prefix needs a causal language model"),
    ],
)
def test_mistakes(kind: str, keys: dict[str, Any], message: str, setup: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(setup(kind, **keys))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_models_and_records_that_cannot_do_it(setup: Any, tmp_path: Path, experiment: Any, bert: Path, gpt2: Path) -> None:
    for model, message in ((bert, "is an encoder and writes no text: take a causal model"), (gpt2, "has no end token (eos_token)")):
        config = experiment(
            {"kind": "text", "model": str(model), "max_length": 32}, {"t": {"kind": "generation"}}, data={"train": ["t.jsonl"]}
        )
        with pytest.raises(ConfigError) as caught:
            assemble(config)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="generation needs generation"):
        assemble(experiment({"kind": "sequential"}, {"t": {"kind": "generation"}}, data={"train": ["t.jsonl"]}))
    rows = said_rows(40)
    for value, message in ((None, "line 3, field 'target': has no label"), (4, "line 3, field 'target': must be a text, not a number")):
        write(tmp_path / "t.jsonl", [*rows[:2], {**rows[2], "target": value}, *rows[3:]])
        with pytest.raises(DataError) as raised:
            assemble(setup("t5"))
        assert message in str(raised.value)
