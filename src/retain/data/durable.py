"""What makes files and the names of files durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

TEMPORARY = ".tmp-"  # how names of files and folders begin that are not there yet


def sync(path: Path, flags: int = 0) -> None:
    """fsync of a file or of the names in a folder, where the file system can; ``flags`` for opening it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
