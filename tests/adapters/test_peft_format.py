"""Adapters that peft reads and writes: the same logits in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import GPT2, LLAMA, SEQUENCES, gpt2, hugging_face, llama, lora

from retain.adapters import Adapter, AdapterError, inject, select_sites
from retain.adapters.peft_format import CONFIG, WEIGHTS, export_peft, import_peft
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

peft = pytest.importorskip("peft")
MODELS: dict[str, Any] = {
    "llama": (llama, lambda: hugging_face("llama", **LLAMA)),
    "gpt2": (gpt2, lambda: hugging_face("gpt2", **GPT2)),
}
both = pytest.mark.parametrize("kind", MODELS)


def ours(model: LanguageModel, adapter: Adapter, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(Packed.of([tokens]), inject([(adapter, 1.0)], model.dtype)))


def theirs(module: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=torch.tensor([tokens])).logits[0]


def written_by_peft(kind: str, directory: Path, **options: Any) -> Any:
    """A random adapter made and saved by peft; the peft model."""
    wrapped = peft.get_peft_model(MODELS[kind][1](), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(str(directory))
    return wrapped.eval()


@both
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.filterwarnings("error::UserWarning")
def test_peft_reads_ours(kind: str, stabilised: bool, tmp_path: Path) -> None:
    model = MODELS[kind][0]()
    adapter = lora(model, 1, rank_stabilised=stabilised)
    export_peft(adapter, tmp_path, "tiny")
    wrapped = peft.PeftModel.from_pretrained(MODELS[kind][1](), str(tmp_path)).eval()
    changed = {name.removeprefix("base_model.model.").split(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A." in name}
    assert changed == set(adapter.spec.sites)
    for tokens in SEQUENCES:
        torch.testing.assert_close(theirs(wrapped, tokens), ours(model, adapter, tokens), atol=1e-4, rtol=0)
    again = import_peft(tmp_path, model)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert (again.spec.sites, again.spec.rank, again.spec.base) == (adapter.spec.sites, adapter.spec.rank, model.fingerprint)
    assert again.spec.scale == pytest.approx(adapter.spec.scale)


@both
def test_exactly_our_sites_match(kind: str, tmp_path: Path) -> None:
    """The last layer only, and of GPT-2's two kinds of c_proj just one."""
    model = MODELS[kind][0]()
    sites = tuple(site for site in select_sites(model, 1) if site.endswith(("mlp.c_proj", "q_proj", "up_proj")))
    adapter = lora(model, 1, sites=sites)
    export_peft(adapter, tmp_path, "tiny")
    wrapped = peft.PeftModel.from_pretrained(MODELS[kind][1](), str(tmp_path)).eval()
    changed = {name.removeprefix("base_model.model.").split(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A." in name}
    assert changed == set(sites)
    torch.testing.assert_close(theirs(wrapped, SEQUENCES[0]), ours(model, adapter, SEQUENCES[0]), atol=1e-4, rtol=0)


@both
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}], ids=str)
def test_ours_reads_pefts(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    wrapped = written_by_peft(kind, tmp_path, r=4, lora_alpha=12, target_modules="all-linear", **options)
    model = MODELS[kind][0]()
    adapter = import_peft(tmp_path, model)
    assert set(adapter.spec.sites) == set(model.sites)
    for tokens in SEQUENCES:
        torch.testing.assert_close(ours(model, adapter, tokens), theirs(wrapped, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_and_alphas_by_module(stabilised: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"layers.0.self_attn.v_proj": 40, "down_proj": 3},
    }
    wrapped = written_by_peft("llama", tmp_path, r=4, lora_alpha=12, target_modules="all-linear", use_rslora=stabilised, **options)
    model = llama()
    adapter = import_peft(tmp_path, model)
    assert adapter.spec.rank == 7
    torch.testing.assert_close(ours(model, adapter, SEQUENCES[0]), theirs(wrapped, SEQUENCES[0]), atol=1e-4, rtol=0)
    export_peft(adapter, tmp_path / "again", "tiny")
    once_more = peft.PeftModel.from_pretrained(MODELS["llama"][1](), str(tmp_path / "again")).eval()
    torch.testing.assert_close(theirs(once_more, SEQUENCES[0]), theirs(wrapped, SEQUENCES[0]), atol=1e-4, rtol=0)


def test_another_base_is_refused(tmp_path: Path) -> None:
    export_peft(lora(llama()), tmp_path, "tiny")
    with pytest.raises(AdapterError, match=f"{WEIGHTS} was made for base"):
        import_peft(tmp_path, llama(seed=3))
    with pytest.raises(AdapterError, match=f"{WEIGHTS} was made for base"):
        import_peft(tmp_path, gpt2())
    written_by_peft("llama", tmp_path / "peft", r=2, target_modules="all-linear")
    with pytest.raises(AdapterError, match=r"has no linear layer model\.layers\.0"):
        import_peft(tmp_path / "peft", gpt2())
    with pytest.raises(AdapterError, match="shapes do not fit"):
        import_peft(tmp_path / "peft", llama(intermediate_size=40))


def test_damaged_or_unsupported_files_are_named(tmp_path: Path) -> None:
    model = llama()
    export_peft(lora(model), tmp_path, "tiny")
    config, weights = (tmp_path / CONFIG).read_text(), (tmp_path / WEIGHTS).read_bytes()

    def refused(pattern: str, **changes: Any) -> None:
        (tmp_path / CONFIG).write_text(json.dumps(json.loads(config) | changes))
        with pytest.raises(AdapterError, match=pattern) as caught:
            import_peft(tmp_path, model)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    refused("describes a IA3", peft_type="IA3")
    refused("use_dora", use_dora=True)
    refused("uses bias", bias="all")
    refused("init_lora_weights=pissa", init_lora_weights="pissa")
    refused("gives .* rank 9", r=9)
    refused("lora_alpha", lora_alpha=None)
    (tmp_path / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    refused(f"{WEIGHTS} is missing or damaged")
    (tmp_path / WEIGHTS).unlink()
    refused(f"{WEIGHTS} is missing or damaged")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refused("pickle")
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match=f"{CONFIG} is missing or damaged"):
        import_peft(tmp_path, model)


def test_a_missing_factor_is_noticed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = llama()
    export_peft(lora(model), tmp_path, "tiny")
    tensors = load_file(tmp_path / WEIGHTS)
    gone = next(name for name in tensors if "lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="lacks a matching pair"):
        import_peft(tmp_path, model)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=r"holds base_model.model.lm_head.weight"):
        import_peft(tmp_path, model)
