"""Images as input: read and checked before training, learned by every kind of task, answered from a saved model as in training."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.multitask.conftest import write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import Callback, Predictor, Progress, Row, assemble, load_experiment, parse_experiment, plan_experiment, train
from retain.multitask.backbones.pictures import Reader, Reading, common_shape, described, reading_of
from retain.multitask.backbones.vision import AugmentConfig, augmented

Levels = np.ndarray[Any, np.dtype[np.uint8]]
WAYS = ("across", "down")


def stripes(count: int, seed: int = 0, side: int = 12) -> list[tuple[Levels, dict[str, Any]]]:
    """Noisy stripes across or down, dark or bright, with a dot of some size in the corner; with labels of every kind."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        way, bright, dot = WAYS[draw.integers(2)], draw.uniform(40, 160), int(draw.integers(6))
        image = np.full((side, side), bright) + draw.normal(0, 4, (side, side))
        lines = image if way == "across" else image.T
        lines[draw.integers(3) :: 3] += 60
        image[:dot, :dot] = 250
        spots = [{"start": 0, "end": 1, "label": "dot"}] * min(dot, 1)
        tags = [name for name, there in (("dotted", dot > 1), ("bright", bright > 100)) if there]
        labels = {"way": way, "light": "bright" if bright > 100 else "dark", "tags": tags, "spots": spots, "dot": float(dot)}
        found.append((np.clip(image, 0, 255).astype(np.uint8), labels))
    return found


def save(folder: Path, items: Sequence[tuple[Levels, dict[str, Any]]], name: str = "t.jsonl", ending: str = "png") -> Path:
    """Images as files in ``folder/images`` beside their records."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (levels, labels) in enumerate(items):
        Image.fromarray(levels).save(folder / "images" / f"{name.partition('.')[0]}-{number}.{ending}")
        rows.append({"image": f"images/{name.partition('.')[0]}-{number}.{ending}", **labels})
    return write(folder / name, rows)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    place = tmp_path_factory.mktemp("vit") / "tiny-vit"
    ViTForImageClassification(ViTConfig(image_size=12, patch_size=4, num_channels=3, **shape)).save_pretrained(str(place))
    told = {"size": {"height": 12, "width": 12}, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (place / "preprocessor_config.json").write_text(json.dumps(told))
    return place


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("resnet") / "tiny-resnet"
    shape: dict[str, Any] = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**shape)).save_pretrained(str(place))
    return place


ALL_KINDS: dict[str, Any] = {
    "way": {"kind": "classification", "label": "way"},
    "tags": {"kind": "multilabel", "label": "tags"},
    "both": {"kind": "multihead", "heads": {"way": {}, "light": {}}},
    "dot": {"kind": "regression", "label": "dot"},
}
ONE = {"way": {"kind": "classification", "label": "way"}}
LIGHT = {"light": {"kind": "classification", "label": "light"}}
SMALL: dict[str, Any] = {"kind": "vision", "channels": [8, 16], "dropout": 0.0}
QUICK: dict[str, Any] = {"epochs": 6, "batch": 16, "head_learning_rate": 5e-3, "learning_rate": 5e-3}


@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_every_kind_of_task_learns_and_is_saved(fusion: str, tmp_path: Path, experiment: Any) -> None:
    """Far better than before training; the saved model reports the same figures from the files, bit by bit."""
    save(tmp_path, stripes(160))
    save(tmp_path, stripes(60, 1), "test.jsonl", "bmp")
    data = {"train": ["t.jsonl"], "test": ["test.jsonl"]}
    results = train(experiment(SMALL, ALL_KINDS, data=data, training=QUICK, fusion={"kind": fusion}), tmp_path / "run")["tasks"]
    least = {"way": 0.9, "tags": 0.7, "both": 0.65, "dot": 0.5}
    for name, limit in least.items():
        assert results[name]["test"][results[name]["main"]] > limit > results[name]["before"][results[name]["main"]]
    model = Predictor.load(tmp_path / "run")
    for name in ALL_KINDS:
        assert model.evaluate(tmp_path / "test.jsonl", name) == results[name]["test"]


def test_the_example_learns(tmp_path: Path) -> None:
    save(tmp_path, [(levels, {"label": labels["way"]}) for levels, labels in stripes(160)], "images.jsonl")
    (tmp_path / "vision.yaml").write_text(files("retain").joinpath("multitask", "examples", "vision.yaml").read_text())
    small = {"backbone.channels": [8, 16], "training.epochs": 12, "training.batch": 8, "training.learning_rate": 1e-2}
    task = train(load_experiment(tmp_path / "vision.yaml", small), tmp_path / "run")["tasks"]["class"]
    assert task["test"]["accuracy"] > 0.8 > task["before"]["accuracy"]


def test_answers_are_the_same_however_an_image_comes(tmp_path: Path, experiment: Any) -> None:
    """A path from Python, a record of a file elsewhere, and the levels themselves."""
    save(tmp_path, stripes(64))
    config = experiment({**SMALL, "size": 12}, ONE, data={"train": ["t.jsonl"]}, training={**QUICK, "epochs": 2})
    train(config, tmp_path / "run")
    model = Predictor.load(tmp_path / "run")
    items = stripes(3, 5)
    save(tmp_path / "elsewhere", items, "new.jsonl")
    write(tmp_path / "elsewhere" / "levels.csv", [{"image": json.dumps(levels.tolist())} for levels, _ in items])
    found = [
        model.predict([str(tmp_path / "elsewhere" / "images" / f"new-{number}.png") for number in range(3)]),
        model.predict([{"image": levels.tolist()} for levels, _ in items]),
        model.predict([{"image": levels} for levels, _ in items]),
        model.predict([{"image": np.stack([levels] * 3, -1).tolist()} for levels, _ in items]),
    ]
    for name in ("new.jsonl", "levels.csv"):
        model.predict_file(tmp_path / "elsewhere" / name, tmp_path / "out.jsonl")
        found.append([json.loads(line)["predictions"] for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert all(answers == found[0] for answers in found) and found[0][0] != found[0][1]


def test_the_small_network_takes_size_and_colour_of_the_training_images(tmp_path: Path, experiment: Any) -> None:
    items = stripes(40)
    save(tmp_path, items)
    made = assemble(experiment(SMALL, ONE, data={"train": ["t.jsonl"]})).network.backbone
    assert made.reading == Reading((12, 12), 1) and made.width == 16
    colours = [(np.stack([levels, levels // 2, levels // 3], -1), labels) for levels, labels in items]
    save(tmp_path, colours, "c.jsonl")
    plan = plan_experiment(experiment(SMALL, ONE, data={"train": ["c.jsonl"]}))
    assert "c-0.png (12 × 12 rgb, mean level" in plan.tasks[0].samples[0][0]
    assert assemble(experiment({**SMALL, "colour": "grey"}, ONE, data={"train": ["c.jsonl"]})).network.backbone.reading.channels == 1
    sized = assemble(experiment({**SMALL, "size": [8, 16]}, ONE, data={"train": ["t.jsonl"]}))
    assert sized.parts["way"]["train"].inputs[0].inputs["pixels"].shape == (1, 8, 16)
    save(tmp_path, stripes(20, side=100), "large.jsonl")
    with pytest.raises(ConfigError, match="size: is missing: the images are 100 × 100"):
        assemble(experiment(SMALL, ONE, data={"train": ["large.jsonl"]}))


BAD: dict[str, tuple[Any, str]] = {
    "missing": ("images/t-3.pgn", r"there is no file images/t-3.pgn \(did you mean 't-3.png'\?\)"),
    "folder": ("images", "images is a folder, not an image"),
    "text": ("t.jsonl", "t.jsonl is no image that can be read"),
    "cut": ("cut.png", "cut.png is a damaged image"),
    "empty": (" ", "is empty"),
    "none": (None, "is missing"),
    "number": (7, "must be a text, not a number"),
    "ragged": ([[1, 2], [3]], "levels must be rows of numbers, all of one length"),
    "words": ([["a"]], "levels must be rows of numbers"),
    "flat": ([1, 2, 3], "levels have height and width, or height, width and 3 colours, not 3"),
    "bright": ([[1, 256]], r"levels are between 0 and 255, not 1 to 256 \(backbone.white"),
    "negative": ([[-1, 2]], "levels are between 0 and 255, not -1 to 2"),
    "nan": ([[1.0, float("nan")]], "levels are between 0 and 255"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_images_stop_before_training(case: str, tmp_path: Path, experiment: Any) -> None:
    value, message = BAD[case]
    save(tmp_path, stripes(20))
    (tmp_path / "cut.png").write_bytes((tmp_path / "images" / "t-1.png").read_bytes()[:90])
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    rows[12]["image"] = value
    write(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError, match=rf"t\.jsonl, line 13, field 'image': {message}") as caught:
        train(experiment({**SMALL, "size": 12, "colour": "grey"}, ONE, data={"train": ["t.jsonl"]}), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_deep_images_keep_their_levels_and_turned_ones_stand(tmp_path: Path) -> None:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(levels.astype(np.uint16) * 256).save(tmp_path / "deep.png")
    turned = Image.fromarray(levels)
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    reader = Reader(Reading((8, 8), 1), tmp_path)
    assert np.array_equal(reader.read(Row({"i": "deep.png"}), "i").pixels[0].numpy(), levels)
    assert np.array_equal(reader.read(Row({"i": "turned.png"}), "i").pixels[0].numpy(), levels[::-1, ::-1])
    whites = Reader(Reading((1, 3), 1, white=16.0), tmp_path).read(Row({"i": [[0, 8, 16]]}), "i").pixels
    assert whites.tolist() == [[[0, 128, 255]]]
    held = reader.read(Row({"i": "deep.png"}), "i")
    assert reader.read(Row({"i": str(tmp_path / "deep.png")}), "i") is held  # decoded once for all tasks
    assert common_shape([Row({"i": "deep.png"}), Row({"i": [[[1, 2, 3]]]}), Row({"i": "turned.png"})], "i", tmp_path) == ((8, 8), True)


PROCESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("vit.image_processing_pil_vit", "ViTImageProcessorPil", {"size": {"height": 20, "width": 24}}),
    "clip": ("clip.image_processing_pil_clip", "CLIPImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_size": 24}),
    "convnext": ("convnext.image_processing_pil_convnext", "ConvNextImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_pct": 0.8}),
}


@pytest.mark.parametrize("kind", list(PROCESSORS))
@pytest.mark.parametrize("shape", [(40, 31, 3), (33, 64, 3), (18, 18, 3)])
def test_images_become_what_transformers_makes_of_them(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    import importlib

    module, name, options = PROCESSORS[kind]
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), name)(**options)
    processor.save_pretrained(str(tmp_path))
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = processor(Image.fromarray(levels), return_tensors="pt").pixel_values[0]
    reading, mean, std = reading_of(described(tmp_path, {"num_channels": 3, "image_size": 224}), 255.0)
    pixels = Reader(reading, tmp_path).read(Row({"i": levels}), "i").pixels
    found = (pixels.float() / 255.0 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)


ADAPTED: list[dict[str, Any]] = [
    {"peft": {"method": "lora", "rank": 2}}, {"peft": {"method": "dora", "rank": 2}}, {}, {"freeze": {"layers": 1}},
]  # fmt: skip


@pytest.mark.parametrize("keys", ADAPTED)
def test_a_vision_transformer(keys: dict[str, Any], vit: Path, tmp_path: Path, experiment: Any) -> None:
    """Adapters alone learn, or everything; the base model's files are never touched, and needed only where it was not trained whole."""
    shutil.copytree(vit, tmp_path / "vit")
    save(tmp_path, stripes(96))
    backbone = {"kind": "vision", "model": "./vit", **keys}
    training = {**QUICK, "epochs": 10, "learning_rate": 0.01, "metric": "loss"}
    config = experiment(backbone, LIGHT, data={"train": ["t.jsonl"], "test_share": 0.2}, training=training)
    made = assemble(config)
    own = made.network.backbone
    assert own.first and own.reading == Reading((12, 12), 3, resample=3) and own.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    before = {name: value.detach().clone() for name, value in made.network.named_parameters()}
    results = train(made, tmp_path / "run")
    changed = {name for name, value in made.network.named_parameters() if not torch.equal(value, before[name])}
    inside = {name for name in changed if name.startswith("backbone.")}
    words = ("lora_",) if "peft" in keys else ("",)
    assert inside and all(any(word in name for word in words) for name in inside)
    assert not keys.get("freeze") or not any(".layers.0." in name for name in inside)
    task = results["tasks"]["light"]
    assert task["validation"]["loss"] < 0.8 * task["before"]["loss"]
    model = Predictor.load(tmp_path / "run")
    assert model.evaluate(made.parts["light"]["test"].rows, "light") == results["tasks"]["light"]["test"]
    (tmp_path / "vit").rename(tmp_path / "gone")
    if keys:
        with pytest.raises(ConfigError, match=r"there is no directory \./vit"):
            Predictor.load(tmp_path / "run")
        other = load_file(tmp_path / "gone" / "model.safetensors")
        (tmp_path / "gone").rename(tmp_path / "vit")
        from safetensors.torch import save_file

        save_file({name: value + 0.1 for name, value in other.items()}, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match="not the one that this was trained on: its weights differ"):
            Predictor.load(tmp_path / "run")
    else:
        assert Predictor.load(tmp_path / "run").results == model.results


def test_states_are_patches_and_pooling_is_chosen(vit: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, stripes(20))
    data = {"train": ["t.jsonl"]}
    made = assemble(experiment({"kind": "vision", "model": str(vit), "pooling": "mean"}, ONE, data=data))
    made.network.eval()
    inputs, _ = made.batch("way", "train", [0, 1, 2])
    states = made.network.backbone(inputs)
    assert states.tokens.shape == (3, 10, 16) and states.mask.all()  # the class token and 3 × 3 patches
    assert torch.allclose(made.network.backbone.pool(states), states.tokens.mean(1), atol=1e-6)
    first = assemble(experiment({"kind": "vision", "model": str(vit)}, ONE, data=data)).network.backbone
    assert torch.equal(first.pool(states), states.tokens[:, 0])
    cnn = assemble(experiment(SMALL, ONE, data=data)).network.eval().backbone
    assert cnn(inputs_of(cnn, made)).tokens.shape == (3, 36, 16)


def inputs_of(backbone: Any, made: Any) -> dict[str, torch.Tensor]:
    return backbone.collate(backbone.encode([backbone.read(row, None) for row in made.parts["way"]["train"].rows[:3]]))


def test_frozen_batch_norms_stay(resnet: Path, tmp_path: Path, experiment: Any) -> None:
    """Beside it the same network unfrozen, whose statistics move."""
    save(tmp_path, stripes(64))

    def moved(**keys: Any) -> bool:
        backbone = {"kind": "vision", "model": str(resnet), "size": 12, **keys}
        made = assemble(experiment(backbone, ONE, data={"train": ["t.jsonl"]}, training={**QUICK, "epochs": 2}))
        before = {name: value.clone() for name, value in made.network.named_buffers()}
        train(made, tmp_path / f"run-{len(keys)}")
        return any(not torch.equal(value, before[name]) for name, value in made.network.named_buffers() if "running" in name)

    assert moved() and not moved(freeze={"all": True})


def test_augmentation() -> None:
    x = torch.rand(64, 2, 6, 8)
    torch.manual_seed(0)
    assert augmented(x, AugmentConfig()) is x
    flipped = augmented(x, AugmentConfig.model_validate({"flip": True}))
    mirrored = [bool(torch.allclose(one, other.flip(-1), atol=1e-5)) for one, other in zip(flipped, x, strict=True)]
    same = [bool(torch.allclose(one, other, atol=1e-5)) for one, other in zip(flipped, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48
    shifts = set()
    for one, other in zip(augmented(x, AugmentConfig.model_validate({"shift": 0.25})), x, strict=True):
        padded = torch.nn.functional.pad(other[None], (2, 2, 2, 2), mode="replicate")[0]
        places = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.allclose(one, padded[:, down : down + 6, right : right + 8], atol=1e-4)
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 8
    ramp = torch.linspace(0, 1, 8).expand(32, 1, 6, 8).contiguous()
    cropped = augmented(ramp, AugmentConfig.model_validate({"crop": 0.5}))
    spread = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]) / (ramp[0, 0, 0, -1] - ramp[0, 0, 0, 0])
    assert spread.min() < 0.65 and spread.max() <= 1.0 + 1e-5  # what is left fills the image, and so rises less


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, at: Progress) -> str | None:
        if at.step == self.step:
            raise KeyboardInterrupt
        return None


def test_a_resumed_training_with_augmentation_has_the_same_bits(tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, stripes(80))

    def config(augment: dict[str, Any]) -> Any:
        training = {**QUICK, "epochs": 3, "checkpoint_every": 3}
        return experiment({**SMALL, "augment": augment}, ONE, data={"train": ["t.jsonl"]}, training=training)

    changed = config({"flip": True, "shift": 0.2, "crop": 0.3})
    train(changed, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(changed, tmp_path / "broken", callbacks=[Interrupt(8)])
    train(changed, tmp_path / "broken", resume=True)
    train(config({}), tmp_path / "plain")
    one, two, plain = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("straight", "broken", "plain"))
    assert all(torch.equal(one[name], two[name]) for name in one) and any(not torch.equal(one[name], plain[name]) for name in one)


Wrong = tuple[dict[str, Any], dict[str, Any], str]
CASES: dict[str, Wrong] = {
    "adapters on convolutions": ({"peft": {"method": "lora"}}, ONE, "has no linear layers to adapt"),
    "words": ({}, {"t": {"kind": "ner", "entities": "spots"}}, "t: ner needs offsets, which a backbone of kind vision has not"),
    "two columns": ({"input": ["a", "b"]}, ONE, "input: one column of images, not 2"),
    "label": ({"input": ["way"]}, ONE, "input: way is a label of a task"),
    "mean": ({"mean": [0.1, 0.2]}, ONE, "mean: 2 numbers for images of 1 channels"),
    "directory": ({"model": "./no"}, ONE, "model: there is no directory ./no"),
    "checkpoint": ({"checkpoint": "a.pt"}, ONE, "checkpoint: is for timm models"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_mistakes_in_the_configuration(case: str, tmp_path: Path, experiment: Any) -> None:
    keys, tasks, message = CASES[case]
    save(tmp_path, stripes(20))
    with pytest.raises((ConfigError, DataError), match=message):
        assemble(experiment({**SMALL, **keys}, tasks, data={"train": ["t.jsonl"]}))


@pytest.mark.parametrize(("keys", "message"), [
    ({"peft": {"method": "prefix"}}, "prefix needs a causal language model"), ({"colour": "grey"}, "takes images of 3 channels, not grey"),
    ({"size": 13}, "does not take images of 3 channels, 13 × 13"),
])  # fmt: skip
def test_what_a_model_cannot_do(keys: dict[str, Any], message: str, vit: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, stripes(20))
    with pytest.raises(ConfigError, match=message):
        assemble(experiment({"kind": "vision", "model": str(vit), **keys}, ONE, data={"train": ["t.jsonl"]}))


def test_a_language_model_sees_nothing(bert: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, stripes(20))
    with pytest.raises(ConfigError, match="bert is no vision model"):
        assemble(experiment({"kind": "vision", "model": str(bert)}, ONE, data={"train": ["t.jsonl"]}))


def test_timm_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, experiment: Callable[..., Any]) -> None:
    save(tmp_path, stripes(20))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:resnet10t needs the library timm: pip install 'retain\[vision\]'"):
        assemble(experiment({"kind": "vision", "model": "timm:resnet10t"}, ONE, data={"train": ["t.jsonl"]}))


@pytest.mark.parametrize("model", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_timm_models_learn(model: str, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the library timm is not installed")
    save(tmp_path, stripes(48))
    backbone = {"kind": "vision", "model": model, "size": 32}
    values = {"backbone": backbone, "tasks": ONE, "data": {"train": "t.jsonl"}, "training": {**QUICK, "epochs": 2}}
    results = train(parse_experiment(values, tmp_path), tmp_path / "run")
    assert Predictor.load(tmp_path / "run").results["tasks"] == results["tasks"]
    with pytest.raises(ConfigError, match="timm:no_such_model"):
        assemble(parse_experiment({**values, "backbone": {**backbone, "model": "timm:no_such_model"}}, tmp_path))
