"""``python -m benchmarks``: the benchmarks that take minutes, one after another; ``python -m benchmarks NAME [OPTIONS]`` runs one, with its
options.

Those of ``LONG`` take much longer, or need files that are fetched, and run only by name.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile

QUICK = ("replay_sampling", "fisher", "adapters", "engine", "curvature", "retrieval")
LONG = (
    "stream.run", "digits.run", "growth", "consolidation", "learners", "update", "decoding", "ingest", "serving", "kills",
    "multitask", "multitask_speed", "multitask_forgetting", "multitask_media", "multitask_text_answers",
)  # fmt: skip
ALL = {name.removesuffix(".run"): f"benchmarks.{name}" for name in (*QUICK, *LONG)}


def main() -> int:
    """Run the named benchmarks, or the quick ones."""
    given = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    names, options = given or list(QUICK), sys.argv[1 + len(given) :]
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    return max(subprocess.run([sys.executable, "-m", ALL[name], *options], check=False).returncode for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
