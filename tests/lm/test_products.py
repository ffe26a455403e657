"""Products with frozen and trained matrices: the same as torch's own, forward and backward, whichever kernels are behind them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from retain.lm import products


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Both ways, also on processors where only one of them is chosen."""
    if request.param and not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "onednn_pays", lambda: request.param)
    yield request.param


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_the_same_as_torch(kernels: bool, rows: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((rows, 24), (40, 24)))
    bias = torch.randn(40, generator=generator) if biased else None
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    found, expected = products.linear(leaves[0], weight, bias), F.linear(leaves[1], weight, bias)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    assert torch.allclose(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(products.linear(x, weight, bias), found.detach())


def test_views_and_expanded_gradients(kernels: bool) -> None:
    weight = torch.randn(6, 8)
    wide = torch.randn(5, 16, requires_grad=True)
    products.linear(wide[:, ::2], weight).sum().backward()  # the gradient of a sum is one number, expanded
    assert wide.grad is not None
    assert torch.allclose(wide.grad[:, ::2], weight.sum(0).expand(5, -1), atol=1e-5)
    assert float(wide.grad[:, 1::2].abs().max()) == 0.0


def test_it_can_be_differentiated_twice(kernels: bool) -> None:
    weight = torch.randn(6, 8, dtype=torch.float32)
    x = torch.randn(5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(products.linear(x, weight).pow(3).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(gradient.square().sum(), x)
    y = x.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.linear(y, weight).pow(3).sum(), y, create_graph=True)
    (expected,) = torch.autograd.grad(gradient.square().sum(), y)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_torchs(kernels: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("biased", [False, True])
def test_a_matrix_that_is_trained_gets_its_gradient(kernels: bool, biased: bool) -> None:
    """Once and twice differentiated, with and without a gradient for what is multiplied."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((5, 8), (6, 8), (6,))]
    for known in (True, False):
        found = []
        for product in (products.linear, F.linear):
            x, weight, bias = (tensor.clone().requires_grad_(number > 0 or not known) for number, tensor in enumerate(start))
            leaves = [leaf for leaf in (x, weight, *([bias] if biased else [])) if leaf.requires_grad]
            first = torch.autograd.grad(product(x, weight, bias if biased else None).pow(3).sum(), leaves, create_graph=True)
            found.append([*first, *torch.autograd.grad(first[0].square().sum(), leaves[:1])])
        for ours, torchs in zip(*found, strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-2)


def test_autocast_reaches_products(kernels: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(torch.randn(5, 8), torch.randn(6, 8)).dtype == torch.bfloat16


def test_token_loss_with_a_trained_head(kernels: bool) -> None:
    """The gradients of the hidden states and of the head, over several pieces; and twice."""
    generator = torch.Generator().manual_seed(0)
    rows = 4 * products._TokenLoss.PIECE + 30
    start = [torch.randn(shape, generator=generator) for shape in ((rows, 16), (50, 16))]
    labels = torch.randint(0, 50, (rows,), generator=generator)
    found = []
    for loss in (products.token_loss, lambda hidden, head, labels: F.cross_entropy(F.linear(hidden, head), labels)):
        leaves = [tensor.clone().requires_grad_(True) for tensor in start]
        first = torch.autograd.grad(3.0 * loss(*leaves, labels), leaves)
        again = torch.autograd.grad(loss(*leaves, labels), leaves, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in again), leaves)
        alone = torch.autograd.grad(loss(start[0], leaves[1], labels), leaves[1])  # a frozen body
        found.append([*first, *second, *alone])
    for ours, torchs in zip(*found, strict=True):
        assert float(torchs.abs().max()) > 1e-6
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_token_loss_is_cross_entropy(kernels: bool, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(shape, generator=generator).to(dtype) for shape in ((300, 16), (50, 16)))
    labels = torch.randint(0, 50, (300,), generator=generator)
    leaves = [hidden.clone().requires_grad_(True) for _ in range(2)]
    found, expected = products.token_loss(leaves[0], head, labels), F.cross_entropy(F.linear(leaves[1], head).float(), labels)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(3.0 * loss, leaf)[0] for loss, leaf in zip((found, expected), leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance / 10)
    with torch.inference_mode():
        torch.testing.assert_close(products.token_loss(hidden, head, labels), expected.detach(), rtol=tolerance, atol=tolerance)


def test_token_loss_differentiated_twice(kernels: bool) -> None:
    head, labels = torch.randn(9, 4), torch.tensor([1, 5, 8])
    seconds = []
    x = torch.randn(3, 4)
    for loss in (lambda leaf: products.token_loss(leaf, head, labels), lambda leaf: F.cross_entropy(F.linear(leaf, head), labels)):
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert float(seconds[1].abs().max()) > 1e-4
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_token_loss_with_soft_labels(kernels: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Equal to torch's cross-entropy with probabilities; a token may be there twice."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(shape, generator=generator).to(dtype) for shape in ((300, 16), (50, 16)))
    labels = torch.randint(0, 50, (300, 4), generator=generator)
    labels[:, 3] = labels[:, 0]
    soft = torch.rand(300, 4, generator=generator).softmax(1)
    dense = torch.zeros(300, 50).scatter_add_(1, labels, soft)
    leaves = [hidden.clone().requires_grad_(True) for _ in range(3)]
    found = products.token_loss(leaves[0], head, labels, soft)
    plain = products.soft_cross_entropy(F.linear(leaves[1], head).float(), labels, soft)
    expected = F.cross_entropy(F.linear(leaves[2], head).float(), dense)
    losses = (found, plain, expected)
    gradients = [torch.autograd.grad(3.0 * loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    for loss, gradient in zip(losses[:2], gradients[:2], strict=True):
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient, gradients[2], rtol=tolerance, atol=tolerance / 10)


def test_soft_labels_differentiated_twice(kernels: bool) -> None:
    head, labels, soft = torch.randn(9, 4), torch.tensor([[1, 5], [5, 0], [8, 2]]), torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    seconds, x = [], torch.randn(3, 4)
    dense = torch.zeros(3, 9).scatter_add_(1, labels, soft)
    for loss in (lambda leaf: products.token_loss(leaf, head, labels, soft), lambda leaf: F.cross_entropy(F.linear(leaf, head), dense)):
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert float(seconds[1].abs().max()) > 1e-4
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-6)
