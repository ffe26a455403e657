"""The chat completions server of the learners' tests, for teachers behind an API."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.learners.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()
