"""Classification: one label of a list, any labels of a list, or several heads of either kind at once."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from retain.config import ConfigError
from retain.config.section import Names, Positive, Section
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row
from retain.multitask.tasks.base import TASKS
from retain.multitask.tasks.heads import MULTI, SINGLE, ClassWeights, Head, Heads


class ClassificationConfig(TaskConfig):
    """One label for each record."""

    label: str = Field("label", description="Column with the label")
    labels: Names | None = Field(None, description="The labels in their order; null takes those of the training records")
    class_weights: ClassWeights = Field("none", description="Weights in the loss: none, balanced (by frequency), or one for each label")
    positive: str | None = Field(None, description="Of two labels the one to find: it is decided by a threshold tuned for its F1")


class MultiLabelConfig(TaskConfig):
    """Any number of labels for each record."""

    label: str | None = Field(None, description="Column with a list of labels, or a text of labels with separators")
    columns: Names | None = Field(None, description="One column of 0 and 1 for each label, in place of one column with lists")
    labels: Names | None = Field(None, description="The labels in their order; null takes those of the training records")
    separator: str = Field(",", description="What separates labels in a text")
    class_weights: ClassWeights = Field("none", description="Weights of having a label: none, balanced, or one for each label")


class HeadConfig(Section):
    """One head of several."""

    label: str | None = Field(None, description="Column; null takes the head's name")
    labels: Names | None = Field(None, description="The labels in their order; null takes those of the training records")
    multilabel: bool = Field(False, description="Whether a record has any number of these labels")
    separator: str = Field(",", description="What separates labels in a text")
    weight: Positive = Field(1.0, description="Weight of the head's loss")
    class_weights: ClassWeights = Field("none", description="Weights in the loss: none, balanced, or one for each label")


class MultiHeadConfig(TaskConfig):
    """Several labels of different kinds for each record, such as scores of its quality."""

    heads: dict[str, HeadConfig] = Field(description="Heads by name")


@TASKS.register("classification")
class Classification(Heads):
    """One label of a list: cross-entropy, and the most likely label, or a tuned threshold for ``positive``."""

    Config: ClassVar[type[TaskConfig]] = ClassificationConfig

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, ClassificationConfig)
        own = {"class_weights": config.class_weights, "positive": config.positive}
        self.heads = [Head("label", config.label, False, config.labels, **own)]  # type: ignore[arg-type]

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        return super().predict(result, row, raw)["label"]

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        return dict.fromkeys(SINGLE, True)

    def main(self) -> str:
        return "accuracy"


@TASKS.register("multilabel")
class MultiLabel(Heads):
    """Any labels of a list: binary cross-entropy of each, and a threshold of each, tuned for its F1."""

    Config: ClassVar[type[TaskConfig]] = MultiLabelConfig

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, MultiLabelConfig)
        if (config.label is None) == (config.columns is None):
            raise ConfigError(f"tasks.{name}: give label (a column with lists) or columns (one of 0 and 1 for each label), and not both")
        asked = config.columns if config.columns is not None else config.labels
        column = config.label if config.label is not None else (config.columns or [""])[0]
        own: dict[str, Any] = {"class_weights": config.class_weights, "separator": config.separator, "columns": config.columns}
        self.heads = [Head("labels", column, True, asked, **own)]

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        return super().predict(result, row, raw)["labels"]

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        return dict.fromkeys(MULTI, True)

    def main(self) -> str:
        return "micro_f1"


@TASKS.register("multihead")
class MultiHead(Heads):
    """Several heads, each with labels, a weight and thresholds of its own. A record may lack the labels of some. ``score`` is the mean
    of the heads' main metrics, accuracy or micro F1."""

    Config: ClassVar[type[TaskConfig]] = MultiHeadConfig

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, MultiHeadConfig)
        if len(config.heads) < 2:
            raise ConfigError(
                f"tasks.{name}.heads: several heads, not {len(config.heads)}: for one there are classification and multilabel"
            )
        self.heads = [
            Head(key, head.label or key, head.multilabel, head.labels, head.weight, head.class_weights, head.separator)
            for key, head in config.heads.items()
        ]

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        assert isinstance(config, MultiHeadConfig)
        named = {f"{key}.{name}": True for key, head in config.heads.items() for name in (MULTI if head.multilabel else SINGLE)}
        return {"score": True, **named}

    def main(self) -> str:
        return "score"
