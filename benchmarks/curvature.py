"""What the curvature of the embedded model's adapter space costs: the top 20 eigenvalues, their products, time of each, memory.

    python -m benchmarks.curvature [--top 20] [--products 60] [--tokens 512] [--out benchmarks/results/curvature.json]

An adapter of rank 16 on q, k, v, o learns invented facts; then the Hessian of their loss is taken at what was learned. "gradient" is one
forward and backward pass of the same loss with the kernels of training, "product" one Hessian-vector product on the kept graph. Medians
of runs that take turns, after a warm-up.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import keep
from retain.config import LearnConfig
from retain.data.tasks import load_tasks
from retain.evaluation.curvature import HessianOperator, Search, adapter_loss, lanczos
from retain.evaluation.forgetting.curvature import sample
from retain.learners.lora import train_adapter
from retain.lm.devices import machine_facts
from retain.lm.loading import load_model
from retain.training.objective import AdapterObjective

HERE = Path(__file__).parent
LEARN = LearnConfig(rank=16, alpha=32.0, layers="all", targets=["q_proj", "k_proj", "v_proj", "o_proj"], epochs=20, batch_tokens=400)


def times(arms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            if repeat:  # the first is the warm-up
                found[name].append(time.perf_counter() - started)
    return found


def main() -> None:
    """Learn, search, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="founders")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--products", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "curvature.json")
    chosen = parser.parse_args()

    model = load_model(chosen.model, precision="float32")
    (task,) = load_tasks([chosen.task], seed=0)
    examples = task.examples(model.tokenizer, max_tokens=model.context)
    candidate = train_adapter(model, task.name, examples, LEARN, on_step=lambda p: print(f"learning {p.step}/{p.steps}", end="\r"))
    adapter = candidate.adapter
    tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    measured = sample(examples, chosen.tokens, 0)
    loss, params = adapter_loss(model, measured, tensors, adapter.spec.scale)

    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    operator = HessianOperator(loss, params)
    memory_graph = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    objective = AdapterObjective(model, adapter.spec.sites, adapter.spec.scale, cache_prefix=False)
    leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in params.items()}
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    seconds = times(
        {
            "gradient": lambda: torch.autograd.grad(objective.loss(measured, leaves), list(leaves.values())),
            "product": lambda: operator.matvec(vector),
        },
        chosen.repeats,
    )
    ratios = [product / gradient for product, gradient in zip(seconds["product"], seconds["gradient"], strict=True)]

    def watch(at: Search) -> None:
        print(f"{at.products} products: {at.converged} of {at.wanted} converged, largest residual {at.residual:.1e}")

    started = time.perf_counter()
    found = lanczos(operator, chosen.top, which=("magnitude",), tolerance=1e-2, max_products=chosen.products, watch=watch)
    pairs = found.by_magnitude()
    result = {
        "benchmark": "curvature", "model": model.name, "parameters": operator.size, "rank": adapter.spec.rank,
        "examples": len(measured), "tokens": sum(len(example) for example in measured), "loss": operator.value,
        "gradient_norm": float(operator.gradient.double().norm()),
        "first_loss": candidate.report.losses[0], "last_loss": candidate.report.losses[-1],
        "eigenvalues": [pair.value for pair in pairs], "residuals": [pair.residual for pair in pairs],
        "converged_to_1e-2": sum(pair.residual <= 1e-2 * abs(pair.value) for pair in pairs),
        "converged_to_1e-3": sum(pair.residual <= 1e-3 * abs(pair.value) for pair in pairs),
        "products": found.products, "search_seconds": time.perf_counter() - started,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "product_over_gradient": statistics.median(ratios), "repeats": chosen.repeats,
        "graph_mib": round(memory_graph - memory_before), "basis_mib": round((3 * chosen.top + 30) * operator.size * 4 / 2**20),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": machine_facts(),
    }  # fmt: skip
    keep(result, chosen.out)


if __name__ == "__main__":
    main()
