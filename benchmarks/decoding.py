"""Answering speed of the embedded model: one client, and eight clients with four different adapters, beside transformers and peft.

    python -m benchmarks.decoding [--tokens 48] [--repeats 5] [--llama PYTHON] [--out benchmarks/results/decoding.json]

The same prompts, greedy, the same number of tokens, one thread, in turns: every repeat runs each arm once, after a warm-up of each. Medians
and ratios are reported. transformers' ``generate`` runs in float32 and in the precision that retain uses; eight clients are one batch
with ``adapter_names`` of peft (PeftModel, its mixed batch) against :class:`retain.lm.batching.Batch`. ``--llama``: a Python with
llama-cpp-python, which answers from the GGUF file that the embedded model comes from.

Perplexity of the control text with every product as in a decoding step in eight bits stands beside that of the model's own precision.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import keep
from retain.adapters import Adapter, AdapterSpec, Composer, new_lora, select_sites
from retain.adapters.peft_format import export_peft
from retain.evaluation.control import load_control
from retain.lm.batching import Batch, Request, Written
from retain.lm.decoder import DecoderLM
from retain.lm.devices import machine_facts
from retain.lm.embedded import embedded_model_dir
from retain.lm.generation import Sampling
from retain.lm.loading import load_model
from retain.lm.packing import Packed

RESULTS = Path(__file__).parent / "results" / "decoding.json"
CLIENTS, ADAPTERS, RANK = 8, 4, 16
LLAMA = """
import json, sys, time
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
prompt, tokens, repeats = json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
seconds = []
for _ in range(repeats + 1):
    model.reset()
    started = time.perf_counter()
    made = 0
    for token in model.generate(prompt, temp=0.0):
        made += 1
        if made == tokens:
            break
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds[1:]))
"""


def random_adapters(model: DecoderLM) -> list[Adapter]:
    """Adapters of rank 16 at all seven projections of all layers, small, each different."""
    sites, made = select_sites(model), []
    for seed in range(ADAPTERS):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: torch.randn(tensor.shape, generator=generator) * 0.002 if name.endswith("B.weight") else tensor
            for name, tensor in new_lora(model, sites, RANK, 2.0 * RANK, seed).items()
        }
        made.append(Adapter(tensors, AdapterSpec("lora", model.fingerprint, sites, RANK, 2.0 * RANK)))
    return made


def batched(model: DecoderLM, prompts: Sequence[Sequence[int]], keys: Sequence[Adapter | None], tokens: int, compose: Composer) -> int:
    """Answer all prompts in one batch; the number of tokens written."""
    batch = Batch(model, max(len(prompts), 1), 512, compose)
    for prompt, key in zip(prompts, keys, strict=True):
        batch.join(Request(prompt, Sampling(tokens), () if key is None else ((key, 1.0),)))
    made = 0
    while batch.busy:
        made += sum(isinstance(event, Written) for event in batch.step())
    return made


class Together:
    """transformers' generate, with peft's adapters where there are any."""

    def __init__(self, dtype: torch.dtype, adapters: Sequence[Path]) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(str(embedded_model_dir()), dtype=dtype).eval()
        if adapters:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapters[0]), adapter_name="0")
            for number, place in enumerate(adapters[1:], 1):
                self.model.load_adapter(str(place), adapter_name=str(number))
            self.model.eval()

    def __call__(self, prompts: Sequence[Sequence[int]], keys: Sequence[int | None], tokens: int) -> int:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        more: dict[str, Any] = {} if keys[0] is None else {"adapter_names": [str(key) for key in keys]}
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **more
            )
        return int(made.shape[0] * (made.shape[1] - longest))


def perplexities(model: DecoderLM) -> dict[str, float]:
    """Of the control text: as the model is, and in eight bits with each token run like a decoding step. ``model`` is quantised after."""
    sequences = [model.tokenizer(text).input_ids[:256] for text in load_control().texts]
    found = {}
    for name in ("own precision", "eight bits"):
        if name == "eight bits":
            model.quantise()
        total = count = 0.0
        with torch.inference_mode():
            for ids in sequences:
                hidden = model.hidden(Packed.of([ids])) if name == "own precision" else _stepwise(model, ids)
                log = torch.log_softmax(model.logits(hidden[:-1]), -1)
                total -= float(log.gather(1, torch.tensor(ids[1:])[:, None]).sum())
                count += len(ids) - 1
        found[name] = math.exp(total / count)
    return found


def _stepwise(model: DecoderLM, ids: Sequence[int]) -> torch.Tensor:
    """Final hidden states of a text, one token at a time."""
    decoding = model.decode([ids[:1]], None, len(ids))
    states = [decoding.hidden]
    for token in ids[1:]:
        decoding.advance(torch.tensor([token]))
        states.append(decoding.hidden)
    return torch.cat(states)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--llama", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument("--gguf", type=Path, help="the GGUF file for --llama")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = load_model("smollm2-135m-instruct", threads=1)
    narrow = load_model("smollm2-135m-instruct", threads=1)
    assert isinstance(model, DecoderLM) and isinstance(narrow, DecoderLM)
    known = random_adapters(model)
    compose, compose_narrow = Composer(model.dtype), Composer(model.dtype, eight_bits=True)
    prompts = [
        model.tokenizer(" ".join(text.split()[: 12 + 4 * number])).input_ids
        for number, text in zip(range(CLIENTS), load_control().texts, strict=False)
    ]
    keys = [number % ADAPTERS for number in range(CLIENTS)]
    active = [known[key] for key in keys]
    perplexity = perplexities(narrow)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(ADAPTERS)]
        for adapter, place in zip(known, places, strict=True):
            export_peft(adapter, place, model.name)
        wide, same = Together(torch.float32, ()), Together(model.dtype, ())
        mixed_wide, mixed = Together(torch.float32, places), Together(model.dtype, places)
    own = str(model.dtype).removeprefix("torch.")
    one: dict[str, Callable[[], int]] = {
        "transformers float32": lambda: wide(prompts[:1], [None], options.tokens),
        f"transformers {own}": lambda: same(prompts[:1], [None], options.tokens),
        f"retain {own}": lambda: batched(model, prompts[:1], [None], options.tokens, compose),
        "retain eight bits": lambda: batched(narrow, prompts[:1], [None], options.tokens, compose_narrow),
    }
    eight: dict[str, Callable[[], int]] = {
        "peft float32": lambda: mixed_wide(prompts, keys, options.tokens),
        f"peft {own}": lambda: mixed(prompts, keys, options.tokens),
        f"retain {own}": lambda: batched(model, prompts, active, options.tokens, compose),
        "retain eight bits": lambda: batched(narrow, prompts, active, options.tokens, compose_narrow),
    }
    record: dict[str, Any] = {"benchmark": "decoding", "model": model.name, "precision": own, "tokens": options.tokens}
    for name, arms in (("one client", one), ("eight clients, four adapters", eight)):
        record[name] = measured(arms, options.repeats)
    if options.llama and options.gguf:
        command = [str(options.llama), "-c", LLAMA, str(options.gguf), json.dumps(prompts[0]), str(options.tokens), str(options.repeats)]
        seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        record["one client"]["llama.cpp"] = {"tokens_per_second": options.tokens / statistics.median(seconds)}
    record["control_perplexity"] = perplexity
    record["machine"] = machine_facts()
    keep(record, options.out)


def measured(arms: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Tokens per second of processor time and of wall time, medians over the repeats, in which the arms take turns."""
    for arm in arms.values():
        arm()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            made = arm()
            rates[name].append((made / (time.perf_counter() - wall), made / (time.process_time() - cpu)))
    return {
        name: {
            "tokens_per_second": statistics.median(wall for wall, _ in found),
            "tokens_per_cpu_second": statistics.median(cpu for _, cpu in found),
        }
        for name, found in rates.items()
    }


if __name__ == "__main__":
    main()
