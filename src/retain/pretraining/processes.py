"""One process or several (torchrun): who computes which part of a step, and how gradients come together.

    torchrun --nproc-per-node 2 -m retain.cli pretrain config.yaml

DDP (2006.15704) keeps everything in every process and averages the gradients; FSDP2 (torch's ``fully_shard``) keeps a part of weights,
gradients and moments in each, and gathers a layer when it runs. Batches are divided, so the result is that of one process with the same
batch, up to rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retain.config import ModelConfig
from retain.lm.devices import choose_device, training_precision, use_threads
from retain.pretraining.config import TrainConfig
from retain.pretraining.errors import PretrainingError

_PATIENCE = datetime.timedelta(hours=24)  # the others wait while the first one makes the dataset


@dataclass(frozen=True)
class Processes:
    """This process among ``world``: its number ``rank``, its ``device``, the number format ``precision`` of products, and whether the
    parameters are ``sharded``."""

    rank: int
    world: int
    device: torch.device
    precision: torch.dtype
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training. With sharding its parameters are replaced, so an optimizer is made after this."""
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for inner in module.modules():
                if isinstance(inner, nn.ModuleList):  # a decoder's layers
                    for layer in inner:
                        fully_shard(layer)
            fully_shard(module)
            return module
        if self.world == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)

    @contextlib.contextmanager
    def computing(self, called: nn.Module, last: bool) -> Iterator[None]:
        """Forward and backward passes of a piece: products in the chosen precision, gradients exchanged only after the ``last`` piece."""
        alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(called, nn.parallel.DistributedDataParallel) and not last:
            alone = called.no_sync()
        elif self.sharded:
            called.set_requires_gradient_sync(last)  # type: ignore[operator]
        with alone:
            yield

    def parameters(self, module: nn.Module) -> dict[str, Tensor]:
        """The parameters by their names, as the optimizer knows them: after a forward pass without a backward one, sharding leaves those
        outside of the layers gathered."""
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for inner in module.modules():
                if isinstance(inner, FSDPModule):
                    inner.reshard()
        return dict(module.named_parameters())

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 where that was chosen."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def sums(self, values: Iterable[float]) -> list[float]:
        """The sums of numbers over all processes."""
        total = torch.tensor(list(values), dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(config: TrainConfig) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone. Raises PretrainingError for a division that cannot be."""
    use_threads(config.threads)
    world, rank, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if config.batch % (world * config.accumulation):
        parts = f"{world} process{'' if world == 1 else 'es'} with training.accumulation {config.accumulation}"
        raise PretrainingError(f"training.batch: {config.batch} cannot be divided evenly among {parts}")
    if config.sharding == "fsdp2" and world == 1:
        raise PretrainingError("training.sharding: fsdp2 needs several processes: torchrun --nproc-per-node N -m retain.cli pretrain ...")
    device = choose_device(ModelConfig(device=config.device))
    if world > 1 and device.type == "mps":
        raise PretrainingError("several processes cannot share MPS: start one, or set training.device to cpu")
    if device.type == "cuda":
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    made = Processes(rank, world, device, training_precision(device, config.precision), config.sharding == "fsdp2")
    if world == 1:
        yield made
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield made
    finally:
        dist.destroy_process_group()


def whole(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors with the parts of all processes gathered. Every process has to call it."""
    return {name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach() for name, tensor in tensors.items()}


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` where and in what parts ``parameter`` is."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return value.to(parameter.device)
