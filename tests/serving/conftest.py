"""What the tests of the service share: a workspace that learned two documents, clients over it, and a server on a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from tests.tiny import TINY_SETTINGS, tiny_documents

from retain.config import Config, load_config
from retain.config.serving import ServeConfig
from retain.data.document import Document
from retain.serving.app import create_app
from retain.workspace.continual import ContinualLM

HERE = "http://127.0.0.1"  # without tokens the service answers under names of this machine only


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(
        None,
        {
            **TINY_SETTINGS,
            "gate": {"attempts": 1},
        },
    )


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, settings: Config) -> Iterator[ContinualLM]:
    with ContinualLM.open(tmp_path_factory.mktemp("work"), tiny_model, config=settings) as made:
        for title, text in tiny_documents()[:2]:
            made.learn(Document.from_text(text, title))
        yield made


@pytest.fixture(scope="module")
def client(lm: ContinualLM) -> Iterator[TestClient]:
    with TestClient(create_app(lm, ServeConfig(capacity=256)), base_url=HERE) as made:
        yield made


@pytest.fixture
def fresh(tmp_path: Path, tiny_model: Any, settings: Config) -> Iterator[Callable[..., TestClient]]:
    """Clients over an empty workspace, with these settings of the service."""
    open_: list[Any] = []

    def make(**changes: Any) -> TestClient:
        lm = ContinualLM.open(tmp_path / "work", tiny_model, config=settings)
        client = TestClient(create_app(lm, ServeConfig.model_validate({"capacity": 256, **changes})), base_url=HERE)
        open_.extend([lm, client.__enter__()])
        client.lm = lm  # type: ignore[attr-defined]
        return client

    yield make
    for lm, client in zip(open_[::2], open_[1::2], strict=True):
        client.__exit__(None, None, None)
        lm.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application behind a real server on a free port of loopback; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not come up"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def address(lm: ContinualLM) -> Iterator[str]:
    """The service over the workspace of two documents, over a socket."""
    with listening(create_app(lm, ServeConfig(capacity=256))) as found:
        yield found
