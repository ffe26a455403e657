"""The service's log: what of a path and of an error is told, at which level, and that nothing depends on it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.serving.conftest import HERE

from retain.config import ConfigError
from retain.config.serving import ServeConfig
from retain.serving.app import create_app
from retain.serving.journal import Journal, named, shown
from retain.serving.security import read_tokens
from retain.workspace.continual import ContinualLM

ID = "d0123456789ab"


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_of_a_path_only_what_is_known() -> None:
    words = frozenset({"v1", "documents", "release"})
    assert shown(f"/v1/documents/{ID}/release", words) == f"/v1/documents/{ID}/release"
    assert shown("/v1/documents/my secret/release", words) == "/v1/documents/*/release" and shown("/", words) == "/"
    assert shown("/v1/documents/secret-token-0123456789", words) == "/v1/documents/*"


def test_of_an_error_its_name_and_place() -> None:
    with pytest.raises(ConfigError) as caught:
        read_tokens(Path("/secret"))
    told = named(caught.value)
    assert told["error"] == "ConfigError" and "secret" not in str(told)
    assert re.fullmatch(r"serving/security\.py:\d+", told["at"][0])


@pytest.mark.parametrize(
    ("level", "events"), [("all", ["200", "404", "500"]), ("problems", ["500"]), ("none", []), ("auto", ["200", "404", "500"])]
)
def test_levels(level: Any, events: list[str], lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(limit: int) -> Any:
        raise RuntimeError("a secret")

    out = io.StringIO()
    with TestClient(create_app(lm, ServeConfig(capacity=256), Journal(level, out)), base_url=HERE) as client:
        monkeypatch.setattr(lm.ledger, "updates", broken)
        given = [client.get(path) for path in ("/v1/models", "/v1/models/secret", "/v1/updates")]
    assert [response.status_code for response in given] == [200, 404, 500]
    found = lines(out)
    assert [str(line["status"]) for line in found] == events and "secret" not in out.getvalue()
    if found:
        last = found[-1]
        assert last["id"] == given[-1].headers["x-request-id"] and last["id"] in given[-1].json()["error"]["message"]
        assert last["level"] == "error" and last["error"] == "RuntimeError" and last["at"][-1].startswith("serving/")


def test_on_a_terminal_only_problems() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Journal("auto", Terminal()).level == "problems" and Journal("all", Terminal()).level == "all"


def test_requests_go_on_when_nobody_reads_the_log(lm: ContinualLM) -> None:
    out = io.StringIO()
    out.close()
    with TestClient(create_app(lm, ServeConfig(capacity=256), Journal("all", out)), base_url=HERE) as client:
        assert client.get("/v1/models").status_code == 200


def test_ids_are_of_the_service_and_differ(client: TestClient) -> None:
    found = [client.get("/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] for _ in range(2)]
    assert len(set(found)) == 2 and all(len(key) == 36 and key.startswith("req_") for key in found)
