"""The files of the page hold together: what is named is there, nothing is inline, nothing comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from retain.serving.app import PAGE
from retain.serving.security import needed

VIEWS = ("ask", "teach", "live", "history", "forgetting", "settings")
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


class Tags(HTMLParser):
    """Every tag with its attributes, and the texts inside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.fixture(scope="module")
def page() -> Tags:
    found = Tags()
    found.feed((PAGE / "index.html").read_text())
    return found


def test_everything_that_is_named_is_served(client: TestClient, page: Tags) -> None:
    served = client.get("/")
    assert served.headers["content-type"].startswith("text/html") and "default-src 'self'" in served.headers["content-security-policy"]
    named = {attributes[name] for _, attributes in page.tags for name in ("src", "href") if not attributes.get(name, "#").startswith("#")}
    assert len(named) >= 4
    waiting, known = sorted(named), set(named)
    while waiting:
        address = waiting.pop()
        response = client.get(address)
        assert response.status_code == 200 and response.headers["content-type"].startswith(TYPES[Path(address).suffix]), address
        assert needed("GET", address) is None, "it is needed before there is a token"
        for name in re.findall(r'(?:from|import) "\./([^"]+)"', response.text):
            if f"/static/{name}" not in known:
                waiting.append(f"/static/{name}")
                known.add(f"/static/{name}")
    assert {name.removeprefix("/static/") for name in known} == {file.name for file in PAGE.iterdir()} - {"index.html"}


def test_nothing_inline_and_nothing_from_elsewhere(page: Tags) -> None:
    assert not page.inline, "scripts and styles in the page itself are not run"
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text), file.name
        assert file.stat().st_size < 40_000


def test_labels_lead_somewhere(page: Tags) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        for name in ("for", "aria-labelledby", "aria-describedby", "list"):
            assert set(attributes.get(name, "").split()) <= set(ids), (tag, attributes)
        if tag in ("input", "select", "textarea") and attributes.get("type") != "hidden":
            assert attributes["id"] in {other.get("for") for kind, other in page.tags if kind == "label"}, attributes
    wanted = {name for file in PAGE.glob("*.js") for name in re.findall(r'byId\("([^"]+)"\)', file.read_text())}
    assert len(wanted) > 30 and wanted <= set(ids)
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {"#main", *(f"#{view}" for view in VIEWS)}
    assert {f"view-{view}" for view in VIEWS} <= set(ids)
