"""Loading language models: the embedded one, a directory, a GGUF file or a hub name, each as the fastest :class:`LanguageModel` for it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retain.config import ModelConfig
from retain.lm import embedded
from retain.lm.decoder import DecoderLM
from retain.lm.devices import choose_device, choose_precision, use_threads
from retain.lm.model import LanguageModel, LanguageModelError
from retain.lm.shapes import DecoderConfig

DEFAULT = embedded.NAME
OWN_KINDS = frozenset({"llama", "mistral", "qwen2"})
LOCAL_WAYS = f"{DEFAULT} (embedded, needs no hub), a directory with config.json and safetensors, or a .gguf file"


class Source(NamedTuple):
    """Where a model's files are: ``directory``; ``name`` to show; ``digest`` of the tensors where it is known without reading them."""

    directory: Path
    name: str
    digest: str | None = None


def load_model(
    name_or_path: str | Path = DEFAULT, *, device: str = "auto", precision: str = "auto", cache_dir: Path | str | None = None,
    threads: int | None = None,
) -> LanguageModel:  # fmt: skip
    """Load a causal language model, frozen, with its tokenizer.

    ``name_or_path``: "smollm2-135m-instruct" (embedded), a directory (config.json and safetensors, sharded or not), a ``.gguf`` file
    (dequantised and converted once) or a hub name. ``device``: auto, cpu, cuda, mps; ``precision``: auto, float32, bfloat16, float16.
    ``cache_dir``: where fetched and converted models are kept (default $RETAIN_CACHE, else ~/.cache/retain).

    Llama, Mistral and Qwen2 run in retain's own decoder, every other causal model through transformers. Raises LanguageModelError.
    """
    use_threads(threads)
    where = choose_device(_settings(device, precision))
    dtype = choose_precision(where, precision)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else embedded.cache_root()
    source = locate(str(name_or_path), cache)
    known = source.digest is not None
    config = read_config(source.directory, complete=known)
    files = weight_files(source.directory)
    own = own_decoder_config(config) if files else None
    if own is None:
        return _through_transformers(source, config, files, cache, where, dtype)
    weights = Checkpoint(files)
    fingerprint = source.digest or remembered_digest(files, cache)
    if own.tied and "lm_head.weight" in weights and not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]):
        own = replace(own, tied=False)  # the file knows better than config.json
    tokenizer = load_tokenizer(source.directory, plain=known)
    return DecoderLM(own, weights, tokenizer, name=source.name, fingerprint=fingerprint, device=where, dtype=dtype)


def model_info(model: LanguageModel) -> dict[str, Any]:
    """JSON facts about a loaded model."""
    unique = {(tensor.data_ptr(), tuple(tensor.shape)): tensor for tensor in model.parameters().values()}
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "runs_in": "own decoder" if isinstance(model, DecoderLM) else "transformers",
        "parameters": sum(tensor.numel() for tensor in unique.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in unique.values()),
        "layers": model.layers,
        "width": model.width,
        "vocabulary": model.vocabulary,
        "context": model.context,
        "sites": len(model.sites),
        "targets": sorted({site.rsplit(".", 1)[-1] for site in model.sites}),
        "device": str(model.device),
        "precision": str(model.dtype).removeprefix("torch."),
        "prefix": model.has_prefix,
    }


def locate(name_or_path: str, cache: Path) -> Source:
    """Find a model's directory, fetching or converting it where needed. Raises LanguageModelError."""
    path = Path(name_or_path).expanduser()
    if name_or_path.lower() == DEFAULT and not path.exists():
        try:
            directory = embedded.embedded_model_dir(cache)
            return Source(directory, DEFAULT, json.loads((directory / "identity.json").read_text())["tensors_sha256"])
        except embedded.EmbeddedModelError as error:
            raise LanguageModelError(str(error)) from error
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise LanguageModelError(f"{path} is neither a model directory nor a .gguf file")
        return Source(_from_gguf(path, cache), path.stem)
    if path.is_dir():
        return Source(path, path.resolve().name)
    if names_a_path(name_or_path):
        raise LanguageModelError(f"there is no model at {name_or_path}: give {LOCAL_WAYS}")
    return Source(_from_hub(name_or_path), name_or_path)


def names_a_path(name: str) -> bool:
    """Whether a model's name can only be a folder or a file; what is neither here nor this is looked for in the hub."""
    return name.lower().endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def read_config(directory: Path, *, complete: bool = False) -> dict[str, Any]:
    """``config.json`` of a model directory with transformers' defaults filled in, unless it is known to be ``complete``."""
    file = directory / "config.json"
    if not file.is_file():
        hint = ": it is a peft adapter, import it instead" if (directory / "adapter_config.json").is_file() else ""
        raise LanguageModelError(f"{directory} holds no model, config.json is missing{hint}")
    try:
        if complete:
            return dict(json.loads(file.read_text()))
        from transformers import AutoConfig

        return dict(AutoConfig.from_pretrained(str(directory), local_files_only=True).to_dict())
    except Exception as error:  # transformers raises whatever it stumbles over
        raise LanguageModelError(f"{file} cannot be read: {_one_line(error)}") from error


def own_decoder_config(config: dict[str, Any]) -> DecoderConfig | None:
    """The own decoder's configuration for a model, or None when the model has to run through transformers."""
    causal = any("ForCausalLM" in name for name in config.get("architectures") or ["ForCausalLM"])
    if config.get("model_type") not in OWN_KINDS or config.get("quantization_config") or not causal:
        return None
    try:
        return DecoderConfig.from_hugging_face(config)
    except LanguageModelError:
        return None


def load_tokenizer(directory: Path, *, plain: bool = False) -> Any:
    """The tokenizer of a model directory. ``plain``: tokenizer.json is known to be enough, which saves time. Raises LanguageModelError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with quiet():
        try:
            found = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(str(directory), local_files_only=True)
        except Exception as error:
            if not plain and (directory / "tokenizer.json").is_file():
                return load_tokenizer(directory, plain=True)
            raise LanguageModelError(f"{directory} has no tokenizer that can be read: {_one_line(error)}") from error
    if len(found) <= len(set(found.all_special_ids)):  # what transformers makes up where there are no files
        raise LanguageModelError(f"{directory} has no tokenizer: copy tokenizer.json to it")
    return found


def _through_transformers(
    source: Source, config: dict[str, Any], files: list[Path], cache: Path, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    from transformers import AutoModelForCausalLM

    from retain.lm.bridge import TransformersLM

    kind = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise LanguageModelError(f"{source.name} ({kind}) is an encoder-decoder, not a causal language model")
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    if config.get("attn_logit_softcapping"):
        options["attn_implementation"] = "eager"  # torch's fused attention cannot cap its scores
    with quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(str(source.directory), **options)
        except Exception as error:
            raise LanguageModelError(f"{source.name} ({kind}) cannot be loaded as a causal language model: {_one_line(error)}") from error
    module, report = loaded
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise LanguageModelError(f"{source.name} lacks {len(missing)} tensors of a causal language model, the first is {missing[0]}")
    pickled = sorted(source.directory.glob("pytorch_model*.bin"))
    fingerprint = remembered_digest(files, cache) if files else remembered_digest(pickled, cache, tensors=False)
    return TransformersLM(module, load_tokenizer(source.directory), name=source.name, fingerprint=fingerprint, device=device, dtype=dtype)


def _from_gguf(gguf: Path, cache: Path) -> Path:
    """A GGUF file as a Hugging Face directory in float32, converted once and renamed into place as a whole."""
    from filelock import FileLock

    digest = remembered_digest([gguf], cache, tensors=False)
    target = cache / "models" / f"gguf-{digest[:16]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                with tempfile.TemporaryDirectory(prefix=".gguf-", dir=target.parent) as scratch:
                    _convert_gguf(gguf, Path(scratch) / "model")
                    (Path(scratch) / "model").rename(target)
    except OSError as error:
        raise LanguageModelError(f"cannot write the model cache {target.parent}: {error}; set RETAIN_CACHE to another directory") from error
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            model.config.name_or_path = gguf.stem
            model.save_pretrained(str(target))
            AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(str(target))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a panic of the tokenizers' Rust code
            raise LanguageModelError(f"{gguf} cannot be read as a GGUF language model: {_one_line(error)}") from error


def _from_hub(name: str) -> Path:
    """A hub model's snapshot, through huggingface_hub's own cache."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        with quiet():
            directory = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
            if not any(directory.glob("*.safetensors")):
                directory = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin*"], ignore_patterns=["*/*"]))
        return directory
    except Exception as error:  # offline, unknown, gated, full disk: one line each
        reasons = {
            "GatedRepoError": f"{name} is gated: accept its licence on the hub and log in with `hf auth login`",
            "RepositoryNotFoundError": f"the hub knows no model {name!r}",
            "HFValidationError": f"{name!r} is not a model name",
        }
        reason = reasons.get(type(error).__name__, f"{name!r} is not here and no model hub answers")
        raise LanguageModelError(f"{reason}{_did_you_mean(name)}; models without a hub: {LOCAL_WAYS}") from error


def _did_you_mean(name: str) -> str:
    known = (DEFAULT, "smollm2", "smollm2-135m", "embedded", "default", str(embedded.IDENTITY["model"]).lower())
    return f" (did you mean {DEFAULT}?)" if difflib.get_close_matches(name.lower(), known, cutoff=0.75) else ""


def _settings(device: str, precision: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate({"device": device, "precision": precision})
    except ValueError as error:
        known = "device is auto, cpu, cuda or mps; precision is auto, float32, bfloat16 or float16"
        raise LanguageModelError(f"{known}; not {device!r} and {precision!r}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers and huggingface_hub without advice; a download still shows its progress."""
    from transformers.utils import logging as advice

    log = logging.getLogger("huggingface_hub")
    level, bars, log_level = advice.get_verbosity(), advice.is_progress_bar_enabled(), log.level
    advice.set_verbosity_error()
    advice.disable_progress_bar()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        advice.set_verbosity(level)
        log.setLevel(log_level)
        if bars:
            advice.enable_progress_bar()


# safetensors' type names -> (numpy type of the bytes, torch type they are viewed as, name in the digest)
_TYPES: dict[str, tuple[Any, torch.dtype, str]] = {
    "F64": (np.float64, torch.float64, "float64"),
    "F32": (np.float32, torch.float32, "float32"),
    "F16": (np.float16, torch.float16, "float16"),
    "BF16": (np.int16, torch.bfloat16, "bfloat16"),
    "I64": (np.int64, torch.int64, "int64"),
    "I32": (np.int32, torch.int32, "int32"),
    "I16": (np.int16, torch.int16, "int16"),
    "I8": (np.int8, torch.int8, "int8"),
    "U8": (np.uint8, torch.uint8, "uint8"),
    "BOOL": (np.bool_, torch.bool, "bool"),
}


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files. Each access maps only that tensor's bytes, so that loading a model never holds
    the file and the model in memory together. Raises LanguageModelError, naming the file, when one is damaged or cut short."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._entries: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for file in self.files:
            self._read_header(file)

    def _read_header(self, file: Path) -> None:
        try:
            size = file.stat().st_size
            with file.open("rb") as source:
                length = int.from_bytes(source.read(8), "little")
                if not 0 < length <= size - 8:
                    raise ValueError("its header is longer than the file")
                header = json.loads(source.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                kind, shape, (first, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
                if kind not in _TYPES:
                    raise ValueError(f"tensor {name} has the type {kind}, which retain does not read")
                if end - first != math.prod(shape) * np.dtype(_TYPES[kind][0]).itemsize or 8 + length + end > size:
                    raise ValueError("it is cut short")
                self._entries[name] = (file, kind, shape, 8 + length + first)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LanguageModelError(f"{file} is not a complete safetensors file: {error}") from error

    def _bytes(self, name: str) -> np.ndarray[Any, Any]:
        file, kind, shape, offset = self._entries[name]
        numpy_type = _TYPES[kind][0]
        if 0 in shape:
            return np.empty(shape, numpy_type)
        return np.memmap(file, numpy_type, "c", offset, shape or (1,)).reshape(shape)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._bytes(name)).view(_TYPES[self._entries[name][1]][1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self) -> str:
        """SHA-256 over name, type, shape and bytes of every tensor, by name: the same however the tensors are spread over files, and the
        same as :func:`retain.lm.embedded.tensors_digest`."""
        digest = hashlib.sha256()
        for name in sorted(self._entries):
            _, kind, shape, _ = self._entries[name]
            digest.update(json.dumps([name, _TYPES[kind][2], list(shape)]).encode())
            digest.update(np.ascontiguousarray(self._bytes(name)).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, shards in the order of their names; empty when it has none.

    Raises LanguageModelError when the index is damaged or names a shard that is not there.
    """
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if not index.is_file():
        return sorted(file for file in directory.glob("*.safetensors") if not file.name.startswith("adapter"))
    try:
        names = sorted({Path(name).name for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise LanguageModelError(f"{index} is damaged: {error}") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise LanguageModelError(f"{directory} lacks {len(missing)} of {len(names)} weight files, the first is {missing[0]}")
    return [directory / name for name in names]


def remembered_digest(files: Sequence[Path], cache: Path, *, tensors: bool = True) -> str:
    """Digest of weight files, computed once: kept in ``cache``/fingerprints under path, size and time of change of every file.

    ``tensors``: safetensors files, digested tensor by tensor; otherwise the files' bytes.
    """
    facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps([tensors, facts]).encode()).hexdigest()
    note = cache / "fingerprints" / f"{key[:32]}.json"
    try:
        known = json.loads(note.read_text())
        if known["key"] == key and len(known["sha256"]) == 64:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = Checkpoint(files).digest() if tensors else _files_digest(files)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "files": facts, "sha256": digest}) + "\n")
        fresh.replace(note)
    except OSError:  # a cache that cannot be written costs time, nothing else
        pass
    return digest


def _files_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()
