"""Every other causal language model, through transformers, with adapters passed in exactly as in the own decoder.

Hooks sit at the linear layers of the blocks for good, and do nothing unless the call they run in brought an injection. The call's
injection travels in a context variable, so that threads sharing one model never see each other's adapters. What the model does
(which layers are reached, whether it is causal, how it scales its logits) is tried once with a few tokens rather than assumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retain.lm.decoder import weights_fingerprint
from retain.lm.derivatives import wide
from retain.lm.model import Injection, LanguageModel, LanguageModelError
from retain.lm.packing import Packed


class _Call(NamedTuple):
    """A forward pass in progress: its model, its injection, and the row of every token [S, L]."""

    model: TransformersLM
    injection: Injection
    rows: Tensor


_CALL: ContextVar[_Call | None] = ContextVar("retain_call", default=None)


@contextmanager
def _calling(call: _Call | None) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


class TransformersLM(LanguageModel):
    """A transformers causal model. ``transposed``: sites whose weight is stored [d_in, d_out] (GPT-2's Conv1D).

    ``module`` belongs to this object from now on: it is frozen and gets hooks. Raises LanguageModelError when it has no linear layer in
    its blocks, is not causal, or makes its logits in a way that is not understood.
    """

    def __init__(
        self, module: Any, tokenizer: Any, *, name: str, fingerprint: str | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.fingerprint = fingerprint or weights_fingerprint(dict(module.named_parameters()))
        self.module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        self.device, self.dtype = torch.device(device), dtype
        self._base, self._head = module.base_model, module.get_output_embeddings()
        if self._base is module or self._head is None:
            raise LanguageModelError(f"{name} has no language-model head on top of a body: it is not a causal language model")
        config = module.config.get_text_config(decoder=True)
        self.layers, self.vocabulary = int(config.num_hidden_layers), int(self._head.weight.shape[0])
        self.context = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)
        self._chunked = getattr(config, "attention_chunk_size", None) is not None
        self._scale, self._cap = 1.0, None
        linear = find_linear(module)
        self.transposed = frozenset(site for site, layer in linear.items() if not isinstance(layer, nn.Linear))
        for site, layer in linear.items():
            layer.register_forward_hook(_hook(self, site))
        beside = find_mlps(module)
        for site, block in beside.items():
            block.register_forward_hook(_hook(self, site))
        reached = self._probe(config)
        self.sites = {site: _shape(layer) for site, layer in linear.items() if site in reached}
        self.blocks = {site: self.width for site in beside if site in reached}
        if not self.sites:
            raise LanguageModelError(f"{name} ({type(module).__name__}) has no linear layer in its blocks that an adapter could sit at")

    def hidden(
        self, packed: Packed, injection: Injection | None = None, start: int = 0, stop: int | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        if start != 0 or inputs is not None or stop not in (None, self.layers):
            raise ValueError(f"{self.name} runs through transformers: a pass goes through all of its layers")
        if max(packed.lengths) > self.context:
            raise LanguageModelError(f"{max(packed.lengths)} tokens exceed the model's context of {self.context}")
        lengths = torch.tensor(packed.lengths, device=self.device)
        valid = torch.arange(max(packed.lengths), device=self.device)[None, :] < lengths[:, None]  # right padding: [S, L]
        tokens = torch.zeros(valid.shape, dtype=torch.int64, device=self.device).masked_scatter(valid, packed.tokens)
        rows = packed.rows[packed.starts][:, None].expand(valid.shape)
        return self.run(tokens, valid, rows, injection, use_cache=False).last_hidden_state[valid]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = wide(self._head(hidden.to(self.dtype))) * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    def decode(self, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> Continuation:
        return Continuation(self, prompts, injection, capacity)

    def run(self, tokens: Tensor, valid: Tensor, rows: Tensor, injection: Injection | None, **options: Any) -> Any:
        """The body's output for padded tokens; ``valid`` is the attention mask, ``rows`` names the row of every token [S, L]."""
        with _calling(None if injection is None else _Call(self, injection, rows)):
            return self._base(input_ids=tokens, attention_mask=valid.long(), **options)

    def logits_under(self, weights: Mapping[str, Tensor], tokens: Tensor, injection: Injection | None = None) -> Tensor:
        """The whole model's logits [L, vocabulary] of one sequence [L] with other weights in place of its own, which stay as they are."""
        rows = torch.zeros_like(tokens)[None]
        with _calling(None if injection is None else _Call(self, injection, rows)):
            output = torch.func.functional_call(self.module, dict(weights), kwargs={"input_ids": tokens[None], "use_cache": False})
        return output.logits[0].float()

    def can_cache(self, cache: Any) -> bool:
        """Whether left-padded rows can be continued with this cache: plain or sliding keys and values, positions given by the caller."""
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None]))
        return known and not self._chunked and "position_ids" in inspect.signature(self._base.forward).parameters

    @torch.no_grad()
    def _probe(self, config: Any) -> frozenset[str]:
        """Sites that a pass reaches. Finds how logits are scaled and capped, and raises unless the model is causal."""
        tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=self.device) % self.vocabulary
        recorder = _Recorder()
        valid = torch.ones_like(tokens, dtype=torch.bool)
        hidden = self.run(tokens, valid, torch.zeros_like(tokens), recorder, use_cache=False).last_hidden_state
        self.width = int(hidden.shape[-1])
        close = 1e-4 if self.dtype == torch.float32 else 3e-2
        if not _near(hidden[0, :3], hidden[1, :3], close):
            raise LanguageModelError(f"{self.name} ({type(self.module).__name__}) sees later tokens: it is not a causal language model")
        wanted = self.module(input_ids=tokens, attention_mask=valid.long(), use_cache=False).logits.float()
        factors = [getattr(config, key, None) for key in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
        scales = [1.0] + [form for factor in factors if isinstance(factor, (int, float)) and factor for form in (factor, 1 / factor)]
        cap = getattr(config, "final_logit_softcapping", None)
        for self._cap in [cap, None] if cap else [None]:
            for self._scale in scales:
                if _near(self.logits(hidden), wanted, close):
                    return frozenset(recorder.reached)
        raise LanguageModelError(f"{self.name} ({type(self.module).__name__}) makes its logits in a way that retain does not know")


class Continuation:
    """A batch of sequences being continued: ``rows`` the numbers of the live ones, ``hidden`` [B, width] their final hidden states,
    ``logits`` [B, vocabulary] of the next token of each.

    Prompts are padded on the left, so that the distances between real tokens are the true ones, and keys and values are kept. Models whose
    memory does not allow that (state-space layers, positions that cannot be given) are run again from the start for every token.
    """

    def __init__(self, model: TransformersLM, prompts: Sequence[Sequence[int]], injection: Injection | None, capacity: int) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if capacity > model.context:
            raise LanguageModelError(f"{longest} prompt tokens and the answer need {capacity} positions, the model has {model.context}")
        self.model, self.injection = model, injection
        self.rows = torch.arange(len(prompts), device=model.device)
        self._cache: Any = None
        self._sequences = [list(prompt) for prompt in prompts]
        self._valid = torch.tensor(
            [[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=model.device
        )  # fmt: skip
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
        from transformers import DynamicCache

        cache = DynamicCache(config=model.module.config)
        if model.can_cache(cache):
            self._cache = cache
            self._step(tokens)
        else:
            self._again()

    def advance(self, tokens: Tensor, keep: Tensor | None = None) -> None:
        """Append one token [B] to every row, then drop the rows not in ``keep`` [B] bool before computing the next logits."""
        for sequence, token in zip(self._sequences, tokens.tolist(), strict=True):
            sequence.append(token)
        if keep is not None and not bool(keep.all()):
            chosen = keep.nonzero(as_tuple=True)[0]
            tokens, self.rows, self._valid = tokens[chosen], self.rows[chosen], self._valid[chosen]
            self._sequences = [self._sequences[place] for place in chosen.tolist()]
            if self._cache is not None:
                self._cache.batch_select_indices(chosen)
        if self._cache is None:
            return self._again()
        self._valid = torch.cat([self._valid, torch.ones_like(self._valid[:, :1])], 1)
        self._step(tokens[:, None])

    def _step(self, tokens: Tensor) -> None:
        positions = (self._valid.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self.model.run(
            tokens, self._valid, self.rows[:, None].expand(tokens.shape), self.injection, position_ids=positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        self._cache = output.past_key_values
        self.hidden = output.last_hidden_state[:, -1]
        self.logits = self.model.logits(self.hidden)

    def _again(self) -> None:
        packed = Packed.of(self._sequences, self.model.device)
        packed.__dict__["rows"] = self.rows[packed.rows]  # the numbers that the rows began with
        self.hidden = self.model.hidden(packed, self.injection)[packed.last]
        self.logits = self.model.logits(self.hidden)


def find_linear(module: nn.Module) -> dict[str, nn.Module]:
    """Linear layers (nn.Linear, GPT-2's Conv1D) inside the blocks, by Hugging Face module name, in the order of the model."""
    from transformers.pytorch_utils import Conv1D

    blocks = tuple(f"{name}." for name, child in module.named_modules() if isinstance(child, nn.ModuleList))
    return {
        name: child for name, child in module.named_modules() if isinstance(child, (nn.Linear, Conv1D)) and name.startswith(blocks)
    }  # fmt: skip


def find_mlps(module: nn.Module) -> dict[str, nn.Module]:
    """The MLPs of the blocks, by module name: what transformers calls mlp, ffn or feed_forward there."""
    lists = [(name, layers) for name, layers in module.named_modules() if isinstance(layers, nn.ModuleList)]
    blocks = [(f"{name}.{number}", layer) for name, layers in lists for number, layer in enumerate(layers)]
    return {
        f"{name}.{part}": child
        for name, block in blocks
        for part, child in block.named_children()
        if part in ("mlp", "ffn", "feed_forward")
    }


def _shape(layer: Any) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer."""
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


def _near(a: Tensor, b: Tensor, relative: float) -> bool:
    return bool((a.float() - b.float()).abs().max() <= relative * b.float().abs().max().clamp(min=1e-6))


def _hook(model: TransformersLM, site: str) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor | None:
        call = _CALL.get()
        if call is None or call.model is not model:
            return None
        if not inputs or not isinstance(output, Tensor):  # an MLP that is called in another way, or gives more than its output
            return None
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        if x.shape[0] != call.rows.numel():
            if isinstance(call.injection, _Recorder):
                return None
            raise LanguageModelError(f"site {site} saw {x.shape[0]} tokens of {call.rows.numel()}: no adapter can sit there")
        return call.injection((site,), x, output.reshape(-1, output.shape[-1]), call.rows.reshape(-1)).view_as(output)

    return hook


class _Recorder:
    """An injection that changes nothing and remembers which sites were reached."""

    by_row = False

    def __init__(self) -> None:
        self.reached: set[str] = set()

    def __call__(self, sites: tuple[str, ...], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        self.reached.update(sites)
        return y
