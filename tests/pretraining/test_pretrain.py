"""Pre-training from a configuration to a model: it learns, it goes on where it stopped, it can be read elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.pretraining.material import TOWNS, configured, sentence

from retain.lm.generation import Sampling, generate
from retain.lm.loading import load_model
from retain.lm.packing import Packed
from retain.pretraining import PretrainConfig, PretrainingError, Watch, plan, pretrain
from retain.pretraining.checkpoints import Checkpoints
from retain.pretraining.optimizer import make_optimizer
from retain.training.loop import TrainingError


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def stopped_at(config: PretrainConfig, step: int) -> None:
    """Train until a step and stop there in the middle of things."""

    def stop(told: Any) -> None:
        if told.step == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(config, watch=Watch(step=stop))


def logged(place: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "speed")} for line in lines]


def test_it_learns_the_corpus(tmp_path: Path) -> None:
    """From nothing to knowing which town sells what, measured on documents that were held out and by what it writes."""
    told: list[Any] = []
    training = {"steps": 250, "learning_rate": 2e-2, "batch": 8}
    checks = {"every": 125, "length": 12, "prompts": [sentence(town).rpartition(" ")[0] for town in TOWNS]}
    config = configured(tmp_path, training=training, checks=checks)
    results = pretrain(config, watch=Watch(check=told.append))
    assert results is not None
    losses = [line["loss"] for line in logged(tmp_path / "run") if line["event"] == "step"]
    assert losses[0] > 5 and losses[-1] < 1 and [check["step"] for check in told] == [125, 250]
    assert results["perplexity"] < 3 and results["validation"] < losses[0] / 4
    assert results["tokens"] == 250 * 8 * 32 and results["model_step"] in (125, 250)
    right = sum(sample["text"].startswith(f" {TOWNS[town]}.") for sample, town in zip(told[-1]["samples"], TOWNS, strict=True))
    assert right >= 10, told[-1]["samples"]


def test_transformers_and_retain_read_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results = pretrain(configured(tmp_path))
    assert results is not None
    place = Path(results["model"])
    own, theirs = load_model(place, device="cpu", precision="float32"), AutoModelForCausalLM.from_pretrained(place).eval()
    tokens = AutoTokenizer.from_pretrained(place)("The town of Bel sells").input_ids
    assert tokens == own.tokenizer("The town of Bel sells").input_ids and theirs.config.model_type == "llama"
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([tokens])).logits[0]
        found = own.logits(own.hidden(Packed.of([tokens])))
    assert float(found.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == results["parameters"]
    assert len(generate(own, [tokens], Sampling(4))) == 1 and own.context == 32


def test_resumed_is_straight_bit_for_bit(tmp_path: Path) -> None:
    straight = pretrain(configured(tmp_path, "straight"))
    config = configured(tmp_path, "stopped")
    stopped_at(config, 9)  # after the checkpoint of step 6: steps 7 to 9 are lost
    with pytest.raises(PretrainingError, match="--resume goes on with it"):
        pretrain(config)
    resumed = pretrain(config, resume=True)
    assert straight is not None and resumed is not None
    for file in ("model.safetensors", "optimizer.safetensors"):
        first, second = (load_file(tmp_path / run / "checkpoints" / "step-00000012" / file) for run in ("straight", "stopped"))
        assert set(first) == set(second) and first
        for name, tensor in first.items():
            assert torch.equal(tensor.view(torch.int32), second[name].view(torch.int32)), (file, name)
    assert logged(tmp_path / "straight") == logged(tmp_path / "stopped")
    again = pretrain(config, resume=True)  # nothing is left to do
    assert again is not None and {**again, "seconds": 0} == {**resumed, "seconds": 0}


def test_two_pieces_are_one(tmp_path: Path) -> None:
    """Accumulation changes nothing but rounding."""
    pretrain(configured(tmp_path, "one"))
    pretrain(configured(tmp_path, "two", training={"accumulation": 2}))
    first, second = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


def test_the_last_two_and_the_best_checkpoint_stay(tmp_path: Path) -> None:
    """With a rate that ruins what was learned, the best is not among the last."""
    validations: list[tuple[float, int]] = []
    watch = Watch(check=lambda record: validations.append((record["validation"], record["step"])))
    config = configured(tmp_path, training={"steps": 20, "learning_rate": 10.0, "warmup": 0.9, "clip": 100.0}, checks={"every": 4})
    results = pretrain(config, watch=watch)
    assert results is not None
    best = min(validations)[1]
    assert best < 16, validations
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", {})
    assert [int(path.name[5:]) for path in checkpoints.all()] == [best, 16, 20]
    assert results["model_step"] == best and (tmp_path / "run" / "model" / "config.json").is_file()


def test_another_corpus_or_configuration_cannot_be_resumed(tmp_path: Path) -> None:
    config = configured(tmp_path)
    stopped_at(config, 7)
    (tmp_path / "texts" / "0.txt").write_text("Another text.\n")
    with pytest.raises(PretrainingError, match="the data has changed since"):
        pretrain(config, resume=True)
    config.training.learning_rate = 0.5
    with pytest.raises(PretrainingError, match=r"training.learning_rate: 0.01 there, 0.5 here"):
        pretrain(config, resume=True)


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    config = configured(tmp_path)
    stopped_at(config, 9)
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".tmp-step-00000012-aa").mkdir()
    (folder / ".tmp-step-00000012-aa" / "model.safetensors").write_bytes(b"half")
    results = pretrain(config, resume=True)
    assert results is not None and results["step"] == 12 and not list(folder.glob(".tmp*"))
    (folder / "step-00000012" / "optimizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(PretrainingError, match="cannot be read"):
        pretrain(config, resume=True)


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate"):
        pretrain(configured(tmp_path, training={"learning_rate": 1e20, "clip": 1e9, "warmup": 0.0}))


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "run" / "data"
    mine.mkdir(parents=True)
    (mine / "mine.txt").write_text("mine")
    with pytest.raises(PretrainingError, match=r"there are other files here \(data\)"):
        pretrain(configured(tmp_path))
    assert (mine / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"context": 513}}, "model.context: 513 tokens are more than the 512 of the preset 5m"),
        ({"model": {"heads": 3, "kv_heads": 2}}, "model.kv_heads: 3 query heads cannot share 2"),
        ({"training": {"batch": 4000}}, "fewer than the 4000 of a batch"),
        ({"training": {"batch": 4, "accumulation": 3}}, "training.batch: 4 cannot be divided evenly"),
        ({"training": {"sharding": "fsdp2"}}, "fsdp2 needs several processes"),
    ],
)
def test_mistakes_are_told_before_training(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises((PretrainingError, ValueError), match=words) as caught:
        pretrain(configured(tmp_path, **sections), watch=Watch(step=lambda step: pytest.fail("it trained")))
    assert "\n" not in str(caught.value)


def test_a_plan_trains_nothing_and_prepares_the_data(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"steps": None, "epochs": 3})
    found = plan(config)
    assert found.parameters == 28_832 and found.documents == 6 and found.seconds > 0 and found.memory > found.state == 16 * found.parameters
    assert found.steps == 3 * ((found.tokens - 1) // 31) // 4 and found.step_tokens == 4 * 32
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "log.jsonl").exists()
    stages: list[str] = []
    config.training.learning_rate = 1e-3  # a plan binds to nothing
    results = pretrain(config, watch=Watch(stage=lambda stage, count: stages.append(stage)))
    assert results is not None and results["step"] == found.steps and not stages


def test_decay_is_for_matrices() -> None:
    from retain.lm.shapes import DecoderConfig, initial_weights
    from retain.pretraining.config import TrainConfig
    from retain.pretraining.decoder import TrainableDecoder

    shape = DecoderConfig(61, 32, 2, 2, 1, 16, 48, 40, qkv_bias=True)
    decoder = TrainableDecoder(shape, initial_weights(shape))
    matrices, others = make_optimizer(decoder, TrainConfig(weight_decay=0.1)).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2} and {p.ndim for p in others["params"]} == {1}
    assert sum(p.numel() for group in (matrices, others) for p in group["params"]) == shape.parameter_count


def test_products_in_bfloat16_and_weights_in_float32(tmp_path: Path) -> None:
    """Autocast: it learns, nearly as in float32 but not with the same numbers, and what is kept is float32."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        results = pretrain(configured(tmp_path, precision, training={"precision": precision}))
        assert results is not None
        losses[precision] = results["validation"]
        weights = load_file(Path(results["model"]) / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert any((tensor != tensor.bfloat16().float()).any() for tensor in weights.values())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.1) and losses["bfloat16"] != losses["float32"]
