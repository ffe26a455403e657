"""Adapters in peft's on-disk format: adapter_config.json and adapter_model.safetensors, as peft, vLLM and others read them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.adapters.adapter import LORA_A, LORA_B, Adapter, AdapterError, AdapterSpec
from retain.lm.model import LanguageModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CONV1D = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})  # GPT-2's layers store their weight [d_in, d_out]
_FACTOR = re.compile(r"^(?P<site>.+)\.lora_(?P<factor>[AB])\.(?:default\.)?weight$")
# Settings under which an adapter is more than low-rank products on an unchanged base.
_UNSUPPORTED = ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
                "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config",
                "kasa_config")  # fmt: skip
_BASE_UNCHANGED = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


def export_peft(adapter: Adapter, directory: Path, base_name: str) -> None:
    """Write an adapter so that peft loads it onto ``base_name`` with exactly our sites: every module is named in full.

    Factors of a smaller rank than the adapter's are filled with zeros. Raises AdapterError for kinds other than lora.
    """
    from safetensors.torch import save_file

    spec = adapter.spec
    if spec.kind != "lora":
        raise AdapterError(f"an adapter of kind {spec.kind!r} has no form in peft")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": list(spec.sites),
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.rank_stabilised,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(site.rsplit(".", 1)[-1] in CONV1D for site in spec.sites),
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    for site in spec.sites:
        a, b = padded(adapter.tensors[site + LORA_A], adapter.tensors[site + LORA_B], spec.rank)
        tensors[PREFIX + site + LORA_A], tensors[PREFIX + site + LORA_B] = a, b
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt", "retain_base": spec.base})


def import_peft(directory: Path, model: LanguageModel) -> Adapter:
    """Read a LoRA adapter that peft wrote. Ranks and alphas that differ by module are brought to one rank, with zeros, and to one scale.

    Raises AdapterError, naming the file, when it is damaged, was made for another base or uses what is not plain LoRA.
    """
    config, tensors, base = _read(directory)
    if base and base != model.fingerprint:
        raise AdapterError(f"{directory / WEIGHTS} was made for base {base[:12]}, this model is {model.name} ({model.fingerprint[:12]})")
    factors = _factors(tensors, directory / WEIGHTS)
    sites = tuple(site for site in model.sites if site in factors)
    stray = sorted(set(factors) - set(sites))
    if stray:
        raise AdapterError(f"{directory / WEIGHTS} was made for another base: {model.name} has no linear layer {stray[0]}")
    stabilised = bool(config.get("use_rslora", False))
    scales = {site: _scale(site, int(factors[site]["A"].shape[0]), config, stabilised, directory / CONFIG) for site in sites}
    rank = max(int(pair["A"].shape[0]) for pair in factors.values())
    common = next(iter(scales.values()))
    alpha = common * (math.sqrt(rank) if stabilised else rank)
    ours: dict[str, Tensor] = {}
    for site in sites:
        a, b = padded(factors[site]["A"], factors[site]["B"], rank)
        ours[site + LORA_A], ours[site + LORA_B] = a, b if scales[site] == common else b * (scales[site] / common)
    lineage = {"imported": "peft", "base_name": str(config.get("base_model_name_or_path", ""))}
    try:
        adapter = Adapter(ours, AdapterSpec("lora", model.fingerprint, sites, rank, alpha, stabilised, lineage))
        adapter.check(model)
    except AdapterError as error:
        raise AdapterError(f"{directory / WEIGHTS}: {error}") from error
    return adapter


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors brought to ``rank`` with zero rows of A and columns of B, which change nothing."""
    missing = rank - a.shape[0]
    if missing < 0:
        raise AdapterError(f"factors of rank {a.shape[0]} do not fit an adapter of rank {rank}")
    if missing:
        a, b = torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], missing)], 1)
    return a.detach().cpu().contiguous(), b.detach().cpu().contiguous()


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Checked config, tensors and the fingerprint of the base where retain wrote the file."""
    from safetensors import SafetensorError, safe_open

    file = directory / CONFIG
    try:
        config = json.loads(file.read_text())
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is missing or damaged: {error}") from error
    if kind != "LORA":
        raise AdapterError(f"{file} describes a {kind} adapter; retain imports LORA")
    odd = next((key for key in _UNSUPPORTED if config.get(key)), None)
    if config.get("bias", "none") != "none":
        odd = "bias"
    if config.get("init_lora_weights", True) not in _BASE_UNCHANGED:
        odd = f"init_lora_weights={config['init_lora_weights']}"
    if odd:
        raise AdapterError(f"{file} uses {odd}, which is more than low-rank products on an unchanged base: save plain LoRA with peft")
    file = directory / WEIGHTS
    try:
        if not file.is_file() and (directory / "adapter_model.bin").is_file():
            raise AdapterError(f"{directory / 'adapter_model.bin'} is a pickle file: save the adapter as safetensors with peft")
        with safe_open(str(file), framework="pt") as source:
            tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
            return config, tensors, (source.metadata() or {}).get("retain_base", "")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} is missing or damaged: {error}") from error


def _factors(tensors: Mapping[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    """Site -> {"A": ..., "B": ...}."""
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.match(name.removeprefix(PREFIX))
        if match is None:
            raise AdapterError(f"{file} holds {name}, which is no LoRA factor of a linear layer")
        factors.setdefault(match["site"], {})[match["factor"]] = tensor
    for site, pair in factors.items():
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterError(f"{file} is damaged: {site} lacks a matching pair of LoRA factors")
    if not factors:
        raise AdapterError(f"{file} holds no LoRA factors")
    return factors


def _scale(site: str, rank: int, config: Mapping[str, Any], stabilised: bool, file: Path) -> float:
    """Factor on B A at one site, as peft computes it."""
    try:
        declared = int(_by_pattern(config.get("rank_pattern") or {}, site, config["r"]))
        alpha = float(_by_pattern(config.get("alpha_pattern") or {}, site, config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise AdapterError(f"{file} is damaged: r, lora_alpha or their patterns cannot be read ({error})") from error
    if declared != rank:
        raise AdapterError(f"{file} gives {site} rank {declared}, its tensors have rank {rank}")
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _by_pattern(patterns: Mapping[str, Any], site: str, default: Any) -> Any:
    """The first pattern that matches the end of a module name, as in peft's ``get_pattern_key``."""
    keys: Iterable[str] = (key for key in patterns if re.match(rf"(.*\.)?({key})$", site))
    return next((patterns[key] for key in keys), default)
