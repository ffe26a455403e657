"""Adapters beside a whole MLP: a kind that is registered is stored, mixed with LoRA, weighed by row, trained and left without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.tiny_models import SEQUENCES, gpt2, llama, lora

from retain.adapters import Adapter, AdapterError, AdapterSpec, inject
from retain.adapters.blocks import BLOCK_KINDS, BlockKind
from retain.lm.generation import Sampling, Step, generate
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed
from retain.training.objective import AdapterObjective

both = pytest.mark.parametrize("make", [llama, gpt2])


@pytest.fixture(autouse=True)
def bottleneck() -> Iterator[None]:
    def check(tensors: dict[str, torch.Tensor], width: int) -> str:
        return "" if tensors["down"].shape[1] == width else f"the tensor down reads {tensors['down'].shape[1]} values instead of {width}"

    BLOCK_KINDS["bottleneck"] = BlockKind(("down", "up"), lambda t, x: torch.relu(x @ t["down"].t()) @ t["up"].t(), check)
    yield
    del BLOCK_KINDS["bottleneck"]


def beside(model: LanguageModel, seed: int = 0, width: int | None = None) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    sites = tuple(model.blocks)[1:]
    tensors = {f"{site}.down": torch.randn(4, width or model.width, generator=generator) for site in sites}
    tensors |= {f"{site}.up": 0.3 * torch.randn(model.width, 4, generator=generator) for site in sites}
    return Adapter(tensors, AdapterSpec("bottleneck", model.fingerprint, sites, 4, 8.0))


@both
def test_it_changes_the_rows_that_it_is_given(make: Callable[[], LanguageModel]) -> None:
    model = make()
    adapter, other = beside(model), lora(model, 1)
    adapter.check(model)
    packed = Packed.of(SEQUENCES)
    with torch.no_grad():
        plain, low_rank, alone, with_lora = (
            model.hidden(packed, inject(active, model.dtype))
            for active in ([], [(other, 1.0)], [(adapter, 1.0)], [(adapter, 0.5), (other, 1.0)])
        )
        by_row = model.hidden(packed, inject([(adapter, [1.0, *[0.0] * (len(SEQUENCES) - 1)]), (other, 0.0)], model.dtype))
    first, rest = packed.rows == 0, packed.rows != 0
    assert (alone - plain).abs().max() > 0.05 and (with_lora - low_rank).abs().max() > 0.05
    torch.testing.assert_close(by_row[first], alone[first], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_row[rest], plain[rest], atol=1e-5, rtol=1e-5)


@both
def test_gradients_reach_it(make: Callable[[], LanguageModel]) -> None:
    from retain.data.examples import Example

    model = make()
    adapter = beside(model)
    params = {name: tensor.clone().requires_grad_() for name, tensor in adapter.tensors.items()}
    objective = AdapterObjective(model, adapter.spec.sites, adapter.spec.scale, kind="bottleneck")
    tokens = tuple(SEQUENCES[0])
    objective.loss([Example(tokens, (False,) + (True,) * (len(tokens) - 1))], params).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in params.values())
    assert not any(parameter.requires_grad for parameter in model.parameters().values())


def test_what_does_not_fit_is_said() -> None:
    model = llama()
    adapter = beside(model, width=model.width + 1)
    with pytest.raises(AdapterError, match="the tensor down reads"):
        adapter.check(model)
    with pytest.raises(AdapterError, match="lacks the tensor up"):
        Adapter({name: tensor for name, tensor in adapter.tensors.items() if name.endswith("down")}, adapter.spec)
    with pytest.raises(AdapterError, match="unknown kind of adapter 'side'; known are lora, "):
        Adapter(adapter.tensors, AdapterSpec("side", "", adapter.spec.sites, 4, 8.0))
    with pytest.raises(AdapterError, match="no dense change"):
        adapter.delta(adapter.spec.sites[0])


@both
def test_processors_see_every_step(make: Callable[[], LanguageModel]) -> None:
    model = make()
    model.tokenizer = type("Plain", (), {"decode": lambda self, ids, **_: " ".join(map(str, ids)), "eos_token_id": None,
                                         "convert_tokens_to_ids": lambda self, mark: None, "unk_token_id": None})()  # fmt: skip
    seen: list[Step] = []

    def force(step: Step, logits: torch.Tensor) -> torch.Tensor:
        seen.append(step)
        torch.testing.assert_close(model.logits(step.hidden), logits)
        return torch.nn.functional.one_hot(step.rows + 5, logits.shape[-1]).float()

    texts = generate(model, SEQUENCES[:2], Sampling(max_tokens=3), processors=[force])
    assert texts == ["5 5 5", "6 6 6"] and len(seen) == 3
    assert seen[0].tokens is None and seen[1].tokens is not None and seen[1].tokens.tolist() == [5, 6]
