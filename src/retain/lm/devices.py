"""What this machine can do, and the device and precision that follow from it.

bfloat16 pays on a processor that has instructions for it (AVX512-bf16 or AMX): 5-7 times the speed of float32. Elsewhere it is emulated
and 5-6 times slower. So the precision follows the processor's flags, not the wish for small tensors.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from retain.config import ModelConfig

log = logging.getLogger(__name__)

# oneDNN keeps compiled code for every shape of a product that it met, 1,024 of them unless told otherwise. Batches of ever new lengths
# fill that with 1 GB that is hardly used again; so does the layer between torch and oneDNN, with 0.25 MB each. Both read this before their
# first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

MPS_MEMORY_FRACTION = 0.8
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
REPORTED_FLAGS = frozenset({"avx2", "avx512f", "avx512_f", "avx512_vnni", "avx512_fp16", "amx_int8", *BF16_FLAGS})
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Facts about the machine that decide device and precision."""

    cpu: str
    cores: int
    flags: frozenset[str]
    memory_bytes: int | None
    cuda: str | None
    cuda_bf16: bool
    mps: bool

    @property
    def cpu_bf16(self) -> bool:
        """True when the processor computes in bfloat16 rather than emulating it."""
        return bool(self.flags & BF16_FLAGS)


@lru_cache(maxsize=1)
def machine() -> Machine:
    """This machine, looked at once."""
    cuda = torch.cuda.is_available()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        flags=_cpu_flags(),
        memory_bytes=_memory_bytes(),
        cuda=torch.cuda.get_device_name() if cuda else None,
        cuda_bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        mps=torch.backends.mps.is_available(),
    )


def choose_device(config: ModelConfig, here: Machine | None = None) -> torch.device:
    """The device for `model.device`: auto takes CUDA, then MPS, then the CPU. A device that is not there gives the CPU and a note."""
    here = here or machine()
    present = {"cuda": here.cuda is not None, "mps": here.mps, "cpu": True}
    wanted = config.device
    if wanted == "auto":
        chosen = next(name for name in ("cuda", "mps", "cpu") if present[name])
    elif present[wanted]:
        chosen = wanted
    else:
        log.warning("model.device is %s, which this machine does not have: using the CPU", wanted)
        chosen = "cpu"
    if chosen == "mps":
        torch.mps.set_per_process_memory_fraction(MPS_MEMORY_FRACTION)
    return torch.device(chosen)


def choose_precision(device: torch.device, requested: str = "auto", here: Machine | None = None) -> torch.dtype:
    """The floating-point type for a device. `requested` is auto, float32, bfloat16 or float16; MPS has no bfloat16."""
    here = here or machine()
    if requested != "auto":
        if device.type == "mps" and requested == "bfloat16":
            log.warning("model.precision is bfloat16, which MPS does not have: using float16")
            return torch.float16
        return PRECISIONS[requested]
    if device.type == "cuda":
        return torch.bfloat16 if here.cuda_bf16 else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if here.cpu_bf16 else torch.float32


def training_precision(device: torch.device, requested: str = "auto", here: Machine | None = None) -> torch.dtype:
    """What products are computed in while weights of float32 are trained: as :func:`choose_precision` says, and float32 in place of
    float16, whose small gradients would be lost."""
    found = choose_precision(device, requested, here)
    return torch.float32 if found == torch.float16 else found


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left; MPS has no error of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error))


def release_memory(device: torch.device) -> None:
    """Return what torch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def use_threads(requested: int | None) -> int:
    """Set torch's thread count when one is asked for; the count in force."""
    if requested is not None and requested != torch.get_num_threads():
        torch.set_num_threads(requested)
    return torch.get_num_threads()


def give_memory_back() -> None:
    """Return freed memory to the system. The C library keeps what large tensors leave behind in pieces; between the stages of an update,
    whose tensors differ in size, these add up to some 400 MB. Takes a few milliseconds; does nothing where the C library is another."""
    if platform.system() != "Linux":
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def machine_facts() -> dict[str, Any]:
    """JSON facts to record beside a benchmark's figures. Nothing that names the machine or its user."""
    here = machine()
    return {
        "cpu": here.cpu,
        "cores": here.cores,
        "cpu_flags": sorted(here.flags & REPORTED_FLAGS),
        "memory_gib": round(here.memory_bytes / 2**30, 1) if here.memory_bytes else None,
        "gpu": here.cuda or ("Apple MPS" if here.mps else None),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cpuinfo(*keys: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of these keys; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() in keys), "")


def _cpu_name() -> str:
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def _cpu_flags() -> frozenset[str]:
    """Instruction sets: the kernel's list, else torch's own detection."""
    flags = _cpuinfo("flags", "Features").split()
    detect = getattr(torch.cpu, "get_capabilities", None)
    if not flags and detect is not None:
        flags = [name for name, value in detect().items() if value is True]
    return frozenset(flags)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
