"""Teachers and students: any network that gives the logits of the supervised tokens of examples.

The same :class:`Example` serves all kinds:

- ``causal``: token t is predicted from those before it;
- ``seq2seq``: the supervised tokens are the target, those before them the source;
- ``encoder``: the supervised tokens are hidden behind the mask token and guessed. All of them: replacing some by random or unchanged
  tokens brings nothing (Wettig et al., 2202.08005, section 6).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retain.data.examples import Example
from retain.lm.decoder import DecoderLM
from retain.lm.embedded import cache_root
from retain.lm.loading import load_model, load_tokenizer, locate, own_decoder_config, quiet, read_config, weight_files
from retain.lm.packing import Packed, targets
from retain.pretraining.decoder import TrainableDecoder
from retain.pretraining.errors import PretrainingError

Kind = Literal["causal", "seq2seq", "encoder"]
_IGNORED = -100


class Network(nn.Module):
    """A language model with its tokenizer. Called with examples it gives float32 logits [N, V] at their supervised tokens, in order, and
    the labels [N]. ``context``: the longest example."""

    kind: Kind
    name: str
    tokenizer: Any
    context: int

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face checkpoint of tensors by the names of this module's parameters."""
        raise NotImplementedError


class OwnNetwork(Network):
    """The own decoder."""

    kind = "causal"

    def __init__(self, decoder: TrainableDecoder, name: str) -> None:
        super().__init__()
        self.decoder, self.name, self.tokenizer, self.context = decoder, name, decoder.tokenizer, decoder.config.context

    def forward(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        packed = Packed.of([example.tokens for example in examples], self.decoder.device)
        places, labels = targets(packed, [example.supervised for example in examples])
        return self.decoder.logits(self.decoder.hidden(packed)[places]), labels

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        self.decoder.save(folder, {name.removeprefix("decoder."): tensor for name, tensor in parameters.items()})


class TransformersNetwork(Network):
    """A model of the library transformers. Rows are padded on the right and the padding is hidden from attention."""

    def __init__(self, model: Any, kind: Kind, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model, self.kind, self.tokenizer, self.name = model, kind, tokenizer, name
        self.context = int(getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None) or 512)
        if kind == "encoder" and tokenizer.mask_token_id is None:
            raise PretrainingError(f"{name}: its tokenizer has no mask token, so there is nothing that an encoder could guess")
        self._pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        forwards: dict[Kind, Callable[[Sequence[Example]], tuple[Tensor, Tensor]]] = {
            "causal": self._causal, "seq2seq": self._seq2seq, "encoder": self._encoder,
        }  # fmt: skip
        self._forward = forwards[kind]

    def forward(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        logits, labels = self._forward(examples)
        return logits.float(), labels

    def _causal(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        packed = Packed.of([example.tokens for example in examples], self.model.device)
        places, labels = targets(packed, [example.supervised for example in examples])
        rows = packed.rows[places]
        return self.model(**self._padded([example.tokens for example in examples])).logits[rows, places - packed.starts[rows]], labels

    def _seq2seq(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        sources = [[token for token, target in zip(e.tokens, e.supervised, strict=True) if not target] for e in examples]
        wanted = [[token for token, target in zip(e.tokens, e.supervised, strict=True) if target] for e in examples]
        labels = self._rows(wanted, _IGNORED)
        shifted = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits = self.model(**self._padded(sources), decoder_input_ids=shifted).logits
        return logits[labels != _IGNORED], labels[labels != _IGNORED]

    def _encoder(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        hidden = self.tokenizer.mask_token_id
        inputs = [[hidden if guess else token for token, guess in zip(e.tokens, e.supervised, strict=True)] for e in examples]
        wanted = [[token if guess else _IGNORED for token, guess in zip(e.tokens, e.supervised, strict=True)] for e in examples]
        labels = self._rows(wanted, _IGNORED)
        return self.model(**self._padded(inputs)).logits[labels != _IGNORED], labels[labels != _IGNORED]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        tokens = self._rows(rows, self._pad)
        mask = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        return {"input_ids": tokens, "attention_mask": mask.long()}

    def _rows(self, rows: Sequence[Sequence[int]], padding: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding).to(self.model.device)

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        buffers, state = dict(self.model.named_buffers()), self.model.state_dict()
        stored = {name: state[name].cpu() for name in buffers if name in state}
        stored |= {name.removeprefix("model."): tensor.cpu() for name, tensor in parameters.items()}
        with quiet():
            self.model.save_pretrained(str(folder), state_dict=stored)
            self.tokenizer.save_pretrained(str(folder))


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What kind of model a config.json describes, by its architecture. Raises PretrainingError for others."""
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    names = [str(name) for name in config.get("architectures") or []]
    if any("ForCausalLM" in name or name.endswith("LMHeadModel") for name in names):
        return "causal"
    if any("MaskedLM" in name or name.endswith("ForPreTraining") for name in names):
        return "encoder"
    found = ", ".join(names) or config.get("model_type")
    raise PretrainingError(f"the model is {found}: say what it is with student.kind (causal, seq2seq or encoder)")


def load_network(name: str, kind: str = "auto", device: torch.device | str = "cpu") -> Network:
    """A model by name, folder or GGUF file, with all weights in float32: Llama, Mistral and Qwen2 in the own decoder, others through
    transformers. Raises LanguageModelError and PretrainingError."""
    source = locate(name, cache_root())
    config = read_config(source.directory, complete=source.digest is not None)
    if kind in ("auto", "causal") and weight_files(source.directory) and own_decoder_config(config) is not None:
        lm = load_model(name, device=torch.device(device).type, precision="float32")
        assert isinstance(lm, DecoderLM)
        return OwnNetwork(TrainableDecoder(lm.config, lm.parameters(), lm.tokenizer, device), lm.name)
    tokenizer = load_tokenizer(source.directory)
    found: Kind = kind_of(config) if kind == "auto" else kind  # type: ignore[assignment]
    import transformers

    classes = {"causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM", "encoder": "AutoModelForMaskedLM"}
    with quiet():
        try:
            loaded = getattr(transformers, classes[found]).from_pretrained(
                str(source.directory), dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises whatever it stumbles over
            raise PretrainingError(f"{source.name} cannot be loaded as {found}: {' '.join(str(error).split())[:300]}") from error
    model, report = loaded
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise PretrainingError(f"{source.name} lacks {len(missing)} tensors of a model that is {found}, the first is {missing[0]}")
    return TransformersNetwork(model.to(device), found, tokenizer, source.name)


def same_vocabulary(teacher: Network, student: Network) -> None:
    """Whether logits can be compared. Raises PretrainingError, which says what to do, when a token means different things to them."""
    theirs, ours = (network.tokenizer.get_vocab() for network in (teacher, student))
    if theirs == ours:
        return
    differs = next((token for token in sorted(theirs, key=theirs.__getitem__) if ours.get(token) != theirs[token]), "")
    example = f"; token {theirs[differs]} is {json.dumps(differs)} to the teacher alone" if differs else ""
    raise PretrainingError(
        f"teacher {teacher.name} and student {student.name} have different vocabularies "
        f"({len(theirs):,} and {len(ours):,} tokens{example}): take a student with the teacher's tokenizer, for example a fresh one "
        "(student.preset), or ask the teacher over an API (teacher.url)"
    )
