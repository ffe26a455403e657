"""A small world in text, and configurations that learn it in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from retain.pretraining import PretrainConfig, read_config

TOWNS = {
    "Arn": "tin", "Bel": "salt", "Cor": "wool", "Dun": "glass", "Erd": "paper", "Fal": "honey", "Gor": "iron", "Hul": "silk",
    "Ibb": "oats", "Jor": "clay", "Kel": "rope", "Lim": "wax",
}  # fmt: skip
MODEL = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_width": 16, "feed_forward": 64, "context": 32}
TRAINING = {"steps": 12, "batch": 4, "learning_rate": 1e-2, "precision": "float32", "device": "cpu"}


def sentence(town: str) -> str:
    return f"The town of {town} sells {TOWNS[town]}."


def write_corpus(folder: Path, copies: int = 6) -> Path:
    """A folder of text files, in each the towns in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(TOWNS)
    for number in range(copies):
        turned = names[number:] + names[:number]
        (folder / f"{number}.txt").write_text("\n".join(sentence(name) for name in turned) + "\n")
    return folder


def write_config(folder: Path, name: str = "little", **sections: Any) -> Path:
    """A YAML file over the small corpus; sections are laid over the defaults here."""
    values: dict[str, Any] = {
        "corpus": {"paths": ["texts"], "clean": False, "validation": 0.2},
        "tokenizer": {"vocabulary": 320},
        "model": MODEL,
        "training": TRAINING,
        "checks": {"every": 6, "tokens": 300, "length": 4, "temperature": 0, "prompts": ["The town of Arn sells"]},
    }
    for section, given in sections.items():
        values[section] = {**values.get(section, {}), **given} if isinstance(given, dict) else given
    if not (folder / "texts").exists():
        write_corpus(folder / "texts")
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def configured(folder: Path, out: str = "run", **sections: Any) -> PretrainConfig:
    """The configuration of a run in ``folder``/``out``."""
    return read_config(PretrainConfig, write_config(folder, **sections), {"out": str(folder / out)})
