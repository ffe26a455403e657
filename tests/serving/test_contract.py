"""Whatever the published description of the API allows to be sent, and what it does not, by schemathesis: the service never fails, never
answers without a right token, and refuses in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as generated
from hypothesis.errors import Unsatisfiable
from tests.serving.conftest import listening

from retain.config.serving import ServeConfig
from retain.serving.app import create_app
from retain.serving.security import PUBLIC, needed
from retain.workspace.continual import ContinualLM

schemathesis = pytest.importorskip("schemathesis")

ADDRESS: list[str] = []  # of the service that runs
TOKENS = {scope: f"{scope}-0123456789abcdef" for scope in ("read", "learn", "admin")}
EXAMPLES = generated(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def guarded(lm: ContinualLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service with tokens, running."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text("\n".join(f"{scope} {token}" for scope, token in TOKENS.items()))
    app = create_app(lm, ServeConfig(capacity=128, token_file=file, requests_per_minute=10_000_000, body_megabytes=1.0))
    with listening(app) as address:
        ADDRESS[:] = [address]
        yield app


@pytest.fixture(scope="module")
def described(guarded: Any) -> Any:
    """Everything that it describes, except the stream of events, which has no end."""
    return schemathesis.openapi.from_dict(guarded.openapi()).exclude(path="/v1/events")


def every(described: Any, examples: int, check: Callable[[Any], None]) -> None:
    """Run a check on cases of every operation, made from the description: fitting and not fitting ones."""
    operations = [result.ok() for result in described.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                generated(EXAMPLES, max_examples=examples)(given(operation.as_strategy(generation_mode=mode))(check))()
            except Unsatisfiable:  # nothing can be wrong about a request without parameters
                assert mode is schemathesis.GenerationMode.NEGATIVE


def sent(case: Any, token: str | None) -> Any:
    case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
    return case.call(base_url=ADDRESS[0], headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=60)


def refused_in_shape(response: Any) -> bool:
    return set(response.json()["error"]) == {"message", "type", "param", "code"} if response.status_code >= 400 else True


def test_nothing_fails(described: Any, guarded: Any) -> None:
    def check(case: Any) -> None:
        response = sent(case, TOKENS["admin"])
        assert response.status_code < 500 and response.status_code not in (401, 403, 429), response.text
        assert refused_in_shape(response), response.text

    every(described, 8, check)


def test_nobody_comes_in_without_the_right_token(described: Any, guarded: Any) -> None:
    def check(case: Any) -> None:
        public = PUBLIC.fullmatch(case.formatted_path) and case.method == "GET"
        for token in (None, "wrong-0123456789abcdef"):
            assert sent(case, token).status_code == (200 if public else 401)
        wanted = needed(case.method, case.formatted_path)
        assert wanted not in ("learn", "admin") or sent(case, TOKENS["read"]).status_code == 403
        assert wanted != "admin" or sent(case, TOKENS["learn"]).status_code == 403

    every(described, 3, check)


def test_every_change_needs_more_than_reading(guarded: Any) -> None:
    """A new route that changes something has to be given a scope."""
    for wrong in ("/v1/documents/a0\n", "/v1/documents/", "/v1/updates/u0\n/revert", "/v1/new"):
        assert needed("POST", wrong) == needed("DELETE", wrong) == "admin", "what nobody thought of is for admins"
    asking = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
    for path, methods in guarded.openapi()["paths"].items():
        for method in methods:
            if method != "get" and path not in asking:
                assert needed(method.upper(), path.replace("{key}", "a0")) in ("learn", "admin"), (method, path)
            assert (needed(method.upper(), path.replace("{key}", "a0")) is None) == (path == "/healthz")


MESSAGES = '"messages": [{"role": "user", "content": "Who?"}]'


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", '{"messages": [{"role": "user", "content": "a\\ud800"}], "max_tokens": 2}', 200),  # half a character
        ("completions", '{"prompt": "a\\ud800", "max_tokens": 2}', 200),
        ("embeddings", '{"input": "\\ud800"}', 200),
        ("chat/completions", f'{{"temperature": 1e-300, "max_tokens": 2, {MESSAGES}}}', 200),
        ("chat/completions", f'{{"top_p": 1e-300, "temperature": 2, "max_tokens": 2, {MESSAGES}}}', 200),
        ("chat/completions", f'{{"temperature": NaN, {MESSAGES}}}', 400),
        ("chat/completions", f'{{"max_tokens": 1000000, {MESSAGES}}}', 400),
        ("chat/completions", f'{{"seed": 9223372036854775807, "n": 8, "temperature": 1, "max_tokens": 2, {MESSAGES}}}', 200),
        ("completions", '{"prompt": [99999999999999999999]}', 400),
        ("completions", '{"prompt": [[]]}', 400),
        ("load_lora_adapter", '{"lora_name": "a", "lora_path": "' + "x" * 900 + '"}', 400),
        ("load_lora_adapter", '{"lora_name": "a", "lora_path": "\\u0000"}', 400),
        ("documents", "[" * 100_000, 400),
        ("documents", '{"text": "x", "importance": 1e999}', 400),
        ("documents", '{"text": "x", "title": "\\ud800"}', 400),
    ],
)
def test_what_no_description_thinks_of(client: TestClient, path: str, body: str, status: int) -> None:
    quiet = TestClient(client.app, raise_server_exceptions=False, base_url=str(client.base_url))
    response = quiet.post(f"/v1/{path}", content=body.encode(), headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert refused_in_shape(response)
