"""Adapters on the embedded model: time of a switch here and in peft, file size, memory of an answering process.

    python -m benchmarks.adapters [--out benchmarks/results/adapters.json] [--repeats 30]

Every part runs in its own process, so that one part's memory and warm caches do not enter another's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from retain.adapters import Adapter, AdapterSpec, inject, new_lora, select_sites
from retain.adapters.peft_format import WEIGHTS, export_peft
from retain.lm.devices import machine_facts
from retain.lm.generation import Sampling, generate
from retain.lm.loading import load_model
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

RANK = 16
PROMPT = "The capital of France is"


def adapter(model: LanguageModel, seed: int) -> Adapter:
    """A random rank-16 adapter on every linear layer."""
    sites = select_sites(model)
    tensors = {name: tensor if "lora_A" in name else torch.randn_like(tensor) * 1e-3 for name, tensor in
               new_lora(model, sites, RANK, 2.0 * RANK, seed).items()}  # fmt: skip
    return Adapter(tensors, AdapterSpec("lora", model.fingerprint, sites, RANK, 2.0 * RANK))


def spread(milliseconds: list[float]) -> dict[str, float]:
    """Median and best of repeated times, and how many there were."""
    return {"median_ms": round(statistics.median(milliseconds), 4), "best_ms": round(min(milliseconds), 4), "repeats": len(milliseconds)}


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


@torch.inference_mode()
def measure_retain(repeats: int) -> dict[str, Any]:
    """A switch, what the first pass after it costs on top of a later one (the factors are put together then), passes that alternate
    between two injections that were kept, and the adapter's file."""
    started = time.perf_counter()
    model = load_model(device="cpu", precision="float32")
    loading = time.perf_counter() - started
    first, second = adapter(model, 1), adapter(model, 2)
    packed = Packed.of([model.tokenizer.encode(PROMPT)])
    model.hidden(packed, inject([(first, 1.0)], model.dtype))
    switches, cold, warm = [], [], []
    for number in range(repeats):
        chosen = (first, second)[number % 2]
        switches.append(timed(lambda chosen=chosen: inject([(chosen, 1.0)], model.dtype, model.device)))
        injection = inject([(chosen, 1.0)], model.dtype, model.device)
        cold.append(timed(lambda injection=injection: model.hidden(packed, injection)))
        warm.append(timed(lambda injection=injection: model.hidden(packed, injection)))
    kept = [inject([(chosen, 1.0)], model.dtype) for chosen in (first, second)]
    alternating = [timed(lambda number=number: model.hidden(packed, kept[number % 2])) for number in range(repeats + 2)][2:]
    with tempfile.TemporaryDirectory() as scratch:
        export_peft(first.half(), Path(scratch), model.name)
        size = (Path(scratch) / WEIGHTS).stat().st_size
    return {
        "load_seconds": round(loading, 3),
        "switch": spread(switches),
        "first_pass_after_switch": spread(cold),
        "later_pass": spread(warm),
        "pass_alternating_between_kept_injections": spread(alternating),
        "first_pass_extra_ms": round(statistics.median(cold) - statistics.median(warm), 3),
        "adapter": {"rank": RANK, "sites": len(first.spec.sites), "parameters": first.parameter_count, "half_precision_file_bytes": size},
    }


@torch.inference_mode()
def measure_peft(repeats: int) -> dict[str, Any]:
    """set_adapter between two loaded adapters, and merging one into the weights and out again."""
    import peft
    from transformers import AutoModelForCausalLM

    from retain.lm.embedded import embedded_model_dir

    model = load_model(device="cpu", precision="float32")
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (1, 2):
            export_peft(adapter(model, seed), Path(scratch) / str(seed), model.name)
        base = AutoModelForCausalLM.from_pretrained(str(embedded_model_dir()), dtype=torch.float32)
        wrapped = peft.PeftModel.from_pretrained(base, str(Path(scratch) / "1"), adapter_name="first")
        wrapped.load_adapter(str(Path(scratch) / "2"), adapter_name="second")
    switches, merges, unmerges = [], [], []
    for number in range(repeats):
        switches.append(timed(lambda number=number: wrapped.set_adapter(("second", "first")[number % 2])))
    for _ in range(max(3, repeats // 5)):
        merges.append(timed(wrapped.merge_adapter))
        unmerges.append(timed(wrapped.unmerge_adapter))
    return {"version": peft.__version__, "set_adapter": spread(switches), "merge": spread(merges), "unmerge": spread(unmerges)}


def measure_memory(precision: str) -> dict[str, Any]:
    """Highest resident memory of a process that loads the embedded model and an adapter and answers."""
    model = load_model(device="cpu", precision=precision)
    loaded = peak_bytes()
    prompt = model.tokenizer.encode(PROMPT)
    started = time.perf_counter()
    answer = generate(model, [prompt], Sampling(max_tokens=32), inject([(adapter(model, 1).half(), 0.0)], model.dtype))[0]
    seconds = time.perf_counter() - started
    return {
        "precision": str(model.dtype).removeprefix("torch."),
        "peak_bytes_loaded": loaded,
        "peak_bytes_answering": peak_bytes(),
        "answer": answer,
        "answer_seconds": round(seconds, 2),
    }


def peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run every part in its own process and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--part", choices=["retain", "peft", "float32", "auto"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "retain": lambda: measure_retain(options.repeats),
        "peft": lambda: measure_peft(options.repeats),
        "float32": lambda: measure_memory("float32"),
        "auto": lambda: measure_memory("auto"),
    }
    if options.part:
        print(json.dumps(parts[options.part]()))
        return
    result: dict[str, Any] = {"machine": machine_facts() | {"load_average_before": round(os.getloadavg()[0], 2)}}
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.adapters", "--part", part, "--repeats", str(options.repeats)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        result[part if part in ("retain", "peft") else f"memory_{part}"] = json.loads(output.stdout.splitlines()[-1])
    result["targets"] = {
        "switch_below_1_ms": result["retain"]["switch"]["median_ms"] < 1,
        "switch_and_first_pass_extra_below_1_ms": result["retain"]["switch"]["median_ms"] + result["retain"]["first_pass_extra_ms"] < 1,
        "file_below_10_MB": result["retain"]["adapter"]["half_precision_file_bytes"] < 10_000_000,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
