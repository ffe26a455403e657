"""Loading: where models come from, what runs them, and what is said when they cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import GPT2, LLAMA, SEQUENCES, hugging_face

from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.embedded import TENSORS_SHA256, tensors_digest
from retain.lm.loading import Checkpoint, load_model, load_tokenizer, model_info, remembered_digest, weight_files
from retain.lm.model import LanguageModel, LanguageModelError
from retain.lm.packing import Packed


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"w{number}": number for number in range(61)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0", eos_token="w2")


def saved(directory: Path, kind: str = "llama", options: dict[str, Any] | None = None, **saving: Any) -> Any:
    """A tiny model with its tokenizer as a Hugging Face directory; the module."""
    module = hugging_face(kind, **(options or LLAMA))
    module.save_pretrained(str(directory), **saving)
    tokenizer().save_pretrained(str(directory))
    return module


def load(source: Path | str, cache: Path, **options: Any) -> LanguageModel:
    return load_model(source, device="cpu", cache_dir=cache, **{"precision": "float32", **options})


@torch.no_grad()
def agree(model: LanguageModel, module: Any) -> None:
    tokens = SEQUENCES[0]
    expected = module(input_ids=torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(model.logits(model.hidden(Packed.of([tokens]))), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_directory_of_a_known_kind_runs_in_the_own_decoder(kind: str, tmp_path: Path) -> None:
    module = saved(tmp_path / "tiny", kind)
    model = load(tmp_path / "tiny", tmp_path)
    assert isinstance(model, DecoderLM) and model.name == "tiny" and model.tokenizer.eos_token_id == 2
    agree(model, module)
    info = model_info(model)
    assert info["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (info["runs_in"], info["precision"], info["sites"], info["prefix"]) == ("own decoder", "float32", 21, True)
    json.dumps(info)


def test_other_kinds_run_through_transformers(tmp_path: Path) -> None:
    scaled = LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}
    for name, kind, options in (("gpt2", "gpt2", GPT2), ("scaled", "llama", scaled), ("bias", "llama", LLAMA | {"attention_bias": True})):
        module = saved(tmp_path / name, kind, options)
        model = load(tmp_path / name, tmp_path)
        assert isinstance(model, TransformersLM)
        agree(model, module)
        assert model_info(model)["parameters"] == sum(parameter.numel() for parameter in module.parameters())


def test_shards_are_read_and_have_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    module = saved(tmp_path / "whole")
    saved(tmp_path / "shards", max_shard_size="20KB")
    assert len(weight_files(tmp_path / "shards")) > 2
    whole, shards = load(tmp_path / "whole", tmp_path), load(tmp_path / "shards", tmp_path)
    agree(shards, module)
    assert whole.fingerprint == shards.fingerprint == tensors_digest(tmp_path / "whole" / "model.safetensors")
    weight_files(tmp_path / "shards")[1].unlink()
    with pytest.raises(LanguageModelError, match="lacks 1 of"):
        load(tmp_path / "shards", tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "tiny")
    file = tmp_path / "tiny" / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole[:100], b"", b"\xff" * 200):
        file.write_bytes(damaged)
        with pytest.raises(LanguageModelError, match=r"model\.safetensors is not a complete"):
            load(tmp_path / "tiny", tmp_path)
    (tmp_path / "tiny" / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    file.unlink()
    with pytest.raises(LanguageModelError, match=r"index\.json is damaged"):
        load(tmp_path / "tiny", tmp_path)


def test_every_type_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool)
    tensors = {str(kind): (torch.randn(3, 5) * 3).to(kind) for kind in kinds}
    save_file({**tensors, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}, tmp_path / "all.safetensors")
    checkpoint, expected = Checkpoint([tmp_path / "all.safetensors"]), load_file(tmp_path / "all.safetensors")
    assert set(checkpoint) == set(expected) and len(checkpoint) == len(expected)
    for name, tensor in expected.items():
        assert checkpoint[name].dtype == tensor.dtype and checkpoint[name].numel() == tensor.numel()
        assert torch.equal(checkpoint[name].reshape(tensor.shape), tensor)


def test_an_untied_head_in_the_file_is_believed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path / "tiny", options=LLAMA | {"tie_word_embeddings": True})
    file = tmp_path / "tiny" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].flip(0)}, file, metadata={"format": "pt"})
    model = load(tmp_path / "tiny", tmp_path)
    assert isinstance(model, DecoderLM) and not model.config.tied and "lm_head.weight" in model.parameters()


def test_fingerprints_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "tiny")
    file, counted = tmp_path / "tiny" / "model.safetensors", []
    digest = Checkpoint.digest
    monkeypatch.setattr(Checkpoint, "digest", lambda self: counted.append(1) or digest(self))
    first = remembered_digest([file], tmp_path)
    assert remembered_digest([file], tmp_path) == first and len(counted) == 1
    note = next((tmp_path / "fingerprints").iterdir())
    note.write_text("{")
    assert remembered_digest([file], tmp_path) == first and len(counted) == 2
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert remembered_digest([file], tmp_path) != first and len(counted) == 3
    assert remembered_digest([file], tmp_path / "tiny" / "config.json") != first  # a cache that cannot be written is no error


def test_precision_is_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "tiny")
    saved(tmp_path / "gpt2", "gpt2", GPT2)
    for name in ("tiny", "gpt2"):
        full, half = load(tmp_path / name, tmp_path), load(tmp_path / name, tmp_path, precision="bfloat16")
        assert half.dtype == torch.bfloat16 and {t.dtype for t in half.parameters().values()} == {torch.bfloat16}
        assert half.fingerprint == full.fingerprint
    with pytest.raises(LanguageModelError, match="not 'cpu' and 'int3'"):
        load(tmp_path / "tiny", tmp_path, precision="int3")


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    """Written with the package gguf, so the test needs no download."""
    module = hugging_face("llama", **LLAMA)
    file = tmp_path / "tiny.gguf"
    write_gguf(file, module)
    model = load(file, tmp_path / "cache")
    assert isinstance(model, DecoderLM) and model.name == "tiny"
    agree(model, module)
    kept = next((tmp_path / "cache" / "models").glob("gguf-*[!k]"))
    changed = (kept / "model.safetensors").stat().st_mtime_ns
    again = load(file, tmp_path / "cache")
    assert again.fingerprint == model.fingerprint and (kept / "model.safetensors").stat().st_mtime_ns == changed
    file.write_bytes(b"GGUF and then nothing")
    with pytest.raises(LanguageModelError, match=r"tiny\.gguf cannot be read"):
        load(file, tmp_path / "cache")


def write_gguf(file: Path, module: Any) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(LLAMA["num_attention_heads"])
    writer.add_head_count_kv(LLAMA["num_key_value_heads"])
    writer.add_key_length(LLAMA["head_dim"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(61)
    letters = [*(chr(33 + number) for number in range(60)), "BC"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * 61)
    writer.add_token_merges(["B C"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LLAMA["num_hidden_layers"])
    for name, tensor in module.state_dict().items():
        value = tensor.numpy()
        heads = {"q_proj.weight": LLAMA["num_attention_heads"], "k_proj.weight": LLAMA["num_key_value_heads"]}
        for end, count in heads.items():
            if name.endswith(end):  # llama.cpp interleaves the halves that RoPE turns
                value = value.reshape(count, 2, value.shape[0] // count // 2, -1).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("smollm2-135m-instrukt", "did you mean smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "did you mean smollm2-135m-instruct"),
        ("someone/nothing", "no model hub answers; models without a hub: smollm2-135m-instruct"),
        ("not a name!", "is not a model name"),
        ("./missing", "there is no model at ./missing"),
        ("missing.gguf", "there is no model at missing.gguf"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(name: str, pattern: str, tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=pattern) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_directories_that_are_no_causal_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(LanguageModelError, match="it is a peft adapter"):
        load(tmp_path / "adapter", tmp_path)
    (tmp_path / "adapter" / "config.json").write_text("{")
    with pytest.raises(LanguageModelError, match=r"config\.json cannot be read"):
        load(tmp_path / "adapter", tmp_path)
    saved(tmp_path / "body")
    config = json.loads((tmp_path / "body" / "config.json").read_text())
    (tmp_path / "body" / "config.json").write_text(json.dumps(config | {"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(LanguageModelError, match="encoder-decoder"):
        load(tmp_path / "body", tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LanguageModelError, match="neither a model directory nor"):
        load(tmp_path / "notes.txt", tmp_path)


def test_missing_tensors_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for kind, options, gone in (("gpt2", GPT2, "transformer.h.1.mlp.c_fc.weight"), ("llama", LLAMA, "model.layers.1.mlp.up_proj.weight")):
        saved(tmp_path / kind, kind, options)
        file = tmp_path / kind / "model.safetensors"
        save_file({name: t for name, t in load_file(file).items() if name != gone}, file, metadata={"format": "pt"})
        with pytest.raises(LanguageModelError, match="lacks 1 tensors"):
            load(tmp_path / kind, tmp_path)
    shutil.rmtree(tmp_path / "gpt2")
    module = hugging_face("gpt2", **GPT2)
    module.save_pretrained(str(tmp_path / "gpt2"))
    with pytest.raises(LanguageModelError, match="has no tokenizer"):
        load(tmp_path / "gpt2", tmp_path)


@pytest.mark.embedded
def test_the_embedded_model(embedded_dir: Path) -> None:
    model = load_model(device="cpu", precision="float32")
    assert isinstance(model, DecoderLM) and model.fingerprint == TENSORS_SHA256
    assert model_info(model)["parameters"] == 134_515_008 and model_info(model)["sites"] == 210
    text = "  Salt\n\n\tat 1250 °C – naïve, 3 cups; 日本語 <|im_start|>user"
    assert model.tokenizer.encode(text) == load_tokenizer(embedded_dir).encode(text)
    tokens = model.tokenizer.encode("The capital of France is")
    with torch.inference_mode():
        best = model.logits(model.hidden(Packed.of([tokens])))[-1].argmax()
    assert model.tokenizer.decode([int(best)]).strip() == "Paris"
