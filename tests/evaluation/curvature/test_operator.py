"""Hessian-vector products: equal to differences of gradients and to the dense Hessian, through both kinds of language models."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.evaluation.curvature.dense import SCALE, decoder, dense_hessian, examples, few_factors
from tests.retention.tiny import noisy, objective_of, ragged, tiny_model, tiny_params
from tests.tiny_models import GPT2, LLAMA, hugging_face
from torch import Tensor

from retain.adapters import AdapterInjection, inject_trainable, new_lora, select_sites
from retain.data.examples import Example
from retain.evaluation.curvature import BatchedLoss, HessianOperator, Params, adapter_loss, loss_at
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.derivatives import differentiated_twice, twice_differentiable
from retain.lm.packing import Packed


def cubic(params: Params) -> Tensor:
    return (params["a"] ** 3).sum() + (params["a"].sum() * params["b"]).sum()


def cubic_params() -> Params:
    return {"a": torch.tensor([1.0, -2.0], dtype=torch.float64), "b": torch.tensor([[3.0]], dtype=torch.float64)}


def direction(operator: HessianOperator, seed: int = 0) -> Tensor:
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(operator.dtype)
    return v / v.norm()


def test_hessian_of_a_cubic() -> None:
    operator = HessianOperator(cubic, cubic_params())
    assert operator.size == 3 and operator.value == 1 - 8 - 3
    assert operator.gradient.tolist() == [6.0, 15.0, -1.0]
    expected = [[6.0, 0.0, 1.0], [0.0, -12.0, 1.0], [1.0, 1.0, 0.0]]
    assert [operator.matvec(column).tolist() for column in torch.eye(3, dtype=torch.float64)] == expected
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert operator.flatten(operator.unflatten(v)).equal(v) and operator.unflatten(v)["b"].shape == (1, 1)
    assert operator.products == 3 and operator.unused == ()


def test_what_has_no_curvature_is_said() -> None:
    params = cubic_params()
    linear = HessianOperator(lambda p: p["a"].sum(), params)
    assert linear.unused == ("b",) and linear.matvec(torch.ones(3, dtype=torch.float64)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="must be a scalar that depends on the parameters"):
        HessianOperator(lambda p: torch.ones(()), params)
    with pytest.raises(ValueError, match="one floating-point type"):
        HessianOperator(cubic, {**params, "b": params["b"].float()})
    with pytest.raises(ArithmeticError, match="the loss is not finite"):
        HessianOperator(lambda p: p["a"].sum().log(), params)
    with pytest.raises(ArithmeticError, match="the gradient is not finite"):
        HessianOperator(lambda p: (p["a"] - p["a"].detach()).abs().sqrt().sum(), params)
    with pytest.raises(ValueError, match="a vector of"):
        linear.matvec(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("graph_bytes", "kept"), [(0, {0}), (800_000, {1, 2, 3}), (1 << 30, {4})])
def test_batches_are_averaged_by_weight_whether_graphs_are_kept_or_not(graph_bytes: int, kept: set[int]) -> None:
    model = decoder()
    whole, params = adapter_loss(model, examples(), few_factors(model), SCALE, batch_tokens=10_000)
    parted, _ = adapter_loss(model, examples(), few_factors(model), SCALE, batch_tokens=30)
    assert len(whole.parts) == 1 and len(parted.parts) == 4 and len(set(parted.weights)) > 1
    one, other = HessianOperator(whole, params), HessianOperator(parted, params, graph_bytes=graph_bytes)
    assert one.kept == 1 and other.kept in kept
    assert other.value == pytest.approx(one.value, rel=1e-12) and loss_at(parted, params) == pytest.approx(one.value, rel=1e-12)
    torch.testing.assert_close(other.gradient, one.gradient, rtol=1e-9, atol=1e-12)
    for seed in range(2):  # a kept graph serves again
        torch.testing.assert_close(other.matvec(direction(one, seed)), one.matvec(direction(one, seed)), rtol=1e-9, atol=1e-12)
    other.release()
    torch.testing.assert_close(other.matvec(direction(one)), one.matvec(direction(one)), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="each needs one above zero"):
        BatchedLoss((cubic,), (0.0,))


def check_against_differences(
    model: DecoderLM | TransformersLM, chosen: list[Example], params: Params, tolerance: float, step: float = 1e-5
) -> HessianOperator:
    """H v against [g(w + e v) - g(w - e v)] / 2 e."""
    loss, params = adapter_loss(model, chosen, params, SCALE)
    operator = HessianOperator(loss, params)
    v = direction(operator)

    def gradient(sign: int) -> Tensor:
        moved = operator.unflatten(operator.flatten(params) + sign * step * v)
        leaves = {name: tensor.requires_grad_(True) for name, tensor in moved.items()}
        with twice_differentiable():
            value = loss(leaves)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(leaves.values()))])

    expected = (gradient(1) - gradient(-1)) / (2 * step)
    product = operator.matvec(v)
    assert float(expected.norm()) > 1e-3
    assert float((product - expected).norm() / expected.norm()) < tolerance
    return operator


def test_products_through_the_decoder_are_differences_of_gradients() -> None:
    model = decoder()
    params = {name: tensor.double() for name, tensor in noisy(tiny_params(model, rank=2)).items()}
    operator = check_against_differences(model, examples(), params, 1e-7)
    assert operator.unused == () and operator.size > 2000


def test_rows_long_enough_for_the_fused_attention_kernel() -> None:
    base = tiny_model()
    config = type(base.config)(**{**base.config.__dict__, "context": 512})
    model = DecoderLM(config, base.parameters(), None, name="long", dtype=torch.float64)
    tokens = torch.randint(0, 48, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    long = Example(tuple(tokens), (False,) * 390 + (True,) * 10)
    check_against_differences(model, [long], few_factors(model), 1e-7)


@pytest.mark.parametrize(("kind", "options", "step", "tolerance"), [("gpt2", GPT2, 1e-5, 1e-7), ("llama", LLAMA, 1e-3, 2e-3)])
def test_products_through_transformers_are_differences_of_gradients(
    kind: str, options: dict[str, object], step: float, tolerance: float
) -> None:
    """Llama's norm in transformers is float32 whatever the model is, which differences of gradients magnify."""
    module = hugging_face(kind, **options)
    assert module.config._attn_implementation == "sdpa"
    model = TransformersLM(module, None, name=f"tiny-{kind}", dtype=torch.float64)
    sites = select_sites(model)
    params = {name: tensor.double() for name, tensor in noisy(new_lora(model, sites, 1, SCALE, 0)).items()}
    check_against_differences(model, examples(), params, tolerance, step)


def test_float32_products_are_near_the_dense_hessian_in_float64() -> None:
    wide, narrow = decoder(), decoder(torch.float32)
    loss, params = adapter_loss(wide, examples(), few_factors(wide), SCALE)
    hessian = dense_hessian(loss, params)
    operator = HessianOperator(*adapter_loss(narrow, examples(), few_factors(narrow, torch.float32), SCALE))
    v = direction(operator)
    expected = hessian @ v.double()
    assert float((operator.matvec(v).double() - expected).norm() / expected.norm()) < 2e-5
    exact = HessianOperator(loss, params)
    torch.testing.assert_close(exact.matvec(v.double()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ordinary_path_is_what_it_was(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the context nothing changes: the fused attention kernel runs, results are bit-identical before and after; inside it does
    not run, and the numbers agree to rounding."""
    base = tiny_model()
    config = type(base.config)(**{**base.config.__dict__, "context": 512})
    model = DecoderLM(config, base.parameters(), None, name="long", dtype=dtype)
    packed = Packed.of([[3 + place % 40 for place in range(length)] for length in (400, 30, 5)])
    fused = torch.nn.functional.scaled_dot_product_attention
    calls: list[torch.Size] = []

    def counted(*args: Tensor, **options: object) -> Tensor:
        calls.append(args[0].shape)
        return fused(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    kernels = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    before = model.logits(model.hidden(packed))
    assert len(calls) == model.layers
    with twice_differentiable():
        assert differentiated_twice() and not torch.backends.cuda.flash_sdp_enabled()
        plain = model.logits(model.hidden(packed))
        with twice_differentiable():
            pass
        assert differentiated_twice() and not torch.backends.cuda.flash_sdp_enabled()
    assert len(calls) == model.layers and not differentiated_twice()
    assert kernels == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    assert before.equal(model.logits(model.hidden(packed))) and before.dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(plain, before, rtol=tolerance, atol=tolerance)


def test_gradients_of_the_two_paths_agree() -> None:
    model = tiny_model()
    params = noisy(tiny_params(model))
    objective = objective_of(model, params)
    found = []
    for twice in (False, True):
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
        if twice:
            with twice_differentiable():
                loss = objective.loss(ragged(), leaves)
        else:
            loss = objective.loss(ragged(), leaves)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves.values())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_other_threads_keep_their_way() -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with twice_differentiable():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10) and not differentiated_twice()
    with twice_differentiable():
        leave.set()
        thread.join(10)
        assert differentiated_twice() and not torch.backends.cuda.flash_sdp_enabled()  # one left, one is still inside
    assert torch.backends.cuda.flash_sdp_enabled()


def test_injections_work_in_float64() -> None:
    model = decoder()
    params = few_factors(model)
    sites = {name.rsplit(".", 2)[0] for name in params}
    injection = inject_trainable(params, sorted(sites), SCALE, model.dtype)
    assert isinstance(injection, AdapterInjection)
    assert model.hidden(Packed.of([[1, 2, 3]]), injection).dtype == torch.float64
