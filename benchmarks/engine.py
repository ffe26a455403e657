"""Training throughput in tokens per CPU-second: transformers.Trainer with peft beside retain's loop, on the same examples.

    python -m benchmarks.engine [--out benchmarks/results/engine.json] [--passages 2] [--epochs 2] [--long-epochs 6] [--repeats 3]

Every arm trains rank-16 LoRA factors from the same start with AdamW, the same rate at every step and the same batches (the plan of
retain's loop) on passages of corpora/study and their questions. ``trainer`` is transformers.Trainer with peft's LoRA layers, its labels
masked with -100 and its batches padded to their longest example; ``retain_float32`` does the same in retain, like for like;
``retain_bfloat16`` runs where the processor computes in bfloat16; ``retain_last_quarter`` (float32) trains the last quarter of the
layers, the layers below run once per example. ``trainer_by_length`` is the Trainer with its own length-grouped batches of the same mean
size (fewer padded tokens, other batches, so its loss is not compared).

Counting: a token is a real token of an example each time it is trained on (epochs times the examples' lengths), supervised or not;
padding is not counted, for anybody. CPU-seconds are the process's user and system time from the first step to the last (for the Trainer
without its set-up, for retain all of ``train`` with the prefix pass). Arms take turns; figures are medians over the repeats.
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
from retain.training.loop import TrainingSettings, plan, rate_at, train
from retain.training.objective import AdapterObjective

RANK, ALPHA = 16, 32.0
GOALS = {"retain_float32": 2.5, "retain_last_quarter": 5.0}


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
        batches = [[numbers[id(example)] for example in batch] for _ in range(settings.epochs) for batch in plan(examples, settings.batch_tokens, generator)]
        data = [
            {"input_ids": list(e.tokens), "labels": [token if learned else -100 for token, learned in zip(e.tokens, e.supervised, strict=True)]}
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
