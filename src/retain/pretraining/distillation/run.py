"""Distillation from a configuration to a student: `retain distill`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.config import ConfigError
from retain.data import Example
from retain.pretraining.checkpoints import Checkpoints
from retain.pretraining.config import CorpusConfig, DistillConfig, StudentConfig
from retain.pretraining.corpus import Told, documents, fingerprint, held_out
from retain.pretraining.distillation.answers import ANSWERS, DATA, ask, filter_answers, read_prompts
from retain.pretraining.distillation.examples import ExampleStream, examples_of
from retain.pretraining.distillation.loss import Distiller
from retain.pretraining.distillation.networks import Network, OwnNetwork, load_network, same_vocabulary
from retain.pretraining.durable import Lines
from retain.pretraining.errors import PretrainingError
from retain.pretraining.folder import SILENT, RunFolder, Watch
from retain.pretraining.loop import Job, train
from retain.pretraining.processes import Processes, joined
from retain.pretraining.run import build_decoder, measure, samples, without

WINDOW = 512  # tokens of an example where nothing else is said


@dataclass(frozen=True)
class DistillationPlan:
    """What a distillation would do. ``prompts`` and ``answered`` count those of an API; what cannot be known before the teacher has
    answered is None. The other fields are those of :class:`retain.pretraining.run.Plan`."""

    prompts: int | None
    answered: int | None
    parameters: int | None = None
    teacher: int | None = None
    examples: int | None = None
    held_out: int | None = None
    steps: int | None = None
    step_tokens: int | None = None
    memory: int | None = None
    seconds: float | None = None
    device: str | None = None
    precision: str | None = None
    dropped: Mapping[str, int] | None = None


@dataclass(frozen=True)
class _Prepared:
    """Everything that training needs."""

    module: Distiller
    stream: ExampleStream
    steps: int
    told: Told

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def distill(config: DistillConfig, resume: bool = False, watch: Watch = SILENT) -> dict[str, Any] | None:
    """Distil and give the results; None in the other processes of torchrun.

    With a teacher here, its logits at every supervised token of the corpus (alpha * T^2 * KL + (1 - alpha) * cross-entropy). With one
    behind an API, its answers to the prompts, filtered: the student learns them as any text. With ``resume`` prompts that were answered
    are not asked again and training goes on from its last checkpoint. Raises DataError, ConfigError, PretrainingError, LanguageModelError
    and TrainingError, each one line.
    """
    place = Path(config.out or "runs/distill")
    with ExitStack() as stack:
        here = stack.enter_context(joined(config.training))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        folder = stack.enter_context(RunFolder(place, config, resume, watch)) if here.first else None
        results: dict[str, Any] = {}
        if config.teacher.url:
            results = _asked(config, folder, watch, again=not (place / "checkpoints").exists()) if folder else {}
            here.wait()
            config = _taught(config, place)
        if config.student is None:
            if folder:
                folder.record(results)
            return results if folder else None
        key = fingerprint(config.corpus.paths)
        checkpoints = Checkpoints(place / "checkpoints", {"data": key, "teacher": config.teacher.model})
        start = checkpoints.latest() if resume else None
        prepared = _prepare(config, here, start, watch)
        module, student = prepared.module, prepared.module.student

        def look(parameters: Mapping[str, Tensor]) -> dict[str, Any]:
            if not isinstance(student, OwnNetwork):
                return {}
            return {"samples": samples(student.decoder.frozen(without(parameters, "student.decoder.")), config.checks, config.seed)}

        job = Job(
            module, prepared.stream, prepared.steps, config.training, config.seed, config.checks.every,
            save=lambda place, parameters: student.save(place, without(parameters, "student.")), look=look,
        )  # fmt: skip
        last = train(job, here, checkpoints, start, folder)
        if folder is None:
            return None
        return folder.finish(checkpoints, {**results, **last, "parameters": prepared.parameters, "dropped": prepared.told.summary()})


def plan_distillation(config: DistillConfig, watch: Watch = SILENT) -> DistillationPlan:
    """What :func:`distill` would do, with the time of a step measured. An API is not asked."""
    place = Path(config.out or "runs/distill")
    prompts = answered = None
    with joined(config.training) as here, torch.random.fork_rng(devices=[]):
        if here.world > 1:
            raise PretrainingError("--dry-run measures one process: call it without torchrun")
        if config.teacher.url:
            _check_api(config)
            wanted = read_prompts(config.corpus.prompts)
            known = {record["prompt"] for record in Lines(place / ANSWERS).read()}
            prompts, answered = len(wanted), len(known.intersection(wanted))
            if config.student is None or not (place / DATA).is_file():
                return DistillationPlan(prompts, answered)
            config = _taught(config, place)
        prepared = _prepare(config, here, None, watch)
        seconds, memory = measure(prepared.module, prepared.stream, config.training, here)
        teacher = sum(parameter.numel() for network in prepared.module.teachers for parameter in network.parameters())
        return DistillationPlan(
            prompts, answered, parameters=prepared.parameters, teacher=teacher or None, examples=len(prepared.stream.learned),
            held_out=len(prepared.stream.held), steps=prepared.steps, step_tokens=prepared.stream.step_tokens, memory=memory,
            seconds=seconds * prepared.steps, device=str(here.device), precision=str(here.precision).removeprefix("torch."),
            dropped=prepared.told.summary(),
        )  # fmt: skip


def _check_api(config: DistillConfig) -> None:
    if not config.teacher.model:
        raise ConfigError("teacher.model: is not set: which model is to be asked at teacher.url?")
    if config.student is not None and not config.student.model:
        raise ConfigError("student.model: is not set: an API has no tokenizer that a fresh decoder could take; name a model or a folder")


def _asked(config: DistillConfig, folder: RunFolder, watch: Watch, again: bool) -> dict[str, Any]:
    """Have the prompts answered and the answers filtered; what became of them, in numbers. Not ``again``: nothing more is asked, because
    what there is is being learned."""
    _check_api(config)
    prompts = read_prompts(config.corpus.prompts)
    if not folder.log.path.exists():
        folder.log.append({"event": "asking", "step": 0, "prompts": len(prompts)})
    about = f"asking the teacher, of {len(prompts):,} prompts"
    failed = ask(config.teacher, prompts, folder.place, lambda done: watch.stage(about, done)) if again else 0
    found = filter_answers(config.filter, prompts, folder.place)
    if not found["kept"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.most_common() if count)
        raise PretrainingError(
            f"no answer of the teacher is left after the filter ({reasons or 'none came'}): see {folder.place}/filtered.jsonl"
        )
    return {"prompts": len(prompts), "answered": sum(found.values()), "failed": failed, "filter": dict(found)}


def _taught(config: DistillConfig, place: Path) -> DistillConfig:
    """The configuration with the filtered answers as its corpus, which are clean already."""
    own = CorpusConfig(paths=[str(place / DATA)], clean=False, validation=config.corpus.validation)
    return config.model_copy(update={"corpus": own})


def _prepare(config: DistillConfig, here: Processes, start: Path | None, watch: Watch) -> _Prepared:
    assert config.student is not None
    teacher = None
    if not config.teacher.url:
        if not config.teacher.model:
            raise ConfigError("teacher.model: is not set: a name, a folder or a GGUF file; or teacher.url for a teacher behind an API")
        watch.stage("loading the teacher", 0)
        teacher = load_network(config.teacher.model, config.student.kind, here.device)
    student = _student(config.student, teacher, config.seed, here, start)
    if teacher is not None:
        if teacher.kind != student.kind:
            raise PretrainingError(
                f"teacher {teacher.name} is {teacher.kind} and student {student.name} {student.kind}: both have to be one kind"
            )
        same_vocabulary(teacher, student)
    told = Told()
    window = min(network.context for network in (teacher, student) if network is not None)
    learned, held = _examples(config, student, min(window, config.student.context or WINDOW), told, watch)
    stream = ExampleStream(
        learned, held, config.training.batch, config.training.accumulation, config.seed, config.checks.tokens,
        config.loss.mask if student.kind == "encoder" else None,
    )  # fmt: skip
    steps = config.training.steps or max(1, config.training.epochs * len(learned) // config.training.batch)
    return _Prepared(Distiller(student, teacher, config.loss.alpha, config.loss.temperature), stream, steps, told)


def _student(config: StudentConfig, teacher: Network | None, seed: int, here: Processes, start: Path | None) -> Network:
    """The student, with the weights of the checkpoint ``start`` where there is one."""
    name = str(start) if start else config.model
    if name:
        return load_network(name, config.kind, here.device)
    assert teacher is not None
    if teacher.kind != "causal":
        raise PretrainingError(f"student.model: is not set, and the own decoder cannot learn from {teacher.name}, which is {teacher.kind}")
    shape = config.shape(len(teacher.tokenizer))
    return OwnNetwork(build_decoder(shape, teacher.tokenizer, seed, here.device), f"a fresh {config.preset}")


def _examples(config: DistillConfig, student: Network, window: int, told: Told, watch: Watch) -> tuple[list[Example], list[Example]]:
    """Examples to learn and examples that are held out, by document."""
    found = []
    for document in documents(config.corpus, told):
        found.append(document)
        watch.stage("reading", len(found))
    if not found:
        raise PretrainingError("the corpus has no document that is worth learning: look at corpus.paths and corpus.clean")
    apart = held_out([document.id for document in found], config.corpus.validation, config.seed)
    halves = [[document for document, out in zip(found, apart, strict=True) if out is half] for half in (False, True)]
    learned, held = (examples_of(half, student.tokenizer, student.kind, window, told) if half else [] for half in halves)
    return learned, held
