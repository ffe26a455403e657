"""Training throughput in tokens per CPU-second: transformers.Trainer with peft beside retain's loop, on the same examples.

    python -m benchmarks.engine [--passages 2] [--epochs 2] [--long-epochs 40] [--repeats 3] [--batch-tokens 512] [--out FILE]

Every arm trains rank-16 LoRA factors from the same start with AdamW, the same rate at every step and the same batches (the plan of
retain's loop) on passages of corpora/study and their questions. ``trainer`` is transformers.Trainer with peft's LoRA layers, its labels
masked with -100 and its batches padded to their longest example; ``retain_float32`` does the same in retain, like for like;
``retain_bfloat16`` runs where the processor computes in bfloat16; ``retain_last_quarter`` (float32) trains the last quarter of the
layers, the layers below run once per example. ``trainer_by_length`` is the Trainer with its own length-grouped batches of the same mean
size (fewer padded tokens, other batches, so its loss is not compared).

Counting: a token is a real token of an example each time it is trained on (epochs times the examples' lengths), supervised or not;
padding is not counted, for anybody. CPU-seconds are the process's user and system time from the first step to the last (for the Trainer
without its set-up, for retain all of ``train`` with the prefix pass); everything runs on one thread. Arms take turns; figures are
medians over the repeats, ratios are medians of the ratios within a repeat. The recall of the full and of the last-quarter adapter is
measured after ``--long-epochs`` of training, on second wordings of the questions, which are not trained on.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from retain.adapters import inject_trainable, new_lora, select_sites
from retain.data.examples import Example, prompt_tokens, question_example, text_example
from retain.data.selfstudy import StudyPassage, grounded, load_study_corpus
from retain.lm.decoder import DecoderLM
from retain.lm.devices import machine, machine_facts
from retain.lm.embedded import embedded_model_dir
from retain.lm.generation import Sampling, generate
from retain.lm.loading import load_model, quiet
from retain.retention.base import Params, Task
from retain.training.batches import plan
from retain.training.loop import TrainingSettings, rate_at, train
from retain.training.objective import AdapterObjective

RANK, ALPHA = 16, 32.0
GOALS = {"retain_float32": 2.5, "retain_last_quarter": 5.0}
PLAIN, PLAIN_BY_LENGTH = "trainer", "trainer_by_length"


@dataclass
class Run:
    """One training run: tokens trained on, the seconds they took, the task loss of every step, what was trained."""

    tokens: int
    cpu_seconds: float
    wall_seconds: float
    losses: list[float]
    params: Params = field(default_factory=dict, repr=False)

    @property
    def rate(self) -> float:
        """Tokens per CPU-second."""
        return self.tokens / self.cpu_seconds


def examples_of(tokenizer: Any, passages: Sequence[StudyPassage]) -> list[Example]:
    """Each passage as a text, and each of its questions with its answer."""
    found = []
    for passage in passages:
        found.append(text_example(tokenizer, f"{passage.title}\n\n{passage.text}"))
        found += [question_example(tokenizer, question.question, question.answer) for question in passage.questions]
    return found


class RetainArm:
    """retain's training loop."""

    def __init__(self, model: DecoderLM, examples: Sequence[Example], settings: TrainingSettings, layers: str = "all") -> None:
        self.model, self.examples, self.settings = model, examples, settings
        self.sites = select_sites(model, layers)
        self.scale = ALPHA / RANK

    def run(self, epochs: int | None = None, only: int | None = None) -> Run:
        """Train from the start; ``only``: on that many of the examples."""
        settings = replace(self.settings, epochs=epochs or self.settings.epochs)
        params = new_lora(self.model, self.sites, RANK, ALPHA, settings.seed)
        task = Task("engine", self.examples[:only], AdapterObjective(self.model, self.sites, self.scale))
        wall, cpu = time.perf_counter(), time.process_time()
        report = train(task, params, settings)
        return Run(report.tokens, time.process_time() - cpu, time.perf_counter() - wall, report.losses, params)

    def recall(self, params: Params, passages: Sequence[StudyPassage]) -> float:
        """Share of questions in their second wording, never trained on, whose answer is in what the model says."""
        injection = inject_trainable(params, self.sites, self.scale, self.model.dtype) if params else None
        questions = [question for passage in passages for question in passage.questions]
        prompts = [prompt_tokens(self.model.tokenizer, question.reworded) for question in questions]
        answers = generate(self.model, prompts, Sampling(max_tokens=24), injection)
        return sum(grounded(question.answer, answer) for question, answer in zip(questions, answers, strict=True)) / len(questions)


class TrainerArm:
    """transformers.Trainer with peft's LoRA layers in every linear layer."""

    def __init__(self, directory: Path, tokenizer: Any, examples: Sequence[Example], settings: TrainingSettings, start: Params,
                 by_length: bool = False) -> None:  # fmt: skip
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        with quiet():
            base = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True)
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
        self.model, self.tokenizer, self.settings = get_peft_model(base, lora), tokenizer, settings
        self.examples, self.start, self.by_length = examples, start, by_length
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.trained = {name.removeprefix("base_model.model.").replace(".default", ""): tensor for name, tensor in trained.items()}
        if set(self.trained) != set(start):
            raise RuntimeError("peft trains other parameters than retain")
        self.padded = 0

    def run(self, epochs: int | None = None, only: int | None = None) -> Run:
        """Train from the start; ``only``: on that many of the examples."""
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

        settings = replace(self.settings, epochs=epochs or self.settings.epochs)
        examples = self.examples[:only]
        generator = torch.Generator().manual_seed(settings.seed)
        numbers = {id(example): number for number, example in enumerate(examples)}
        planned = [batch for _ in range(settings.epochs) for batch in plan(examples, settings.batch_tokens, generator)]
        batches = [[numbers[id(example)] for example in batch] for batch in planned]
        data = [
            {"input_ids": list(e.tokens), "labels": [t if learned else -100 for t, learned in zip(e.tokens, e.supervised, strict=True)]}
            for e in examples
        ]
        collate = DataCollatorForSeq2Seq(self.tokenizer, padding=True, label_pad_token_id=-100)
        losses: list[float] = []
        clock = [0.0, 0.0]
        arm = self

        class Timed(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock[:] = [time.perf_counter(), time.process_time()]

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock[:] = [time.perf_counter() - clock[0], time.process_time() - clock[1]]

        class Same(Trainer):
            """The same batches and the same rate at every step as retain's loop."""

            def get_train_dataloader(self) -> Any:
                if arm.by_length:
                    return super().get_train_dataloader()
                return torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=collate)

            def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
                rate = settings.learning_rate
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer or self.optimizer, lambda step: rate_at(step, num_training_steps, settings) / rate
                )
                return self.lr_scheduler

            def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
                arm.padded += inputs["input_ids"].numel()
                loss = super().training_step(model, inputs, *rest)
                losses.append(float(loss))
                return loss

        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.start[name])
        arguments = TrainingArguments(
            output_dir="/nonexistent", num_train_epochs=settings.epochs if self.by_length else 1, learning_rate=settings.learning_rate,
            per_device_train_batch_size=max(1, round(len(examples) * settings.epochs / len(batches))), weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip, use_cpu=True, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            seed=settings.seed, train_sampling_strategy="group_by_length" if self.by_length else "random", remove_unused_columns=False,
        )  # fmt: skip
        trainer = Same(self.model, arguments, data_collator=collate, train_dataset=data, callbacks=[Timed()])
        trainer.train()
        tokens = settings.epochs * sum(len(example) for example in examples)
        return Run(tokens, clock[1], clock[0], losses, {name: tensor.detach().clone() for name, tensor in self.trained.items()})


def arms_of(options: argparse.Namespace) -> tuple[dict[str, RetainArm | TrainerArm], list[Example], list[StudyPassage]]:
    """Every arm on the same examples."""
    directory = embedded_model_dir() if options.model == "embedded" else Path(options.model)
    model = load_model(directory, device="cpu", precision="float32")
    assert isinstance(model, DecoderLM)
    passages = load_study_corpus(options.corpus)[: options.passages]
    examples = examples_of(model.tokenizer, passages)
    settings = TrainingSettings(learning_rate=1e-3, epochs=options.epochs, batch_tokens=options.batch_tokens)
    start = new_lora(model, select_sites(model), RANK, ALPHA, settings.seed)
    arms: dict[str, RetainArm | TrainerArm] = {
        PLAIN: TrainerArm(directory, model.tokenizer, examples, settings, start),
        PLAIN_BY_LENGTH: TrainerArm(directory, model.tokenizer, examples, settings, start, by_length=True),
        "retain_float32": RetainArm(model, examples, settings),
        "retain_last_quarter": RetainArm(model, examples, settings, "last-quarter"),
    }
    if "avx512_bf16" in machine().flags:
        half = load_model(directory, device="cpu", precision="bfloat16")
        assert isinstance(half, DecoderLM)
        arms["retain_bfloat16"] = RetainArm(half, examples, settings)
        arms["retain_bfloat16_last_quarter"] = RetainArm(half, examples, settings, "last-quarter")
    return arms, examples, passages


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All arms in turn, and the recall of the two kinds of adapter."""
    arms, examples, passages = arms_of(options)
    for arm in arms.values():
        arm.run(epochs=1, only=2)  # warm-up
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for _ in range(options.repeats):
        for name, arm in arms.items():
            gc.collect()
            runs[name].append(arm.run())
            print(f"  {name:30} {runs[name][-1].rate:7.0f} tokens per CPU-second", flush=True)
    figures = {
        name: {
            "tokens_per_cpu_second": statistics.median(run.rate for run in found),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in found),
            "wall_seconds": statistics.median(run.wall_seconds for run in found),
            "times_trainer": _ratio(found, runs[PLAIN]),
            "times_trainer_by_length": _ratio(found, runs[PLAIN_BY_LENGTH]),
            "first_loss": found[0].losses[0],
            "last_loss": found[0].losses[-1],
            "steps": len(found[0].losses),
        }
        for name, found in runs.items()
    }  # fmt: skip
    plain, ours = runs[PLAIN][0], runs["retain_float32"][0]
    recalls = {"base": next(arm for arm in arms.values() if isinstance(arm, RetainArm)).recall({}, passages)}
    for name, arm in arms.items():
        if isinstance(arm, RetainArm):
            recalls[name] = arm.recall(arm.run(epochs=options.long_epochs).params, passages)
    return {
        "examples": len(examples),
        "tokens_per_epoch": sum(len(example) for example in examples),
        "supervised_per_epoch": sum(example.n_supervised() for example in examples),
        "rank": RANK,
        "arms": figures,
        "largest_loss_difference_to_trainer": max(abs(a - b) for a, b in zip(plain.losses, ours.losses, strict=True)),
        "recall_epochs": options.long_epochs,
        "recall_of_second_wordings": recalls,
        "goals": {name: {"goal": goal, "reached": figures[name]["times_trainer"]} for name, goal in GOALS.items()},
    }


def _ratio(runs: Sequence[Run], plain: Sequence[Run]) -> float:
    return statistics.median(one.rate / other.rate for one, other in zip(runs, plain, strict=True))


def main() -> None:
    """Run the arms, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a directory of a Llama-type model instead of the embedded one")
    parser.add_argument("--corpus", type=Path, default=Path("corpora/study/a.jsonl"))
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--long-epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = {"benchmark": "engine", "settings": {k: str(v) for k, v in vars(options).items() if k != "out"}, "machine": machine_facts()}
    record |= measure(options)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'arm':30} {'tokens/CPU s':>12} {'x trainer':>10} {'x by length':>12}")
    for name, row in record["arms"].items():
        print(f"{name:30} {row['tokens_per_cpu_second']:12.0f} {row['times_trainer']:10.2f} {row['times_trainer_by_length']:12.2f}")
    print(f"recall of second wordings: {record['recall_of_second_wordings']}\nwritten to {options.out.name}")


if __name__ == "__main__":
    main()
