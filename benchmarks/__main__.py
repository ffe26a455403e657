"""``python -m benchmarks``: the benchmarks that take minutes, one after another; ``python -m benchmarks NAME`` runs one.

Those of ``LONG`` take much longer and run only by name.
"""

from __future__ import annotations

import subprocess
import sys

QUICK = ("replay_sampling", "fisher", "adapters", "engine", "curvature", "retrieval")
LONG = {
    "stream": "benchmarks.stream.run",
    "growth": "benchmarks.growth",
    "consolidation": "benchmarks.consolidation",
    "digits": "benchmarks.digits.run",
    "learners": "benchmarks.learners",
    "multitask": "benchmarks.multitask",
    "multitask_speed": "benchmarks.multitask_speed",
}
ALL = {**{name: f"benchmarks.{name}" for name in QUICK}, **LONG}


def main() -> int:
    """Run the named benchmarks, or the quick ones."""
    names = sys.argv[1:] or list(QUICK)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    return max(subprocess.run([sys.executable, "-m", ALL[name]], check=False).returncode for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
