"""What pre-training and distillation are told: sections of a YAML file. Unknown keys are errors with a suggestion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from retain.config import ConfigError, EndpointConfig, parse_yaml
from retain.config.errors import explain
from retain.config.section import Count, Fraction, Names, NonNegative, Positive, Section, Whole
from retain.config.settings import keys_of
from retain.config.values import put
from retain.data.errors import DataError, did_you_mean
from retain.lm.shapes import PRESETS, DecoderConfig

C = TypeVar("C", bound="RunConfig")
_PATHS = ("out", "corpus.paths", "tokenizer.path", "corpus.prompts")  # these start from the file's folder
_MODELS = ("teacher.model", "student.model")  # and these where there is something of that name


class CorpusConfig(Section):
    """Texts, and which of them are held out."""

    paths: Names = Field(default_factory=list, description="Files and folders: text, Markdown, HTML, PDF, Word, JSON lines, source code")
    clean: bool = Field(True, description="Repair texts and leave out the worthless and the duplicate ones")
    separator: str | None = Field(None, description="Text that stands between the documents of one file, for example <|endoftext|>")
    validation: Fraction = Field(0.02, description="Share of the documents that is held out; 0 holds out none")


class TokenizerConfig(Section):
    """A tokenizer of one's own, or one that exists."""

    path: str | None = Field(None, description="Folder with a tokenizer to take; null trains one from the corpus")
    vocabulary: Count | None = Field(None, description="Tokens of the one that is trained; null means as many as the preset has")


class ShapeConfig(Section):
    """The own decoder: a preset, and what differs from it."""

    preset: str = Field("5m", description="One of " + ", ".join(PRESETS))
    context: Count | None = Field(None, description="Tokens of a window; null means the preset's, at most 2,048")
    width: Count | None = Field(None, description="Width of the hidden states")
    layers: Count | None = Field(None, description="Layers")
    heads: Count | None = Field(None, description="Query heads")
    kv_heads: Count | None = Field(None, description="Key and value heads")
    head_width: Count | None = Field(None, description="Width of a head")
    feed_forward: Count | None = Field(None, description="Width of the MLP")

    def shape(self, vocabulary: int) -> DecoderConfig:
        """The decoder for a tokenizer with so many tokens. Raises ConfigError."""
        base = preset(self.preset)
        if self.context is not None and self.context > base.context:
            raise ConfigError(f"model.context: {self.context} tokens are more than the {base.context} of the preset {self.preset}")
        own = self.model_dump(exclude={"preset", "context", "model", "kind"}, exclude_none=True)
        shape = replace(base, vocabulary=vocabulary, context=self.context or min(base.context, 2048), **own)
        if shape.heads % shape.kv_heads:
            raise ConfigError(f"model.kv_heads: {shape.heads} query heads cannot share {shape.kv_heads} key and value heads evenly")
        if shape.head_width % 2:
            raise ConfigError(f"model.head_width: must be even, not {shape.head_width}: rotary embeddings turn pairs")
        return shape


def preset(name: str) -> DecoderConfig:
    """A preset by its name, in small or capital letters. Raises ConfigError."""
    if name.lower() not in PRESETS:
        hint = did_you_mean(name, PRESETS) or f"there are {', '.join(PRESETS)}"
        raise ConfigError(f"there is no preset {name!r}: {hint}")
    return PRESETS[name.lower()]


class TrainConfig(Section):
    """How it is trained."""

    epochs: Count = Field(1, description="Passes over the training data")
    steps: Count | None = Field(None, description="Optimizer steps; null means as many as the epochs have")
    batch: Count = Field(16, description="Windows (or examples) in one optimizer step, those of all processes together")
    accumulation: Count = Field(1, description="Pieces in which a process puts its part of a step through the model, which saves memory")
    learning_rate: Positive = Field(1e-3, description="Peak learning rate")
    warmup: Fraction = Field(0.02, description="Share of the steps in which the rate rises")
    final_rate: Fraction = Field(0.1, description="Share of the peak rate at the end of the cosine")
    weight_decay: NonNegative = Field(0.1, description="Weight decay of AdamW, on matrices only")
    beta1: Fraction = Field(0.9, description="Decay of AdamW's first moment")
    beta2: Fraction = Field(0.95, description="Decay of AdamW's second moment")
    clip: Positive = Field(1.0, description="Largest gradient norm")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the products; the weights are float32. auto: bfloat16 where the device computes in it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where it is trained")
    threads: Count | None = Field(None, description="CPU threads of a process; null leaves the choice to torch")
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="With several processes: each holds everything (DDP), or its part of weights and optimizer (FSDP2)"
    )


class ChecksConfig(Section):
    """What happens every so many steps: validation, sample texts, a checkpoint."""

    every: Count = Field(500, description="Steps between two checks; there is one at the end as well")
    tokens: Count = Field(65_536, description="At most so many tokens of the validation split are read")
    prompts: list[str] = Field(default_factory=lambda: ["The"], description="Beginnings that it continues, to look at")
    length: Whole = Field(60, description="Tokens of a sample text; 0 writes none")
    temperature: NonNegative = Field(0.8, description="Temperature of the sample texts; 0 takes the likeliest token")


class RunConfig(Section):
    """What pre-training and distillation have in common."""

    out: str | None = Field(None, description="Folder of the run; null means runs/ and the file's name")
    seed: Whole = Field(0, description="Seed of the start, the split and the order")
    corpus: CorpusConfig = Field(default_factory=CorpusConfig, description="Texts")
    training: TrainConfig = Field(default_factory=TrainConfig, description="Training")
    checks: ChecksConfig = Field(default_factory=ChecksConfig, description="Validation, samples, checkpoints")


class PretrainConfig(RunConfig):
    """Pre-training of the own decoder."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="The tokenizer")
    model: ShapeConfig = Field(default_factory=ShapeConfig, description="The decoder")


class TeacherSource(EndpointConfig):
    """Whose knowledge is taken: a model here (its logits), or with ``url`` one behind an OpenAI-compatible API (its answers)."""

    model: str | None = Field(None, description="Name, folder or GGUF file; with url the name that the API knows it by")
    instructions: str = Field("Answer the user's message correctly and briefly.", description="System message of every request")
    parallel: Count = Field(1, description="Requests under way at the same time")


class StudentConfig(ShapeConfig):
    """Who learns: a model that exists, or a fresh decoder of one's own with the teacher's tokenizer."""

    model: str | None = Field(None, description="Name or folder of the student; null makes a decoder of the preset")
    kind: Literal["auto", "causal", "seq2seq", "encoder"] = Field("auto", description="What it is; auto reads it from config.json")


class LossConfig(Section):
    """alpha * T^2 * KL(teacher/T || student/T) + (1 - alpha) * cross-entropy."""

    alpha: Fraction = Field(0.5, description="Weight of the teacher; the labels have the rest")
    temperature: Positive = Field(2.0, description="Temperature T of both distributions")
    mask: Fraction = Field(0.15, description="Share of the tokens that an encoder has to guess")


class FilterConfig(Section):
    """Which answers of an API become training data."""

    max_words: Count = Field(400, description="Longer answers are left out")
    near_duplicate: Fraction = Field(0.8, description="Share of common phrases from which an answer is there already; 0 keeps all")


class DistillCorpus(CorpusConfig):
    """What is learned from: documents for a teacher here, prompts for one behind an API."""

    prompts: str | None = Field(None, description="Prompts for an API: a text file with one a line, or JSON lines with `prompt`")


class DistillConfig(RunConfig):
    """Distillation into a student."""

    teacher: TeacherSource = Field(default_factory=TeacherSource, description="The teacher")
    student: StudentConfig | None = Field(default_factory=StudentConfig, description="The student; null only asks an API and filters")
    corpus: DistillCorpus = Field(default_factory=DistillCorpus, description="Texts or prompts")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss")
    filter: FilterConfig = Field(default_factory=FilterConfig, description="The quality filter of an API's answers")


def read_config(kind: type[C], path: str | Path, overrides: Mapping[str, Any] | None = None) -> C:
    """A YAML file as a configuration, with overrides by dotted key ("null" is nothing). Paths in the file start from its folder, those
    among the overrides from the current one. Raises DataError or ConfigError with file and field."""
    file = Path(path)
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=file) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not YAML: {' '.join(str(error).split())}", path=file) from error
    if not isinstance(data, dict):
        raise DataError("holds no settings", path=file, fix="corpus, model, training ...")
    config = _validated(kind, data, str(file), {})
    for key in (*_PATHS, *_MODELS):
        _from_folder(config, key, file.parent)
    if config.out is None:
        config.out = str(Path("runs") / file.stem)
    return _validated(kind, config.model_dump(exclude_unset=True), str(file), overrides or {})


def _validated(kind: type[C], data: dict[str, Any], where: str, overrides: Mapping[str, Any]) -> C:
    for key, value in overrides.items():
        if value is not None:
            put(data, key, None if value == "null" else value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise explain(error, where, keys_of(kind())) from None


def _from_folder(config: RunConfig, key: str, folder: Path) -> None:
    """Make the path or the paths of a key start from the file's folder."""
    *sections, name = key.split(".")
    owner: Any = config
    for section in sections:
        owner = getattr(owner, section, None)
    if owner is None or not getattr(owner, name, None):
        return
    value = getattr(owner, name)
    moved = [str(folder / Path(item).expanduser()) for item in ([value] if isinstance(value, str) else value)]
    if key in _MODELS and not Path(moved[0]).exists():
        return
    setattr(owner, name, moved[0] if isinstance(value, str) else moved)
