"""Device and precision follow from what the machine has."""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import subprocess
import sys

import pytest
import torch

from retain.config import ModelConfig
from retain.lm.devices import (
    BF16_FLAGS,
    Machine,
    choose_device,
    choose_precision,
    machine,
    machine_facts,
    out_of_memory,
    training_precision,
    use_threads,
)


def made(flags: tuple[str, ...] = (), cuda: str | None = None, cuda_bf16: bool = False, mps: bool = False) -> Machine:
    return Machine("a processor", 2, frozenset(flags), 2**34, cuda, cuda_bf16, mps)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2",), torch.float32),
        (("avx2", "avx512f", "avx512_vnni"), torch.float32),
        (("avx512f", "avx512_bf16"), torch.bfloat16),
        (("amx_bf16", "amx_tile"), torch.bfloat16),
    ],
)
def test_a_processor_gets_bfloat16_only_with_the_instructions_for_it(flags: tuple[str, ...], expected: torch.dtype) -> None:
    assert choose_precision(torch.device("cpu"), "auto", made(flags)) == expected


def test_graphics_processors() -> None:
    cuda, mps = torch.device("cuda"), torch.device("mps")
    assert choose_precision(cuda, "auto", made(cuda="new", cuda_bf16=True)) == torch.bfloat16
    assert choose_precision(cuda, "auto", made(cuda="old")) == torch.float16
    assert choose_precision(mps, "auto", made(mps=True)) == torch.float16


def test_weights_are_trained_in_what_the_device_computes_in_but_not_in_float16() -> None:
    cpu, cuda, mps = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    assert training_precision(cpu, "auto", made(("avx512_bf16",))) == torch.bfloat16
    assert training_precision(cpu, "auto", made(("avx512f",))) == torch.float32
    assert training_precision(cuda, "auto", made(cuda="new", cuda_bf16=True)) == torch.bfloat16
    assert training_precision(cuda, "auto", made(cuda="old")) == training_precision(mps, "auto", made(mps=True)) == torch.float32
    assert training_precision(cpu, "bfloat16", made()) == torch.bfloat16 and training_precision(mps, "bfloat16", made()) == torch.float32


def test_the_errors_of_a_full_device_are_known() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.86 GB, max allowed: 9.07 GB)"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not out_of_memory(ValueError("out of memory"))


def test_operators_that_mps_lacks_are_computed_on_the_cpu_unless_told_otherwise() -> None:
    """torch reads the variable when it is imported, so importing retain sets it and imports no torch."""
    code = "import os, sys, retain; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'], 'torch' in sys.modules)"
    for given, expected in (({}, "1 False"), ({"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "0 False")):
        clean = {key: value for key, value in os.environ.items() if key != "PYTORCH_ENABLE_MPS_FALLBACK"}
        found = subprocess.run([sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected


def test_a_wish_is_granted_where_the_device_can(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_precision(torch.device("cpu"), "bfloat16", made()) == torch.bfloat16
    assert choose_precision(torch.device("cpu"), "float32", made(("amx_bf16",))) == torch.float32
    assert not caplog.records
    assert choose_precision(torch.device("mps"), "bfloat16", made(mps=True)) == torch.float16
    assert "MPS does not have" in caplog.text


def test_the_best_device_is_taken_and_a_missing_one_falls_back_with_a_note(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", fractions.append)
    auto = ModelConfig()
    assert choose_device(auto, made()).type == "cpu"
    assert choose_device(auto, made(cuda="one", mps=True)).type == "cuda"
    assert choose_device(auto, made(mps=True)).type == "mps" and fractions == [0.8]
    assert choose_device(ModelConfig(device="cpu"), made(cuda="one")).type == "cpu"
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert choose_device(ModelConfig(device="mps"), made()).type == "cpu"
    assert "model.device is mps" in caplog.text and fractions == [0.8]


def test_this_machine_agrees_with_torch() -> None:
    detect = getattr(torch.cpu, "get_capabilities", None)
    if detect is None:
        pytest.skip("this torch does not report instruction sets")
    assert machine().cpu_bf16 == any(detect().get(flag) is True for flag in BF16_FLAGS)
    assert machine().cores >= 1 and (machine().memory_bytes or 2**30) >= 2**28


def test_facts_are_json_and_name_nobody() -> None:
    text = json.dumps(machine_facts())
    assert {"cpu", "cores", "cpu_flags", "torch", "threads", "python", "platform"} <= json.loads(text).keys()
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text


def test_threads_are_set_when_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        assert use_threads(None) == before
        assert use_threads(2) == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel how much memory is in use")
def test_freed_memory_goes_back_to_the_system() -> None:
    """In a process of its own: pieces of 64 kB between others that stay, as training leaves them behind."""
    program = """
import torch
from retain.lm.devices import give_memory_back
def used():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
pieces = [torch.ones(16_000) for _ in range(4_000)]
pieces[::2] = [None] * 2_000
before = used()
give_memory_back()
print(before - used())
"""
    freed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(freed.stdout) > 60_000  # of 128 MB; in kB
