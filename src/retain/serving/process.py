"""The service's processes: this one answers, a second one learns. Either may die without the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from retain.config import ConfigError
from retain.config.serving import ServeConfig
from retain.serving.security import is_loopback, read_tokens
from retain.workspace.continual import ContinualLM
from retain.workspace.errors import DurabilityLost

PATIENCE = 20.0  # seconds that the learner has to stop
LONGEST = 60.0  # between two starts of a learner that dies at once


class Learner:
    """Runs the learning process, and starts it anew when it ends, sooner or later depending on how long it lived."""

    def __init__(self, command: Sequence[str], tell: Callable[[str], None]) -> None:
        self.command, self._tell = list(command), tell
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it; what it was learning is pending again."""
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        wait = 1.0
        while not self._stop.is_set():
            began = time.monotonic()
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
            code = self._process.wait()
            if self._stop.is_set():
                return
            wait = 1.0 if time.monotonic() - began > LONGEST else min(2 * wait, LONGEST)
            self._tell(f"the learner ended with code {code}; starting it again in {wait:g} s")
            self._stop.wait(wait)


def check_address(settings: ServeConfig) -> None:
    """Raise ConfigError before anything is loaded: an open address without tokens, a token file with mistakes, a port that is taken."""
    if settings.token_file:
        read_tokens(settings.token_file)
    elif not is_loopback(settings.host):
        raise ConfigError(f"serve.host: {settings.host} can be reached by others: name a token file (--token-file), or listen on 127.0.0.1")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((settings.host, settings.port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(f"serve.port: {settings.host}:{settings.port} cannot be listened on: {why.lower()}") from error


def serve(lm: ContinualLM, settings: ServeConfig, learn: bool, tell: Callable[[str], None]) -> None:
    """Answer until the process is told to stop; ``learn``: with a learning process beside."""
    import uvicorn

    from retain.serving.app import create_app
    from retain.serving.journal import Journal

    app = create_app(lm, settings, Journal(settings.log))
    command = [sys.executable, "-m", "retain.cli", "work", "--workspace", str(Path(lm.root).resolve()), "--quiet"]
    learner = Learner(command, tell) if learn else None

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.closing = True  # streams of events end by themselves
            super().handle_exit(sig, frame)

    options = uvicorn.Config(
        app, settings.host, settings.port, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn sends itself the signal again when it is done
    server = Server(options)
    app.state.end = lambda: server.handle_exit(signal.SIGTERM, None)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        if learner is not None:
            learner.close()
    if lm.store.files.broken:
        raise DurabilityLost(lm.store.files.broken)
