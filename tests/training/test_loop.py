"""The training loop: it learns new facts, does the same thing twice, and says so when training goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.tiny import Question, known_questions, tiny_questions
from torch import Tensor

from retain.adapters import inject_trainable, new_lora, select_sites
from retain.data.examples import Example, prompt_tokens, question_example
from retain.lm.decoder import DecoderLM
from retain.lm.generation import Sampling, generate
from retain.retention.base import Batch, Params, Retention, Task
from retain.training.batches import plan
from retain.training.loop import Progress, TrainingError, TrainingReport, TrainingSettings, rate_at, train
from retain.training.objective import AdapterObjective

RANK, SCALE = 8, 2.0
SETTINGS = TrainingSettings(learning_rate=5e-3, epochs=16, batch_tokens=256)
SHORT = TrainingSettings(learning_rate=5e-3, epochs=1, batch_tokens=128)


def asked(model: DecoderLM, facts: Sequence[Question], wordings: Sequence[int]) -> list[Example]:
    return [question_example(model.tokenizer, fact.wordings[number], fact.answer) for fact in facts for number in wordings]


def fresh(model: DecoderLM, layers: str | int = "all") -> tuple[tuple[str, ...], Params]:
    sites = select_sites(model, layers)
    return sites, new_lora(model, sites, RANK, RANK * SCALE, 0)


def learn(
    model: DecoderLM, examples: Sequence[Example], settings: TrainingSettings, methods: Sequence[Retention] = (), layers: str | int = "all"
) -> tuple[Params, TrainingReport]:
    sites, params = fresh(model, layers)
    return params, train(Task("t", examples, AdapterObjective(model, sites, SCALE)), params, settings, methods)


def recall(model: DecoderLM, facts: Sequence[Question], wording: int, params: Params | None = None) -> float:
    sites = tuple(sorted({name.rsplit(".", 2)[0] for name in params or {}}))
    injection = inject_trainable(params, sites, SCALE, model.dtype) if params else None
    prompts = [prompt_tokens(model.tokenizer, fact.wordings[wording]) for fact in facts]
    answers = generate(model, prompts, Sampling(max_tokens=12), injection)
    return sum(fact.answer in answer for fact, answer in zip(facts, answers, strict=True)) / len(facts)


@pytest.mark.parametrize("layers", ["all", "last-half"])
def test_new_facts_are_learned_from_some_wordings_and_answered_in_another(tiny_model: DecoderLM, layers: str) -> None:
    facts = tiny_questions()[:8]
    weights = {name: tensor.clone() for name, tensor in tiny_model.parameters().items()}
    before = recall(tiny_model, facts, 0)
    assert before <= 0.25, "these facts were meant to be unknown"
    params, report = learn(tiny_model, asked(tiny_model, facts, (1, 2, 3)), SETTINGS, layers=layers)
    assert recall(tiny_model, facts, 0, params) >= before + 0.5
    assert report.losses[-1] < 0.2 * report.losses[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_model.parameters().items()), "the base was written to"


def test_the_fixture_knows_what_it_was_taught_and_reads(tiny_model: DecoderLM) -> None:
    assert recall(tiny_model, known_questions(), 1) > 0.8
    facts = tiny_questions()
    prompts = [prompt_tokens(tiny_model.tokenizer, fact.wordings[0], context=fact.sentence) for fact in facts]
    answers = generate(tiny_model, prompts, Sampling(max_tokens=12))
    assert sum(fact.answer in answer for fact, answer in zip(facts, answers, strict=True)) / len(facts) > 0.6


def test_the_report_counts_what_went_through(tiny_model: DecoderLM) -> None:
    examples = asked(tiny_model, tiny_questions(0), (0, 1))
    seen: list[Progress] = []
    sites, params = fresh(tiny_model)
    start = {name: tensor.clone() for name, tensor in params.items()}
    settings = TrainingSettings(epochs=3, batch_tokens=64)
    report = train(Task("t", examples, AdapterObjective(tiny_model, sites, SCALE)), params, settings, on_step=seen.append)
    assert report.tokens == 3 * sum(len(example) for example in examples)
    assert report.supervised == 3 * sum(example.n_supervised() for example in examples)
    assert report.steps == len(report.losses) == len(report.penalties) == len(seen) >= 3
    assert (seen[-1].step, seen[-1].steps, seen[-1].tokens) == (report.steps, report.steps, report.tokens)
    assert not any(tensor.requires_grad for tensor in params.values())
    change = math.sqrt(sum(float((params[name] - start[name]).square().sum()) for name in params))
    assert report.change == pytest.approx(change, rel=1e-6) and report.change > 0


def test_the_same_seed_gives_the_same_bytes(tiny_model: DecoderLM) -> None:
    examples = asked(tiny_model, tiny_questions(0), (0, 1, 2))
    one, first = learn(tiny_model, examples, SHORT)
    two, second = learn(tiny_model, examples, SHORT)
    assert first.losses == second.losses
    assert all(torch.equal(one[name], two[name]) for name in one)
    other, _ = learn(tiny_model, examples, TrainingSettings(**{**vars(SHORT), "seed": 1}))
    assert any(not torch.equal(one[name], other[name]) for name in one)

    sites, params = fresh(tiny_model)
    backwards = dict(reversed(params.items()))
    train(Task("t", examples, AdapterObjective(tiny_model, sites, SCALE)), backwards, SHORT)
    assert all(torch.equal(one[name], backwards[name]) for name in one), "the order of the parameters matters"


class Recorder(Retention):
    """Replays fixed examples, adds a term and notes what it is shown."""

    def __init__(self, stored: list[Example]) -> None:
        self.stored = stored
        self.calls: list[str] = []
        self.expected: list[float] = []

    def before_task(self, task: Task, params: Params) -> None:
        self.calls.append("before")

    def replay(self, n: int) -> list[Example]:
        return self.stored

    def loss(self, batch: Batch, params: Params) -> Tensor:
        self.calls.append("loss")
        assert list(batch.replayed) == self.stored
        self.expected.append(float(batch.objective.loss(self.stored, params).detach()) + 0.25)
        return torch.tensor(0.25)

    def adjust_gradients(self, params: Params, gradients: Params) -> None:
        self.calls.append("gradients")
        self.before = {name: tensor.clone() for name, tensor in params.items()}
        assert set(gradients) == set(params)

    def adjust_update(self, params: Params, previous: Params) -> None:
        self.calls.append("update")
        assert all(torch.equal(previous[name], self.before[name]) for name in params)
        assert any(not torch.equal(previous[name], params[name]) for name in params)


def test_methods_are_called_in_order_and_replay_is_a_mean_of_its_own(tiny_model: DecoderLM) -> None:
    examples = asked(tiny_model, tiny_questions(0), (0, 1))
    method = Recorder(asked(tiny_model, known_questions()[:3], (0,)))
    _, report = learn(tiny_model, examples, SHORT, [method])
    assert method.calls == ["before", *report.steps * ["loss", "gradients", "update"]]
    assert report.penalties == pytest.approx(method.expected, rel=1e-4, abs=1e-5)
    assert report.tokens == sum(len(example) for example in examples) + report.steps * sum(len(example) for example in method.stored)


def test_an_update_given_back_by_a_method_is_no_training(tiny_model: DecoderLM) -> None:
    class Undo(Retention):
        def adjust_update(self, params: Params, previous: Params) -> None:
            for name, tensor in params.items():
                tensor.copy_(previous[name])

    with pytest.raises(TrainingError, match="changed nothing"):
        learn(tiny_model, asked(tiny_model, tiny_questions(0), (0,)), SHORT, [Undo()])


def test_a_learning_rate_of_zero_is_an_error(tiny_model: DecoderLM) -> None:
    with pytest.raises(TrainingError, match="changed nothing"):
        learn(tiny_model, asked(tiny_model, tiny_questions(0), (0,)), TrainingSettings(learning_rate=0.0, epochs=2))


def test_a_loss_that_is_not_a_number_is_an_error(tiny_model: DecoderLM) -> None:
    sites, params = fresh(tiny_model)
    params[f"{sites[0]}.lora_B.weight"].fill_(math.nan)
    with pytest.raises(TrainingError, match="became nan at step 1"):
        train(Task("t", asked(tiny_model, tiny_questions(0), (0,)), AdapterObjective(tiny_model, sites, SCALE)), params, SHORT)


def test_a_loss_that_jumps_is_an_error(tiny_model: DecoderLM) -> None:
    wild = TrainingSettings(learning_rate=3.0, epochs=20, batch_tokens=64, spike=1.5, clip=1e9)
    with pytest.raises(TrainingError, match="the loss rose from"):
        learn(tiny_model, asked(tiny_model, tiny_questions(0), (0, 1)), wild)


def test_no_examples_is_an_error(tiny_model: DecoderLM) -> None:
    with pytest.raises(TrainingError, match="no training examples"):
        learn(tiny_model, [], SHORT)


def test_a_site_that_is_never_reached_is_an_error(tiny_model: DecoderLM) -> None:
    sites, params = fresh(tiny_model)
    for half in (".lora_A.weight", ".lora_B.weight"):
        params["model.layers.9.mlp.up_proj" + half] = params["model.layers.3.mlp.up_proj" + half].clone()
    objective = AdapterObjective(tiny_model, (*sites, "model.layers.9.mlp.up_proj"), SCALE)
    with pytest.raises(RuntimeError, match="never reached"):
        train(Task("t", asked(tiny_model, tiny_questions(0), (0,)), objective), params, SHORT)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_an_epoch_has_every_example_once(budget: int) -> None:
    examples = [Example(tuple(range(2 + number % 17)), (False, *[True] * (1 + number % 17)), f"d{number}") for number in range(40)]
    batches = plan(examples, budget, torch.Generator().manual_seed(0))
    assert sorted(example.document for batch in batches for example in batch) == sorted(example.document for example in examples)
    for batch in batches:
        sizes = [len(example) for example in batch]
        assert sizes == sorted(sizes)
        assert sum(sizes) <= budget or len(batch) == 1
    again = plan(examples, budget, torch.Generator().manual_seed(0))
    assert batches == again
    assert budget > 1000 or batches != plan(examples, budget, torch.Generator().manual_seed(1))


def test_the_rate_rises_then_falls() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup=0.1, final_rate=0.1)
    rates = [rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rate_at(0, 1, settings) == 1.0


def test_a_step_in_pieces_is_the_same_step(tiny_model: DecoderLM) -> None:
    examples = asked(tiny_model, tiny_questions()[:8], (0, 1))
    settings = replace(SHORT, batch_examples=8, learning_rate=0.5, optimizer="sgd")  # Adam makes large steps of rounding errors
    whole, one = learn(tiny_model, examples, settings)
    parts, report = learn(tiny_model, examples, replace(settings, accumulation=3))
    assert report.steps == 2 and report.losses == pytest.approx(one.losses, rel=1e-5)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-4, atol=1e-6) for name in whole)


def test_stochastic_gradient_descent_takes_the_plain_step(tiny_model: DecoderLM) -> None:
    examples = asked(tiny_model, tiny_questions()[:2], (0,))
    sites, start = fresh(tiny_model)
    settings = TrainingSettings(learning_rate=0.5, epochs=1, batch_examples=2, warmup=0.0, optimizer="sgd", clip=math.inf)
    moved, report = learn(tiny_model, examples, settings)
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in start.items()}
    loss = AdapterObjective(tiny_model, sites, SCALE).loss(examples, leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert report.steps == 1
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert torch.allclose(moved[name], leaf - 0.5 * gradient, atol=1e-6), name


class Full(AdapterObjective):
    """An objective on a device with room for so many examples at once; ``passes``: how many were in each."""

    room = 2

    def loss(self, examples: Sequence[Example], params: Params) -> Tensor:
        if not hasattr(self, "passes"):
            self.passes: list[int] = []
        self.passes.append(len(examples))
        if len(examples) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().loss(examples, params)


def test_a_full_device_gets_smaller_pieces_and_learns_the_same(tiny_model: DecoderLM, caplog: pytest.LogCaptureFixture) -> None:
    examples = asked(tiny_model, tiny_questions()[:8], (1, 2))
    settings = TrainingSettings(learning_rate=1e-3, epochs=2, batch_examples=8)
    plain, expected = learn(tiny_model, examples, settings)
    assert not caplog.records
    sites, params = fresh(tiny_model)
    objective = Full(tiny_model, sites, SCALE)
    found = train(Task("t", examples, objective), params, settings)
    assert objective.passes[:3] == [8, 4, 2] and set(objective.passes[3:]) == {2}
    assert [record.getMessage() for record in caplog.records] == [
        "task t: out of memory: a step goes through the model in 2 pieces from here on",
        "task t: out of memory: a step goes through the model in 4 pieces from here on",
    ]
    assert found.losses == pytest.approx(expected.losses, abs=1e-4) and found.steps == expected.steps
    assert all(torch.allclose(plain[name], params[name], atol=1e-3) for name in plain)


def test_an_example_without_room_stops(tiny_model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Full, "room", 0)
    sites, params = fresh(tiny_model)
    with pytest.raises(TrainingError, match="no memory for a single example"):
        train(Task("t", asked(tiny_model, tiny_questions()[:4], (1,)), Full(tiny_model, sites, SCALE)), params, SHORT)
