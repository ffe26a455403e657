"""Training a hypernetwork on a model that can read: adapters of documents that it never saw answer better than every control."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import FIRST, LAST, PERSON, _value

from retain.adapters import Adapter, inject
from retain.config import Config, load_config
from retain.config.values import parse_yaml
from retain.data import DataError, Document, question_example
from retain.learners.base import LearnerError, Lesson
from retain.learners.doc2lora import Doc2Lora, HypernetworkSettings, Progress, Run, Trained, load_network, train_hypernetwork
from retain.learners.doc2lora.reading import chunk_tokens, layer_states
from retain.learners.doc2lora.sources import Asked, Fact, Source, haystacks
from retain.learners.doc2lora.teacher import Teacher
from retain.lm.decoder import DecoderLM
from retain.training.loop import TrainingError
from retain.workspace.continual import ContinualLM

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = ("home", "job")


def person(draw: random.Random) -> dict[str, Fact]:
    """A person of the tiny model's world, in two facts by their kind."""
    name, facts = f"{draw.choice(FIRST)} {draw.choice(LAST)}", {}
    for key in draw.sample(KEYS, len(KEYS)):
        answer = _value(key, draw)
        sentence, *questions = [text.format(s=name, a=answer) for text in (PERSON[key].sentence, *PERSON[key].questions)]
        facts[key] = Fact(sentence, tuple(questions[:2]), answer)
    return facts


def world(draw: random.Random) -> list[Fact]:
    """The same as a list, in the order of the text."""
    return list(person(draw).values())


def settings(out: Path, **changes: Any) -> HypernetworkSettings:
    """Settings for the tiny model; ``changes`` by section."""
    found: dict[str, Any] = {
        "out": out,
        "precision": "float32",
        "network": {"preset": "small"},
        "data": {"invented": 240, "held_out_share": 0.07},
        "training": {
            "steps": 150, "batch": 16, "learning_rate": 2e-3, "warmup": 0.07, "weight_decay": 0.0, "beta2": 0.98, "labels": "given",
        },
        "evaluation": {"every": 0, "texts": 16, "answer_tokens": 8, "depths": [0.0, 1.0], "haystack_tokens": 60},
    }  # fmt: skip
    for section, values in changes.items():
        found[section] = {**found[section], **values} if isinstance(values, dict) and section in found else values
    return HypernetworkSettings.model_validate(found)


@pytest.fixture(scope="module")
def trained(tiny_model: DecoderLM, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A hypernetwork after a short training on people that were made up."""
    out = tmp_path_factory.mktemp("hypernetwork")
    return train_hypernetwork(settings(out), model=tiny_model, world=world, control=["The mill was built of grey stone."])


def likelihood(model: DecoderLM, facts: Sequence[Fact], *adapters: Adapter) -> float:
    """Log-likelihood of the right answers, per token, without any text in the prompt."""
    examples = [question_example(model.tokenizer, question, fact.answer) for fact in facts for question in fact.questions]
    sums, counts = model.sequence_log_likelihood(
        [example.tokens for example in examples],
        [example.supervised for example in examples],
        inject([(adapter, 1.0) for adapter in adapters], model.dtype),
    )
    return sum(sums) / sum(counts)


def text_of(facts: Sequence[Fact]) -> str:
    return " ".join(fact.sentence for fact in facts)


@pytest.fixture
def learn(trained: Trained, tiny_model: DecoderLM) -> Callable[[str], Adapter]:
    """The learner with the trained network."""
    config, learner = Config.model_validate({"doc2lora": {"weights": trained.network}}), Doc2Lora()

    def made(text: str) -> Adapter:
        found = learner.learn(tiny_model, Lesson(Document.from_text(text, text.split(".")[0]), ()), config, lambda *_: None)
        assert isinstance(found.memory, Adapter)
        return found.memory

    return made


def test_adapters_of_unseen_documents_answer(trained: Trained) -> None:
    arms = trained.measured["arms"]
    own = arms["own"]
    assert arms["context"]["accuracy"] > 0.9, "the teacher was meant to be able to read"
    for control, margin in (("base", 1.0), ("wrong", 1.0), ("bias", 0.5)):
        assert own["log_likelihood"] > arms[control]["log_likelihood"] + margin, (control, arms)
        assert own["accuracy"] > arms[control]["accuracy"] + 0.5, (control, arms)


def test_what_else_is_measured(trained: Trained) -> None:
    needle = trained.measured["needle"]
    assert [row["depth"] for row in needle] == [0.0, 1.0] and all(row["tokens"] >= 50 and row["chunks"] == 1 for row in needle)
    assert all({"base", "own", "context"} <= set(row) for row in needle)
    control = trained.measured["control"]
    assert set(control) == {"base", "bias", "own"} and all(value > 1 for value in control.values())
    assert trained.measured["texts"] == 16 and trained.measured["questions"] == 64
    _, about = load_network(trained.network)
    assert about["steps"] == 150 and about["measured"] == trained.measured and about["settings"]["training"]["batch"] == 16


def test_the_learner_learns_documents_one_beside_the_other(learn: Callable[[str], Adapter], tiny_model: DecoderLM) -> None:
    """One pass for each document. A second one beside the first takes something away, and does not take its place."""
    draw = random.Random(5)
    people = [world(draw) for _ in range(8)]
    adapters = [learn(text_of(facts)) for facts in people]

    def mean(*others: int, own: bool) -> float:
        """Over all people, with the adapters of those who come so many places later, and the own one."""
        used = [[*([adapters[n]] if own else []), *(adapters[(n + other) % len(people)] for other in others)] for n in range(len(people))]
        return sum(likelihood(tiny_model, facts, *active) for facts, active in zip(people, used, strict=True)) / len(people)

    nothing, alone, another, beside, two = mean(own=False), mean(own=True), mean(1, own=False), mean(1, own=True), mean(1, 2, own=False)
    assert alone > max(nothing, another) + 1.0, (nothing, alone, another)
    assert beside > max(nothing, two) + 0.5, (nothing, beside, two)
    assert learn(text_of(people[0])).digest == adapters[0].digest


def test_in_a_workspace(trained: Trained, tiny_model: DecoderLM, tmp_path: Path) -> None:
    """Documents that the network never saw are learned in a transaction, answered, kept one beside the other, and forgotten."""
    draw = random.Random(11)
    people = [world(draw) for _ in range(3)]
    documents = [Document.from_text(text_of(facts), facts[0].sentence.split(" ")[0]) for facts in people]
    changes = {
        "doc2lora": {"weights": trained.network}, "study": {"writer": "none", "held_out_fraction": 0.5},
        "route": {"least_bits": 2.0, "threshold": 0.4}, "model": {"precision": "float32"}, "gate": {"attempts": 1},
    }  # fmt: skip
    with ContinualLM.open(tmp_path / "work", tiny_model, learner="doc2lora", config=load_config(None, changes)) as lm:

        def right(number: int) -> float:
            asked = [(question, fact.answer) for fact in people[number] for question in fact.questions]
            return sum(answer in lm.ask(question, retrieval=False).text for question, answer in asked) / len(asked)

        unknown = [right(number) for number in range(3)]
        committed = [lm.learn(document).status == "committed" for document in documents]
        learned = [right(number) for number in range(3)]
        assert sum(committed) >= 2, "two of three unseen documents pass the gate at least"
        gained = [after - before for after, before, kept in zip(learned, unknown, committed, strict=True) if kept]
        assert sum(gained) / len(gained) > 0.4, (unknown, learned)
        first = committed.index(True)
        lm.forget(documents[first].id)
        assert right(first) == unknown[first], "a forgotten document is still answered"
        assert [right(number) for number in range(3) if number != first] == [learned[number] for number in range(3) if number != first]
        assert lm.verify().ok


def test_a_document_in_chunks_answers_from_each(trained: Trained, tiny_model: DecoderLM) -> None:
    """One fact in each chunk: the factors of both, one below another, answer for both."""
    network, _ = load_network(trained.network)
    draw, found = random.Random(6), []
    for _ in range(8):
        facts = world(draw)
        tokens = chunk_tokens(tiny_model, network.config, text_of(facts), 2)
        assert len(tokens) == 2
        written = network(*layer_states(tiny_model, tokens, network.places.layers))
        whole = {name: tensor.contiguous() for name, tensor in network.tensors(written, network.bias).items()}
        adapter = Adapter(whole, network.spec(3 * network.config.rank, {}))
        other = Adapter({name: tensor.contiguous() for name, tensor in network.tensors(network.bias).items()}, network.spec(4, {}))
        found.append([likelihood(tiny_model, facts), likelihood(tiny_model, facts, other), likelihood(tiny_model, facts, adapter)])
    base, bias, own = torch.tensor(found).mean(0).tolist()
    assert own > base + 1.0 and own > bias + 0.2, (base, bias, own)


def test_a_resumed_training_is_the_same_bit_for_bit(tiny_model: DecoderLM, tmp_path: Path) -> None:
    short = {
        "steps": 6,
        "batch": 4,
        "accumulation": 2,
        "questions": 2,
        "chunks": [1, 2],
        "companions": [0, 1],
        "save_every": 3,
        "tell_every": 1,
    }
    few = {"texts": 2, "questions": 1, "answer_tokens": 2, "depths": [], "every": 2}

    def run(name: str) -> Run:
        made = settings(tmp_path / name, network={"width": 16, "latents": 4}, data={"invented": 7, "held_out_share": 0.3}, training=short,
                        evaluation=few)  # fmt: skip
        return Run(made, tiny_model, world=world)

    class Interrupted(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Interrupted

    straight = run("straight").train()
    with pytest.raises(Interrupted):
        run("resumed").train(stop)
    told: list[int] = []
    resumed = run("resumed").train(lambda progress: told.append(progress.step), resume=True)
    assert told[0] == 5 and resumed.steps == 6, "it was meant to go on from the last checkpoint, which is of step 4"
    assert (tmp_path / "straight/hypernetwork.safetensors").stat().st_size > 0
    for name in ("checkpoint.safetensors", "hypernetwork.safetensors"):
        first, second = (load_file(tmp_path / kind / name) for kind in ("straight", "resumed"))
        assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first), name
    logs = [[json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()] for kind in ("straight", "resumed")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0] if "measured" in row] == [2, 4, 6]
    assert straight.measured == resumed.measured and straight.loss == resumed.loss


def test_what_cannot_be_resumed(tiny_model: DecoderLM, tmp_path: Path) -> None:
    short = {"steps": 2, "batch": 2, "questions": 1, "save_every": 1}
    few = {"texts": 1, "questions": 1, "answer_tokens": 2, "depths": []}
    small = {"network": {"width": 16, "latents": 4}, "evaluation": few}

    def run(**changes: Any) -> Run:
        return Run(settings(tmp_path, **{**small, "data": {"invented": 6}, "training": short, **changes}), tiny_model, world=world)

    with pytest.raises(LearnerError, match="holds no checkpoint"):
        run().train(resume=True)
    run().train()
    with pytest.raises(LearnerError, match="holds a training already"):
        run().train()
    with pytest.raises(LearnerError, match=r"training\.learning_rate 0\.002, not 0\.1"):
        run(training={**short, "learning_rate": 0.1}).train(resume=True)
    with pytest.raises(LearnerError, match=r"network\.width 16, not 8"):
        run(network={"width": 8, "latents": 4}).train(resume=True)
    with pytest.raises(LearnerError, match="other training data"):
        run(data={"invented": 9}).train(resume=True)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LearnerError, match="damaged"):
        run().train(resume=True)


def test_a_loss_that_is_no_number_stops(tiny_model: DecoderLM, tmp_path: Path) -> None:
    run = Run(settings(tmp_path, data={"invented": 6}, training={"batch": 2}), tiny_model, world=world)
    run.trainer.network.head[0].data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"became nan at step 1: lower training\.learning_rate"):
        run.train()
    assert not list(tmp_path.iterdir())


def test_the_teacher_reads(tiny_model: DecoderLM) -> None:
    facts = world(random.Random(1))
    source = Source(text_of(facts), tuple(Asked(question, fact.answer) for fact in facts for question in fact.questions), "a.jsonl, line 3")
    given = Teacher(tiny_model, "given", 8, 8).lessons(source)
    for lesson, asked in zip(given, source.questions, strict=True):
        wanted = [token for token, marked in zip(lesson.example.tokens, lesson.example.supervised, strict=True) if marked]
        assert lesson.tokens.shape == lesson.shares.shape == (len(wanted), 8)
        assert lesson.tokens[:, 0].tolist() == wanted, "with the text before it the model was meant to be sure"
        torch.testing.assert_close(lesson.shares.sum(1), torch.ones(len(wanted)))
        assert lesson.answer == asked.answer and len(lesson.example.tokens) < 40, "the student was meant to see no text"
    bare = Source(source.text, tuple(asked._replace(answer=None) for asked in source.questions))
    own = Teacher(tiny_model, "own", 8, 8).lessons(bare)
    assert [lesson.answer for lesson in own] == [lesson.answer for lesson in given]
    hard = Teacher(tiny_model, "hard", 8, 8).lessons(source)[0]
    assert hard.tokens.shape[1] == 1 and bool((hard.shares == 1).all())
    long = replace(source, text=" ".join([source.text] * 120))
    for labels in ("given", "own"):
        with pytest.raises(DataError, match=r"a\.jsonl, line 3: the text and a question have \d+ tokens"):
            Teacher(tiny_model, labels, 8, 8).lessons(long)  # type: ignore[arg-type]


def test_needles_are_where_they_should_be() -> None:
    for hay in haystacks(world, lambda text: len(text.split()), 80, (0.0, 0.5, 1.0), 3):
        place = hay.text.index(hay.fact.sentence) / (len(hay.text) - len(hay.fact.sentence))
        assert abs(place - hay.depth) < 0.1 and 80 <= len(hay.text.split()) < 100
        assert hay.text.count(hay.fact.sentence) == 1 and hay.fact.answer in hay.text


FRAMES = ("What is {}?", "Tell me {}.", "Say {}.", "{}?", "Name {}.", "Tell me what {} is.", "In what is {}?", "{}.")
TASKS = {
    "home": ("the home of the person", "the home", "where the person lives", "the town"),
    "job": ("the job of the person", "the job", "which trade the person follows", "the trade"),
}


def task_files(place: Path) -> dict[str, Path]:
    """Tasks as JSON lines, some of their descriptions held out. A question is a text about a person, without a question."""
    draw = random.Random(0)
    described = [(key, frame.format(phrase)) for key, phrases in TASKS.items() for phrase in phrases for frame in FRAMES]
    draw.shuffle(described)
    files = {"train": place / "train.jsonl", "held_out": place / "held_out.jsonl"}
    for name, chosen in (("train", described[12:]), ("held_out", described[:12])):
        rows = []
        for key, description in chosen * (4 if name == "train" else 1):
            facts = person(draw)
            rows.append({"description": description, "question": text_of([*facts.values()]), "answer": facts[key].answer})
        files[name].write_text("\n".join(map(json.dumps, rows)))
    return files


def test_descriptions_of_tasks_become_adapters(tiny_model: DecoderLM, tmp_path: Path) -> None:
    """Which fact of the text in the prompt is wanted stands in the description alone, and so in the adapter alone."""
    made = settings(
        tmp_path / "out", mode="text", data=task_files(tmp_path),
        training={"steps": 90, "batch": 8, "questions": 3, "labels": "hard"},
    )  # fmt: skip
    arms = train_hypernetwork(made, model=tiny_model).measured["arms"]
    assert set(arms) == {"base", "own", "wrong", "bias", "random", "context"}
    for control in ("base", "bias", "random"):
        assert arms["own"]["log_likelihood"] > arms[control]["log_likelihood"] + 0.05, (control, arms)
        assert arms["own"]["accuracy"] > arms[control]["accuracy"], arms


def test_the_documented_settings_are_valid() -> None:
    blocks = re.findall(r"^```yml\n(.*?)^```$", (ROOT / "docs/learners/doc2lora.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        HypernetworkSettings.model_validate(parse_yaml(block))
