"""`python -m tests.cli.driver ARGS`: the command line over the stand-in, for tests that need a process or a terminal.

RETAIN_TEST_SLOW=seconds makes every event take that long.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.fake import ContinualLM, World

from retain.cli import main, session


def _open(workspace: Path, *, progress: Callable[[Any], None], **options: Any) -> ContinualLM:
    def slowly(event: Any) -> None:
        progress(event)
        time.sleep(float(os.environ.get("RETAIN_TEST_SLOW", "0")))

    return World().open(workspace, progress=slowly, **options)


if __name__ == "__main__":
    session.open_workspace = _open  # type: ignore[assignment]
    main.main()
