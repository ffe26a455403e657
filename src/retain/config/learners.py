"""The settings of the ways of learning beside the default one; see the pages in docs/learners for what they do."""

from __future__ import annotations

from pydantic import Field

from retain.config.section import Count, Fraction, Positive, Section


class TttConfig(Section):
    """Test-time training of an MLP beside the frozen one."""

    learning_rate: Positive = Field(1e-5, description="Step size of plain gradient descent")


class JitrlConfig(Section):
    """Answering with retrieved passages and a bias toward their words."""

    passages: Count = Field(3, description="Passages in the prompt")


class StatesConfig(Section):
    """Answering with stored hidden states (jitrl-full)."""

    neighbours: Count = Field(10, description="Stored states that are looked at for each token")


class AceConfig(Section):
    """The evolving playbook."""

    loops: Count = Field(3, description="Rounds of generating, reflecting and curating for a document")


class Doc2LoraConfig(Section):
    """Adapters written by a hypernetwork."""

    weights: str | None = Field(None, description="File of a trained hypernetwork; null takes the one that ships for the base model")


class ProgressiveConfig(Section):
    """Columns of a progressive network."""

    width: Count = Field(16, description="Width of a document's column at every MLP")


class PackNetConfig(Section):
    """Weights packed by pruning."""

    prune: Fraction = Field(0.75, description="Share of the free weights that a document gives back after training")
