"""The JSON Schema of an experiment's file, with the sections of every registered backbone, task and callback."""

from __future__ import annotations

import copy
from typing import Any

from pydantic.json_schema import models_json_schema

from retain.config.section import Section
from retain.multitask.backbones import BACKBONES
from retain.multitask.callbacks import CALLBACKS
from retain.multitask.config import BackboneConfig, ExperimentConfig, TaskConfig
from retain.multitask.registry import Registry
from retain.multitask.tasks import TASKS


def experiment_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what :func:`retain.multitask.load_experiment` takes, as JSON values.

    ``backbone`` and each of ``tasks`` are one of the registered kinds, told apart by ``kind``; ``training.callbacks`` has the registered
    names. Kinds that are registered later are in what is made later.
    """
    backbones, tasks, callbacks = (_classes(registry) for registry in (BACKBONES, TASKS, CALLBACKS))
    wanted: list[type[Section]] = [ExperimentConfig, *backbones.values(), *tasks.values(), *callbacks.values()]
    places, made = models_json_schema([(cls, "validation") for cls in dict.fromkeys(wanted)])
    defs = made["$defs"]
    names = {cls: place["$ref"].rpartition("/")[2] for (cls, _), place in places.items()}
    general = {names.get(cls, cls.__name__) for cls in (BackboneConfig, TaskConfig)} | {
        names[cls] for cls in (*backbones.values(), *tasks.values())
    }
    for what, kinds in (("backbone", backbones), ("task", tasks)):
        for kind, cls in kinds.items():
            own = copy.deepcopy(defs[names[cls]])
            own["properties"]["kind"] |= {"const": kind}
            defs[f"{what}-{kind}"] = {**own, "title": f"{what} of kind {kind}"}
    top = defs.pop(names[ExperimentConfig])
    top["properties"]["backbone"] = _one_of("backbone", backbones) | {"description": top["properties"]["backbone"]["description"]}
    top["properties"]["tasks"] |= {"additionalProperties": _one_of("task", tasks), "minProperties": 1}
    defs["TrainingConfig"]["properties"]["callbacks"] |= {
        "properties": {name: {"$ref": f"#/$defs/{names[cls]}"} for name, cls in callbacks.items()}, "additionalProperties": False,
    }  # fmt: skip
    kept = {name: part for name, part in defs.items() if name not in general}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": kept}


def _classes(registry: Registry[Any]) -> dict[str, type[Section]]:
    return {name: registry.find(name, "schema").Config for name in registry}


def _one_of(what: str, kinds: dict[str, type[Section]]) -> dict[str, Any]:
    return {"oneOf": [{"$ref": f"#/$defs/{what}-{kind}"} for kind in kinds]}
