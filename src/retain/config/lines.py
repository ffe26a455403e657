"""Where in a YAML file a message about it belongs."""

from __future__ import annotations

import re

import yaml

from retain.config.errors import ConfigError

_KEY = re.compile(r"[^\s.:][^\s:]*")


def located(message: str, place: str, text: str) -> ConfigError:
    """A message about a file, with the line that it speaks of.

    ``message``: "PLACE: section.key: what is wrong", or without the place; ``text``: the file's content. The line is that of the deepest
    key that is in the file; a message that names none keeps its words.
    """
    rest = message.removeprefix(f"{place}: ")
    line = line_of(text, rest)
    return ConfigError(f"{place}:{line}: {rest}" if line else f"{place}: {rest}")


def line_of(text: str, message: str) -> int | None:
    """The line, counted from 1, of the keys that begin a message: "backbone: modl: unknown key" speaks of `modl` in `backbone`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    found = None
    for part in message.split(": "):
        if not _KEY.fullmatch(part):
            break
        for key in part.split("."):
            if not isinstance(node, yaml.MappingNode):
                return found
            pair = next((pair for pair in node.value if pair[0].value == key), None)
            if pair is None:
                return found
            found, node = pair[0].start_mark.line + 1, pair[1]
    return found
