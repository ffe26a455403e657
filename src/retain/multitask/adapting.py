"""Which weights of a backbone learn: freezing first, then adapters of the library peft, or bottlenecks. Never the other way round."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import ConfigError
from retain.data.errors import did_you_mean
from retain.lm.loading import quiet
from retain.multitask.config import BackboneConfig, FreezeConfig, PeftConfig
from retain.multitask.quantising import quantised

KEYS_AND_VALUES = ("k", "v", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "c_attn", "query_key_value", "Wqkv")
ADAPTER = re.compile(r"\.lora_[AB]\.(\w+)\.weight$")  # the adapter that a matrix belongs to
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA's plan has gathered of each triplet
ORTHOGONAL = 0.5  # weight of AdaLoRA's regularisation (2303.10512, equation 4), as peft has it


class Bottleneck(nn.Module):
    """A layer and a small network on what it gives: ``y + up(relu(down(y)))``, ``up`` zero at first (1902.00751, section 2.1)."""

    def __init__(self, layer: nn.Module, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Linear(width, rank), nn.Linear(rank, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> Any:
        """The layer's own, which some networks look at."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, adapted."""
        y = self.layer(x)
        return y + self.up(self.dropout(torch.relu(self.down(y))))


def adapt(backbone: nn.Module, config: BackboneConfig, steps: int, adapters: int = 1) -> None:
    """Freeze what is to be frozen, then put adapters on the rest. ``steps``: optimizer steps of the training, which AdaLoRA plans with;
    ``adapters``: how many of LoRA lie on each other, the first learning (:func:`use_adapter`).
    Raises ConfigError for a pattern or target that matches nothing, and where nothing of a network is left to adapt."""
    network: Any = backbone.network
    frozen = freeze(network, config.freeze)
    if config.peft is not None:
        bottleneck = config.peft.method == "bottleneck"
        backbone.network = _bottlenecks(network, config, frozen) if bottleneck else _through_peft(network, config, steps, frozen)
        adapted: Any = backbone.network
        for number in range(1, adapters):
            adapted.add_adapter(adapter_name(number), adapted.peft_config["default"])
        if adapters > 1:
            use_adapter(backbone, 0)


def adapter_name(number: int) -> str:
    """The name that the library peft knows an adapter by."""
    return "default" if number == 0 else f"phase{number + 1}"


def use_adapter(backbone: nn.Module, number: int) -> None:
    """Of several adapters all take part, and this one learns; of a network with one, or none, nothing is changed."""
    network: Any = backbone.network
    names = list(getattr(network, "peft_config", ()))
    if len(names) > 1:
        network.base_model.set_adapter(names)
        for name, parameter in network.named_parameters():
            if (own := ADAPTER.search(name)) is not None:
                parameter.requires_grad_(own[1] == adapter_name(number))


def freeze(network: nn.Module, config: FreezeConfig) -> set[int]:
    """Take gradients from the parameters that the section names; what :func:`id` says of them."""
    frozen: list[nn.Parameter] = list(network.parameters()) if config.all else []
    if config.embeddings:
        tables = [module for module in network.modules() if isinstance(module, nn.Embedding)]
        if not tables:
            raise ConfigError("backbone.freeze.embeddings: this backbone has no embeddings")
        frozen += [parameter for table in tables for parameter in table.parameters()]
    if config.layers:
        stacks = stacks_of(network)
        most = max(len(stack) for stack in stacks)
        if config.layers > most:
            raise ConfigError(f"backbone.freeze.layers: this backbone has {most} layers, not {config.layers}")
        frozen += [parameter for stack in stacks for layer in stack[: config.layers] for parameter in layer.parameters()]
    for pattern in config.patterns:
        found = [parameter for name, parameter in network.named_parameters() if fnmatchcase(name, pattern)]
        if not found:
            names = [name for name, _ in network.named_parameters()]
            hint = did_you_mean(pattern, names) or f"the first is {names[0]}"
            raise ConfigError(f"backbone.freeze.patterns: {pattern!r} matches no parameter: {hint}")
        frozen += found
    for parameter in frozen:
        parameter.requires_grad_(False)
    return {id(parameter) for parameter in frozen}


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The layers of a network in order: its longest list of modules that is not inside another, as the parts of a layer are."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(part) for own in lists for part in own.modules() if part is not own}
    return max((list(own) for own in lists if id(own) not in inner), key=len, default=[])


def stacks_of(network: nn.Module) -> list[list[nn.Module]]:
    """The layers of a network; those of an encoder-decoder as two lists, the encoder's and the decoder's."""
    model: Any = network
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        parts = [part for part in (model.get_encoder(), model.get_decoder()) if part is not model]
        if len(parts) == 2:
            return [layers_of(part) for part in parts]
    return [layers_of(network)]


def linear_layers(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers in the network's lists of layers: name, and (inputs, outputs). GPT-2's are transposed ones of their own kind."""
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for stack in stacks_of(network) for layer in stack for module in layer.modules()}
    found = {}
    for name, module in network.named_modules():
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D):
            rows, columns = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else reversed(module.weight.shape)
            found[name] = (columns, rows)
    return found


def targets_of(network: nn.Module, config: BackboneConfig, frozen: Collection[int]) -> list[str]:
    """Names of the linear layers that are adapted: never none, and none that ``freeze`` names, which gave ``frozen``. Layers in 4 bits have
    no gradient anyway."""
    assert config.peft is not None
    sizes = linear_layers(network)
    method, wanted = config.peft.method, config.peft.targets
    chosen: Iterable[str] = sizes
    if wanted == ["auto"]:
        if method == "ia3":
            chosen = [name for name in sizes if name.rpartition(".")[2] in KEYS_AND_VALUES or name in _narrowing(sizes)] or sizes
        elif method == "bottleneck":
            chosen = _narrowing(sizes) or sizes
    elif wanted != ["all-linear"]:
        chosen = []
        for pattern in wanted:
            found = [name for name in sizes if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)]
            if not found:
                names = sorted({name.rpartition(".")[2] for name in sizes})
                hint = did_you_mean(pattern, names) or f"there is {', '.join(names)}"
                raise ConfigError(f"backbone.peft.targets: {pattern!r} matches no linear layer: {hint}")
            chosen = [*chosen, *found]
    named = network.get_submodule
    learning = [name for name in dict.fromkeys(chosen) if config.freeze.all or any(id(p) not in frozen for p in named(name).parameters())]
    if not learning:
        raise ConfigError("backbone.peft: every layer that would be adapted is frozen: freeze fewer layers")
    return learning


def _narrowing(sizes: dict[str, tuple[int, int]]) -> list[str]:
    """The last layers of feed-forward blocks: they have more inputs than outputs."""
    return [name for name, (inputs, outputs) in sizes.items() if inputs > outputs]


def _bottlenecks(network: nn.Module, config: BackboneConfig, frozen: Collection[int]) -> nn.Module:
    assert config.peft is not None
    sizes, targets = linear_layers(network), targets_of(network, config, frozen)
    network.requires_grad_(False)
    for name in targets:
        parent, _, last = name.rpartition(".")
        adapted = Bottleneck(network.get_submodule(name), sizes[name][1], config.peft.rank, config.peft.dropout)
        setattr(network.get_submodule(parent), last, adapted)
    return network


def _through_peft(network: Any, config: BackboneConfig, steps: int, frozen: Collection[int]) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise ConfigError("backbone.peft needs the library peft: pip install 'retain[peft]'") from None
    from transformers import PreTrainedModel

    asked = config.peft
    assert asked is not None
    method = asked.method
    task = {"task_type": peft.TaskType.FEATURE_EXTRACTION} if isinstance(network, PreTrainedModel) else {}
    if method == "prefix":
        return _with_prefix(peft, network, asked, task)
    targets = targets_of(network, config, frozen)
    if quantised(config):
        network.is_loaded_in_4bit = True  # which transformers says of a whole network, and this may be a part of it
    transposed = {type(network.get_submodule(name)).__name__ == "Conv1D" for name in targets}
    if len(transposed) > 1:
        raise ConfigError("backbone.peft.targets: linear layers of two kinds at once: name those of one")
    shared: dict[str, Any] = {**task, "target_modules": targets, "fan_in_fan_out": transposed == {True}}
    if method == "ia3":
        forward = [name for name in targets if name.rpartition(".")[2] not in KEYS_AND_VALUES]
        made: Any = peft.IA3Config(**shared, feedforward_modules=forward)
    elif method == "adalora":
        plan: dict[str, Any] = {
            "init_r": asked.rank + (asked.rank + 1) // 2,
            "target_r": asked.rank,
            "tinit": steps // 10,
            "tfinal": steps // 4,
        }
        scale: dict[str, Any] = {"lora_alpha": asked.alpha, "lora_dropout": asked.dropout, "orth_reg_weight": ORTHOGONAL}
        made = peft.AdaLoraConfig(**shared, **plan, **scale, deltaT=max(1, steps // 100), total_step=max(steps, 4))
    else:
        scale = {"r": asked.rank, "lora_alpha": asked.alpha, "lora_dropout": asked.dropout}
        made = peft.LoraConfig(**shared, **scale, use_rslora=method == "rslora", use_dora=method == "dora")
    return _wrapped(peft, network, made)


def _with_prefix(peft: Any, network: Any, asked: PeftConfig, task: dict[str, Any]) -> nn.Module:
    if not task or network.config.model_type in ("bert", "roberta", "distilbert", "electra") or len(stacks_of(network)) > 1:
        raise ConfigError("backbone.peft.method: prefix needs a causal language model; lora works with every network")
    return _wrapped(peft, network, peft.PrefixTuningConfig(**task, num_virtual_tokens=asked.tokens))


def _wrapped(peft: Any, network: Any, made: Any) -> nn.Module:
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # of transformers, about what peft calls in it
        return peft.get_peft_model(network, made)


class RankPlan:
    """AdaLoRA's plan of ranks (2303.10512, section 3.3): told of every step, saved and restored with a checkpoint; nothing for others."""

    def __init__(self, network: Any, config: BackboneConfig) -> None:
        self.model = network.base_model if config.peft is not None and config.peft.method == "adalora" else None

    def after_step(self, step: int) -> None:
        """Prune to the budget of this step; the gradients of the step must still be there."""
        if self.model is not None:
            with torch.no_grad():
                self.model.update_and_allocate(step)

    def penalty(self) -> Tensor | None:
        """Distance of A and B from orthogonal matrices (equation 4)."""
        if self.model is None:
            return None
        found = [parameter for name, parameter in self.model.named_parameters() if "lora_A" in name or "lora_B" in name]
        terms = []
        for matrix, product in ((p, p @ p.t() if p.shape[0] < p.shape[1] else p.t() @ p) for p in found):
            terms.append(torch.linalg.norm(product - torch.eye(len(product), device=matrix.device)))
        return ORTHOGONAL * torch.stack(terms).mean()

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors, flat."""
        if self.model is None:
            return {}
        plan = self.model.rankallocator
        found = {f"{group}/{name}": value for group in IMPORTANCE for name, value in getattr(plan, group).items()}
        return found | {f"pattern/{name}": torch.tensor(ranks) for name, ranks in (plan.peft_config.rank_pattern or {}).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        for key, value in state.items():
            group, _, name = key.partition("/")
            plan: Any = self.model.rankallocator if self.model is not None else None
            if group == "pattern":
                plan.peft_config.rank_pattern = {**(plan.peft_config.rank_pattern or {}), name: value.tolist()}
            else:
                getattr(plan, group)[name] = value.clone()
