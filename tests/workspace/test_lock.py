"""One writer at a time, across real processes, and no lock left by the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retain.workspace import Locked, WorkspaceError, WriterLock

HOLD = """
import sys, time
from pathlib import Path
from retain.workspace import WriterLock
with WriterLock(Path(sys.argv[1])).acquire():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = WriterLock(path)
    with another_process(path) as process:
        with pytest.raises(Locked, match=rf"process {process.pid} on "):
            lock.acquire()
        start = time.monotonic()
        with pytest.raises(Locked):
            lock.acquire(timeout=0.2)
        assert time.monotonic() - start >= 0.2
        assert not lock.held
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with lock.acquire(timeout=5):  # the lock of the dead does not hold
            assert lock.held
            assert str(os.getpid()) in lock.holder()
    assert not lock.held
    assert lock.holder() == ""


def test_waiting_succeeds_when_the_holder_lets_go(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path / "lock"), WriterLock(tmp_path / "lock")
    first.acquire()
    timer = threading.Timer(0.1, first.release)
    timer.start()
    assert second.acquire(timeout=10).held
    timer.join()


def test_two_objects_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "lock").acquire() as first:
        with pytest.raises(Locked):
            WriterLock(tmp_path / "lock").acquire()
        with pytest.raises(WorkspaceError, match="already held"):
            first.acquire()
    with WriterLock(tmp_path / "lock"):
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock").acquire()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.1)
        lock.release()
        with WriterLock(tmp_path / "lock").acquire():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_file_with_rubbish_in_it_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff[1, 2")
    assert WriterLock(tmp_path / "lock").holder() == ""
    with WriterLock(tmp_path / "lock").acquire() as lock:
        assert lock.holder()
