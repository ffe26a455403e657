"""The loss that adapters are trained with: equal to one example at a time, to a pass without a cached prefix, and to transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.tiny import tiny_documents, tiny_questions

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.data.errors import DataError
from retain.data.examples import Example, question_example, text_example
from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed
from retain.retention.base import Params
from retain.training.objective import AdapterObjective

SCALE = 2.0


@pytest.fixture(scope="module")
def examples(tiny_model: DecoderLM) -> list[Example]:
    """Texts, questions and questions below a text, of 16 to 50 tokens, and one that is long enough for the fused attention kernel."""
    found = [text_example(tiny_model.tokenizer, " ".join(2 * [text for _, text in tiny_documents()]))]
    for number, (_, text) in enumerate(tiny_documents()[:3]):
        fact = tiny_questions(number)[0]
        found.append(text_example(tiny_model.tokenizer, text))
        found.append(question_example(tiny_model.tokenizer, fact.wordings[0], fact.answer))
        found.append(question_example(tiny_model.tokenizer, fact.wordings[1], fact.answer, context=text))
    return found


def noisy(model: DecoderLM, sites: tuple[str, ...], seed: int = 0) -> Params:
    """LoRA factors that have an effect, so that both have gradients."""
    generator = torch.Generator().manual_seed(seed)
    fresh = new_lora(model, sites, 4, 4 * SCALE, seed)
    return {name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in fresh.items()}


def gradients(objective: AdapterObjective, batches: Sequence[Sequence[Example]], params: Params, reduction: str) -> tuple[float, Params]:
    """Loss and gradients; "sum" weighs each batch's mean by its share of all supervised tokens."""
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
    whole = sum(example.n_supervised() for batch in batches for example in batch)
    value = 0.0
    for batch in batches:
        loss = objective.loss(batch, leaves)
        if reduction == "sum":
            loss = loss * (sum(example.n_supervised() for example in batch) / whole)
        loss.backward()
        value += float(loss.detach())
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert set(found) == set(params)
    return value, found


def assert_equal(one: tuple[float, Params], other: tuple[float, Params], tolerance: float = 1e-5) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    largest = max(float(gradient.abs().max()) for gradient in other[1].values())
    for name, expected in other[1].items():
        assert float(expected.abs().max()) > 0, name
        assert float((one[1][name] - expected).norm() / expected.norm()) < tolerance, (name, largest)


@pytest.mark.parametrize("layers", ["all", "last-quarter"])
def test_packed_equals_one_by_one(tiny_model: DecoderLM, examples: list[Example], layers: str) -> None:
    sites = select_sites(tiny_model, layers)
    params = noisy(tiny_model, sites)
    objective = AdapterObjective(tiny_model, sites, SCALE)
    assert len({len(example) for example in examples}) > 5 and len(examples[0]) > 192
    packed = gradients(objective, [examples], params, "mean")
    assert_equal(packed, gradients(objective, [[example] for example in examples], params, "sum"))
    assert_equal(packed, gradients(objective, [list(reversed(examples))], params, "mean"))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_cached_prefix_changes_nothing(tiny_model: DecoderLM, examples: list[Example], frozen: bool) -> None:
    sites = select_sites(tiny_model, "last-half")
    params = noisy(tiny_model, sites)
    below = select_sites(tiny_model, "all")
    earlier = [(Adapter(noisy(tiny_model, below, 7), AdapterSpec("lora", "", below, 4, 4 * SCALE)), 0.7)] if frozen else []
    cached = AdapterObjective(tiny_model, sites, SCALE, earlier)
    whole = AdapterObjective(tiny_model, sites, SCALE, earlier, cache_prefix=False)
    assert (cached.start, whole.start) == (2, 0)
    expected = gradients(whole, [examples], params, "mean")
    assert_equal(gradients(cached, [examples], params, "mean"), expected)
    assert_equal(gradients(cached, [examples], params, "mean"), expected)  # the second time from the cache
    assert torch.allclose(cached.base_logits(examples), whole.base_logits(examples), rtol=1e-4, atol=1e-4)
    if frozen:
        alone = gradients(AdapterObjective(tiny_model, sites, SCALE), [examples], params, "mean")
        assert abs(alone[0] - expected[0]) > 1e-3, "the frozen adapter had no effect"


def test_only_supervised_positions_contribute(tiny_model: DecoderLM, examples: list[Example]) -> None:
    sites = select_sites(tiny_model)
    params = noisy(tiny_model, sites)
    objective = AdapterObjective(tiny_model, sites, SCALE)
    logits, rows = objective.logits(examples, params)
    assert logits.shape == (sum(example.n_supervised() for example in examples), tiny_model.vocabulary)
    assert rows.bincount().tolist() == [example.n_supervised() for example in examples]
    labels = [token for example in examples for token, learned in zip(example.tokens, example.supervised, strict=True) if learned]
    assert objective.labels(examples).tolist() == labels

    question = examples[2]
    longer = Example((*question.tokens, *examples[1].tokens), (*question.supervised, *[False] * len(examples[1])))
    assert_equal(gradients(objective, [[longer]], params, "mean"), gradients(objective, [[question]], params, "mean"))

    one = Example(question.tokens, tuple(place == len(question) - 1 for place in range(len(question))))
    with torch.inference_mode():
        final = tiny_model.hidden(Packed.of([question.tokens]))
        expected = F.cross_entropy(tiny_model.logits(final[-2:-1]), torch.tensor(question.tokens[-1:]))
    silent = new_lora(tiny_model, sites, 4, 4 * SCALE, 0)
    assert float(objective.loss([one], silent)) == pytest.approx(float(expected), rel=1e-5)


def test_a_teachers_share_of_the_label(tiny_model: DecoderLM, examples: list[Example]) -> None:
    """The loss is the mean of the label's and the teacher's, each with its share, beside examples that have no teacher."""
    sites = select_sites(tiny_model)
    params = noisy(tiny_model, sites)
    objective = AdapterObjective(tiny_model, sites, SCALE)
    plain = examples[2]
    soft = tuple(((3, 0.2), (place % 7, 0.1)) for place in range(plain.n_supervised()))
    taught = replace(plain, soft=soft)
    log_p = torch.log_softmax(objective.logits([plain, examples[3]], params)[0], -1)
    labels = objective.labels([plain, examples[3]])
    expected = -log_p.gather(1, labels[:, None])[:, 0]
    for place, row in enumerate(soft):
        expected[place] *= 0.7
        expected[place] -= sum(share * log_p[place, token] for token, share in row)
    assert float(objective.loss([taught, examples[3]], params)) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(objective.loss([plain, examples[3]], params)) != pytest.approx(float(expected.mean()), rel=1e-3)
    with pytest.raises(DataError, match="soft targets"):
        replace(plain, soft=soft[1:])


def test_nothing_supervised_is_an_error(tiny_model: DecoderLM, examples: list[Example]) -> None:
    sites = select_sites(tiny_model)
    silent = Example(examples[0].tokens, (False,) * len(examples[0]))
    with pytest.raises(ValueError, match="no supervised token"):
        AdapterObjective(tiny_model, sites, SCALE).loss([silent], noisy(tiny_model, sites))


def test_a_site_that_is_never_reached_is_an_error(tiny_model: DecoderLM, examples: list[Example]) -> None:
    sites = select_sites(tiny_model)
    params = noisy(tiny_model, sites)
    beyond = "model.layers.4.mlp.down_proj"
    for half in (".lora_A.weight", ".lora_B.weight"):
        params[beyond + half] = params["model.layers.3.mlp.down_proj" + half].clone()
    with pytest.raises(RuntimeError, match=beyond):
        AdapterObjective(tiny_model, (*sites, beyond), SCALE).loss(examples, params)


def test_the_same_as_transformers_with_peft(tiny_model: DecoderLM, tiny_model_dir: Path, examples: list[Example]) -> None:
    """The way everybody does it: a padded batch, -100 where nothing is learned, peft's LoRA layers."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    sites = select_sites(tiny_model)
    params = noisy(tiny_model, sites)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_model_dir), dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=4 * SCALE, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = {name.removeprefix("base_model.model.").replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == set(params)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(params[name])
    width = max(len(example) for example in examples)
    tokens = torch.tensor([[*example.tokens, *[0] * (width - len(example))] for example in examples])
    mask = torch.tensor([[place < len(example) for place in range(width)] for example in examples]).long()
    learned = torch.tensor([[*example.supervised, *[False] * (width - len(example))] for example in examples])
    loss = model(input_ids=tokens, attention_mask=mask, labels=torch.where(learned, tokens, -100)).loss
    loss.backward()
    reference = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    found = gradients(AdapterObjective(tiny_model, sites, SCALE), [examples], params, "mean")
    assert_equal(found, (float(loss.detach()), reference), 2e-5)


def test_dropout_is_of_training_alone(tiny_model: DecoderLM) -> None:
    sites, params = select_sites(tiny_model), new_lora(tiny_model, select_sites(tiny_model), 4, 8.0, 0)
    params = {name: tensor + 0.1 for name, tensor in params.items()}
    examples = [Example(tuple(range(20)), (False,) + (True,) * 19)]
    plain, dropping = (AdapterObjective(tiny_model, sites, 2.0, dropout=share, seed=1) for share in (0.0, 0.5))
    wanted = plain.loss(examples, params)
    losses = [float(dropping.loss(examples, params)) for _ in range(30)]
    assert len(set(losses)) == 30 and min(losses) != float(wanted)
    with torch.no_grad():
        assert torch.equal(dropping.loss(examples, params), wanted)
    assert torch.equal(dropping.logits(examples, params)[0], plain.logits(examples, params)[0])
    again = AdapterObjective(tiny_model, sites, 2.0, dropout=0.5, seed=1)
    assert [float(again.loss(examples, params)) for _ in range(30)] == losses
    with pytest.raises(ValueError, match="below 1"):
        AdapterObjective(tiny_model, sites, 2.0, dropout=1.0)
