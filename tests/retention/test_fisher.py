"""Fisher information: equal to the definition, and not what the usual mistake gives."""

from __future__ import annotations

import pytest
import torch
from tests.retention.tiny import SCALE, noisy, objective_of, ragged, table, tiny_model, tiny_params

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.retention.base import Params
from retain.retention.fisher import Labels, fisher_by_loop, fisher_information
from retain.training.objective import AdapterObjective


def assert_close(found: Params, expected: Params) -> None:
    for name, reference in expected.items():
        assert float(reference.max()) > 0.0, name
        error = float((found[name] - reference).abs().max() / reference.abs().max())
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
@pytest.mark.parametrize("layers", ["all", 1])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_equals_one_backward_per_example(labels: Labels, layers: int | str, batch_tokens: int) -> None:
    model = tiny_model()
    params = noisy(tiny_params(model, layers=layers))
    examples = ragged(9)
    found = fisher_information(
        objective_of(model, params), examples, params, labels=labels, generator=torch.Generator().manual_seed(3), batch_tokens=batch_tokens
    )
    reference = fisher_by_loop(objective_of(model, params), examples, params, labels=labels, generator=torch.Generator().manual_seed(3))
    assert_close(found.diagonal, reference.diagonal)
    assert (found.examples, found.labels) == (9, labels)


def test_equal_lengths_take_the_path_without_copies() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    assert_close(fisher_information(objective, table(0), params).diagonal, fisher_by_loop(objective, table(0), params).diagonal)


@pytest.mark.parametrize("layers", ["all", 1])
def test_frozen_adapters_are_seen_but_not_recorded(layers: int | str) -> None:
    model = tiny_model()
    sites = select_sites(model)
    frozen = Adapter(noisy(tiny_params(model, seed=5), seed=6), AdapterSpec("lora", "", sites, 4, SCALE * 4))
    params = noisy(tiny_params(model, seed=1, layers=layers), seed=2)
    objective = objective_of(model, params, [(frozen, 0.5)])
    found = fisher_information(objective, ragged(), params).diagonal
    assert_close(found, fisher_by_loop(objective, ragged(), params).diagonal)
    alone = fisher_information(objective_of(model, params), ragged(), params).diagonal
    assert not torch.allclose(found[next(iter(found))], alone[next(iter(found))], rtol=0.1)


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
def test_a_single_site_of_a_fused_group(target: str) -> None:
    """Checked against finite parameters: the reference is the gradient of the dense model with B A added to the weight by hand."""
    model = tiny_model()
    site = f"model.layers.1.self_attn.{target}" if target[0] in "qkv" else f"model.layers.1.mlp.{target}"
    both = {name: tensor for name, tensor in noisy(tiny_params(model)).items() if name.startswith(site)}
    found = fisher_information(objective_of(model, both), ragged(), both).diagonal
    # the same site together with its whole group: the others have no effect (B = 0), so the site's Fisher information is the same
    group = ("q_proj", "k_proj", "v_proj") if target[0] in "qkv" else ("gate_proj", "up_proj")
    zero = tiny_params(model)
    whole = {name: zero[name] for name in zero if name.startswith("model.layers.1.") and any(part in name for part in group)} | both
    reference = fisher_by_loop(objective_of(model, whole), ragged(), whole).diagonal
    assert_close(found, {name: reference[name] for name in both})


def test_through_transformers_with_padding() -> None:
    """The bridge pads its batches: padded tokens add nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from retain.lm.bridge import TransformersLM

    config = GPT2Config(vocab_size=48, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = TransformersLM(GPT2LMHeadModel(config).eval(), None, name="gpt2")
    sites = select_sites(model)
    params = noisy(new_lora(model, sites, 4, SCALE * 4, 0))
    objective = AdapterObjective(model, sites, SCALE)
    found = fisher_information(objective, ragged(9), params, batch_tokens=60)
    assert_close(found.diagonal, fisher_by_loop(objective, ragged(9), params).diagonal)


def test_the_squared_gradient_of_a_batch_is_something_else() -> None:
    """Trap 1: squaring the mean gradient of a batch loses most of the trace."""
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    examples = table(0, questions=16)
    true = fisher_information(objective, examples, params).diagonal
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
    logits, _ = objective.logits(examples, leaves)
    mean = torch.nn.functional.cross_entropy(logits, objective.labels(examples), reduction="sum") / len(examples)
    mistaken = torch.autograd.grad(mean, list(leaves.values()))
    ratio = float(sum(tensor.sum() for tensor in true.values()) / sum(gradient.square().sum() for gradient in mistaken))
    assert ratio > 4.0


def test_nothing_is_left_behind() -> None:
    """The model, the objective and the parameters are as before, and gradients of the parameters stay untouched."""
    model = tiny_model()
    params = noisy(tiny_params(model))
    for tensor in params.values():
        tensor.requires_grad_(True)
    objective = objective_of(model, params)
    before = model.fingerprint, objective.model, {name: tensor.clone() for name, tensor in params.items()}
    fisher_information(objective, ragged(), params)
    assert objective.model is model
    assert all(tensor.grad is None and torch.equal(tensor, before[2][name]) for name, tensor in params.items())


def test_parameters_without_effect_have_none() -> None:
    """With B = 0 the gradient of A is zero, the gradient of B is not."""
    model = tiny_model()
    params = tiny_params(model)
    found = fisher_information(objective_of(model, params), table(0), params).diagonal
    assert all(float(tensor.sum()) == 0.0 if ".lora_A." in name else float(tensor.sum()) > 0.0 for name, tensor in found.items())


def test_no_examples_is_an_error() -> None:
    model = tiny_model()
    params = tiny_params(model)
    with pytest.raises(ValueError, match="at least one"):
        fisher_information(objective_of(model, params), [], params)
