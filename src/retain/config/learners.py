"""The settings of the ways of learning beside the default one; see the pages in docs/learners for what they do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retain.config.endpoint import EndpointConfig
from retain.config.section import Count, NonNegative, Positive, Section


class TttConfig(Section):
    """Test-time training of an MLP beside the frozen one."""

    learning_rate: Positive = Field(
        1e-3, description="Step size of plain gradient descent, for each square root of the number of trained values"
    )
    clip: Positive = Field(1.0, description="Largest gradient norm")
    minibatch: Count = Field(32, description="Tokens of the document in one step")
    window: Count = Field(512, description="Tokens before a mini-batch that it is read with")
    epochs: Count = Field(5, description="Passes over the material")
    material: Literal["text", "study", "both"] = Field(
        "both", description="What is trained on: the text alone, the study set, or both in one stream"
    )
    width: Count | None = Field(256, description="Neurons of the new MLP in each layer; null takes as many as the frozen one has")
    alpha: Positive = Field(1.0, description="Blend: what the new MLP adds is multiplied by it")
    schedule: Literal["constant", "rise", "fall"] = Field("constant", description="How the blend goes while a document is learned")
    gate_threshold: NonNegative = Field(0.3, description="Neurons whose score is below this share of their layer's mean do not learn")
    calibration_samples: Count = Field(128, description="General texts that the neurons of a base model are compared with, once")


class JitrlConfig(Section):
    """Answering with retrieved passages and a bias toward their words."""

    passages: Count = Field(3, description="Passages in the prompt")
    context_tokens: Count = Field(448, description="Room for passages in the prompt, in tokens")
    bias: NonNegative = Field(1.0, description="Logits that the rarest words of the passages gain; 0 for none")
    dense: bool = Field(False, description="Rank passages by hidden-state vectors too")


class StatesConfig(Section):
    """Answering with stored hidden states (jitrl-full)."""

    neighbours: Count = Field(10, description="Stored states that are looked at for each token")
    strength: NonNegative | None = Field(
        None, description="Logits that a stored state adds; null chooses them while learning, by what makes answers likely"
    )
    passages: Count = Field(8, description="Passages of a document whose states are searched for a question")
    questions: Count = Field(1000, description="Study questions of a document whose answers are stored, at most")
    context: bool = Field(False, description="Put passages into the prompt too, as jitrl does")


class AceConfig(EndpointConfig):
    """The evolving playbook, and the model that reflects and curates."""

    url: str | None = Field(
        None,
        description="Address of an OpenAI-compatible API whose model reflects and curates, such as http://localhost:11434/v1 (Ollama); "
        "null lets the base model do it",
    )
    model: str | None = Field("qwen2.5:7b", description="Name that the API knows the model by")
    key_env: str | None = Field(None, description="Environment variable that holds the key; null sends none")
    max_tokens: Count = Field(2048, description="Longest answer to one request, in tokens; the base model writes at most 256")
    loops: Count = Field(3, description="Rounds of generating, reflecting and curating for a document")
    reflections: Count = Field(3, description="Tries at one question in a round: reflect, answer again")
    questions: Count = Field(24, description="Study questions that are asked in a round, at most")
    strategies: Count = Field(50, description="Bullets that the playbook holds, at most")
    context_tokens: Count = Field(256, description="Room for bullets in the prompt, in tokens")


class Doc2LoraConfig(Section):
    """Adapters written by a hypernetwork."""

    weights: str | None = Field(None, description="File of a trained hypernetwork; null takes the one that ships for the base model")


class ProgressiveConfig(Section):
    """Columns of a progressive network."""

    width: Count = Field(16, description="Width of a document's column at every MLP")
    learning_rate: Positive = Field(1e-2, description="Peak learning rate of a column")


class PackNetConfig(Section):
    """Weights packed by pruning."""

    rank: Count = Field(32, description="Rank of the factors whose entries the documents share")
    prune: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.75, description="Share of the free weights that a document gives back after training"
    )
    retrain_epochs: Count = Field(3, description="Passes over the study material with the weights that were kept")
    least: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.01, description="Smallest share of all weights that a document must be able to keep"
    )
