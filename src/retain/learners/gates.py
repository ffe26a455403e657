"""Which neurons of a frozen MLP are special to a document: TF-IDF over neurons (sparse memory fine-tuning, 2510.15103, section 3.2).

A token uses the neurons of an MLP that write most, the largest ``SHARE`` of |activation| * norm of the row of ``down`` that it multiplies.
With c(i) the number of the document's tokens that use neuron i, and B a background of texts that the model itself writes,

    score(i) = c(i) / sum over j of c(j) * log((|B| + 1) / (|{b in B that use i}| + 1))

A neuron that nearly every text uses scores about 0: it is general. The background is counted once per base model and kept in a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retain.adapters.dual_mlp import projection
from retain.data.examples import prompt_tokens
from retain.lm.embedded import cache_root
from retain.lm.generation import Sampling, generate
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

SHARE = 1 / 32  # of an MLP's neurons, that a token uses
SAMPLE_TOKENS = 32  # that the model writes for one text of the background
PIECE = 512  # tokens of a document in one pass

# what the background is about; nothing of it is in the control set, which measures damage
_TOPICS = (
    "volcanoes", "a violin lesson", "steel", "the history of Rome", "a football match", "taxes", "an old lighthouse", "a wedding",
    "honey bees", "an election", "chess", "coal mining", "a broken engine", "the human ear", "painting a fence", "a court case",
    "river boats", "mathematics", "winter coats", "a hospital", "the desert", "shipbuilding", "a film festival", "noise", "sheep farming",
    "a chemistry experiment", "radio", "marathon running", "pottery", "an airport", "prime numbers", "the price of wheat",
)  # fmt: skip
_FORMS = (
    "Write about {}.", "What do you know about {}?", "Tell a story about {}.", "Give advice about {}.", "List facts about {}.",
    "Describe {} in detail.", "Why do people talk about {}?", "Write a news report about {}.",
)  # fmt: skip

Tell = Callable[[int, int], None]


class Background(NamedTuple):
    """By site how many of the ``texts`` use each neuron, [neurons]."""

    used: Mapping[str, Tensor]
    texts: int


class Gates(NamedTuple):
    """By site the numbers of the ``chosen`` neurons [h] of the frozen MLP, ascending, and which of them are ``open`` [h] bool."""

    chosen: Mapping[str, Tensor]
    open: Mapping[str, Tensor]

    @property
    def share(self) -> float:
        """Share of the chosen neurons that are open."""
        return sum(int(gate.sum()) for gate in self.open.values()) / sum(len(gate) for gate in self.open.values())


class _Uses:
    """An injection that changes nothing and counts, for every segment, the tokens that use each neuron: ``counts`` [segments, neurons]."""

    by_row = False

    def __init__(self, model: LanguageModel, sites: Sequence[str], segments: int) -> None:
        self.segments, self.counts = segments, dict[str, Tensor]()
        self._weights = {f"{site}.down_proj": (site, projection(model, site, "down_proj").float().norm(dim=0)) for site in sites}

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if sites[0] in self._weights:
            site, norms = self._weights[sites[0]]
            size = x.float().abs() * norms
            used = torch.zeros_like(size).scatter_(1, size.topk(max(1, round(SHARE * len(norms))), 1).indices, 1.0)
            self.counts[site] = torch.zeros(self.segments, len(norms), device=x.device).index_add_(0, rows, used)
        return y


@torch.no_grad()
def uses(model: LanguageModel, sites: Sequence[str], sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """How many tokens of each sequence use each neuron of the frozen MLPs: by site [sequences, neurons]."""
    recorder = _Uses(model, sites, len(sequences))
    model.hidden(Packed.of(sequences, model.device), recorder)
    return recorder.counts


def write_background(model: LanguageModel, samples: int, tell: Tell | None = None) -> list[list[int]]:
    """Token sequences of general text: prompts with what the model writes after them, at temperature 1."""
    prompts = [list(prompt_tokens(model.tokenizer, form.format(topic))) for form in _FORMS for topic in _TOPICS]
    found: list[list[int]] = []
    for seed in count():
        for first in range(0, len(prompts), 64):
            batch = prompts[first : first + 64][: samples - len(found)]
            texts = generate(model, batch, Sampling(max_tokens=SAMPLE_TOKENS, temperature=1.0, seed=seed * len(prompts) + first), batch=64)
            found += [[*prompt, *_tokens(model, text)] for prompt, text in zip(batch, texts, strict=True)]
            if tell:
                tell(len(found), samples)
            if len(found) == samples:
                return found
    raise AssertionError


def _tokens(model: LanguageModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def background(
    model: LanguageModel, sites: Sequence[str], samples: int, cache: Path | None = None, tell: Tell | None = None
) -> Background:  # fmt: skip
    """The background's use of the neurons, counted at the first call for a base model and kept in ``cache`` (default $RETAIN_CACHE, else
    ~/.cache/retain) from then on. A cache that cannot be written costs time, nothing else."""
    place = (cache or cache_root()) / "calibration" / f"{model.fingerprint[:32]}-{samples}.safetensors"
    key = {"fingerprint": model.fingerprint, "samples": str(samples), "share": str(SHARE), "tokens": str(SAMPLE_TOKENS)}
    known = _read(place, key)
    if known is not None and all(site in known for site in sites):
        return Background({site: known[site].to(model.device) for site in sites}, samples)
    texts = write_background(model, samples, tell)
    used = {site: torch.zeros(0) for site in sites}
    for first in range(0, samples, 32):
        for site, counts in uses(model, sites, texts[first : first + 32]).items():
            here = (counts > 0).sum(0).to(torch.int32)
            used[site] = used[site] + here if len(used[site]) else here
    _write(place, key, used)
    return Background(used, samples)


def _read(place: Path, key: Mapping[str, str]) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(place), "pt") as file:
            same = file.metadata() == dict(key)
            return {name: file.get_tensor(name) for name in file.keys()} if same else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _write(place: Path, key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, fresh, metadata=dict(key))
        fresh.replace(place)


def scores(model: LanguageModel, tokens: Sequence[int], known: Background) -> dict[str, Tensor]:
    """TF-IDF of every neuron for a document's ``tokens``, by site [neurons]; 0 for neurons that it does not use."""
    sites = list(known.used)
    total: dict[str, Tensor] = {}
    for first in range(0, len(tokens), PIECE):
        for site, counts in uses(model, sites, [tokens[first : first + min(PIECE, model.context)]]).items():
            total[site] = total[site] + counts[0] if site in total else counts[0]
    return {
        site: counts / counts.sum() * torch.log((known.texts + 1) / (known.used[site].to(counts) + 1)) for site, counts in total.items()
    }


def choose(scored: Mapping[str, Tensor], width: int | None, threshold: float) -> Gates:
    """At every site the ``width`` neurons with the highest scores (None: all). Open are those whose score is above 0 and at least
    ``threshold`` of the mean over all neurons of the site."""
    chosen = {site: values.topk(min(width or len(values), len(values))).indices.sort().values for site, values in scored.items()}
    picked = {site: values[chosen[site]] for site, values in scored.items()}
    return Gates(chosen, {site: (best > 0) & (best >= threshold * scored[site].mean()) for site, best in picked.items()})
