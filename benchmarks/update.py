"""Time and memory of one update with 1,000 new examples: questions of corpora/study and their answers, in the learner's own way.

    python -m benchmarks.update [--examples 1000] [--epochs 5] [--device auto] [--threads 2] [--asked 200] [--out FILE]

The examples are trained as `retain learn` trains what it has prepared: a new adapter with the default settings, tokens counted each time
they are trained on. The clock runs from the tokens to the finished adapter, with a warm-up on a few examples before. What was learned is
asked for afterwards: of ``--asked`` of the questions, the share whose answer the model gives in the wording that was trained and in a
second one that was not, beside the same of the untouched model. Memory is the process's largest resident size, and on a GPU what torch
had allocated at most.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import keep
from retain.adapters import Adapter, inject
from retain.adapters.peft_format import WEIGHTS, export_peft
from retain.config import LearnConfig
from retain.data.examples import prompt_tokens, question_example
from retain.data.selfstudy import StudyQuestion, grounded, load_study_corpus
from retain.learners.lora import train_adapter
from retain.lm.devices import machine_facts
from retain.lm.generation import Sampling, generate
from retain.lm.loading import load_model
from retain.lm.model import LanguageModel
from retain.training.loop import Progress

RESULTS = Path(__file__).parent / "results" / "update.json"
CORPORA = Path(__file__).parent.parent / "corpora" / "study"
WARM = 8  # examples before the clock runs


def questions_of(count: int) -> list[StudyQuestion]:
    """The first so many questions of the corpora, each about something else."""
    found: list[StudyQuestion] = []
    for corpus in sorted(CORPORA.glob("*.jsonl")):
        for passage in load_study_corpus(corpus):
            found += passage.questions
    if len(found) < count:
        raise SystemExit(f"corpora/study has {len(found)} questions, not {count}")
    return found[:count]


def recall(model: LanguageModel, questions: Sequence[StudyQuestion], adapter: Adapter | None) -> dict[str, float]:
    """Share of the questions whose answer is in what the model says, as they were trained and reworded."""
    injection = inject([(adapter, 1.0)], model.dtype, model.device) if adapter else None
    found = {}
    for name, texts in (("trained", [item.question for item in questions]), ("reworded", [item.reworded for item in questions])):
        answers = generate(model, [prompt_tokens(model.tokenizer, text) for text in texts], Sampling(max_tokens=24), injection)
        found[name] = sum(grounded(item.answer, answer) for item, answer in zip(questions, answers, strict=True)) / len(questions)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=LearnConfig().epochs)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--asked", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = load_model(options.model, device=options.device, threads=options.threads)
    questions = questions_of(options.examples)
    examples = [question_example(model.tokenizer, item.question, item.answer) for item in questions]
    config = LearnConfig(epochs=options.epochs)
    train_adapter(model, "warm", examples[:WARM], config)
    losses: list[float] = []

    def on_step(progress: Progress) -> None:
        losses.append(progress.loss)
        if progress.step % 50 == 0:
            print(f"step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, {progress.seconds:.0f} s", flush=True)

    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    made = train_adapter(model, "update", examples, config, on_step=on_step)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    memory: dict[str, float] = {"resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if on_gpu:
        memory["gpu_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    with tempfile.TemporaryDirectory() as folder:
        export_peft(made.adapter, Path(folder), model.name)
        megabytes = (Path(folder) / WEIGHTS).stat().st_size / 2**20
    asked = questions[:: max(1, len(questions) // options.asked)][: options.asked]
    record: dict[str, Any] = {
        "benchmark": "update", "model": model.name, "device": str(model.device), "precision": str(model.dtype).removeprefix("torch."),
        "examples": len(examples), "epochs": options.epochs, "tokens": made.report.tokens, "seconds": seconds,
        "seconds_per_epoch": seconds / options.epochs, "examples_per_second": len(examples) * options.epochs / seconds,
        "tokens_per_second": made.report.tokens / seconds, "first_loss": losses[0], "last_loss": losses[-1],
        "adapter_megabytes": megabytes, "memory": memory, "asked": len(asked),
        "recall_before": recall(model, asked, None), "recall_after": recall(model, asked, made.adapter),
        "goal_seconds_on_a_gpu": 10.0, "machine": machine_facts(),
    }  # fmt: skip
    keep(record, options.out)


if __name__ == "__main__":
    main()
