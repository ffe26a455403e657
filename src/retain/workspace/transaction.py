"""Learning as a transaction: study, train a candidate, check it against what was known, then commit it or drop it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from retain.adapters import Adapter, inject
from retain.config import Config
from retain.data.answers import contains
from retain.data.chunking import chunks
from retain.data.document import Document
from retain.data.examples import Example, text_example
from retain.evaluation.control import load_control
from retain.evaluation.probes import Probe, mean_kl, perplexity
from retain.learners.base import Lesson
from retain.learners.lora import Candidate, sites_of, train_adapter
from retain.learners.registry import DEFAULT, learner_named
from retain.learners.study import StudySet, build_study, kinds, study_examples
from retain.lm.devices import give_memory_back, machine_facts
from retain.lm.generation import Sampling, generate
from retain.retention.registry import Resources, build
from retain.training.loop import Progress, TrainingError
from retain.workspace.knowledge import Decision, Knowledge, passages_of
from retain.workspace.memory import keep_memory, load_memory
from retain.workspace.records import ActiveAdapter, Chunk, State, to_json
from retain.workspace.reports import Event
from retain.workspace.store import digest_of

CHUNK_TOKENS = 128
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Attempt:
    """How one try protects what is known: multipliers on the KL weight (above 1, KL is added where it is not configured), the
    learning rate and the finished adapter's scale."""

    kl: float = 1.0
    learning_rate: float = 1.0
    scale: float = 1.0


ATTEMPTS = (Attempt(), Attempt(kl=4.0, learning_rate=0.5), Attempt(kl=4.0, learning_rate=0.5, scale=0.5))


@dataclass(frozen=True)
class Outcome:
    """A checked candidate: the state that would be committed, what is stored with it, the certificate, and the reason of a refusal."""

    state: State
    chunks: tuple[Chunk, ...]
    probes: tuple[Probe, ...]
    scores: tuple[bool, ...]
    study: StudySet
    certificate: dict[str, Any]
    refusal: str = ""


def general_examples(model: Any, count: int = 32, tokens: int = 48, seed: int = 0) -> list[Example]:
    """General text that the base model itself writes, for self-distillation (no outside data, nothing of the user's)."""
    from retain.data.examples import prompt_tokens

    prompts = load_control().prompts[:count]
    texts = generate(
        model, [prompt_tokens(model.tokenizer, prompt) for prompt in prompts], Sampling(max_tokens=tokens, temperature=1.0, seed=seed)
    )
    return [text_example(model.tokenizer, text, kind="general", end=False) for text in texts if len(text.split()) > 3]


def document_chunks(model: Any, document: Document) -> tuple[Chunk, ...]:
    """The pieces of a document that are searched and put into contexts."""

    def size(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    return tuple(
        Chunk(document.id, number, piece.heading or document.title, piece.text)
        for number, piece in enumerate(chunks(document.text, size, CHUNK_TOKENS))
    )


def learn_document(
    knowledge: Knowledge,
    document: Document,
    state: State,
    config: Config,
    general: Callable[[], Sequence[Example]],
    old: Sequence[Any],
    tell: Tell,
) -> Outcome:
    """Learn one document as a candidate and check it. ``old``: stored probes of earlier documents (with baselines). Writes nothing
    but the candidate's object to the store."""
    started = time.perf_counter()
    model, skill = knowledge.model, knowledge.skill(state)
    preparing = f"writing the study set of {document.title}"
    tell(Event("study", preparing))
    studies = config.learn.learner == DEFAULT or learner_named(config.learn.learner).studies
    how = config.study if studies else config.study.model_copy(update={"writer": "none"})  # probes alone: the rules are enough
    study = build_study(model, skill, document, how, config.learn.seed, lambda done, total: tell(Event("study", preparing, done, total)))
    examples = study_examples(model, document, study, skill, config.study.distillation) if studies else []
    probes = tuple(Probe(document.id, item.prompt, item.completion) for item in study.probes if item.prompt)
    pieces = document_chunks(model, document)
    text = "\n".join([document.title, *(f"{piece.heading}\n{piece.text}" for piece in pieces)])
    before = knowledge.recalls(probes, [Decision()] * len(probes), state)
    give_memory_back()

    refusal, certificate, outcome = "", {}, None
    trials = _trials(knowledge, document, state, config, examples, study, pieces, general, tell)
    knowledge.fresh = {document.id: passages_of(pieces)}  # what the index does not have yet
    for number, trial in enumerate(trials, 1):
        try:
            made = trial()
        except TrainingError as error:
            refusal = str(error)
            certificate = certify(knowledge, [{"id": document.id}], config, started, {}, {}, {}, refusal, number)
            continue
        give_memory_back()
        after = made.state
        tell(Event("check", f"asking what {document.title} taught and what was known before"))
        extra = {document.id: text}
        decisions = [knowledge.decide(probe.question, after, extra) for probe in probes]
        scores = knowledge.recalls(probes, decisions, after)
        learned = {"recall_before": _mean(before), "recall_after": _mean(scores), "probes": len(probes), "items": kinds(study.train)}
        kept = check_kept(knowledge, state, after, extra, old, made.adapter, skill)
        refusal = refusal_of(config, kept) or _not_learned(config, learned)
        certificate = certify(knowledge, [{"id": document.id}], config, started, made.cost, learned, kept, refusal, number)
        outcome = Outcome(after, pieces, probes, tuple(scores), study, certificate, refusal)
        give_memory_back()
        if not refusal:
            return outcome
        tell(Event("note", f"attempt {number} of {len(trials)}: {refusal}"))
    return outcome or Outcome(state, pieces, probes, (), study, certificate, refusal)


@dataclass(frozen=True)
class Made:
    """What a trial made: the state with it, the adapter where it is one, and what it cost."""

    state: State
    adapter: Adapter | None
    cost: dict[str, Any]


def _trials(
    knowledge: Knowledge, document: Document, state: State, config: Config, examples: Sequence[Example], study: StudySet,
    pieces: Sequence[Chunk], general: Callable[[], Sequence[Example]], tell: Tell,
) -> list[Callable[[], Made]]:  # fmt: skip
    """The ways in which a document is tried to be learned, one after another; each raises TrainingError when it had no effect."""
    if config.learn.learner != DEFAULT:
        return [partial(learn_lesson, knowledge, document, state, config, examples, study, pieces, tell)]

    def trial(attempt: Attempt, place: ActiveAdapter) -> Made:
        rest = state.with_adapters([item for item in state.adapters if item.name != place.name])
        start, memory = (knowledge.adapter(place.digest), state.retention.get(place.name)) if place.digest else (None, None)
        every = config.retention.refresh_after
        refresh = start is not None and every > 0 and len(place.documents) % every == every - 1
        candidate = train_candidate(
            knowledge, document.id, document.title, examples, config, attempt, rest, general, tell, start, memory, refresh
        )  # fmt: skip
        adapter = candidate.adapter.scaled(attempt.scale) if attempt.scale != 1.0 else candidate.adapter
        candidate = replace(candidate, adapter=adapter)
        after = with_candidate(knowledge, rest, replace(place, documents=(*place.documents, document.id)), candidate)
        return Made(after, adapter, cost_of(candidate))

    return [partial(trial, attempt, place) for attempt, place in attempts_of(knowledge, document, state, config)]


def learn_lesson(
    knowledge: Knowledge, document: Document, state: State, config: Config, examples: Sequence[Example], study: StudySet,
    pieces: Sequence[Chunk], tell: Tell,
) -> Made:  # fmt: skip
    """Learn a document by the configured learner, which is not the default one. Raises TrainingError, LearnerError."""
    learner = learner_named(config.learn.learner)
    before = [item for item in state.adapters if item.learner == learner.name and document.id not in item.documents]
    shared = learner.form == "shared"
    lesson = Lesson(
        document=document,
        passages=passages_of(pieces),
        examples=tuple(examples) if learner.studies else (),
        pairs=tuple((item.prompt, item.completion) for item in study.train if item.prompt),
        skill=knowledge.skill(state),
        earlier=tuple(("" if shared else item.documents[0], knowledge.memory(item.digest)) for item in before),
        seed=config.learn.seed,
    )

    def told(doing: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        tell(Event("train", f"{document.title}: {doing}" if doing else document.title, done, total, numbers))

    learned = learner.learn(knowledge.model, lesson, config, told)
    documents = (*(before[0].documents if shared and before else ()), document.id)
    name = learner.name if shared else f"{document.id}.{learner.name}"
    item = ActiveAdapter(name, knowledge.keep(learned.memory), 1.0, documents, learner.name)
    after = state.with_adapters([*(other for other in state.adapters if other.name != name), item])
    adapter = learned.memory if isinstance(learned.memory, Adapter) else None
    values = learned.memory.tensors.values()
    sizes = {"parameters": sum(tensor.numel() for tensor in values), "bytes": knowledge.store.path(item.digest).stat().st_size}
    return Made(after, adapter, {**sizes, **learned.cost})


def train_candidate(
    knowledge: Knowledge, name: str, title: str, examples: Sequence[Example], config: Config, attempt: Attempt, state: State,
    general: Callable[[], Sequence[Example]], tell: Tell, start: Adapter | None = None, memory: str | None = None,
    refresh: bool = False,
) -> Candidate:  # fmt: skip
    """Train an adapter on top of the state's study skill, protected as the configuration and the attempt say.

    ``name`` is the task's, by which retention methods tell what is learned now from what was learned before.
    ``title`` is what progress is told of; ``start`` is the adapter that goes on, in its own shape, with the ``memory`` (digest) of its
    retention methods, which with ``refresh`` is measured anew. Raises TrainingError."""
    learn = config.learn.model_copy(update={"learning_rate": config.learn.learning_rate * attempt.learning_rate})
    if start is not None and start.spec.sites != sites_of(knowledge.model, learn):
        start = None  # other layers are configured now
    if start is not None:
        learn = learn.model_copy(update={"rank": start.spec.rank, "alpha": start.spec.scale * start.spec.rank})
    protection = config.retention.model_copy(
        update={"kl": config.retention.kl.model_copy(update={"weight": config.retention.kl.weight * attempt.kl})}
    )
    names = protection.methods or (["replay"] if config.learn.adapter_per == "domain" else [])
    names = [*names, *(["kl"] if attempt.kl > 1 and "kl" not in names else [])]
    own = [item for item in state.adapters if item.learner == DEFAULT]
    earlier = [knowledge.adapter(item.digest).tensors for item in own] if "olora" in names else []
    methods = build(names, protection, Resources(general() if "kl" in names else (), earlier, config.learn.seed))
    known = load_memory(knowledge.store, memory) if memory and start is not None else {}
    for method in methods:
        if method.name in known:
            method.load_state_dict(known[method.name])

    def on_step(progress: Progress) -> None:
        rate = progress.tokens / max(progress.seconds, 1e-9)
        fields = {"loss": progress.loss, "tokens_per_second": rate, "tokens": progress.tokens}
        tell(Event("train", title, progress.step, progress.steps, fields))

    skill = knowledge.skill(state)
    tensors = start.tensors if start else None
    return train_adapter(
        knowledge.model, name, examples, learn, skill=skill, retention=methods, start=tensors, on_step=on_step, refresh=refresh
    )


def attempts_of(knowledge: Knowledge, document: Document, state: State, config: Config) -> list[tuple[Attempt, ActiveAdapter]]:
    """How, and into which adapter, a document is tried to be learned, one after another: an adapter of its own, or the one that its
    domain goes on with, and where that can take no more, a new one for the domain."""
    attempts = ATTEMPTS[: config.gate.attempts]
    if config.learn.adapter_per == "document":
        return [(attempt, ActiveAdapter(document.id, "")) for attempt in attempts]
    fresh = ActiveAdapter(shared_name(document.domain, {item.name for item in state.adapters}), "")
    domain_of = {record.id: record.domain for record in knowledge.ledger.documents()}
    growing = [
        item for item in state.adapters
        if item.weight and item.learner == DEFAULT and item.name not in item.documents
        and {domain_of[key] for key in item.documents} == {document.domain}
        and knowledge.whole(item)
    ]  # fmt: skip
    if not growing:
        return [(attempt, fresh) for attempt in attempts]
    return [*((attempt, growing[-1]) for attempt in attempts), (ATTEMPTS[0], fresh)]


def with_candidate(knowledge: Knowledge, rest: State, place: ActiveAdapter, candidate: Candidate) -> State:
    """The state with a candidate, stored as the adapter of ``place``, beside those of ``rest``, and what its methods remember."""
    item = replace(place, digest=knowledge.keep(candidate.adapter))
    remembers = {item.name: keep_memory(knowledge.store, candidate.memory)} if candidate.memory else {}
    return rest.with_adapters([*rest.adapters, item], remembers)


def shared_name(domain: str, taken: Collection[str]) -> str:
    """A free name for the shared adapter of a domain: "shared-law", "shared-law-2" ..."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", domain).strip("-._")[:40]
    first = f"shared-{words}" if words else "shared"
    return next(name for name in (first, *(f"{first}-{number}" for number in range(2, len(taken) + 3))) if name not in taken)


def check_kept(
    knowledge: Knowledge,
    before: State,
    after: State,
    extra: Mapping[str, str],
    old: Sequence[Any],
    adapter: Adapter | None,
    skill: Adapter | None,
) -> dict[str, Any]:
    """What earlier documents' probes and the control set score under ``after``, compared with ``before``.

    A prompt that is routed to the same adapters as before has the same input and so the same answer: only those whose route changed
    are asked again. ``kl`` and ``always_on_perplexity`` say what the new adapter would do to general text if it were never routed away.
    """
    model, control = knowledge.model, load_control()
    old_probes = [Probe(item.document, item.question, item.answer) for item in old]
    was = [bool(item.baseline) for item in old]
    routes = [knowledge.decide(probe.question, after, extra) for probe in old_probes]
    changed = [n for n, probe in enumerate(old_probes) if routes[n].key != knowledge.decide(probe.question, before).key]
    now = list(was)
    for number, score in zip(
        changed, knowledge.recalls([old_probes[n] for n in changed], [routes[n] for n in changed], after), strict=True
    ):
        now[number] = score

    base = base_control(knowledge)
    questions = [Probe("", item.question, item.answer, tuple(item.aliases)) for item in control.questions]
    control_routes = [knowledge.decide(probe.question, after, extra) for probe in questions]
    away = [n for n, decision in enumerate(control_routes) if decision.documents]
    right = list(base["right"])
    for number, score in zip(away, knowledge.recalls([questions[n] for n in away], [control_routes[n] for n in away], after), strict=True):
        right[number] = score
    text_routes = [knowledge.decide(text, after, extra) for text in control.texts]
    routed_texts = any(decision.documents for decision in text_routes)
    perplexity_after = base["perplexity"]
    if routed_texts:
        perplexity_after = _routed_perplexity(knowledge, control.texts, text_routes, after)
    kept: dict[str, Any] = {
        "old_probes": len(old_probes),
        "old_probes_asked_again": len(changed),
        "old_recall_before": _mean(was) if was else None,
        "old_recall_after": _mean(now) if now else None,
        "forgetting": (sum(was) - sum(now)) / sum(was) if sum(was) else 0.0 if was else None,
        "control_perplexity_before": base["perplexity"],
        "control_perplexity_after": perplexity_after,
        "perplexity_rise": perplexity_after / base["perplexity"] - 1,
        "control_accuracy_before": _mean(base["right"]),
        "control_accuracy_after": _mean(right),
        "control_questions_routed": len(away),
    }
    if adapter is not None:
        always = inject([*([(skill, 1.0)] if skill else []), (adapter, 1.0)], model.dtype, model.device)
        kept |= {"kl": mean_kl(model, control.texts[:4], always), "always_on_perplexity": perplexity(model, control.texts, always)}
    return kept


def base_control(knowledge: Knowledge) -> dict[str, Any]:
    """The base model's control scores, measured once per workspace and model."""
    key = f"control:{knowledge.model.fingerprint[:16]}:{knowledge.model.dtype}"
    known = knowledge.ledger.meta().get(key)
    if known is None:
        control = load_control()
        questions = [Probe("", item.question, item.answer, tuple(item.aliases)) for item in control.questions]
        answers = knowledge.answers([probe.question for probe in questions], [Decision()] * len(questions), State())
        right = [contains(answer, probe.answers) for answer, probe in zip(answers, questions, strict=True)]
        known = {"perplexity": perplexity(knowledge.model, control.texts), "right": right}
        knowledge.ledger.set_meta(key, known)
    return dict(known)


def _routed_perplexity(knowledge: Knowledge, texts: Sequence[str], routes: Sequence[Decision], state: State) -> float:
    import math

    from retain.data.chat import tokenise

    total = count = 0.0
    for text, decision in zip(texts, routes, strict=True):
        tokens = len(tokenise(knowledge.model.tokenizer, text, literal=True))
        total += math.log(perplexity(knowledge.model, [text], knowledge.injection(decision, state))) * tokens
        count += tokens
    return math.exp(total / count)


def refusal_of(config: Config, kept: Mapping[str, Any]) -> str:
    """Why the gate refuses what :func:`check_kept` found; empty when it does not."""
    gate = config.gate
    if kept["forgetting"] is not None and kept["forgetting"] > gate.max_forgetting:
        return f"earlier documents would lose {kept['forgetting']:.1%} of their answers, the limit is {gate.max_forgetting:.1%}"
    if kept["perplexity_rise"] > gate.max_perplexity_rise:
        return f"control perplexity would rise {kept['perplexity_rise']:.1%}, the limit is {gate.max_perplexity_rise:.1%}"
    return ""


def _not_learned(config: Config, learned: Mapping[str, Any]) -> str:
    if learned["probes"] and learned["recall_after"] < learned["recall_before"] + config.gate.min_recall_gain:
        return f"recall of the document would go from {learned['recall_before']:.0%} to {learned['recall_after']:.0%}"
    return ""


def cost_of(candidate: Candidate) -> dict[str, Any]:
    """What training a candidate cost, for its certificate."""
    report, adapter = candidate.report, candidate.adapter
    return {
        "training_seconds": round(report.seconds, 3),
        "tokens": report.tokens,
        "supervised_tokens": report.supervised,
        "steps": report.steps,
        "parameters": adapter.parameter_count,
        "bytes": adapter.byte_count,
        "first_loss": report.losses[0],
        "last_loss": report.losses[-1],
        "parameter_change": report.change,
    }


def certify(
    knowledge: Knowledge, documents: Sequence[Mapping[str, Any]], config: Config, started: float, cost: Mapping[str, Any],
    learned: Mapping[str, Any], kept: Mapping[str, Any], refusal: str, attempts: int, **facts: Any,
) -> dict[str, Any]:  # fmt: skip
    """The sealed certificate of a checked candidate, with what its training ``cost`` (nothing: it failed). ``documents`` begin with
    their ``id``; ``started`` is the ``time.perf_counter()`` of the beginning; ``facts`` are added as they are."""
    from importlib import metadata

    cost = {"seconds": round(time.perf_counter() - started, 3), **cost}
    return seal(
        {
            "documents": [dict(document) for document in documents],
            "model": knowledge.model.name,
            "fingerprint": knowledge.model.fingerprint,
            "learner": config.learn.learner,
            "settings": config.learn.model_dump(mode="json")
            | {"retention": list(config.retention.methods), "study": study_settings(config)},
            "cost": dict(cost),
            "learned": dict(learned),
            "kept": dict(kept),
            "gate": {
                "limits": config.gate.model_dump(mode="json"),
                "verdict": "refused" if refusal else "passed",
                "attempts": attempts,
                "reason": refusal,
            },
            "machine": machine_facts(),
            "versions": {name: metadata.version(name) for name in ("retain", "torch", "transformers")},
            **facts,
        }
    )


def study_settings(config: Config) -> dict[str, Any]:
    """The study section in force; of a teacher that was asked the model's name, and never its address."""
    asked = {"teacher": config.study.teacher.model} if config.study.writer == "teacher" else {}
    return config.study.model_dump(mode="json", exclude={"teacher"}) | asked


def seal(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Add the time and the SHA-256 over everything else, so that a changed certificate shows."""
    dated = {**certificate, "created_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    return {**dated, "hash": digest_of(to_json(dated).encode())}


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
