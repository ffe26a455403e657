"""The configuration: what the documentation shows, where paths start from, what a shape is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from retain.config import ConfigError
from retain.lm.shapes import PRESETS
from retain.pretraining import DistillConfig, PretrainConfig, read_config
from retain.pretraining.config import ShapeConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_documentation_shows_configurations(tmp_path: Path, number: int) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(BLOCKS[number])
    config = read_config(DistillConfig if "teacher:" in BLOCKS[number] else PretrainConfig, file)
    assert config.model_dump(exclude_unset=True).keys() >= set(yaml.safe_load(BLOCKS[number]))


def test_every_kind_of_configuration_is_shown() -> None:
    assert len(BLOCKS) >= 3 and sum("teacher:" in block for block in BLOCKS) >= 2


def test_the_documentation_has_the_true_sizes() -> None:
    listed = {name: int(count.replace(",", "")) for name, count in re.findall(r"^\| `(\d+m)` \| ([\d,]+) \|", PAGE, re.MULTILINE)}
    assert listed == {name: shape.parameter_count for name, shape in PRESETS.items()}


def test_paths_start_from_the_file_and_overrides_from_here(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    values = {"corpus": {"paths": ["a", "b.txt"]}, "out": "run", "teacher": {"model": "teacher"}, "student": {"model": "gpt2"}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    config = read_config(DistillConfig, tmp_path / "x.yaml", {"corpus.paths": "c,d", "training.steps": None, "loss.alpha": 0.9})
    assert config.corpus.paths == ["c", "d"] and config.out == str(tmp_path / "run") and config.loss.alpha == 0.9
    assert config.teacher.model == str(tmp_path / "teacher") and config.student is not None and config.student.model == "gpt2"
    assert read_config(DistillConfig, tmp_path / "x.yaml").corpus.paths == [str(tmp_path / "a"), str(tmp_path / "b.txt")]
    (tmp_path / "y.yaml").write_text("corpus: {paths: [a]}\n")
    assert read_config(PretrainConfig, tmp_path / "y.yaml", {"model.context": "null"}).out == "runs/y"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainign: {steps: 3}", "trainign: unknown key; did you mean training"),
        ("training: {bach: 3}", r"training.bach: unknown key; did you mean training\.batch"),
        ("training: {batch: 0}", "training.batch: must be greater than or equal to 1"),
        ("training: [1]", "training: must hold"),
        ("a: [", "not YAML"),
        ("just words", "holds no settings"),
    ],
)
def test_mistakes_name_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_config(PretrainConfig, tmp_path / "x.yaml")
    assert str(caught.value).startswith(str(tmp_path / "x.yaml")) and "\n" not in str(caught.value)


def test_shapes() -> None:
    assert ShapeConfig(preset="64M").shape(32_000) == PRESETS["64m"]
    own = ShapeConfig(preset="135m", layers=2).shape(1000)
    assert (own.vocabulary, own.layers, own.context, own.width) == (1000, 2, 2048, 576)
    with pytest.raises(ConfigError, match="head_width: must be even"):
        ShapeConfig(head_width=3).shape(1000)
    with pytest.raises(ConfigError, match="no preset '64'"):
        ShapeConfig(preset="64").shape(1000)
