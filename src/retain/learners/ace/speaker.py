"""Who reflects and curates: a model behind an OpenAI-compatible API, or the base model itself."""

from __future__ import annotations

from typing import Protocol

from retain.config.learners import AceConfig
from retain.data.endpoint import ChatAPI, Client
from retain.data.errors import DataError
from retain.data.examples import prompt_tokens
from retain.learners.base import LearnerError
from retain.lm.generation import Sampling, stream
from retain.lm.model import LanguageModel

OWN_TOKENS = 256  # that the base model writes at most: it runs where everything else does
BEGINNING = 32  # tokens in which it must have begun with JSON: a model that has not will not, and would ramble on to the limit


class Speaker(Protocol):
    """A model that answers instructions about a material. ``own``: it is the base model. ``tokens``: that went through the base model."""

    name: str
    own: bool
    tokens: int
    requests: int

    def say(self, instructions: str, material: str) -> str:
        """What it writes; LearnerError when it cannot be asked."""


class Endpoint:
    """The model behind ``ace.url``. Raises LearnerError, one line, when the settings are not complete or the API cannot be asked."""

    own = False

    def __init__(self, config: AceConfig) -> None:
        hint = " with ace.url null the base model speaks"
        self._api = ChatAPI(config, Client("ace", "the speaker", LearnerError, hint))
        self.name, self.tokens, self.requests = str(config.model), 0, 0

    def say(self, instructions: str, material: str) -> str:
        self.requests += 1
        return self._api.complete(instructions, material)


class Own:
    """The base model, greedily, without any adapter."""

    own = True

    def __init__(self, model: LanguageModel, config: AceConfig) -> None:
        self._model, self._most = model, min(config.max_tokens, OWN_TOKENS, model.context // 4)
        self.name, self.tokens, self.requests = model.name, 0, 0

    def say(self, instructions: str, material: str) -> str:
        """What the model writes, broken off where it does not begin with JSON; "" for more instructions and material than it reads."""
        self.requests += 1
        try:
            prompt = prompt_tokens(self._model.tokenizer, material, system=instructions, max_tokens=self._model.context - self._most)
        except DataError:
            return ""
        self.tokens += len(prompt)
        written: list[int] = []
        for _, token in stream(self._model, [prompt], Sampling(max_tokens=self._most)):
            written.append(token)
            if len(written) == BEGINNING and "{" not in self._text(written):
                break
        return self._text(written)

    def _text(self, tokens: list[int]) -> str:
        return str(self._model.tokenizer.decode(tokens, skip_special_tokens=True))


def speaker_of(model: LanguageModel, config: AceConfig) -> Speaker:
    """The speaker that the configuration names: the base model where ``ace.url`` is null."""
    return Endpoint(config) if config.url else Own(model, config)
