"""Distillation from logits: the loss is the formula's, padding is no part of it, and a student comes nearer to its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from tests.pretraining.material import MODEL, TOWNS, TRAINING, configured, sentence, write_corpus
from tests.pretraining.networks import tiny_network, world_tokenizer

from retain.config import ConfigError
from retain.data import Example
from retain.lm.loading import load_model
from retain.lm.shapes import DecoderConfig, initial_weights
from retain.pretraining import DistillConfig, PretrainingError, Watch, distill, plan_distillation, pretrain, read_config
from retain.pretraining.decoder import TrainableDecoder
from retain.pretraining.distillation import Distiller, OwnNetwork, distillation_loss, load_network
from retain.pretraining.distillation.examples import ExampleStream, masked
from retain.pretraining.distillation.networks import Network

KINDS = {"gpt2": "causal", "t5": "seq2seq", "bert": "encoder"}


def logits(seed: int, rows: int = 6) -> torch.Tensor:
    return 3 * torch.randn(rows, 11, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (1.0, 4.0), (0.0, 2.0), (0.25, 1.0)])
def test_the_loss_is_the_formula(alpha: float, temperature: float) -> None:
    student, teacher, labels = logits(0), logits(1), torch.arange(6)
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    found = distillation_loss(student, teacher, labels, alpha, temperature)
    expected = alpha * temperature**2 * kl + (1 - alpha) * F.cross_entropy(student, labels)
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["kl"], kl)
    assert distillation_loss(student, student, labels, 1.0, temperature)["loss"].abs() < 1e-6


def test_the_square_of_the_temperature_keeps_the_gradient() -> None:
    """Nearly the same size at every temperature; without the factor it would shrink by T^2."""

    def size(temperature: float) -> float:
        student = logits(0).requires_grad_(True)
        distillation_loss(student, logits(1), torch.arange(6), 1.0, temperature)["loss"].backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert 0.5 < size(40.0) / size(20.0) < 2.0 and size(8.0) / size(2.0) > 0.3


def example(tokens: list[int], first: int) -> Example:
    """Tokens of which those from ``first`` on are targets."""
    return Example(tuple(tokens), tuple(number >= first for number in range(len(tokens))))


SHORT, LONG = example([9, 4, 7], 1), example([5, 6, 8, 9, 9, 4, 7, 6, 5, 4, 6], 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two models of every kind: a teacher and a student."""
    place = tmp_path_factory.mktemp("models")
    return {kind: [tiny_network(place / f"{kind}-{seed}", kind, seed=seed) for seed in (0, 1)] for kind in KINDS}


def networks(models: dict[str, list[Path]], kind: str) -> list[Network]:
    found = [load_network(str(place)).eval() for place in models[kind]]
    assert [network.kind for network in found] == [KINDS[kind]] * 2
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_is_no_part_of_the_loss(models: dict[str, list[Path]], kind: str) -> None:
    """A padded batch has the loss of its rows by themselves, weighted by their targets. With the padded positions it would be another."""
    teacher, student = networks(models, kind)
    distiller = Distiller(student, teacher).eval()
    both, alone = distiller([SHORT, LONG]), [distiller([one]) for one in (SHORT, LONG)]
    targets = [one.n_supervised() for one in (SHORT, LONG)]
    for name in ("loss", "nll", "kl"):
        expected = sum(count * float(found[name]) for count, found in zip(targets, alone, strict=True)) / sum(targets)
        assert float(both[name]) == pytest.approx(expected, abs=1e-4), name
    taught, labels = teacher([SHORT, LONG])
    learned, _ = student([SHORT, LONG])
    assert len(labels) == len(taught) == sum(targets)
    assert labels.tolist() == [t for one in (SHORT, LONG) for t, wanted in zip(one.tokens, one.supervised, strict=True) if wanted]
    padding = [torch.cat([found, found[:3]]) for found in (learned, taught)]  # as many rows as the shorter one's padding, never learned
    with_padding = distillation_loss(*padding, torch.cat([labels, labels.new_zeros(3)]))
    assert abs(float(with_padding["loss"]) - float(both["loss"])) > 0.005


@torch.no_grad()
def test_logits_are_those_of_the_models(models: dict[str, list[Path]]) -> None:
    """Each kind's targets are predicted from what it may see."""
    causal, seq2seq, encoder = (load_network(str(models[kind][0])).eval() for kind in KINDS)
    tokens, mask = list(LONG.tokens), encoder.tokenizer.mask_token_id
    found, _ = causal([SHORT, LONG])
    expected = causal.model(input_ids=torch.tensor([tokens])).logits[0, 3:-1]  # type: ignore[union-attr]
    torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=1e-4)
    found, _ = seq2seq([SHORT, LONG])
    start = torch.tensor([[seq2seq.model.config.decoder_start_token_id, *tokens[4:-1]]])  # type: ignore[union-attr]
    expected = seq2seq.model(input_ids=torch.tensor([tokens[:4]]), decoder_input_ids=start).logits[0]  # type: ignore[union-attr]
    torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=1e-4)
    hidden = [*tokens[:4], *[mask] * 7]
    found, _ = encoder([SHORT, LONG])
    expected = encoder.model(input_ids=torch.tensor([hidden])).logits[0, 4:]  # type: ignore[union-attr]
    torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=1e-4)


def test_the_teacher_is_frozen_and_awake(models: dict[str, list[Path]]) -> None:
    teacher, student = networks(models, "gpt2")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = Distiller(student, teacher)
    distiller.train()
    assert student.training and not teacher.training and not any(tensor.requires_grad for tensor in teacher.parameters())
    assert not any(name.startswith("teacher") for name, _ in distiller.named_parameters())
    distiller([SHORT, LONG])["loss"].backward()
    assert all(tensor.grad is not None for tensor in student.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_own_decoder_is_like_any_other(models: dict[str, list[Path]]) -> None:
    """It learns from a teacher of another architecture: both give the same positions."""
    teacher = load_network(str(models["gpt2"][0]))
    shape = DecoderConfig(len(teacher.tokenizer), 32, 2, 2, 1, 16, 64, 64)
    student = OwnNetwork(TrainableDecoder(shape, initial_weights(shape), teacher.tokenizer), "own")
    with torch.no_grad():
        assert torch.equal(student([SHORT, LONG])[1], teacher([SHORT, LONG])[1])
    found = Distiller(student, teacher)([SHORT, LONG])
    assert set(found) == {"loss", "nll", "kl"} and float(found["kl"]) > 0.1


def test_what_an_encoder_guesses() -> None:
    import numpy as np

    long = Example(tuple(range(5, 105)), (False, *[True] * 99))
    for seed in range(3):
        chosen = masked(long, 0.15, np.random.default_rng(seed))
        assert chosen.n_supervised() == 15 and not chosen.supervised[0] and chosen.tokens == long.tokens
    assert masked(long, 0.15, np.random.default_rng(0)) != masked(long, 0.15, np.random.default_rng(1))
    stream = ExampleStream([long], [long], 1, 1, 0, 1000, mask=0.15)
    first, again = stream.pieces(0, 0, 1), ExampleStream([long], [long], 1, 1, 0, 1000, mask=0.15).pieces(0, 0, 1)
    assert first == again != stream.pieces(1, 0, 1) and stream.checks() == stream.checks()


def test_shares_follow_the_targets() -> None:
    """Pieces and processes with few targets weigh little."""
    examples = [example(list(range(3, 3 + size)), 1) for size in (2, 4, 9, 30)]
    stream = ExampleStream(examples, [], 4, 2, 0, 100)
    parts = [piece for rank in range(2) for piece in stream.pieces(0, rank, 2)]
    assert len(parts) == 4 and sum(share for _, share in parts) == pytest.approx(1.0) and stream.checks() == []
    for part, share in parts:
        assert share == pytest.approx(sum(one.n_supervised() for one in part) / 41)


def distilling(folder: Path, out: str, **sections: Any) -> DistillConfig:
    """The configuration of a distillation in ``folder``."""
    values: dict[str, Any] = {
        "corpus": {"paths": ["texts"], "clean": False, "validation": 0.2},
        "training": {**TRAINING, "steps": 8},
        "checks": {"every": 4, "length": 3},
    }
    for section, given in sections.items():
        values[section] = {**values.get(section, {}), **given} if isinstance(given, dict) else given
    if not (folder / "texts").exists():
        write_corpus(folder / "texts", 8)
    file = folder / "distil.yaml"
    file.write_text(yaml.safe_dump(values))
    return read_config(DistillConfig, file, {"out": str(folder / out)})


def pairs(folder: Path) -> str:
    rows = [{"prompt": f"What does {town} sell?", "completion": TOWNS[town]} for town in TOWNS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "pairs.jsonl"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_files_to_a_student(tmp_path: Path, models: dict[str, list[Path]], kind: str) -> None:
    """Stopped and resumed it is the same student bit for bit, dropout included; transformers reads it; it is nearer to its teacher."""
    teacher, student = map(str, models[kind])
    corpus = {"paths": [pairs(tmp_path)]} if kind == "t5" else {}
    common: dict[str, Any] = {"teacher": {"model": teacher}, "student": {"model": student}, "corpus": corpus}
    told: list[dict[str, Any]] = []
    results = distill(distilling(tmp_path, "straight", **common), watch=Watch(check=told.append))
    assert results is not None and results["step"] == 8 and told[1]["kl"] < told[0]["kl"]

    class Interrupted(Exception):
        pass

    def stop(step: Any) -> None:
        if step.step == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        distill(distilling(tmp_path, "stopped", **common), watch=Watch(step=stop))
    distill(distilling(tmp_path, "stopped", **common), resume=True)
    first, second = (load_file(tmp_path / run / "checkpoints" / "step-00000008" / "model.safetensors") for run in ("straight", "stopped"))
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    start = load_file(Path(student) / "model.safetensors")
    assert any(not torch.equal(tensor, start[name]) for name, tensor in first.items())
    read = load_network(results["model"])
    assert read.kind == KINDS[kind] and read.tokenizer.get_vocab() == load_network(teacher).tokenizer.get_vocab()


def test_a_student_of_a_teacher_is_nearer_to_it_than_one_of_labels(tmp_path: Path) -> None:
    """The teacher knows all towns, the texts of the students speak of four. Two students from the same start: one learns what the teacher
    makes of these texts, the other the texts alone. Measured on the four towns in an order that neither has seen."""
    taught = pretrain(configured(tmp_path, "teacher", training={"steps": 150, "learning_rate": 2e-2, "batch": 8}))
    assert taught is not None
    few, kl = list(TOWNS)[:4], {}
    (tmp_path / "few").mkdir()
    for number in range(4):
        (tmp_path / "few" / f"{number}.txt").write_text("\n".join(map(sentence, (few[number:] + few[:number]) * 3)))
    for name, alpha in (("distilled", 0.9), ("labels", 0.0)):
        training, checks = {"steps": 120, "learning_rate": 2e-2}, {"every": 120}
        given: dict[str, Any] = {"corpus": {"paths": ["few"]}, "training": training, "checks": checks, "loss": {"alpha": alpha}}
        told: list[dict[str, Any]] = []
        config = distilling(tmp_path, name, teacher={"model": taught["model"]}, student={**MODEL, "width": 16}, **given)
        results = distill(config, watch=Watch(check=told.append))
        assert results is not None and told[-1]["samples"] and load_model(results["model"], device="cpu").width == 16
        teacher, student = load_network(taught["model"]).eval(), load_network(results["model"]).eval()
        tokens = teacher.tokenizer("\n".join(map(sentence, few[::-1]))).input_ids[:32]
        with torch.no_grad():
            (ours, labels), (theirs, _) = (network([example(tokens, 1)]) for network in (student, teacher))
        kl[name] = float(distillation_loss(ours, theirs, labels, 1.0, 1.0)["kl"])
    assert kl["distilled"] < 0.4 * kl["labels"], kl


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"teacher": {}}, r"teacher.model: is not set"),
        ({"student": {"model": "t5-1"}}, "teacher gpt2-0 is causal and student t5-1 seq2seq"),
        ({"student": {"model": "other"}}, "have different vocabularies .* ask the teacher over an API"),
        ({"student": {"preset": "5m", "context": 1000}}, "model.context: 1000 tokens are more than the 512"),
        ({"teacher": {"model": "t5-0"}, "student": {"preset": "5m"}}, "the own decoder cannot learn from t5-0, which is seq2seq"),
        ({"teacher": {"model": "t5-0"}, "student": {"model": "t5-1"}}, "no document has anything .* no pairs of prompt and completion"),
        ({"training": {"batch": 400}}, "fewer than the 400 of a batch"),
        ({"corpus": {"paths": ["nowhere"]}}, "nowhere"),
        ({"teacher": {"model": "./nowhere"}}, "there is no model at"),
    ],
)
def test_mistakes_are_told_before_training(tmp_path: Path, models: dict[str, list[Path]], sections: dict[str, Any], words: str) -> None:
    for kind in ("gpt2", "t5"):
        for number in range(2):
            (tmp_path / f"{kind}-{number}").symlink_to(models[kind][number])
    tiny_network(tmp_path / "other", "gpt2", vocabulary=300)
    given = {"teacher": {"model": "gpt2-0"}, "student": {"model": "gpt2-1"}} | sections
    with pytest.raises((PretrainingError, ConfigError, RuntimeError, ValueError), match=words) as caught:
        distill(distilling(tmp_path, "run", **given), watch=Watch(step=lambda step: pytest.fail("it trained")))
    assert "\n" not in str(caught.value)


def test_a_plan(tmp_path: Path, models: dict[str, list[Path]]) -> None:
    config = distilling(tmp_path, "run", teacher={"model": str(models["gpt2"][0])}, student=MODEL, training={"steps": None, "epochs": 2})
    found = plan_distillation(config)
    size = len(world_tokenizer())
    assert found.parameters == DecoderConfig(size, 32, 2, 2, 1, 16, 64, 32).parameter_count and found.teacher and found.teacher > size * 32
    assert found.examples and found.steps == 2 * found.examples // 4 and found.seconds and found.held_out
    assert not (tmp_path / "run").exists()
