"""Generation: a text for each record, written token by token."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retain.config import ConfigError
from retain.config.section import Count
from retain.multitask.backbones.base import Backbone, Encoded, Inputs
from retain.multitask.backbones.writing import KNOWN, TARGET, Writer
from retain.multitask.config import TaskConfig
from retain.multitask.records import Row, check_columns
from retain.multitask.tasks.base import IGNORED, TASKS, Outputs, Targets, Task
from retain.multitask.tasks.texts import check_tools, text_scores

if TYPE_CHECKING:
    from retain.multitask.network import MultitaskNetwork

WRITTEN = "written"  # outputs: the tokens that the network wrote


class GenerationConfig(TaskConfig):
    """A text for each record."""

    target: str = Field("target", description="Column with the text to write")
    prompt: str | None = Field(None, description="What is read, with {COLUMN} for the text of a column; null reads the input columns")
    max_target_length: Count = Field(128, description="Longest target in tokens; what is longer is cut off, and told")
    max_new_tokens: Count | None = Field(None, description="Most tokens to write; null is as many as the longest training target has")


@TASKS.register("generation")
class Generation(Task):
    """A text is learned token by token, each given the input and the target before it; only the target's tokens are in the loss, the end
    token with them. Answers are the likeliest token each time, read in batches: what is written does not depend on the others in a batch.

    The decoder is the backbone's own, so there is no head, and fusion takes no part.
    """

    Config: ClassVar[type[TaskConfig]] = GenerationConfig
    METRICS: ClassVar[dict[str, bool]] = {"rougeL": True, "rouge1": True, "chrf": True, "exact": True, "perplexity": False}
    needs = frozenset({"generation"})
    fuses = False

    def __init__(self, name: str, config: TaskConfig) -> None:
        super().__init__(name, config)
        assert isinstance(config, GenerationConfig)
        self.settings: GenerationConfig = config
        self.most = config.max_new_tokens or 0  # tokens to write; 0 until the training targets are seen
        self.writer: Writer | None = None  # the backbone, once there is a network
        if config.prompt is not None:
            if config.input is not None:
                raise ConfigError(f"tasks.{name}.input: the prompt names the columns that are read: leave input out")
            self.asked = _columns_in(config.prompt, f"tasks.{name}.prompt")

    def columns(self) -> list[str]:
        return [self.settings.target]

    def fit(self, rows: Sequence[Row]) -> None:
        check_tools()
        check_columns(rows, [self.settings.target])
        for row in rows:
            self.truth(row)

    def truth(self, row: Row) -> str | None:
        return None if row.missing(self.settings.target) else row.text(self.settings.target)

    def counts(self, truths: Sequence[Any]) -> dict[str, int]:
        words = [len(truth.split()) for truth in truths]
        return {f"{min(words)} to {max(words)} words": len(words)} if words else {}

    def inputs(self, backbone: Backbone) -> list[str]:
        return super().inputs(backbone) if self.settings.prompt is None else self.asked

    def raw(self, row: Row, backbone: Backbone) -> Any:
        if self.settings.prompt is None:
            return super().raw(row, backbone)
        return (self.settings.prompt.format_map({column: row.text(column) for column in self.asked}),)

    def targets(self, backbone: Backbone, truths: Sequence[Any], encoded: Sequence[Encoded]) -> list[Targets]:
        writer: Writer = backbone  # type: ignore[assignment]
        space = " " if writer.continues and not (self.settings.prompt or "")[-1:].isspace() else ""
        found = writer.spell([space + truth.strip() for truth in truths], self.settings.max_target_length)
        if not self.most:
            self.most = max(len(tokens) for tokens in found)
        room = writer.capacity()
        if room is not None and self.most > room:
            raise ConfigError(
                f"tasks.{self.name}: up to {self.most} tokens are to be written, and the model has room for {room} after an input of "
                "backbone.max_length: lower that, max_target_length or max_new_tokens"
            )
        self.writer = writer
        return [{TARGET: tokens} for tokens in found]

    def remarks(self, truths: Sequence[Any], targets: Sequence[Targets]) -> list[str]:
        assert self.writer is not None
        cut = sum(not self.writer.complete(target[TARGET]) for target in targets)
        return [f"{cut} of {len(targets)} targets are longer than max_target_length and are cut off"] if cut else []

    def batch(self, backbone: Backbone, encoded: Sequence[Encoded], targets: Sequence[Targets] | None) -> tuple[Inputs, Targets | None]:
        inputs, labels = super().batch(backbone, encoded, targets)
        if labels is not None:
            known = labels[TARGET] != IGNORED
            inputs |= {TARGET: labels[TARGET].masked_fill(~known, 0), KNOWN: known}
        return inputs, labels

    def collate(self, targets: Sequence[Targets]) -> Targets:
        return {TARGET: pad_sequence([target[TARGET] for target in targets], batch_first=True, padding_value=float(IGNORED))}

    def head(self, backbone: Backbone) -> nn.Module:
        if not any(parameter.requires_grad for parameter in backbone.parameters()):
            raise ConfigError(
                f"tasks.{self.name}: is learned in the backbone, and all of that is frozen: freeze less, or add backbone.peft"
            )
        self.writer = backbone  # type: ignore[assignment]
        return nn.Identity()

    def run(self, network: MultitaskNetwork, inputs: Inputs) -> Outputs:
        return {"logits": network.backbone.continued(inputs)}  # type: ignore[operator]

    @torch.no_grad()
    def answer(self, network: MultitaskNetwork, inputs: Inputs) -> Outputs:
        outputs = network(self.name, inputs) if TARGET in inputs else {}
        asked = {name: value for name, value in inputs.items() if name not in (TARGET, KNOWN)}
        return {**outputs, WRITTEN: network.backbone.write(asked, self.most)}  # type: ignore[operator]

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        known = targets[TARGET] != IGNORED
        return F.cross_entropy(outputs["logits"][known].float(), targets[TARGET][known])

    def results(self, outputs: Outputs, targets: Targets | None, encoded: Sequence[Encoded]) -> list[Any]:
        """The text of each record and, with targets, how unlikely its own is (``nats``) and of how many tokens it is."""
        assert self.writer is not None
        found: list[dict[str, Any]] = [{"text": self.writer.text_of(row)} for row in outputs[WRITTEN].cpu()]
        if targets is not None:
            for result, logits, labels in zip(found, outputs["logits"], targets[TARGET], strict=True):
                known = labels != IGNORED
                nats = F.cross_entropy(logits[known].float(), labels[known], reduction="sum")
                result |= {"nats": float(nats), "tokens": int(known.sum())}
        return found

    def predict(self, result: Any, row: Row, raw: Any) -> dict[str, Any]:
        return {"text": result["text"]}

    @classmethod
    def metrics_of(cls, config: TaskConfig) -> dict[str, bool]:
        return dict(cls.METRICS)

    def metrics(self, results: Sequence[Any], truths: Sequence[Any]) -> dict[str, float | None]:
        if not results:
            return dict.fromkeys(self.METRICS)
        tokens = sum(result["tokens"] for result in results)
        nats = torch.tensor([result["nats"] for result in results], dtype=torch.float64).sum()
        scores = text_scores([result["text"] for result in results], truths)
        return {**scores, "perplexity": float(torch.exp((nats / tokens).clamp(max=700.0)))}

    def main(self) -> str:
        return "rougeL"

    def state(self) -> dict[str, Any]:
        return {"most": self.most}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.most = int(state["most"])

    def outcomes(self) -> int:
        assert self.writer is not None
        return self.writer.vocabulary

    def labels(self, target: Targets) -> tuple[int, ...]:
        return tuple(target[TARGET].tolist())

    def logits(self, outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
        return outputs["logits"].float(), targets[TARGET] != IGNORED


def _columns_in(prompt: str, where: str) -> list[str]:
    """The columns that a prompt names. Raises ConfigError."""
    try:
        fields = [(name, form, conversion) for _, name, form, conversion in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}: write {{{{ and }}}} for braces that are no column") from None
    if not fields:
        raise ConfigError(f"{where}: names no column: write {{text}} where the text of the column belongs")
    for name, form, conversion in fields:
        if not name or form or conversion or not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"{where}: {{{name}}} is no column: only letters, digits, - and _ stand between braces")
    return list(dict.fromkeys(name for name, _, _ in fields))
