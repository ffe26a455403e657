"""What an experiment file says: the sections that every experiment has. Backbones and tasks add their own keys to theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny

from retain.config import RetentionConfig
from retain.config.section import Count, Fraction, Names, NonNegative, Positive, Section, Whole


class FreezeConfig(Section):
    """Parts of the backbone that do not learn. Frozen first, adapted afterwards: no adapter is put on a frozen layer."""

    all: bool = Field(False, description="The whole backbone")
    embeddings: bool = Field(False, description="Every embedding table")
    layers: Whole = Field(0, description="The first N layers")
    patterns: Names = Field(default_factory=list, description="Parameters by name, with * and ?")


class PeftConfig(Section):
    """A small number of parameters that learn in place of the backbone's own."""

    method: Literal["lora", "qlora", "rslora", "dora", "adalora", "ia3", "prefix", "bottleneck"] = Field(
        "lora", description="Kind of adapter; qlora is lora on a backbone in 4 bits"
    )
    rank: Count = Field(8, description="Rank of LoRA's matrices; width of a bottleneck")
    alpha: Positive = Field(16.0, description="Scale of LoRA's product: alpha / rank, for rslora alpha / sqrt(rank)")
    dropout: Fraction = Field(0.0, description="Dropout of an adapter's inputs")
    targets: Names = Field(
        default_factory=lambda: ["auto"],
        description="Modules that are adapted: auto, all-linear, or names with * and ?, or their last part",
    )
    tokens: Count = Field(16, description="Length of a prefix, for prefix")


class BackboneConfig(Section):
    """What every backbone has; each kind has more."""

    kind: str = Field(description="Kind of backbone")
    freeze: FreezeConfig = Field(default_factory=FreezeConfig, description="Parts that do not learn")
    peft: PeftConfig | None = Field(None, description="Learn adapters in place of the backbone's own weights; null learns those")

    _device: str = PrivateAttr(default="cpu")  # where a backbone in 4 bits is loaded: see quantising


class DataConfig(Section):
    """Files of records: .jsonl, .json, .csv, .tsv. Names are relative to the experiment's file."""

    train: Names = Field(default_factory=list, description="Files to learn from")
    validation: Names = Field(default_factory=list, description="Files to tune on: thresholds, best step, early stopping")
    test: Names = Field(default_factory=list, description="Files that are measured once, at the end")
    validation_share: Fraction = Field(0.2, description="Share of the training records, where no validation files are given")
    test_share: Fraction = Field(0.0, description="Share of the training records, where no test files are given")


class TaskConfig(Section):
    """What every task has; each kind has more."""

    kind: str = Field(description="Kind of task")
    data: DataConfig | None = Field(None, description="Files of this task; null takes the experiment's")
    input: Names | None = Field(None, description="Columns that the backbone reads; null takes the backbone's own")
    weight: Positive = Field(1.0, description="Weight of the task's loss")
    dropout: Fraction = Field(0.1, description="Dropout before the task's head")
    unlabelled: Literal["error", "skip"] = Field("error", description="What a record without a label is")


class FusionConfig(Section):
    """Attention of each task over the shared token states."""

    kind: Literal["none", "attention"] = Field("none", description="none pools the states; attention lets each task look where it needs")
    heads: Count = Field(4, description="Heads of the attention")


class SamplingConfig(Section):
    """Which task the next batch comes from."""

    kind: Literal["proportional", "round-robin", "temperature"] = Field(
        "proportional", description="By size; each in turn; by size to the power 1 / temperature"
    )
    temperature: Positive = Field(2.0, description="1 is proportional, large is uniform")
    phases: list[Names] = Field(
        default_factory=list, description="Groups of tasks that are learned one after another; none: all tasks together"
    )


class ConflictsConfig(Section):
    """What is done where tasks pull the shared weights in different directions."""

    kind: Literal["none", "pcgrad", "uncertainty"] = Field(
        "none", description="Nothing; project conflicting gradients (2001.06782); learned loss weights (1705.07115)"
    )


class TrainingConfig(Section):
    """How the network learns."""

    learning_rate: Positive | None = Field(None, description="Peak rate of the backbone; null takes what its kind is used to")
    head_learning_rate: Positive = Field(1e-3, description="Peak rate of heads and fusion")
    epochs: Count = Field(5, description="Passes over the data")
    batch: Count = Field(32, description="Records in a batch, all of one task")
    accumulation: Count | None = Field(None, description="Batches in a step; null is 1, and the number of tasks for pcgrad")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="How the rate falls after the warm-up")
    warmup: Fraction = Field(0.06, description="Share of the steps in which the rate rises")
    weight_decay: NonNegative = Field(0.01, description="Weight decay of AdamW, on matrices only")
    clip: Positive | None = Field(1.0, description="Largest gradient norm; null for none")
    evaluate_every: Count | None = Field(None, description="Steps between evaluations; null evaluates after every epoch")
    checkpoint_every: Count | None = Field(
        None, description="Steps between checkpoints to resume from; null makes one with every evaluation"
    )
    metric: str = Field("mean", description="What the best step is chosen by: TASK.METRIC, mean (of the tasks' main metrics), or loss")
    callbacks: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Callbacks by name, each with its settings")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto is bfloat16 for a pretrained network where the device computes in it, and float32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train; auto takes CUDA, then MPS, then the CPU")


class NestedGroupConfig(Section):
    """Parameters that are updated at a frequency of their own, by an optimizer of their own. A parameter belongs to the first group that
    names it."""

    part: Literal["backbone", "embeddings", "layers", "fusion", "heads"] | None = Field(None, description="A part of the network")
    layers: list[Whole] = Field(default_factory=list, description="Layers of the backbone by number, from 0")
    patterns: Names = Field(default_factory=list, description="Parameters by name, with * and ?")
    every: Count = Field(1, description="Steps between updates; an update takes the mean gradient of the steps since the last")
    optimizer: Literal["adamw", "sgd", "adafactor"] = Field("adamw", description="What makes a gradient an update")
    learning_rate: Positive | None = Field(None, description="Peak rate; null takes the backbone's or the heads'")
    weight_decay: NonNegative | None = Field(None, description="Weight decay, on matrices only; null takes that of training")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="Momentum of sgd")


class NestedConfig(Section):
    """Nested learning: groups of parameters at several update frequencies. What no group names is updated in every step, by AdamW."""

    groups: dict[str, NestedGroupConfig] = Field(default_factory=dict, description="Groups by name")


Check = Literal["loss", "gradient", "flips", "triggers", "perturbation"]
Action = Literal["log", "drop", "halt"]


class SentinelConfig(Section):
    """What looks for records that were tampered with, while they are learned. A check that is null is not made."""

    action: Action = Field(
        "log", description="What is done about a suspect: it is written down; it is also left out from there on; training stops"
    )
    actions: dict[Check, Action] = Field(default_factory=dict, description="Actions of single checks, in place of action")
    loss: Positive | None = Field(10.0, description="Loss that is suspect, in robust deviations above the median of the latest records")
    gradient: Positive | None = Field(10.0, description="Gradient norm that is suspect, in the same deviations")
    flips: Fraction | None = Field(0.5, description="Mean share by which another label was likelier over a record's visits")
    triggers: Fraction | None = Field(0.95, description="Share of one label among records with a rare pattern, against the rest of them")
    perturbation: Fraction | None = Field(None, description="Share of slightly changed copies of a record that are decided otherwise")
    visits: Count = Field(3, description="Visits of a record after which flips and perturbation judge it")
    rare: Fraction = Field(0.1, description="Largest share of the records that hold a pattern which may be a trigger")
    noise: Positive = Field(0.1, description="Perturbation: share of the tokens that are hidden, and noise in deviations of numbers")
    copies: Count = Field(8, description="Perturbation: changed copies of a record")
    window: Annotated[int, Field(ge=40)] = Field(500, description="Latest records of a task that a loss or a gradient is compared with")
    most: Fraction = Field(0.2, description="Largest share of a task's records that may be left out; training stops before more are")


class DistillConfig(Section):
    """A teacher whose answers are learned beside the labels."""

    teacher: str | None = Field(
        None, description="Directory of a finished run; null is this network as it was before the phase, for the tasks of earlier phases"
    )
    tasks: dict[str, str] = Field(default_factory=dict, description="Task here: task of the teacher; none takes those of the same name")
    temperature: Positive = Field(2.0, description="Temperature of both")
    weight: Positive = Field(1.0, description="Weight of the divergence from the teacher")
    labels: NonNegative = Field(1.0, description="Weight of the loss by labels, on tasks that the teacher knows; 0 learns from it alone")
    hidden: NonNegative = Field(0.0, description="Weight of the squared distance between the pooled states, through a learned projection")


class ExperimentConfig(Section):
    """One experiment: a backbone, tasks, and how they are learned."""

    name: str = Field("experiment", description="Name of the run; that of the file where it is not given")
    seed: Whole = Field(0, description="Seed of everything random")
    backbone: SerializeAsAny[BackboneConfig] = Field(description="The network that all tasks share")
    data: DataConfig = Field(default_factory=DataConfig, description="Files of the tasks that name none")
    tasks: dict[str, SerializeAsAny[TaskConfig]] = Field(description="The tasks by name")
    fusion: FusionConfig = Field(default_factory=FusionConfig, description="Attention of each task over the shared states")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Which task the next batch comes from")
    conflicts: ConflictsConfig = Field(default_factory=ConflictsConfig, description="Tasks that pull in different directions")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How the network learns")
    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="What protects the tasks of earlier phases")
    nested: NestedConfig = Field(default_factory=NestedConfig, description="Parameters at several update frequencies")
    sentinel: SentinelConfig | None = Field(None, description="What looks for records that were tampered with; null does not look")
    distill: DistillConfig | None = Field(None, description="A teacher to learn from; null for none")

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where relative names of files start."""
        return self._folder

    @property
    def phases(self) -> list[list[str]]:
        """Groups of tasks in the order in which they are learned."""
        return [list(group) for group in self.sampling.phases] or [list(self.tasks)]

    @property
    def adapters(self) -> int:
        """LoRA adapters on each other: for olora one for each phase."""
        return len(self.phases) if "olora" in self.retention.methods else 1

    def recorded(self) -> dict[str, Any]:
        """Every value as JSON and YAML have it; :func:`retain.multitask.parse_experiment` reads it back."""
        return self.model_dump(mode="json", by_alias=True)
