"""The hypernetwork: from the frozen model's hidden states of a text to the factors of a LoRA adapter, in one pass.

Doc-to-LoRA (2602.15902), section 3: a reader makes one vector for every layer, module and rank; a residual MLP, a division by its length
and a linear head of every layer turn that vector into one row of A and one column of B. What is written for B is multiplied by a
learned factor that begins at 0, so an untrained network changes nothing. A bias pair of factors, the same for all texts, is learned
beside it. The adapter of several chunks of a text is their factors one below another: the ranks add up, and so do the effects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.adapters import AdapterError, AdapterSpec, layer_of, select_sites
from retain.adapters.adapter import LORA_A, LORA_B
from retain.learners.base import LearnerError
from retain.learners.doc2lora.perceiver import Gated, Norm, Resampler
from retain.lm.model import LanguageModel

Mode = Literal["document", "text"]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a hypernetwork; the defaults are the published ones.

    ``mode``: reads a document's hidden states of every layer ("document"), or one embedding of a task's description ("text"). ``width``: of
    its vectors; ``latents``, ``blocks``, ``heads``, ``kv_heads``, ``head_width``, ``feed_forward`` (as a multiple of the width): of the
    Perceiver; ``residual``: MLPs after it, ``per_layer``: whether every layer has its own; ``rank``: of the factors that are written for
    a chunk, and of the bias; ``scale``: factor on B A; ``chunk_tokens``: longest text that is read at once, with what the chat template
    puts around it; ``targets``: modules that get an adapter; ``around``: tokens before and after every chunk in place of the template's.
    """

    mode: Mode = "document"
    width: int = 512
    latents: int = 8
    blocks: int = 8
    heads: int = 16
    kv_heads: int = 4
    head_width: int = 128
    feed_forward: int = 4
    residual: int = 1
    per_layer: bool = True
    rank: int = 8
    scale: float = 2 * 8**1.5
    chunk_tokens: int = 1024
    targets: tuple[str, ...] = ("down_proj",)
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        wrong = [field.name for field in fields(self) if isinstance(value := getattr(self, field.name), (int, float)) and value <= 0
                 and field.name not in ("residual", "per_layer")]  # fmt: skip
        if wrong or self.heads % self.kv_heads:
            raise LearnerError(f"a hypernetwork's {wrong[0]} must be above 0" if wrong else "heads must be a multiple of kv_heads")
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "around", tuple(tuple(part) for part in self.around) if self.around else None)


PRESETS: Mapping[str, NetworkConfig] = {
    "paper": NetworkConfig(),
    "small": NetworkConfig(width=64, latents=16, blocks=2, heads=4, kv_heads=4, head_width=16, rank=4, scale=8.0, chunk_tokens=256),
}


@dataclass(frozen=True)
class Places:
    """Where the adapters sit: ``base`` fingerprint and ``name`` of the model; ``width`` of its hidden states; ``layers`` [L] that have an
    adapter; ``sites`` [L][M], their module names; ``sizes`` [M], (d_in, d_out) of each module."""

    base: str
    name: str
    width: int
    layers: tuple[int, ...]
    sites: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: LanguageModel, targets: Sequence[str]) -> Places:
        """The places of ``targets`` in a model. Raises LearnerError where its layers differ, so that one network cannot serve them."""
        try:
            chosen = select_sites(model, "all", targets)
        except AdapterError as error:
            raise LearnerError(str(error)) from error
        rows: dict[int, list[str]] = {}
        for site in chosen:
            rows.setdefault(layer_of(site), []).append(site)
        shapes = {tuple(model.sites[site] for site in row) for row in rows.values()}
        if len(shapes) > 1:
            raise LearnerError(f"{', '.join(targets)} have different shapes in different layers of {model.name}: choose other targets")
        sites = tuple(tuple(row) for row in rows.values())
        return cls(model.fingerprint, model.name, model.width, tuple(rows), sites, shapes.pop())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Places:
        """Inverse of ``dataclasses.asdict``."""
        lists = {name: tuple(tuple(row) for row in data[name]) for name in ("sites", "sizes")}
        return cls(**{**data, **lists, "layers": tuple(data["layers"])})

    @property
    def all_sites(self) -> tuple[str, ...]:
        """The names of all modules, in layer order."""
        return tuple(site for row in self.sites for site in row)


@dataclass(frozen=True)
class Written:
    """What the network wrote for C chunks: ``a[m]`` [C, L, r, d_in] and ``b[m]`` [C, L, r, d_out] for each module m."""

    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]

    def chunks(self, numbers: Sequence[int]) -> Written:
        """Some of the chunks, in that order."""
        return Written(tuple(x[list(numbers)] for x in self.a), tuple(x[list(numbers)] for x in self.b))

    def detach(self) -> Written:
        """Without gradients."""
        return Written(tuple(x.detach() for x in self.a), tuple(x.detach() for x in self.b))


class Reader(nn.Module):
    """A document's hidden states, layer by layer with the same weights, to one vector for every module and rank."""

    def __init__(self, config: NetworkConfig, places: Places) -> None:
        super().__init__()
        c, modules = config, len(places.sizes)
        attention = (c.width, c.heads, c.kv_heads, c.head_width, c.feed_forward)
        self.shape = (modules, c.rank)
        self.projection = Gated(places.width, c.feed_forward * places.width, c.width)
        self.encoder = Resampler(c.latents, c.blocks, *attention)
        self.decoder = Resampler(modules * c.rank, 1, *attention)

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """``states`` [C, L, T, width of the model], ``valid`` [C, T] -> [C, L, M, r, width]."""
        count, layers = states.shape[:2]
        context = self.projection(states.flatten(0, 1))
        latents = self.encoder(context, valid.repeat_interleave(layers, 0))
        return self.decoder(latents).unflatten(0, (count, layers)).unflatten(2, self.shape)


class TextReader(nn.Module):
    """A description's embedding, joined with embeddings of layer, module and rank, through an MLP (Text-to-LoRA, 2506.06105, section 3)."""

    def __init__(self, config: NetworkConfig, places: Places) -> None:
        super().__init__()
        width, modules = config.width, len(places.sizes)
        self.projection, self.norm = nn.Linear(places.width, width), Norm(width)
        self.layer = nn.Parameter(torch.randn(len(places.layers), 1, 1, width))
        self.module = nn.Parameter(torch.randn(modules, 1, width))
        self.rank = nn.Parameter(torch.randn(config.rank, width))
        self.mix = Gated(4 * width, config.feed_forward * width, width)

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """As :meth:`Reader.forward`; the embedding is the last token's state of the highest layer that is given: in a chat form the place
        from which the model would answer."""
        last = valid.sum(1) - 1
        task = self.norm(self.projection(states[torch.arange(len(last), device=last.device), -1, last]))
        shape = (len(task), len(self.layer), len(self.module), len(self.rank), -1)
        parts = (task[:, None, None, None], self.layer[None], self.module[None, None], self.rank[None, None, None])
        return self.mix(torch.cat([part.to(task.dtype).expand(shape) for part in parts], -1))


class Residual(nn.Module):
    """x + norm(MLP(norm(x))), with own weights for every layer where ``groups`` is the number of layers, or one set (1)."""

    def __init__(self, groups: int, width: int, hidden: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.up_bias = _uniform((groups, width, hidden), width), _uniform((groups, hidden), width)
        self.down, self.down_bias = _uniform((groups, hidden, width), hidden), _uniform((groups, width), hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [C, L, M, r, width] -> the same shape."""
        count, layers, modules, rank, width = x.shape
        h = self.before(x).transpose(0, 1).reshape(layers, -1, width)  # [L, C M r, width]
        h = nn.functional.silu(h @ self.up + self.up_bias[:, None])
        h = (h @ self.down + self.down_bias[:, None]).view(layers, count, modules, rank, width).transpose(0, 1)
        return x + self.after(h)


class Hypernetwork(nn.Module):
    """See the module's documentation. ``config``, ``places``: what it is made for; ``mixed``: whether it reads in bfloat16."""

    mixed = False

    def __init__(self, config: NetworkConfig, places: Places, seed: int = 0) -> None:
        super().__init__()
        self.config, self.places = config, places
        layers, rank = len(places.layers), config.rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.reader = (Reader if config.mode == "document" else TextReader)(config, places)
            groups = layers if config.per_layer else 1
            self.residual = nn.ModuleList(Residual(groups, config.width, 4 * config.width) for _ in range(config.residual))
            largest = max(sum(size) for size in places.sizes)
            deviation = 0.5 / math.sqrt(config.width + largest * rank)
            self.head = nn.ParameterList(torch.randn(layers, config.width, sum(size)) * deviation for size in places.sizes)
            bias_a = [torch.randn(layers, rank, d_in) * 0.2 / math.sqrt(d_in * rank) for d_in, _ in places.sizes]
            self.bias_a = nn.ParameterList(bias_a)
        self.bias_b = nn.ParameterList(torch.zeros(layers, rank, d_out) for _, d_out in places.sizes)
        self.factor_a = nn.ParameterList(torch.ones(layers, rank) for _ in places.sizes)
        self.factor_b = nn.ParameterList(torch.zeros(layers, rank) for _ in places.sizes)

    def forward(self, states: Tensor, valid: Tensor) -> Written:
        """The factors for chunks whose hidden states are ``states`` [C, L, T, width of the model], ``valid`` [C, T]."""
        with torch.autocast(states.device.type, torch.bfloat16, enabled=self.mixed):
            x = self.reader(states.float(), valid).float()
        for block in self.residual:
            x = block(x)
        x = nn.functional.normalize(x, dim=-1)
        a, b = [], []
        for number, (d_in, _) in enumerate(self.places.sizes):
            rows = torch.einsum("clrd,ldo->clro", x[:, :, number], self.head[number])
            a.append(rows[..., :d_in] * self.factor_a[number][..., None])
            b.append(rows[..., d_in:] * self.factor_b[number][..., None])
        return Written(tuple(a), tuple(b))

    @property
    def bias(self) -> Written:
        """The factors that every text has, as those of one chunk."""
        return Written(tuple(x[None] for x in self.bias_a), tuple(x[None] for x in self.bias_b))

    def tensors(self, *parts: Written) -> dict[str, Tensor]:
        """LoRA tensors of an adapter that has the factors of all chunks of all parts one below another."""
        found: dict[str, Tensor] = {}
        for module in range(len(self.places.sizes)):
            a, b = (torch.cat([x[module].transpose(0, 1).flatten(1, 2) for x in each], 1)
                    for each in ([part.a for part in parts], [part.b for part in parts]))  # fmt: skip
            for layer, row in enumerate(self.places.sites):
                found[row[module] + LORA_A], found[row[module] + LORA_B] = a[layer], b[layer].t()
        return found

    def spec(self, rank: int, lineage: Mapping[str, Any]) -> AdapterSpec:
        """Description of an adapter of ``rank`` that it wrote."""
        return AdapterSpec("lora", self.places.base, self.places.all_sites, rank, self.config.scale * rank, lineage=dict(lineage))

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def silent(self) -> bool:
        """True where nothing that it writes has an effect, as before training."""
        return not any(bool(x.detach().any()) for x in (*self.factor_b, *self.bias_b))


def preset(name: str, **changes: Any) -> NetworkConfig:
    """A preset with some sizes changed. Raises LearnerError."""
    if name not in PRESETS:
        raise LearnerError(f"there is no preset {name!r} of a hypernetwork: there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


def config_to_dict(config: NetworkConfig) -> dict[str, Any]:
    """JSON values of a configuration."""
    return {**asdict(config), "targets": list(config.targets)}


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    return nn.Parameter((torch.rand(shape) * 2 - 1) / math.sqrt(fan_in))
