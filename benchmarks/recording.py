"""How the result of a benchmark is kept and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep(record: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON, and print it without the facts about the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "machine"}, indent=1))
