"""What a forgetting experiment is told: two tasks, a preset of published fine-tuning, and what of the curvature is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retain.config.section import Count, Names, NonNegative, Positive, Section, Whole
from retain.data.errors import DataError, did_you_mean
from retain.evaluation.sequences import SequenceConfig
from retain.evaluation.sequences.experiment import validated

# Sequential fine-tuning with LoRA as experiments on forgetting do it; the schedule falls to zero, as in transformers.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "lora-seft": {
        "rank": 64, "alpha": 128.0, "dropout": 0.1,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "training": {"batch": 8, "accumulation": 2, "epochs": 10, "learning_rate": 3e-4, "clip": 1.0, "final_rate": 0.0},
    },
    "lora-small": {
        "rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "training": {"batch": 16, "accumulation": 1, "epochs": 3, "learning_rate": 2e-4, "clip": 1.0, "final_rate": 0.0},
    },
}  # fmt: skip
Space = Literal["factors", "product"]
_SPACES: list[Space] = ["factors", "product"]


class CurvatureConfig(Section):
    """Curvature of the first task's loss at w1, the parameters that it was learned with."""

    compute: Literal["auto", "yes", "no"] = Field("auto", description="auto: for adapters of at most `limit` parameters")
    limit: Count = Field(2_000_000, description="Parameters of the largest adapter whose curvature is computed unasked")
    spaces: list[Space] = Field(default_factory=_SPACES.copy, description="Of the factors A and B, of dW = scale B A")
    top: Count = Field(20, description="Eigenvalues of largest magnitude")
    tokens: Count = Field(512, description="Tokens of the examples on which the loss is taken")
    examples: Literal["learned", "held-out"] = Field("learned", description="Which examples of the task these are")
    products: Count = Field(60, description="Most Hessian-vector products for the eigenvalues")
    tolerance: Positive = Field(1e-2, description="Residual of a converged eigenvalue, as a share of it")
    points: int = Field(11, ge=2, description="Places on the straight path from w1 to w2")
    trace: Whole = Field(0, description="Products for the trace; 0 leaves it out")
    density: Whole = Field(0, description="Random starts for the density of the eigenvalues; 0 leaves it out")
    memory: Positive = Field(4.0, description="GB for the vectors of the search")
    graphs: NonNegative = Field(4.0, description="GB for the graph that products are taken from; 0 makes it anew each time")


class ForgettingConfig(SequenceConfig):
    """Two tasks of language one after another: what the second costs the first."""

    stream: str = Field("forgetting", description="Name of the pair")
    methods: Names = Field(default_factory=lambda: ["naive"], description="Methods to compare")
    tasks: list[str] = Field(default_factory=list, min_length=2, max_length=2, description="Two: files, founders, bridges, mmlu:SUBJECT")
    preset: str = Field("lora-small", description="The preset that the values come from")
    curvature: CurvatureConfig = Field(default_factory=CurvatureConfig, description="Curvature at the first task's solution")


def load_forgetting(
    task1: str | Path, task2: str | Path, preset: str = "lora-small", overrides: Mapping[str, Any] | None = None
) -> ForgettingConfig:
    """The configuration of a preset for two tasks, with overrides by dotted key. Raises DataError or ConfigError."""
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"there are {', '.join(PRESETS)}"
        raise DataError(f"there is no preset {preset!r}: {hint}")
    data = deepcopy(dict(PRESETS[preset])) | {"tasks": [str(task1), str(task2)], "preset": preset}
    return validated(ForgettingConfig, data, overrides, "forgetting", ("x", "y"))


def study_values(words: Sequence[str]) -> dict[str, list[Any]]:
    """The values of a study from words such as "rank=4,16", in the order given. Raises DataError."""
    from retain.config.values import parse_yaml

    found: dict[str, list[Any]] = {}
    for word in (part for text in words for part in text.split()):
        key, equals, values = word.partition("=")
        chosen = [value for value in values.split(",") if value]
        if not equals or not key or not chosen:
            raise DataError(f"{word!r} is not KEY=VALUE,VALUE", fix="for example rank=4,16")
        found[key] = [parse_yaml(value) for value in chosen]
    return found
