"""Which models can be asked for, and what each of them runs with."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retain.adapters import Adapter, AdapterError
from retain.adapters.peft_format import import_peft
from retain.data.document import Message
from retain.lm.generation import Sampling
from retain.serving.engine import Active, Engine
from retain.serving.errors import ApiError
from retain.workspace.asking import Asked

ROUTED = "retain"


class Models:
    """The base, "retain" (routed), the workspace's adapters, and adapters that were loaded for as long as the service runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loaded: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def listed(self) -> list[dict[str, Any]]:
        """As OpenAI's list of models has them."""
        base = self.engine.lm.model.name
        learned = [(item.name, base) for item in self.engine.lm.state.adapters if item.weight]
        names = [(ROUTED, base), (base, None), *learned, *((name, base) for name in self._loaded)]
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "retain", **({"parent": parent, "root": base} if parent else {})}
            for name, parent in names
        ]

    def check(self, model: str) -> None:
        """Raise ApiError for a model that does not exist."""
        if not any(item["id"] == model for item in self.listed()):
            raise ApiError(404, f"there is no model {model!r}: GET /v1/models lists them", "model", "model_not_found")

    def prepare(self, model: str, messages: Sequence[Message], sampling: Sampling, retrieval: bool | None) -> Asked:
        """A conversation for this model."""
        self.check(model)
        if model in self._loaded:
            plain = self.engine.prepare(messages, sampling, adapters=(), retrieval=False)
            return replace(plain, active=((self._loaded[model], 1.0),))
        adapters = None if model == ROUTED else () if model == self.engine.lm.model.name else (model,)
        return self.engine.prepare(messages, sampling, adapters=adapters, retrieval=retrieval)

    def active(self, model: str, prompt: str) -> Active:
        """The adapters of a text that is continued as it is."""
        self.check(model)
        if model in self._loaded:
            return ((self._loaded[model], 1.0),)
        return () if model == self.engine.lm.model.name else self.engine.route(prompt, None if model == ROUTED else model)

    def load(self, name: str, path: str) -> None:
        """Make an adapter in peft's format known by a name, until the service ends; as vLLM's load_lora_adapter."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", name):
            raise ApiError(400, "lora_name: letters, digits and . _ / -, at most 100", "lora_name")
        with self._lock:
            if any(item["id"] == name for item in self.listed()):
                raise ApiError(400, f"lora_name: there is a model {name!r} already", "lora_name")
            place = Path(path)
            try:
                if not (place / "adapter_config.json").is_file():
                    raise ApiError(400, "lora_path: no folder with an adapter in peft's format", "lora_path")
                self._loaded[name] = import_peft(place, self.engine.lm.model)
            except (AdapterError, ValueError, OSError, KeyError) as error:
                raise ApiError(400, f"lora_path: {' '.join(str(error).split())}", "lora_path") from error

    def unload(self, name: str) -> None:
        """Forget a name that :meth:`load` gave; answers that are being written keep their adapter."""
        with self._lock:
            if name not in self._loaded:
                raise ApiError(404, f"lora_name: {name!r} was not loaded", "lora_name", "model_not_found")
            del self._loaded[name]
