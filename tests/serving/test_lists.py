"""Lists of what was sent and what is learned: in pages, by as many queries however long they are; sources and how much of each may wait;
and the page's files, which a browser may keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.tiny import tiny_documents

from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.worker import Worker

Fresh = Callable[..., TestClient]


@contextmanager
def queries(lm: ContinualLM) -> Iterator[list[str]]:
    """What SQLite is asked."""
    asked: list[str] = []
    lm.ledger._connection.set_trace_callback(lambda statement: asked.append(statement) if statement.startswith("SELECT") else None)
    yield asked
    lm.ledger._connection.set_trace_callback(None)


def filled(client: TestClient, documents: int, waiting: int) -> ContinualLM:
    """Arrivals that became documents, and others that wait."""
    lm: ContinualLM = client.lm  # type: ignore[attr-defined]
    with lm.ledger.transaction():
        for number in range(documents):
            ((key, _),) = lm.ledger.receive([Arrival(b"done %d" % number, name=f"Text {number}", importance=1.0)])
            lm.ledger.lease("w", 60)
            blob = lm.store.put(b"%d" % number)
            lm.ledger.add_document({"id": f"d{number:012x}", "title": f"Text {number}", "source": "mail"}, blob)
            lm.ledger.finish(key, "w", [f"d{number:012x}"])
        lm.ledger.receive([Arrival(b"waits %d" % number, name=f"Waits {number}") for number in range(waiting)])
    return lm


def test_as_many_queries_however_long_it_is(fresh: Fresh) -> None:
    client = fresh()
    lm = filled(client, 30, 30)
    asked = []
    for limit in (1, 50):
        with queries(lm) as found:
            listed = client.get(f"/v1/documents?limit={limit}").json()
        asked.append(len(found))
        assert len(listed["arrivals"]) == limit and len(listed["documents"]) == min(limit, 30)
    assert asked[0] == asked[1] < 8, asked
    keys = [item["id"] for item in listed["arrivals"]]
    with queries(lm) as found:
        again = client.post("/v1/documents", json={"documents": [{"text": f"waits {number}"} for number in range(30)]}).json()["documents"]
    assert {item["status"] for item in again} == {"pending"} and {item["id"] for item in again} <= set(keys)
    one = [statement for statement in found if "kind, name" in statement]
    assert len(one) == 1, "what is known already is looked up at once"


def test_a_list_in_pages(fresh: Fresh) -> None:
    client = fresh()
    filled(client, 25, 25)
    first = client.get("/v1/documents?limit=10").json()
    assert first["has_more"] == {"arrivals": True, "documents": True} and first["waiting"] == 25
    whole = client.get("/v1/documents?limit=1000").json()
    assert whole["has_more"] == {"arrivals": False, "documents": False} and len(whole["arrivals"]) == 50
    for name, other in (("arrivals", "documents"), ("documents", "arrivals")):
        found, more = first[name], True
        while more:
            page = client.get(f"/v1/documents?limit=10&after={found[-1]['id']}").json()
            assert page[other] == [] and not page["has_more"][other] and 0 < len(page[name]) <= 10
            found, more = [*found, *page[name]], page["has_more"][name]
        assert found == whole[name]
    assert [item["title"] for item in whole["arrivals"][:2]] == ["Waits 24", "Waits 23"] and whole["documents"][0]["title"] == "Text 24"
    assert {item["status"] for item in whole["arrivals"]} == {"pending"}, "documents that are not learned yet, and texts that wait"


def test_how_much_of_a_source_may_wait(fresh: Fresh) -> None:
    client = fresh(source_depth=2)
    send = lambda text, **more: client.post("/v1/documents", json={"text": text, **more})  # noqa: E731
    assert [send(f"Mail {number}.", source="mail").status_code for number in range(3)] == [202, 202, 429]
    refused = send("Mail 3.", source="mail")
    assert "of the source 'mail'" in refused.json()["error"]["message"] and refused.headers["retry-after"]
    assert [send(f"Note {number}.").status_code for number in range(3)] == [202, 202, 429], "no source is one too"
    assert send("Mail 0.", source="mail").json()["status"] == "pending", "what is known needs no room"
    several = {"documents": [{"text": "a", "source": "chat"}, {"text": "b", "source": "mail"}]}
    assert client.post("/v1/documents", json=several).status_code == 429
    found = client.get("/v1/documents").json()
    assert found["sources"] == {"": 2, "mail": 2}, "nothing of what was refused"
    form = [client.post("/v1/documents", files=[("file", (f"{n}.md", b"# %d" % n))], data={"source": "wiki"}).status_code for n in range(3)]
    assert form == [202, 202, 429]
    lm: ContinualLM = client.lm  # type: ignore[attr-defined]
    (leased,) = lm.ledger.lease("w", 60)
    assert leased.arrival.source == "mail" and send("Mail 4.", source="mail").status_code == 429, "what is being learned waits too"
    lm.ledger.hold(leased.id, "w", "looks odd")
    assert send("Mail 4.", source="mail").status_code == 202
    plan = lm.ledger._rows("EXPLAIN QUERY PLAN SELECT count(*) FROM inbox WHERE source = ? AND status IN ('pending', 'learning')", ("a",))
    assert "INDEX inbox_waiting" in plan[0][3]


def test_without_a_number_sources_are_not_counted(fresh: Fresh) -> None:
    client = fresh()
    assert {client.post("/v1/documents", json={"text": f"{n}", "source": "mail"}).status_code for n in range(20)} == {202}


def test_where_it_came_from_stays_with_it(fresh: Fresh) -> None:
    client = fresh()
    lm: ContinualLM = client.lm  # type: ignore[attr-defined]
    title, text = tiny_documents()[0]
    key = client.post("/v1/documents", json={"text": text, "title": title, "source": "mail of 3 May"}).json()["id"]
    assert Worker(lm).once()
    listed = client.get("/v1/documents").json()
    assert listed["arrivals"][0]["source"] == listed["documents"][0]["source"] == "mail of 3 May" == lm.documents()[0].source
    document = listed["documents"][0]["id"]
    client.delete(f"/v1/documents/{key}")
    assert client.get(f"/v1/documents/{document}").json()["source"] == "", "what is forgotten leaves no source"


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/style.css"])
def test_a_browser_keeps_the_page_and_asks_whether_it_is_still_right(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.status_code == 200 and first.headers["cache-control"] == "no-cache" and first.headers["etag"]
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b"" and again.headers["cache-control"] == "no-cache"
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200 and client.head(path).status_code == 200


def test_nobody_keeps_answers(client: TestClient) -> None:
    kept: Any = {path: client.get(path).headers["cache-control"] for path in ("/v1/models", "/v1/documents", "/metrics", "/v1/nothing")}
    assert set(kept.values()) == {"no-store"}
