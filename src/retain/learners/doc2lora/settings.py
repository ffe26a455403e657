"""What the training of a hypernetwork is told, as a YAML file. Unknown keys are errors with a suggestion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from retain.config.errors import ConfigError, explain
from retain.config.section import Count, Fraction, Names, NonNegative, Positive, Section, Whole
from retain.config.settings import keys_of
from retain.config.values import parse_yaml
from retain.learners.doc2lora.hypernetwork import PRESETS, NetworkConfig, preset

Depth = Annotated[float, Field(ge=0.0, le=1.0)]


class NetworkSettings(Section):
    """Sizes: a preset, and what differs from it (null keeps the preset's)."""

    preset: Literal["paper", "small"] = Field("paper", description="The published sizes, or ones that a processor can train")
    width: Count | None = Field(None, description="Width of its vectors")
    latents: Count | None = Field(None, description="Latent vectors of the Perceiver")
    blocks: Count | None = Field(None, description="Cross-attention blocks of the Perceiver")
    heads: Count | None = Field(None, description="Heads of an attention")
    kv_heads: Count | None = Field(None, description="Key and value heads of an attention")
    head_width: Count | None = Field(None, description="Width of a head")
    residual: Whole | None = Field(None, description="Residual MLPs after the Perceiver")
    per_layer: bool | None = Field(None, description="Whether every layer has its own residual MLPs")
    rank: Count | None = Field(None, description="Rank of what is written for a chunk")
    scale: Positive | None = Field(None, description="Factor on B A")
    chunk_tokens: Count | None = Field(None, description="Longest text that is read at once, in tokens")
    targets: Names | None = Field(None, description="Modules that get an adapter")

    def config(self, mode: Literal["document", "text"]) -> NetworkConfig:
        """The sizes of the network."""
        given = {name: value for name, value in self.model_dump().items() if name != "preset" and value is not None}
        return preset(self.preset, mode=mode, **given)

    @model_validator(mode="after")
    def _heads(self) -> NetworkSettings:
        base = PRESETS[self.preset]
        if (self.heads or base.heads) % (self.kv_heads or base.kv_heads):
            raise ValueError("heads must be a multiple of kv_heads")
        return self


class DataSettings(Section):
    """Texts with questions: JSON lines with document (in text mode description), question and answer."""

    train: Path | None = Field(None, description="File to train on; null makes documents up, to try things out")
    held_out: Path | None = Field(None, description="File to measure on; null holds a share of the training file's texts out")
    held_out_share: Fraction = Field(0.1, description="Share of the texts that is held out where there is no file of them")
    invented: Count = Field(500, description="Documents that are made up where there is no file")


class TrainingSettings(Section):
    """The optimizer's steps."""

    steps: Count = Field(80_000, description="Optimizer steps")
    batch: Count = Field(8, description="Texts in a step")
    questions: Count = Field(4, description="Most questions of a text in a step")
    accumulation: Count = Field(1, description="Parts of a step that go through the model one after another, which saves memory")
    learning_rate: Positive = Field(4e-5, description="Peak learning rate of AdamW")
    warmup: Fraction = Field(0.02, description="Share of the steps in which the rate rises; then it falls as a cosine to a tenth")
    weight_decay: NonNegative = Field(0.01, description="Weight decay of AdamW")
    beta2: Fraction = Field(0.999, description="How slowly AdamW forgets the size of gradients; 0.98 where steps are few")
    clip: Positive = Field(1.0, description="Largest gradient norm")
    l1: NonNegative = Field(0.1, description="Weight of the mean size of what is written, A and B")
    labels: Literal["own", "given", "hard"] = Field(
        "own", description="own: the base's answers with the text before it; given: its probabilities on given answers; hard: given answers"
    )
    top: Count = Field(16, description="Tokens of the base's distribution that are kept at each place")
    answer_tokens: Count = Field(48, description="Longest answer of the base, in tokens")
    chunks: list[Count] = Field(default_factory=lambda: [1], description="Numbers of chunks a document is cut into, one drawn at a time")
    companions: list[Whole] = Field(
        default_factory=lambda: [0], description="Numbers of other documents whose adapters are active too, one drawn for each step"
    )
    seed: Whole = Field(0, description="Seed of the network's start, of the order and of everything that is drawn")
    save_every: Count = Field(500, description="Steps between checkpoints")
    tell_every: Count = Field(10, description="Steps between lines of metrics.jsonl")


class EvaluationSettings(Section):
    """What is measured on held-out texts during training and at its end."""

    every: Whole = Field(2000, description="Steps between measurements; 0 means at the end only")
    texts: Count = Field(32, description="Held-out texts that are asked about")
    questions: Count = Field(4, description="Most questions of a text")
    answer_tokens: Count = Field(24, description="Longest answer, in tokens")
    depths: list[Depth] = Field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0], description="Where the needle is in its haystack")
    haystack_tokens: Count = Field(512, description="Length of a haystack, in tokens")
    control: Count = Field(4, description="Texts that have nothing to do with the documents, for the perplexity")


class HypernetworkSettings(Section):
    """The training of a hypernetwork for one base model."""

    model: str = Field("smollm2-135m-instruct", description="Base model: name, directory, GGUF file or hub name")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number format of the base, and of the reading on a GPU")
    mode: Literal["document", "text"] = Field("document", description="Adapters from documents, or from descriptions of tasks")
    skill: bool = Field(True, description="Answer with the study skill where one comes with retain for the base, as in use")
    out: Path = Field(Path("hypernetwork"), description="Directory of checkpoints, metrics and the finished network")
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="Sizes of the network")
    data: DataSettings = Field(default_factory=DataSettings, description="What it learns from")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="Optimizer")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings, description="Measurements")

    @field_validator("out")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @model_validator(mode="after")
    def _consistent(self) -> HypernetworkSettings:
        if self.mode == "text" and self.data.train is None:
            raise ValueError("data.train is needed: there are no made-up tasks for text mode")
        if self.training.batch % self.training.accumulation:
            raise ValueError("training.batch must be a multiple of training.accumulation")
        if max(self.training.companions) >= self.training.batch // self.training.accumulation:
            raise ValueError("training.companions must be below the texts that go through the model at once")
        return self


def load_settings(path: str | Path, overrides: dict[str, Any] | None = None) -> HypernetworkSettings:
    """The settings in a YAML file; paths in it are relative to the file. Raises ConfigError, which names file and key."""
    place = Path(path).expanduser()
    try:
        data = parse_yaml(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    if data is not None and (not isinstance(data, dict) or not all(isinstance(key, str) for key in data)):
        raise ConfigError(f"{place}: must hold `key: value` entries, such as `model: smollm2-135m-instruct`")
    try:
        settings = HypernetworkSettings.model_validate({**(data or {}), **(overrides or {})})
    except ValidationError as error:
        raise explain(error, str(place), keys_of(HypernetworkSettings())) from None
    return _beside(settings, place.parent)


def _beside(settings: HypernetworkSettings, folder: Path) -> HypernetworkSettings:
    """The same settings with the files of the data found from the folder of the settings."""
    files = {name: path.expanduser() for name in ("train", "held_out") if (path := getattr(settings.data, name)) is not None}
    return settings.model_copy(update={"data": settings.data.model_copy(update={name: folder / path for name, path in files.items()})})
