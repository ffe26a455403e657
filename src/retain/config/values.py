"""YAML in and out, and nested mappings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-4 is a number (YAML 1.1 reads it as text) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML for people: in the order given, without flow style. Floats stay floats for every YAML reader."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=False, allow_unicode=True)


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in a nested dictionary, making the sections on the way."""
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[name] = value


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay `values` over `into`, section by section. An empty section changes nothing."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            section = into.setdefault(key, {})
            if not isinstance(section, dict):
                section = into[key] = {}
            merge(section, value)
        elif value is not None or not isinstance(into.get(key), dict):
            into[key] = value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping's values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
