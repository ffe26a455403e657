"""The arms of avalanche-lib on the streams of :mod:`benchmarks.digits`; run by it with the Python that has avalanche-lib.

    python -m benchmarks.digits.avalanche_arm --streams permuted-digits --arms naive,ewc,replay,der++ --seeds 0,1,2

Writes one JSON object: the accuracy matrix, the CPU-seconds in ``strategy.train`` and the optimizer steps of every arm, stream and seed.
The network starts from the same weights, sees the same examples and takes as many optimizer steps of the same size as in retain.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
import warnings
from typing import Any

import torch

# avalanche-lib imports torchvision, whose operators the CPU build of torch does not have, and wandb, which it does not use here
_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.modules.setdefault("wandb", types.ModuleType("wandb"))
warnings.simplefilter("ignore")

import avalanche  # noqa: E402
from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as labelled_dataset  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.supervised import DER, EWC, Naive, Replay  # noqa: E402
from torch import nn  # noqa: E402

from retain.data.tables import TableStream, load_table_stream  # noqa: E402
from retain.training.network import perceptron  # noqa: E402


def network(seed: int, sizes: tuple[int, ...]) -> nn.Module:
    """The same perceptron, with the same weights, as a module."""
    module = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))
    start = perceptron(sizes, seed)
    module.load_state_dict({f"{2 * layer}.{end}": start[f"layers.{layer}.{end}"] for layer in range(2) for end in ("weight", "bias")})
    return module


def benchmark_of(stream: TableStream) -> Any:
    """The stream as Avalanche has it."""
    parts: dict[str, list[Any]] = {"train": [], "test": []}
    for task in stream.tasks:
        for name, rows in (("train", torch.tensor([example.tokens[0] for example in task.examples])), ("test", task.test)):
            parts[name].append(labelled_dataset(stream.features[rows], stream.labels[rows], task_labels=0))
    return benchmark_from_datasets(train=parts["train"], test=parts["test"])


def run(stream: TableStream, arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One arm from one seed."""
    torch.manual_seed(seed)
    model = network(seed, (64, 256, 10))
    quiet = EvaluationPlugin(loggers=[])
    common = {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "criterion": nn.CrossEntropyLoss(), "train_mb_size": 32,
        "train_epochs": 15, "eval_mb_size": 512, "evaluator": quiet,
    }  # fmt: skip
    strategy = {
        "naive": lambda: Naive(**common),
        "ewc": lambda: EWC(ewc_lambda=options.ewc_lambda, mode="separate", **common),
        "replay": lambda: Replay(mem_size=200, **common),
        "der++": lambda: DER(mem_size=200, alpha=0.5, beta=0.5, **common),
    }[arm]()
    matrix, seconds, steps = [_scores(model, stream)], 0.0, 0
    for experience, task in zip(benchmark_of(stream).train_stream, stream.tasks, strict=True):
        started = time.process_time()
        strategy.train(experience, num_workers=0)
        seconds += time.process_time() - started
        steps += 15 * -(-len(task.examples) // 32)
        matrix.append(_scores(model, stream))
    return {"matrix": matrix, "seconds": seconds, "steps": steps}


@torch.no_grad()
def _scores(model: nn.Module, stream: TableStream) -> list[float]:
    model.eval()
    return [float((model(stream.features[task.test]).argmax(1) == stream.labels[task.test]).float().mean()) for task in stream.tasks]


def main() -> None:
    """Run the arms and print the JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="permuted-digits,split-digits")
    parser.add_argument("--arms", default="naive,ewc,replay,der++")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ewc-lambda", type=float, default=15.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in options.streams.split(","):
        for seed in map(int, options.seeds.split(",")):
            stream = load_table_stream(name, seed)
            for arm in options.arms.split(","):
                found.setdefault(name, {}).setdefault(arm, {})[str(seed)] = run(stream, arm, seed, options)
    print(json.dumps({"version": avalanche.__version__, "ewc_lambda": options.ewc_lambda, "streams": found}))


if __name__ == "__main__":
    main()
