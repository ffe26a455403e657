"""What can be configured: sections, keys, types, defaults and help, all in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, field_validator

from retain.config.endpoint import EndpointConfig
from retain.config.learners import (
    AceConfig,
    Doc2LoraConfig,
    JitrlConfig,
    PackNetConfig,
    ProgressiveConfig,
    StatesConfig,
    TttConfig,
)
from retain.config.section import Count, Fraction, Names, NonNegative, Positive, Section, Share, Whole
from retain.config.serving import ServeConfig


class ModelConfig(Section):
    """The base model and where it runs."""

    name: str = Field(
        "smollm2-135m-instruct",
        description="Base model: the embedded model's name, a directory, a GGUF file or a hub name; what was learned keeps its base",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format; auto takes what the device is fast in"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where the model runs; auto takes CUDA, then MPS, then the CPU"
    )
    threads: Count | None = Field(None, description="CPU threads; null leaves the choice to torch")
    cache_dir: Path | None = Field(None, description="Directory for fetched models; null means $RETAIN_CACHE or ~/.cache/retain")

    @field_validator("cache_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else None


class TeacherConfig(EndpointConfig):
    """A larger model behind an OpenAI-compatible API that writes study questions. Its key stays in the environment."""


class StudyConfig(Section):
    """How a document becomes study material."""

    rules: bool = Field(True, description="Write questions, clozes and rewordings by rules; works with every model")
    writer: Literal["auto", "none", "model", "teacher"] = Field(
        "auto", description="Who writes more questions: the base where it has a study skill (auto), the base, a teacher, nobody"
    )
    teacher: TeacherConfig = Field(default_factory=TeacherConfig, description="A larger model that writes questions")
    questions_per_fact: Count = Field(4, description="Differently worded questions for each fact")
    distillation: Fraction = Field(
        0.5, description="Share of what the model says while it reads the document, in the labels of questions that it wrote"
    )
    held_out_fraction: Fraction = Field(
        0.25, description="Share of the facts with one wording kept out of training, to measure what was learned"
    )


class LearnConfig(Section):
    """How a document is learned."""

    learner: str = Field(
        "lora",
        description="Way of learning a document: lora, ttt, jitrl, jitrl-full, ace, doc2lora, progressive, packnet, or one of your own",
    )
    rank: Count = Field(16, description="Rank of the adapter's matrices")
    alpha: Positive = Field(32.0, description="Scale of the adapter: its product is multiplied by alpha / rank")
    layers: Literal["all", "last-two-thirds", "last-half", "last-third", "last-quarter"] | Count = Field(
        "last-two-thirds", description="Layers with an adapter: a name, or a number of last layers; those below run once per example"
    )
    targets: Names = Field(
        default_factory=lambda: ["all-linear"], description="Modules that learn: all-linear, names such as q_proj,v_proj, or patterns"
    )
    learning_rate: Positive = Field(1e-3, description="Peak learning rate")
    epochs: Count = Field(5, description="Passes over a document's study material")
    batch_tokens: Count = Field(256, description="Tokens in one optimizer step")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises")
    weight_decay: NonNegative = Field(0.0, description="Weight decay of AdamW")
    clip: Positive = Field(1.0, description="Largest gradient norm")
    seed: Whole = Field(0, description="Seed of everything random in an update")
    adapter_per: Literal["document", "domain"] = Field(
        "document", description="One adapter for each document, or one that goes on learning for all documents of a domain"
    )
    consolidate_after: Whole = Field(
        0, description="Adapters of single documents in a domain after which they become one shared adapter; 0 means never"
    )
    domain: str = Field("general", description="Domain given to documents that name none")
    importance: Fraction = Field(0.5, description="Importance given to documents that name none, 0 to 1")


class ReplayConfig(Section):
    """Rehearsal of earlier examples."""

    capacity: Count = Field(10_000, description="Examples kept")
    strategy: Literal["reservoir", "importance", "diversity", "hybrid", "balanced"] = Field(
        "hybrid", description="Which examples stay when the buffer is full"
    )
    fraction: Share = Field(0.5, description="Share of a batch that is replayed, below 1")


class EwcConfig(Section):
    """Elastic weight consolidation."""

    strength: NonNegative = Field(1000.0, alias="lambda", description="Strength of the pull toward earlier weights")
    gamma: Fraction = Field(1.0, description="Factor on earlier Fisher information when a task is added; 1 forgets nothing")
    form: Literal["anchors", "online"] = Field(
        "anchors", description="What is pulled toward: the weights after every earlier task, or those after the latest (online EWC)"
    )


class KlConfig(Section):
    """Distillation from the model as it was before the update."""

    weight: NonNegative = Field(1.0, description="Weight of the divergence from the teacher")
    teacher: Literal["before", "base"] = Field(
        "before", description="Whose answers to general text are kept: those from before the update, or those of the base"
    )
    general_fraction: Share = Field(0.25, description="Share of a batch that is general text, below 1")


class OloraConfig(Section):
    """Orthogonal adapters."""

    weight: NonNegative = Field(0.5, description="Weight of the overlap with earlier adapters")


class AgemConfig(Section):
    """Averaged gradient episodic memory."""

    examples: Count = Field(64, description="Remembered examples whose gradient must not be opposed")


class DerppConfig(Section):
    """Dark experience replay++."""

    alpha: NonNegative = Field(0.5, description="Weight of the stored logits")
    beta: NonNegative = Field(0.5, description="Weight of the remembered labels")


class RetentionConfig(Section):
    """What protects old knowledge."""

    methods: Names = Field(
        default_factory=list,
        description="Methods in use while an adapter is trained; none means replay for one that goes on; after a refused try kl is added",
    )
    refresh_after: Whole = Field(
        8, description="Documents of an adapter that goes on learning after which what is remembered is measured anew; 0 means never"
    )
    replay: ReplayConfig = Field(default_factory=ReplayConfig, description="Rehearsal of earlier examples")
    ewc: EwcConfig = Field(default_factory=EwcConfig, description="Elastic weight consolidation")
    kl: KlConfig = Field(default_factory=KlConfig, description="Distillation from the model before the update")
    olora: OloraConfig = Field(default_factory=OloraConfig, description="Orthogonal adapters")
    agem: AgemConfig = Field(default_factory=AgemConfig, description="Averaged gradient episodic memory")
    derpp: DerppConfig = Field(default_factory=DerppConfig, description="Dark experience replay++")


class GateConfig(Section):
    """What an update must pass before it is committed."""

    max_forgetting: Fraction = Field(0.05, description="Largest loss of earlier probes' score, as a share")
    max_perplexity_rise: NonNegative = Field(0.01, description="Largest rise of the control text's perplexity, as a share")
    probe_budget: Count = Field(64, description="Probes of earlier documents asked at each update")
    min_recall_gain: Fraction = Field(0.0, description="Smallest gain on the document's held-out questions")
    attempts: Count = Field(3, description="Attempts, each with stronger protection, before a document is rejected")


class RouteConfig(Section):
    """Which adapters answer a prompt."""

    threshold: NonNegative = Field(0.35, description="Smallest retrieval score that activates an adapter")
    margin: NonNegative = Field(0.05, description="Further documents join whose score is within this share of the best")
    least_bits: NonNegative = Field(12.0, description="Smallest information, in bits, that a prompt must share with a document")
    topic_threshold: NonNegative = Field(0.45, description="The same as threshold, where the document's topics are asked about")
    topic_bits: NonNegative = Field(6.0, description="Smallest information, in bits, that a prompt must share with a document's topics")
    max_adapters: Count = Field(2, description="Adapters active at once")


class GenerateConfig(Section):
    """How answers are generated."""

    max_tokens: Count = Field(64, description="Longest answer in tokens")
    temperature: NonNegative = Field(0.0, description="Randomness; 0 takes the most likely token")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Share of the probability mass that is sampled from")
    context_tokens: Count = Field(512, description="Room for retrieved passages in the prompt, in tokens")
    retrieval: bool = Field(True, description="Put retrieved passages into the prompt")
    weight_beside_passages: Fraction = Field(
        0.25, description="Weight of a document's adapter while passages of it are in the prompt; the study skill, which reads them, stays"
    )


class Config(Section):
    """The whole configuration."""

    workspace: Path = Field(
        Path("~/.local/share/retain/default"), description="Directory that holds what was learned", validate_default=True
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The base model")
    study: StudyConfig = Field(default_factory=StudyConfig, description="How a document becomes study material")
    learn: LearnConfig = Field(default_factory=LearnConfig, description="How a document is learned")
    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="What protects old knowledge")
    ttt: TttConfig = Field(default_factory=TttConfig, description="Learner ttt: an MLP trained at test time")
    jitrl: JitrlConfig = Field(default_factory=JitrlConfig, description="Learner jitrl: retrieved passages, bias toward their words")
    states: StatesConfig = Field(default_factory=StatesConfig, description="Learner jitrl-full: stored hidden states")
    ace: AceConfig = Field(default_factory=AceConfig, description="Learner ace: an evolving playbook")
    doc2lora: Doc2LoraConfig = Field(default_factory=Doc2LoraConfig, description="Learner doc2lora: adapters from a hypernetwork")
    progressive: ProgressiveConfig = Field(default_factory=ProgressiveConfig, description="Learner progressive: columns")
    packnet: PackNetConfig = Field(default_factory=PackNetConfig, description="Learner packnet: pruned and packed weights")
    gate: GateConfig = Field(default_factory=GateConfig, description="What an update must pass")
    route: RouteConfig = Field(default_factory=RouteConfig, description="Which adapters answer a prompt")
    generate: GenerateConfig = Field(default_factory=GenerateConfig, description="How answers are generated")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="The service: answers over HTTP")

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal when every value is; where the values came from does not count."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @field_validator("workspace")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()
