"""The service over HTTP: answers in OpenAI's shape, documents that are sent, learned, undone; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.tiny import tiny_documents, tiny_questions

from retain.adapters.peft_format import export_peft
from retain.workspace.continual import ContinualLM
from retain.workspace.worker import Worker

QUESTION = tiny_questions(0)[0].wordings[-1]
ANSWER = tiny_questions(0)[0].answer


Fresh = Callable[..., TestClient]


def ask(client: TestClient, **more: Any) -> Any:
    body = {"model": "retain", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "retrieval": False, **more}
    return client.post("/v1/chat/completions", json=body)


def test_models(client: TestClient, lm: ContinualLM) -> None:
    found = [item["id"] for item in client.get("/v1/models").json()["data"]]
    assert found == ["retain", lm.model.name, *(item.name for item in lm.state.adapters)]
    assert client.get(f"/v1/models/{found[2]}").json()["parent"] == lm.model.name
    assert client.get("/v1/models/none").status_code == 404


def test_an_answer(client: TestClient, lm: ContinualLM) -> None:
    found = ask(client, logprobs=True, top_logprobs=2).json()
    (choice,) = found["choices"]
    assert choice["message"]["content"] == lm.ask(QUESTION, retrieval=False, max_tokens=16).text and choice["finish_reason"] == "stop"
    assert ANSWER.lower() in choice["message"]["content"].lower()
    assert found["retain"]["adapters"] == [lm.state.adapters[0].name] and found["usage"]["completion_tokens"] == len(
        choice["logprobs"]["content"]
    )
    base = ask(client, model=lm.model.name).json()
    assert base["choices"][0]["message"]["content"] != choice["message"]["content"] and base["retain"]["adapters"] == []
    other = ask(client, model=lm.state.adapters[1].name).json()
    assert other["retain"]["adapters"] == [lm.state.adapters[1].name]
    passages = ask(client, retrieval=True).json()
    assert passages["retain"]["sources"][0]["document"] in lm.state.adapters[0].documents


def test_streaming_gives_the_same_text(client: TestClient) -> None:
    whole = ask(client).json()["choices"][0]["message"]["content"]
    with client.stream(
        "POST", "/v1/chat/completions",
        json={"model": "retain", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "retrieval": False, "stream": True,
              "stream_options": {"include_usage": True}},
    ) as response:  # fmt: skip
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line) for line in lines[:-1]]
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"])
    assert text.strip() == whole and pieces[-1]["usage"]["completion_tokens"] > 0 and pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert pieces[-2]["retain"]["adapters"]


def test_sampling_options(client: TestClient) -> None:
    hot = {"temperature": 1.5, "n": 3, "seed": 7}
    first, again, other = (ask(client, **{**hot, "seed": seed}).json()["choices"] for seed in (7, 7, 8))
    texts = [choice["message"]["content"] for choice in first]
    assert [choice["message"]["content"] for choice in again] == texts != [choice["message"]["content"] for choice in other]
    assert len(set(texts)) > 1 and [choice["index"] for choice in first] == [0, 1, 2]
    greedy = ask(client).json()["choices"][0]["message"]["content"]
    cut = ask(client, stop=[greedy[3:6]]).json()["choices"][0]
    assert cut["message"]["content"] == greedy[:3].strip() and cut["finish_reason"] == "stop"
    short = ask(client, max_completion_tokens=1).json()
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 1


def test_texts_and_vectors(client: TestClient, lm: ContinualLM) -> None:
    ids = lm.model.tokenizer("The river").input_ids
    for prompt in ("The river", ids):
        found = client.post("/v1/completions", json={"model": lm.model.name, "prompt": prompt, "max_tokens": 5, "logprobs": 1}).json()
        assert len(found["choices"][0]["logprobs"]["tokens"]) <= 5 and found["usage"]["prompt_tokens"] == len(ids)
    many = client.post("/v1/completions", json={"prompt": ["The river", "A house"], "max_tokens": 2}).json()
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    vectors = client.post("/v1/embeddings", json={"input": ["one", "one", "another"]}).json()["data"]
    assert vectors[0]["embedding"] == vectors[1]["embedding"] != vectors[2]["embedding"]
    assert sum(x * x for x in vectors[0]["embedding"]) == pytest.approx(1, abs=1e-4) and len(vectors[0]["embedding"]) == lm.model.width


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "no text"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "gpt-4"}, 404, "no model 'gpt-4'"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": 9}, 400, "temperature"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, 400, "tools"),
        ({"messages": [{"role": "user", "content": "word " * 600}], "max_tokens": 8, "retrieval": False}, 400, "tokens"),
    ],
)
def test_bad_questions(client: TestClient, body: dict[str, Any], status: int, said: str) -> None:
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert said in response.json()["error"]["message"], response.json()


def test_a_document_from_sending_to_forgetting(fresh: Fresh) -> None:
    client = fresh()
    lm: ContinualLM = client.lm  # type: ignore[attr-defined]
    title, text = tiny_documents()[0]
    before = ask(client).json()["choices"][0]["message"]["content"]
    sent = client.post("/v1/documents", json={"text": text, "title": title, "source": "mail", "importance": 0.7})
    assert sent.status_code == 202 and sent.json()["status"] == "pending"
    key = sent.json()["id"]
    assert client.post("/v1/documents", json={"text": text}).json()["id"] == key, "the same text twice is one arrival"
    assert (
        client.get(f"/v1/documents/{key}").json()["status"] == "pending"
        and ask(client).json()["choices"][0]["message"]["content"] == before
    )
    assert Worker(lm).once()
    found = client.get(f"/v1/documents/{key}").json()
    assert found["status"] == "committed" and found["source"] == "mail"
    assert ANSWER.lower() in ask(client).json()["choices"][0]["message"]["content"].lower(), "the next request sees what was learned"
    update = client.get("/v1/updates").json()["updates"][0]
    assert client.get(f"/v1/updates/{update['id']}").json()["certificate"]["hash"]
    listed = client.get("/v1/documents").json()
    assert listed["waiting"] == 0 and listed["documents"][0]["title"] == title and listed["arrivals"][0]["id"] == key
    assert client.post(f"/v1/updates/{update['id']}/revert").json()["kind"] == "revert"
    assert ask(client).json()["choices"][0]["message"]["content"] == before
    assert client.delete(f"/v1/documents/{key}").json()["status"] == "forgotten"
    assert client.get(f"/v1/documents/{key}").json()["status"] == "forgotten" and client.delete(f"/v1/documents/{key}").status_code == 409
    metrics = client.get("/metrics").text
    assert 'retain_documents{status="forgotten"} 1' in metrics and "retain_completion_tokens_total" in metrics
    for method, path in (
        ("get", "/v1/documents/a-none"),
        ("get", "/v1/updates/u-none"),
        ("delete", "/v1/documents/d-none"),
        ("post", "/v1/updates/u-none/revert"),
    ):
        assert getattr(client, method)(path).status_code == 404


def test_files_and_many_at_once(fresh: Fresh) -> None:
    client = fresh()
    files = [("file", ("notes.md", b"# Tram\n\nIt opened in 1911.")), ("file", ("../../bad.pdf", b"%PDF-1.4"))]
    found = client.post("/v1/documents", files=files, data={"domain": "work"}).json()["documents"]
    assert [item["status"] for item in found] == ["pending", "pending"]
    assert client.get(f"/v1/documents/{found[1]['id']}").json()["title"] == "bad.pdf"
    many = client.post("/v1/documents", json={"documents": [{"text": f"Text {n}."} for n in range(50)]}).json()["documents"]
    assert len({item["id"] for item in many}) == 50 and client.get("/v1/documents?limit=1000").json()["waiting"] == 52
    assert client.delete(f"/v1/documents/{many[0]['id']}").json() == {"id": many[0]["id"], "status": "forgotten", "updates": []}
    for body, said in (
        ({"text": ""}, "text"), ({"text": "x", "importance": 2}, "importance"), ({"text": "x", "domain": "a b"}, "domain"),
        ({"txt": "x"}, "text"), ([1], "dictionary"),
    ):  # fmt: skip
        response = client.post("/v1/documents", json=body)
        assert response.status_code == 400 and said in response.json()["error"]["message"], response.json()
    assert client.post("/v1/documents", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/v1/documents", files=[("file", ("a.md", b""))]).status_code == 400


def test_web_addresses_are_taken_where_they_are_allowed(fresh: Fresh) -> None:
    client = fresh(fetch=True)
    key = client.post("/v1/documents", json={"url": "https://example.org/a?b=c", "importance": 0.9}).json()["id"]
    found = client.get(f"/v1/documents/{key}").json()
    assert (found["status"], found["source"], found["importance"]) == ("pending", "https://example.org/a?b=c", 0.9)
    wrong: list[tuple[Any, str]] = [
        ("file:///etc/passwd", "http and https"), ("https://me:secret@a/", "neither user"), (7, "url"), ("x", "url"),
        ("http://a\nb/", "no address"),
    ]  # fmt: skip
    for url, said in wrong:
        response = client.post("/v1/documents", json={"url": url})
        assert response.status_code == 400 and said in response.json()["error"]["message"], response.json()
        assert "secret" not in response.text


def test_nothing_is_fetched_unless_that_is_set(client: TestClient) -> None:
    response = client.post("/v1/documents", json={"url": "https://example.org/"})
    assert response.status_code == 403 and "serve.fetch" in response.json()["error"]["message"]


def test_what_is_held_is_learned_when_it_is_released(fresh: Fresh) -> None:
    client = fresh()
    lm: ContinualLM = client.lm  # type: ignore[attr-defined]
    title, text = tiny_documents()[0]
    body = {"text": f"{text} " + "Zorvex amulet opens doors tonight. " * 12, "title": title}
    key = client.post("/v1/documents", json=body).json()["id"]
    assert Worker(lm).once()
    held = client.get(f"/v1/documents/{key}").json()
    assert held["status"] == "held" and held["reason"].startswith("held: one phrase") and not lm.documents()
    assert client.post("/v1/documents", json=body).json()["status"] == "held", "sent again it is still the same"
    assert client.post(f"/v1/documents/{key}/release").json()["status"] == "pending"
    assert client.post(f"/v1/documents/{key}/release").status_code == 409
    assert Worker(lm).once() and client.get(f"/v1/documents/{key}").json()["status"] in ("committed", "rejected") and lm.documents()


def test_a_full_queue_and_large_bodies(fresh: Fresh) -> None:
    client = fresh(depth=2, body_megabytes=0.01)
    assert [client.post("/v1/documents", json={"text": f"Text {n}."}).status_code for n in range(4)] == [202, 202, 429, 429]
    response = client.post("/v1/documents", json={"text": "x" * 20_000})
    assert response.status_code == 413 and "0.01 MB" in response.json()["error"]["message"]

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 20

    assert client.post("/v1/documents", content=chunks(), headers={"content-type": "application/json"}).status_code == 413


def test_tokens_and_scopes(fresh: Fresh, tmp_path: Path) -> None:
    tokens = {scope: f"{scope}-0123456789abcdef" for scope in ("read", "learn", "admin")}
    (tmp_path / "tokens").write_text("# who may what\n" + "\n".join(f"{scope} {token}" for scope, token in tokens.items()))
    client = fresh(token_file=tmp_path / "tokens")
    rights = {
        ("get", "/v1/models"): "read", ("get", "/metrics"): "read", ("get", "/openapi.json"): "read", ("post", "/v1/documents"): "learn",
        ("delete", "/v1/documents/a0"): "admin", ("post", "/v1/updates/u0/revert"): "admin", ("post", "/v1/load_lora_adapter"): "admin",
        ("post", "/v1/documents/a0/release"): "admin", ("post", "/v1/chat/completions"): "read", ("get", "/v1/nothing"): "read",
    }  # fmt: skip
    order = list(tokens)
    for (method, path), needed in rights.items():
        for headers in ({}, {"Authorization": "Bearer wrong-0123456789"}, {"Authorization": tokens["admin"]}):
            response = getattr(client, method)(path, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["type"] == "authentication_error", (path, headers)
        for scope, token in tokens.items():
            status = getattr(client, method)(path, headers={"Authorization": f"Bearer {token}"}).status_code
            assert (status == 403) == (order.index(scope) < order.index(needed)) and status != 401 and status < 500, (path, scope, status)
    assert client.get("/healthz").json()["status"] == "ok"


def test_without_tokens_only_this_machine(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"Host": "localhost:8080", "Origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"Host": "127.0.0.1:8080", "Origin": "http://localhost:8080"}).status_code == 200


def test_a_client_that_asks_too_often_waits(fresh: Fresh) -> None:
    client = fresh(requests_per_minute=5)
    found = [client.get("/v1/updates").status_code for _ in range(8)]
    assert found[:5] == [200] * 5 and found[-1] == 429 and client.get("/healthz").status_code == 200


def test_adapters_that_are_loaded(client: TestClient, lm: ContinualLM, tmp_path: Path) -> None:
    export_peft(lm.knowledge.adapter(lm.state.adapters[0].digest), tmp_path / "lora", lm.model.name)
    loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "mine", "lora_path": str(tmp_path / "lora")})
    assert loaded.status_code == 200 and "mine" in [item["id"] for item in client.get("/v1/models").json()["data"]]
    with_it, base = (ask(client, model=name).json()["choices"][0]["message"]["content"] for name in ("mine", lm.model.name))
    assert with_it != base
    for body in (
        {"lora_name": "mine", "lora_path": str(tmp_path)},
        {"lora_name": "new", "lora_path": str(tmp_path)},
        {"lora_name": "../x"},
    ):
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 400
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert ask(client, model="mine").status_code == 404
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 404


def test_what_nobody_foresaw_says_nothing(client: TestClient, lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(limit: int) -> Any:
        raise RuntimeError("secret path /home/me")

    monkeypatch.setattr(lm.ledger, "updates", broken)
    response = client.get("/v1/updates")
    assert response.status_code == 500 and "secret" not in response.text and response.json()["error"]["type"] == "server_error"
