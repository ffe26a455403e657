"""retain's models in EleutherAI's lm-evaluation-harness (``pip install "retain[lm-eval]"``).

Importing this file registers the model "retain" with the harness. Tokenisation, truncation and windows are the harness's own
(:class:`lm_eval.api.model.TemplateLM`, as its Hugging Face backend uses it), so that scores can be compared with published ones::

    import lm_eval
    from retain.evaluation.lm_eval import RetainLM

    print(lm_eval.simple_evaluate(RetainLM("smollm2-135m-instruct"), tasks=["arc_easy"])["results"])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f"the lm-evaluation-harness is missing ({error}): pip install 'retain[lm-eval]'") from error

from retain.data.choices import encode
from retain.evaluation.probes import continuation_scores
from retain.lm.generation import Sampling, generate
from retain.lm.model import Injection, LanguageModel

Route: TypeAlias = Callable[[str], Injection | None]
Request: TypeAlias = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), and the tokens of both
_NEW_TOKENS = 256  # what the harness's own backends write where a task sets no limit


@register_model("retain")
class RetainLM(TemplateLM):
    """A language model with what it learned, as the harness sees it.

    Args:
        model: a loaded model, or the name, folder, GGUF file or hub name of one.
        injection: adapters for every request.
        route: gives the adapters for a request by its context, instead of ``injection``; equal adapters should be the same object.
        adapter: folder of an adapter in peft's format, instead of ``injection``: what the harness's command line can name.
        device, precision: for a model that is loaded here.
        batch_size: prompts that are continued at a time; likelihoods are packed by tokens.
        max_length: window in tokens, at most the model's own.
    """

    def __init__(
        self, model: LanguageModel | str | Path = "smollm2-135m-instruct", injection: Injection | None = None, *,
        route: Route | None = None, adapter: str | Path | None = None, device: str | None = None, precision: str = "auto",
        batch_size: int | str | None = 16, max_length: int | None = None, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if sum(given is not None for given in (injection, route, adapter)) > 1:
            raise ValueError("give one of injection, route and adapter")
        if not isinstance(model, LanguageModel):
            from retain.lm.loading import load_model

            kind = (device or "auto").partition(":")[0]
            wished = kind if kind != "cuda" or torch.cuda.is_available() else "auto"  # the harness says cuda:0 without looking
            model = load_model(model, device=wished, precision=precision)
        if adapter is not None:
            from retain.adapters import inject
            from retain.adapters.peft_format import import_peft

            injection = inject([(import_peft(Path(adapter), model), 1.0)], model.dtype, model.device)
        self.model, self.tokenizer = model, model.tokenizer
        self._route: Route = route or (lambda context: injection)
        wish = str(batch_size)
        self.batch_size = int(wish) if wish.isdigit() else 16  # the harness says "auto" for no wish
        self.max_length = min(max_length or model.context, model.context)
        self._device = model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text is predicted from that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """By what the harness tells caches of requests apart."""
        return str(self.model.name).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; without a wish those that the tokenizer makes by default."""
        if add_special_tokens is None:
            return encode(self.tokenizer, string)
        return [int(token) for token in self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in disjoint windows as long as the model reads."""
        found: list[Request] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
            found += [((text, ""), context, continuation) for context, continuation in pairs]
            counts.append(len(pairs))
        scores = iter(self._loglikelihood_tokens(found, disable_tqdm))
        totals = [math.fsum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for injection, members in self._by_adapters([context or text for (context, text), _, _ in requests]):
            pairs = [self._cut(*requests[number][1:]) for number in members]
            for number, score in zip(members, continuation_scores(self.model, pairs, injection), strict=True):
                scores[number] = score
                if requests[number][0][1]:  # windows of a rolling request are kept as a whole
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], score)
        return scores

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of what is too long: ``max_length`` tokens are read, and the last one is only predicted."""
        keep = self.max_length + 1 - len(continuation)
        if keep < 1:
            raise ValueError(f"a continuation of {len(continuation)} tokens does not fit the window of {self.max_length}")
        return context[-keep:], continuation

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, without it; contexts lose tokens at their left where there is no room."""
        texts = [""] * len(requests)
        alike: dict[tuple[int, Sampling], tuple[Injection | None, list[int]]] = {}
        for injection, members in self._by_adapters([request.args[0] for request in requests]):
            for number in members:
                alike.setdefault((id(injection), self._sampling(requests[number].args[1])), (injection, []))[1].append(number)
        for (_, sampling), (injection, members) in alike.items():
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise ValueError(f"{sampling.max_tokens} new tokens leave no room for a prompt in a window of {self.max_length}")
            prompts = [(self.tok_encode(requests[number].args[0]) or [self.prefix_token_id])[-room:] for number in members]
            found = generate(self.model, prompts, sampling, injection, batch=self.batch_size)
            for number, text in zip(members, found, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's own template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
            )
        )

    def _sampling(self, wishes: dict[str, Any]) -> Sampling:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(wishes, _NEW_TOKENS))
        stop = handle_stop_sequences(wanted["until"], eos=self.tokenizer.decode([self.eot_token_id]))
        temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample") else 0.0
        return Sampling(
            wanted["max_gen_toks"], temperature, float(wanted.get("top_p", 1.0)), stop=tuple(mark for mark in stop if mark)
        )  # fmt: skip

    def _by_adapters(self, contexts: Sequence[str]) -> list[tuple[Injection | None, list[int]]]:
        """The requests that get the same adapters, by number."""
        groups: dict[int, tuple[Injection | None, list[int]]] = {}
        for number, context in enumerate(contexts):
            injection = self._route(context)
            groups.setdefault(id(injection), (injection, []))[1].append(number)
        return list(groups.values())
