"""PackNet (Mallya and Lazebnik, 1711.05769) over LoRA factors: documents share the entries of one set of factors, each owns its part.

A document trains the entries that no earlier one owns, gives most of them back (the smallest in each tensor, set to zero), trains what it
kept once more, and owns it from then on. Its adapter holds the entries of all documents up to itself and zeros elsewhere, so it is a plain
LoRA adapter, and what later documents do cannot reach it. Which entries are taken follows from the latest adapter: those that are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retain.adapters import Adapter, AdapterSpec, new_lora
from retain.adapters.adapter import LORA_A, LORA_B
from retain.adapters.peft_format import padded
from retain.config import Config
from retain.learners.base import Aid, Form, Learned, Lesson, Memory, Passage, Tell
from retain.learners.chains import chain_of, cost_of, keeps_prefix, teller
from retain.learners.lora import check_sites, settings_of, sites_of
from retain.lm.model import LanguageModel
from retain.retention.base import Params, Retention, Task
from retain.training.loop import TrainingError, train
from retain.training.objective import AdapterObjective

Masks = dict[str, Tensor]


class PackNet:
    """Factors of rank ``packnet.rank`` at the sites of ``learn.layers`` and ``learn.targets``, shared by all documents. Their product is
    scaled by learn.alpha / learn.rank, whatever ``packnet.rank`` is. A larger rank, or further sites, add entries that nobody owns."""

    name = "packnet"
    form: Form = "chain"
    studies = True
    injected = True

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError for layers or targets that the model does not have."""
        check_sites(model, config)

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """Train, prune, train again. Raises TrainingError when it had no effect or hardly any entry is free, LearnerError where the earlier
        adapters are none to build on."""
        name, scale = lesson.document.id, config.learn.alpha / config.learn.rank
        chain = chain_of(model, lesson, "lora")
        sites, rank = _shape(model, chain, config)
        owned = _entries(model, chain, sites, rank)
        free = {key: tensor == 0 for key, tensor in owned.items()}
        share = Share.of(free, config)
        if share.kept < config.packnet.least or not share.kept:
            raise TrainingError(f"task {name}: only {share.free:.1%} of the weights are free; raise packnet.rank or use another learner")
        params = _fresh(model, owned, free, sites, rank, lesson.seed + len(chain))
        before = {key: tensor.clone() for key, tensor in params.items()}
        objective = AdapterObjective(
            model, sites, scale, [(lesson.skill, 1.0)] if lesson.skill else [], cache_prefix=keeps_prefix(model, lesson.examples)
        )
        task, settings = Task(name, lesson.examples, objective), replace(settings_of(config.learn), seed=lesson.seed)
        reports = [train(task, params, settings, [Masked(free)], teller(tell, lesson.document.title))]
        kept = prune(params, free, config.packnet.prune)
        again = replace(settings, epochs=config.packnet.retrain_epochs)
        reports.append(train(task, params, again, [Masked(kept)], teller(tell, f"{lesson.document.title}, pruned")))
        spec = AdapterSpec("lora", model.fingerprint, sites, rank, scale * rank, lineage={"task": name, "learner": self.name})
        adapter = Adapter(params, spec).half()
        lost = _lost(adapter, kept, name)
        rest = {key: tensor == 0 for key, tensor in adapter.tensors.items()}
        cost = cost_of(
            adapter, reports, parameter_change=_distance(params, before, kept), trained_loss=reports[0].losses[-1],
            pruned_loss=reports[1].losses[0], underflowed=lost, **Share.of(rest, config).figures(config),
        )  # fmt: skip
        return Learned(adapter, cost)

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """Nothing: the adapter is all that helps."""
        return Aid()

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Nothing: no memory is shared."""
        return None


@dataclass(frozen=True)
class Share:
    """``free``: share of all entries that no document owns; ``kept``: share of all that the next document would keep."""

    free: float
    kept: float

    @classmethod
    def of(cls, free: Masks, config: Config) -> Share:
        """From the masks of the free entries."""
        share = sum(int(mask.sum()) for mask in free.values()) / sum(mask.numel() for mask in free.values())
        return cls(share, share * (1.0 - config.packnet.prune))

    def documents(self, config: Config) -> int:
        """How many further documents fit: each takes the same share of what the one before it left."""
        least, left = config.packnet.least, config.packnet.prune
        if self.kept < least:
            return 0
        return 1 + math.floor(math.log(least / self.kept) / math.log(left) + 1e-9) if left else 1

    def figures(self, config: Config) -> dict[str, float | int]:
        """For a certificate."""
        return {"entries_taken": 1.0 - self.free, "entries_free": self.free, "documents_that_still_fit": self.documents(config)}


class Masked(Retention):
    """Only the entries marked in ``trained`` learn; the others keep the values that they have when training begins.

    Their gradients are set to zero, so that they have no part in clipping, and they are put back after the optimizer's step: the moments of
    AdamW and weight decay move entries whose gradient is zero.
    """

    name = "masked"
    looks_back = False

    def __init__(self, trained: Masks) -> None:
        self.trained = trained
        self.held: Params = {}

    def before_task(self, task: Task, params: Params) -> None:
        self.held = {name: tensor.detach().clone() for name, tensor in params.items()}

    def adjust_gradients(self, params: Params, gradients: Params) -> None:
        for name, gradient in gradients.items():
            gradient.mul_(self.trained[name])

    def adjust_update(self, params: Params, previous: Params) -> None:
        for name, tensor in params.items():
            tensor.copy_(torch.where(self.trained[name], tensor, self.held[name]))


def prune(params: Params, free: Masks, share: float) -> Masks:
    """Set the smallest ``share`` of each tensor's free entries to zero, in place; the masks of the free entries that were kept."""
    kept: Masks = {}
    for name, tensor in params.items():
        sizes = tensor.abs().masked_fill(~free[name], -1.0).flatten()
        count = round((1.0 - share) * int(free[name].sum()))
        kept[name] = torch.zeros_like(sizes, dtype=torch.bool).index_fill_(0, sizes.topk(count).indices, True).view_as(tensor)
        tensor.masked_fill_(free[name] & ~kept[name], 0.0)
    return kept


def _shape(model: LanguageModel, chain: list[Adapter], config: Config) -> tuple[tuple[str, ...], int]:
    """Sites and rank: those of the configuration, and what the latest adapter has beyond them."""
    latest = chain[-1].spec if chain else None
    sites = {*sites_of(model, config.learn), *(latest.sites if latest else ())}
    return tuple(site for site in model.sites if site in sites), max(config.packnet.rank, latest.rank if latest else 0)


def _entries(model: LanguageModel, chain: list[Adapter], sites: tuple[str, ...], rank: int) -> Params:
    """The entries that earlier documents own, as they are stored, and zeros, in float32."""
    entries: Params = {}
    for site in sites:
        d_in, d_out = model.sites[site]
        a, b = torch.zeros(0, d_in), torch.zeros(d_out, 0)
        if chain and site in chain[-1].spec.sites:
            a, b = (chain[-1].tensors[site + end].float() for end in (LORA_A, LORA_B))
        a, b = padded(a, b, rank)
        entries[site + LORA_A], entries[site + LORA_B] = a.to(model.device), b.to(model.device)
    return entries


def _fresh(model: LanguageModel, owned: Params, free: Masks, sites: tuple[str, ...], rank: int, seed: int) -> Params:
    """Where a document starts: the owned entries, and in place of the free ones a fresh A and a B of zeros."""
    new = new_lora(model, sites, rank, rank, seed)
    return {name: torch.where(free[name], new[name], tensor) for name, tensor in owned.items()}


def _lost(adapter: Adapter, kept: Masks, name: str) -> int:
    """How many kept entries are zero in half precision. Raises TrainingError when no B learned anything, or an entry overflowed."""
    if not all(bool(tensor.isfinite().all()) for tensor in adapter.tensors.values()):
        raise TrainingError(f"task {name}: a weight is too large for half precision; lower learn.learning_rate")
    if not any(bool(adapter.tensors[key][mask].any()) for key, mask in kept.items() if key.endswith(LORA_B)):
        raise TrainingError(f"task {name}: nothing of what was trained is left in half precision; raise learn.learning_rate")
    return sum(int((adapter.tensors[key][mask] == 0).sum()) for key, mask in kept.items())


def _distance(params: Params, before: Params, kept: Masks) -> float:
    """How far the kept entries went."""
    return math.sqrt(sum(float((params[name] - before[name])[mask].square().sum()) for name, mask in kept.items()))
