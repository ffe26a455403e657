"""What a sequence experiment is told: a stream, methods, seeds, and how to train. Unknown keys are errors."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from retain.config.section import Count, Fraction, Names, NonNegative, Positive, Section, Whole
from retain.training.loop import TrainingSettings


class TrainingConfig(Section):
    """Training of one task."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer; it starts afresh with every task")
    learning_rate: Positive = Field(1e-3, description="Peak learning rate")
    momentum: Fraction = Field(0.0, description="Momentum of sgd")
    weight_decay: NonNegative = Field(0.0, description="Weight decay")
    epochs: Count = Field(5, description="Passes over a task's examples")
    batch: Count = Field(16, description="Examples that go through the model at once")
    accumulation: Count = Field(1, description="Batches in one optimizer step")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the rate rises")
    final_rate: Fraction = Field(0.1, description="Share of the peak rate at the end; 1 keeps it constant after the warm-up")
    clip: Positive | None = Field(1.0, description="Largest gradient norm; null for none")

    def settings(self, seed: int) -> TrainingSettings:
        """What the training loop takes. A loss may rise here: forgetting is what is measured."""
        return TrainingSettings(
            optimizer=self.optimizer, learning_rate=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay,
            epochs=self.epochs, batch_examples=self.batch * self.accumulation, accumulation=self.accumulation, warmup=self.warmup,
            final_rate=self.final_rate, clip=self.clip or math.inf, seed=seed, spike=math.inf,
        )  # fmt: skip


class MethodsConfig(Section):
    """Settings of the retention methods of an experiment."""

    memory: Count = Field(200, description="Examples that replay and der++ remember")
    strategy: Literal["reservoir", "importance", "diversity", "hybrid", "balanced"] = Field("balanced", description="Which examples stay")
    ewc_lambda: NonNegative = Field(30.0, description="Strength of ewc, per sequence likelihood, with the factor 1/2")
    ewc_labels: Literal["sampled", "empirical"] = Field("sampled", description="Labels of the Fisher information")
    ewc_form: Literal["anchors", "online"] = Field("online", description="An anchor for every task, or the latest parameters alone")
    l2: NonNegative = Field(0.1, description="Strength of l2")
    derpp_alpha: NonNegative = Field(0.5, description="Weight of the stored logits in der++")
    derpp_beta: NonNegative = Field(1.0, description="Weight of the stored labels in der++")
    derpp_distance: Literal["mse", "kl"] = Field("mse", description="Distance to the stored logits: the paper's, or of probabilities")
    kl: NonNegative = Field(1.0, description="Weight of the divergence from the model before the task, on replayed examples")
    agem_examples: Count = Field(64, description="Remembered examples whose gradient agem must not oppose")
    olora: NonNegative = Field(0.5, description="Weight of the overlap with earlier adapters")


class SequenceConfig(Section):
    """A sequence of tasks, learned by several methods from several seeds."""

    stream: str = Field(description="permuted-digits, split-digits, or the name given to the tasks below")
    methods: Names = Field(default_factory=lambda: ["naive", "ewc", "replay", "der++", "joint"], description="Methods to compare")
    seeds: Count = Field(1, description="Seeds 0, 1, ...: of the split, the start and the order of examples")
    hidden: list[Count] = Field(default_factory=lambda: [256], description="Hidden layers of the network, for tables")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Training of one task")
    settings: MethodsConfig = Field(default_factory=MethodsConfig, description="Settings of the methods")
    tasks: list[str] = Field(
        default_factory=list, description="Files, founders, bridges or mmlu:SUBJECT, one per task, for a language model"
    )
    model: str = Field("smollm2-135m-instruct", description="Base model, for tasks of language")
    rank: Count = Field(16, description="Rank of the adapter")
    alpha: Positive = Field(32.0, description="Scale of the adapter: alpha / rank")
    dropout: Fraction = Field(0.0, description="Dropout of the adapter's inputs while training")
    targets: Names = Field(default_factory=lambda: ["all-linear"], description="Modules with an adapter")
    layers: str | Count = Field("all", description="Layers with an adapter")
    data: str | None = Field(None, description="Folder of MMLU's files")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field("float32", description="Number format of the base model")
    limit: Count | None = Field(None, description="Items of a task, both halves together")
    split: Literal["random", "files"] = Field("random", description="Hold out a share at random, or the file NAME_test")
    measure: Literal["held-out", "learned"] = Field(
        "held-out", description="Questions that are asked: those held out, or those learned, where none can be inferred from others"
    )
    held_out: Fraction = Field(0.3, description="Share of a task's items that is asked and never trained on")
    max_tokens: Whole = Field(24, description="Length of an answer that is written")

    @model_validator(mode="before")
    @classmethod
    def _digits(cls, data: Any) -> Any:
        """The digits come with the training that published comparisons use: 15 epochs of SGD at 0.1, batches of 32."""
        if isinstance(data, dict) and not data.get("tasks"):
            plain = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 15, "batch": 32, "warmup": 0.0, "final_rate": 1.0, "clip": None}
            data = {**data, "training": {**plain, **(data.get("training") or {})}}
        return data
