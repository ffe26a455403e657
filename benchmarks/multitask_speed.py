"""`retain train`'s loop beside transformers.Trainer: the same network, records, batch, optimizer, schedule, precision and number of steps.

    python -m benchmarks.multitask_speed --data DIR [--sets reuters-r8,bbc] [--records 640] [--repeats 3] [--precision float32] [--out FILE]

Reuters R8 has news of very different lengths, as texts mostly have; BBC's are nearly all longer than what is read, so that no order of
batches can save anything there. MiniLM-L6 learns all of its weights, 16 records a step, at most 256 tokens. transformers.Trainer runs
twice: with its defaults (random batches, padded to the longest of the batch), and with ``train_sampling_strategy="group_by_length"``. Its
optimizer is retain's (two rates), through its ``optimizers``, and so are schedule, warm-up and clipping; the rest are its defaults, but for
saving and reports, which are off.

Arms alternate within a repeat. Processor seconds of all steps, after two forward and backward passes that are not timed; tokens are those
that went into the network, padding included. Sets are laid over those in FILE. Records: :mod:`benchmarks.real_data`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.multitask import split
from benchmarks.real_data import bbc, minilm, topics
from retain.lm.devices import machine_facts
from retain.multitask import Callback, Experiment, Progress, assemble, parse_experiment, train
from retain.multitask.scoring import evaluate

CHOSEN, TESTED = 64, 200  # validation records, which retain asks for, and test records


class Clock(Callback):
    """Processor and wall seconds from the first step to the last, and the tokens that went into the network in between."""

    def __init__(self, experiment: Experiment) -> None:
        self.tokens, self.padding, self.last = 0, 0, experiment.schedules[0].steps
        self.start: tuple[float, float] | None = None
        self.spent = (0.0, 0.0)
        experiment.network.backbone.register_forward_pre_hook(self._seen)

    def _seen(self, module: nn.Module, args: tuple[dict[str, Tensor]]) -> None:
        if self.start is not None:
            mask = args[0]["attention_mask"]
            self.tokens += mask.numel()
            self.padding += mask.numel() - int(mask.sum())

    def begin(self) -> None:
        """The first step comes now."""
        self.start = time.process_time(), time.perf_counter()

    def step(self, number: int) -> None:
        """A step, counted from 1, is done."""
        if number == self.last and self.start is not None:
            self.spent = time.process_time() - self.start[0], time.perf_counter() - self.start[1]
            self.start = None

    def on_phase(self, at: Progress) -> None:
        self.begin()

    def on_step(self, at: Progress) -> str | None:
        self.step(at.step)
        return None


def optimizer_like(network: nn.Module, training: Any) -> torch.optim.AdamW:
    """What retain learns with: two rates, no decay on vectors."""
    groups = []
    for own in (True, False):
        for matrices in (True, False):
            chosen = [
                parameter
                for name, parameter in network.named_parameters()
                if parameter.requires_grad and name.startswith("backbone.") == own and (parameter.ndim > 1) == matrices
            ]
            rate = training.learning_rate if own else training.head_learning_rate
            groups.append({"params": chosen, "lr": rate, "weight_decay": training.weight_decay if matrices else 0.0})
    return torch.optim.AdamW(groups, fused=True)


def with_retain(experiment: Experiment, clock: Clock, folder: Path) -> None:
    """The loop of `retain train`."""
    train(experiment, folder / "retain", callbacks=[clock])


def with_trainer(experiment: Experiment, clock: Clock, folder: Path, strategy: str) -> None:
    """transformers.Trainer on the same network."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    network, config = experiment.network, experiment.config
    task, part = experiment.tasks[0], experiment.parts["t"]["train"]
    (name,) = part.targets[0]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
            outputs = self.network("t", inputs)
            return {"loss": task.loss(outputs, {name: labels}), "logits": outputs[name]}

    class Told(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.step(state.global_step)

    records = [
        {
            **{key: value.tolist() for key, value in item.inputs.items()},
            "attention_mask": [1] * item.length,
            "labels": int(target[name]),
            "length": item.length,
        }
        for item, target in zip(part.inputs, part.targets, strict=True)
    ]
    training = config.training
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=training.batch, num_train_epochs=training.epochs, seed=config.seed,
        max_grad_norm=training.clip, lr_scheduler_type=training.schedule, warmup_steps=round(training.warmup * clock.last),
        bf16=training.precision == "bfloat16", train_sampling_strategy=strategy, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    made = DataCollatorWithPadding(network.backbone.tokenizer)

    def collate(rows: list[dict[str, Any]]) -> Any:
        return made([{key: value for key, value in row.items() if key != "length"} for row in rows])

    optimizer = optimizer_like(network, training)
    Trainer(
        Model(), settings, data_collator=collate, train_dataset=records, optimizers=(optimizer, None), callbacks=[Told()]
    ).train()  # type: ignore[arg-type]  # fmt: skip


ARMS: dict[str, Callable[[Experiment, Clock, Path], None]] = {
    "retain train": with_retain,
    "transformers.Trainer": lambda experiment, clock, folder: with_trainer(experiment, clock, folder, "random"),
    "transformers.Trainer, group_by_length": lambda experiment, clock, folder: with_trainer(experiment, clock, folder, "group_by_length"),
}


def warm_up(experiment: Experiment) -> None:
    """Two forward and backward passes that change nothing."""
    task = experiment.tasks[0]
    for _ in range(2):
        inputs, targets = experiment.batch("t", "train", range(experiment.config.training.batch))
        task.loss(experiment.network("t", inputs), targets).backward()
    experiment.network.zero_grad(set_to_none=True)


def measure(arm: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """One training: seconds, tokens, padding, and accuracy on the test records."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = assemble(parse_experiment({**config, "seed": seed}))
        warm_up(experiment)
        clock = Clock(experiment)
        ARMS[arm](experiment, clock, Path(folder))
        found = evaluate(experiment, "t", "test", tune=False)
        return {
            "seconds": clock.spent[0], "wall": clock.spent[1], "tokens": clock.tokens, "padding": clock.padding,
            "steps": clock.last, "accuracy": found["accuracy"], "loss": found["loss"],
        }  # fmt: skip


def prepared(data: Path, name: str, count: int, precision: str, folder: Path) -> dict[str, Any]:
    """The experiment on so many records of a set."""
    if name == "bbc":
        rows = bbc(data)
        learned, chosen, tested = split(rows, [size / len(rows) for size in (count, CHOSEN, TESTED)], 0)
    else:
        first, second = topics(data, name)
        learned, chosen = split(first, [size / len(first) for size in (count, CHOSEN)], 0)
        tested = split(second, [TESTED / len(second)], 0)[0]
    for part, records in (("train", learned), ("validation", chosen), ("test", tested)):
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return {
        "backbone": {"kind": "text", "model": str(minilm(data)), "max_length": 256},
        "data": {part: str(folder / f"{part}.jsonl") for part in ("train", "validation", "test")},
        "tasks": {"t": {"kind": "classification", "label": "label"}},
        "training": {
            "epochs": 1,
            "batch": 16,
            "learning_rate": 2e-4,
            "head_learning_rate": 3e-3,
            "metric": "loss",
            "precision": precision,
            "device": "cpu",
            "evaluate_every": 100_000,
        },
    }


def main() -> None:
    """Run the arms in turn, print medians and ratios, and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="reuters-r8,bbc")
    parser.add_argument("--records", type=int, default=640)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask-speed.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine_facts(),
        "threads": torch.get_num_threads(),
        "sets": json.loads(options.out.read_text(encoding="utf-8"))["sets"] if options.out.exists() else {},
    }
    about = {"records": options.records, "precision": options.precision}
    for name in options.sets.split(","):
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        with tempfile.TemporaryDirectory() as folder:
            config = prepared(options.data, name, options.records, options.precision, Path(folder))
            for seed in range(options.repeats):
                for arm, done in runs.items():
                    done.append(measure(arm, config, seed))
                    print(name, seed, arm, done[-1], flush=True)
                seconds = {arm: statistics.median(run["seconds"] for run in done) for arm, done in runs.items()}
                ratios = {arm: value / seconds["retain train"] for arm, value in seconds.items()}
                found["sets"][name] = {**about, "runs": runs, "median_seconds": seconds, "times_as_long_as_retain": ratios}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for arm, ratio in ratios.items():
            accuracy = statistics.fmean(run["accuracy"] for run in runs[arm])
            print(f"{name:12} {arm:40} {seconds[arm]:8.1f} s, {ratio:.2f} x, accuracy {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
