"""An adapter is a value: named tensors and a small description, immutable, addressed by the hash of its content."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from retain.adapters.blocks import BLOCK_KINDS, at_site
from retain.lm.model import LanguageModel

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


class AdapterError(ValueError):
    """An adapter is damaged or does not fit the model; the message is one line."""


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter is: ``kind``, "lora" or one of :data:`retain.adapters.blocks.BLOCK_KINDS`; ``base`` fingerprint; ``sites``; ``rank``
    (of a block kind: its width); ``alpha`` (what is added is scaled by alpha / rank, or alpha / sqrt(rank) with ``rank_stabilised``,
    2312.03732); ``lineage``: how it came to be (JSON values)."""

    kind: str
    base: str
    sites: tuple[str, ...]
    rank: int
    alpha: float
    rank_stabilised: bool = False
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """Factor on B A, or on what a block kind adds."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> AdapterSpec:
        """Inverse of :meth:`to_json`; raises AdapterError."""
        try:
            data = json.loads(text)
            return cls(**{**data, "sites": tuple(data["sites"])})
        except (ValueError, TypeError, KeyError) as error:
            raise AdapterError(f"the adapter's description is damaged: {error}") from error


@dataclass(frozen=True, eq=False)
class Adapter:
    """Tensors and spec. LoRA tensors: ``<site>.lora_A.weight`` [rank, d_in] and ``<site>.lora_B.weight`` [d_out, rank]; those of other
    kinds: ``<site>.<name>``, see :mod:`retain.adapters.blocks`."""

    tensors: Mapping[str, Tensor]
    spec: AdapterSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        if self.spec.kind != "lora":
            return self._check_block()
        for site in self.spec.sites:
            a, b = self.tensors.get(site + LORA_A), self.tensors.get(site + LORA_B)
            if a is None or b is None or a.shape[0] != b.shape[1]:
                raise AdapterError(f"site {site} lacks a matching pair of LoRA factors")

    def _check_block(self) -> None:
        if self.spec.kind not in BLOCK_KINDS:
            raise AdapterError(f"unknown kind of adapter {self.spec.kind!r}; known are lora, {', '.join(BLOCK_KINDS)}")
        for site in self.spec.sites:
            missing = [name for name in BLOCK_KINDS[self.spec.kind].names if f"{site}.{name}" not in self.tensors]
            if missing:
                raise AdapterError(f"site {site} lacks the tensor {missing[0]} of a {self.spec.kind} adapter")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of spec and tensor bytes: the adapter's identity."""
        sha = hashlib.sha256(self.spec.to_json().encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    @property
    def parameter_count(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def byte_count(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def scaled(self, factor: float) -> Adapter:
        """The same adapter with its effect multiplied by ``factor`` (by alpha: the tensors stay)."""
        return Adapter(self.tensors, replace(self.spec, alpha=self.spec.alpha * factor))

    def half(self) -> Adapter:
        """Float16 tensors, as stored on disk."""
        return Adapter({name: tensor.detach().to(torch.float16) for name, tensor in self.tensors.items()}, self.spec)

    def delta(self, site: str) -> Tensor:
        """The dense float32 change [d_out, d_in] this adapter makes at one site. Raises AdapterError where it adds no linear map."""
        if self.spec.kind != "lora":
            raise AdapterError(f"a {self.spec.kind} adapter is not linear: it has no dense change of a weight")
        return self.spec.scale * (self.tensors[site + LORA_B].float() @ self.tensors[site + LORA_A].float())

    def check(self, model: LanguageModel) -> None:
        """Raise AdapterError unless every site exists in the model with fitting shapes and the base is the same."""
        if self.spec.base and self.spec.base != model.fingerprint:
            raise AdapterError(
                f"the adapter was made for base {self.spec.base[:12]}, this model is {model.name} ({model.fingerprint[:12]})"
            )
        for site in self.spec.sites:
            if site not in (model.sites if self.spec.kind == "lora" else model.blocks):
                raise AdapterError(f"the model {model.name} has no site {site}")
            if self.spec.kind != "lora":
                problem = BLOCK_KINDS[self.spec.kind].check(at_site(self.tensors, site), model.blocks[site])
                if problem:
                    raise AdapterError(f"site {site}: {problem}")
                continue
            d_in, d_out = model.sites[site]
            if self.tensors[site + LORA_A].shape[1] != d_in or self.tensors[site + LORA_B].shape[0] != d_out:
                raise AdapterError(f"site {site}: the adapter's shapes do not fit the model's [{d_out}, {d_in}]")


def select_sites(model: LanguageModel, layers: str | int = "all", targets: str | Iterable[str] = "all-linear") -> tuple[str, ...]:
    """Sites for a LoRA adapter. ``layers``: "all", "last-two-thirds", "last-half", "last-third", "last-quarter" or a number;
    ``targets``: "all-linear", module names ("q_proj", "down_proj", "c_attn" ...) or patterns of whole names ("*.1?.mlp.*"). What is not
    chosen stays frozen, as everything else of the base does. Raises AdapterError when nothing matches."""
    shares = {"all": 1.0, "last-two-thirds": 2 / 3, "last-half": 0.5, "last-third": 1 / 3, "last-quarter": 0.25}
    if isinstance(layers, str) and layers not in shares:
        raise AdapterError(f"layers {layers!r} is not one of {', '.join(shares)} or a number")
    count = layers if isinstance(layers, int) else max(1, round(model.layers * shares[layers]))
    first = max(0, model.layers - count)
    wanted = ["*"] if targets == "all-linear" else [targets] if isinstance(targets, str) else list(targets)
    patterns = [name if "*" in name or "." in name else f"*.{name}" for name in wanted]
    above = [site for site in model.sites if layer_of(site) >= first]
    chosen = tuple(site for site in above if any(fnmatchcase(f".{site}", pattern) or fnmatchcase(site, pattern) for pattern in patterns))
    if not chosen:
        names = sorted({site.rsplit(".", 1)[-1] for site in model.sites})
        raise AdapterError(f"no linear layer of {model.name} matches targets {targets!r}; it has {', '.join(names)}")
    return chosen


def layer_of(site: str) -> int:
    """Layer number in a module name ("model.layers.7.mlp.up_proj" -> 7); 0 when it has none."""
    return next((int(part) for part in site.split(".") if part.isdigit()), 0)


def first_layer(sites: Iterable[str]) -> int:
    """The lowest layer that the sites touch: everything below it is a frozen prefix."""
    return min(layer_of(site) for site in sites)


def new_lora(model: LanguageModel, sites: tuple[str, ...], rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    """Fresh float32 LoRA factors (2106.09685, section 4.1): A uniform with variance 1 / (3 d_in), B zero, so no effect at start."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site in sites:
        d_in, d_out = model.sites[site]
        tensors[site + LORA_A] = ((torch.rand(rank, d_in, generator=generator) * 2 - 1) / math.sqrt(d_in)).to(model.device)
        tensors[site + LORA_B] = torch.zeros(d_out, rank, device=model.device)
    return tensors


def named(path: Path) -> str:
    """A valid adapter name made from a file name; raises AdapterError."""
    if not NAME.match(path.stem):
        raise AdapterError(f"{path.stem!r} is not a name: letters, digits, dot, dash and underscore, at most 64")
    return path.stem
