"""Fisher information against one backward pass and against one backward pass per example, on the same examples.

    python -m benchmarks.fisher [--model tiny|embedded|all] [--repeats 5] [--out benchmarks/results/fisher.json]

All three run on batches of the same examples: "backward" is the forward and backward pass of the loss for all LoRA factors, "fisher" the
diagonal Fisher information of the same factors, "loop" its definition. Medians over repeats that take turns, after one warm-up each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from retain.adapters import new_lora, select_sites
from retain.data.examples import Example
from retain.lm.decoder import DecoderLM
from retain.lm.devices import machine_facts
from retain.lm.embedded import embedded_path
from retain.lm.model import LanguageModel
from retain.lm.shapes import DecoderConfig, initial_weights
from retain.retention.base import Params
from retain.retention.fisher import fisher_by_loop, fisher_information
from retain.retention.positions import by_tokens, labels_of
from retain.training.objective import AdapterObjective


def example_set(vocabulary: int, count: int, shortest: int, longest: int) -> list[Example]:
    """Random tokens, lengths spread evenly; every token but the first is supervised."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        length = shortest + (longest - shortest) * number // max(1, count - 1)
        tokens = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        found.append(Example(tuple(tokens), (False, *[True] * (length - 1))))
    return found


def backward(objective: AdapterObjective, examples: Sequence[Example], params: Params, batch_tokens: int) -> None:
    """One ordinary backward pass per batch, for all factors."""
    leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in params.items()}
    for batch in by_tokens(examples, batch_tokens):
        chosen = [examples[number] for number in batch]
        logits, _ = objective.logits(chosen, leaves)
        F.cross_entropy(logits, labels_of(chosen), reduction="sum").backward()


def measure(name: str, model: LanguageModel, examples: list[Example], rank: int, batch_tokens: int, repeats: int) -> dict[str, Any]:
    """Time the three and compare the two Fisher results."""
    sites = select_sites(model)
    params = {key: tensor + 0.01 for key, tensor in new_lora(model, sites, rank, 2.0 * rank, 0).items()}
    objective = AdapterObjective(model, sites, 2.0)
    arms: dict[str, Callable[[], Any]] = {
        "backward": lambda: backward(objective, examples, params, batch_tokens),
        "fisher": lambda: fisher_information(objective, examples, params, batch_tokens=batch_tokens),
        "loop": lambda: fisher_by_loop(objective, examples, params),
    }
    last = {arm: run() for arm, run in arms.items()}  # warm-up
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats):
        for arm, run in arms.items():
            if arm == "loop" and repeat >= max(2, repeats // 3):
                continue
            started = time.perf_counter()
            run()
            seconds[arm].append(time.perf_counter() - started)
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    reference = last["loop"].diagonal
    error = max(float((last["fisher"].diagonal[key] - value).abs().max() / value.abs().max()) for key, value in reference.items())
    ratios = [fast / plain for fast, plain in zip(seconds["fisher"], seconds["backward"], strict=True)]
    return {
        "model": name, "parameters": sum(tensor.numel() for tensor in params.values()), "rank": rank, "sites": len(sites),
        "examples": len(examples), "tokens": sum(len(example.tokens) for example in examples), "batch_tokens": batch_tokens,
        "lengths": [len(examples[0].tokens), len(examples[-1].tokens)],
        "seconds": medians, "spread": {arm: [min(values), max(values)] for arm, values in seconds.items()},
        "fisher_over_backward": statistics.median(ratios), "loop_over_fisher": medians["loop"] / medians["fisher"],
        "largest_relative_difference_to_loop": error,
    }  # fmt: skip


def tiny() -> DecoderLM:
    """A decoder of 4 layers of width 256."""
    config = DecoderConfig(vocabulary=2048, width=256, layers=4, heads=4, kv_heads=2, feed_forward=1024, context=512)
    return DecoderLM(config, initial_weights(config), tokenizer=None, name="tiny")


def embedded() -> LanguageModel | None:
    """The embedded model in float32, or None where it is not in the cache."""
    folder = embedded_path()
    if not (folder / "model.safetensors").is_file():
        return None
    from safetensors.torch import load_file

    config = DecoderConfig.from_hugging_face(json.loads((folder / "config.json").read_text()))
    return DecoderLM(config, load_file(folder / "model.safetensors"), tokenizer=None, name=folder.name, fingerprint="benchmark")


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "embedded", "all"), default="all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fisher.json"))
    options = parser.parse_args()
    results = []
    if options.model != "embedded":
        model = tiny()
        results.append(measure("tiny", model, example_set(model.vocabulary, 64, 16, 64), 8, 1024, options.repeats))
        results.append(measure("tiny", model, example_set(model.vocabulary, 64, 40, 40), 8, 1024, options.repeats))
    if options.model != "tiny" and (found := embedded()) is not None:
        results.append(measure(found.name, found, example_set(found.vocabulary, 16, 24, 96), 16, 1024, options.repeats))
    for result in results:
        print(
            f"{result['model']}: {result['tokens']} tokens in {result['examples']} examples; "
            f"backward {result['seconds']['backward']:.3f} s, Fisher {result['seconds']['fisher']:.3f} s "
            f"({result['fisher_over_backward']:.2f}x), "
            f"loop {result['seconds']['loop']:.3f} s "
            f"({result['loop_over_fisher']:.1f}x of Fisher), difference {result['largest_relative_difference_to_loop']:.1e}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"benchmark": "fisher", "machine": machine_facts(), "results": results}, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
