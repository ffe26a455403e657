"""The page in a real browser: somebody teaches, asks, reverts and comes back; what all views owe to keyboards, readers and eyes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import listening
from tests.tiny import tiny_documents, tiny_questions

from retain.config import Config
from retain.config.serving import ServeConfig
from retain.serving.app import create_app
from retain.serving.events import EventFile
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.worker import Worker

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
VIEWS = ("ask", "teach", "live", "history", "forgetting", "settings")
PATIENCE = 60_000  # milliseconds that something on the page may take
# controls without a name, pictures without a text, ids that occur twice or that nothing has, headings that skip a level
PROBLEMS = """() => {
  const found = [];
  const named = (e) => (e.labels?.length && [...e.labels].some((l) => l.textContent.trim())) || e.getAttribute('aria-label')
    || (e.getAttribute('aria-labelledby') ?? '').split(' ').some((id) => document.getElementById(id)?.textContent.trim())
    || (['BUTTON', 'A', 'SUMMARY'].includes(e.tagName) && e.textContent.trim());
  const seen = (e) => e.checkVisibility();
  for (const e of document.querySelectorAll('button, a, input, select, textarea, summary, progress, [tabindex="0"]'))
    if (seen(e) && !named(e)) found.push('no name: ' + e.outerHTML.slice(0, 80));
  for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) found.push('no alt');
  for (const e of document.querySelectorAll('svg[role=img]')) if (!e.getAttribute('aria-label')) found.push('chart without words');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push('twice: ' + id);
  for (const name of ['aria-labelledby', 'aria-describedby', 'for', 'list'])
    for (const e of document.querySelectorAll(`[${name}]`))
      for (const id of e.getAttribute(name).split(' ')) if (!document.getElementById(id)) found.push(name + ' to nothing: ' + id);
  let level = 0;
  for (const e of document.querySelectorAll('h1, h2, h3, h4')) {
    if (!seen(e)) continue;
    const now = Number(e.tagName[1]);
    if (now > level + 1) found.push('heading skips a level: ' + e.textContent);
    level = now;
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push('wider than the window');
  return found;
}"""
# the contrast of every text that is seen with what lies behind it
CONTRAST = """() => {
  const context = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('.unseen, .skip, svg, option')) continue;
    const behind = [];
    for (let p = e; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const back = light(over(behind)), front = light(over([...behind, getComputedStyle(e).color]));
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${e.textContent.trim().slice(0, 40)}`);
  }
  return found;
}"""


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:
    """Opens an address in a browser that knows nothing yet; what it complains about is an error, unless it is ``expected``."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def visit(address: str, expected: str = "$never", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1100, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: line.type == "error" and not re.search(expected, line.text) and complaints.append(line.text))
        tab.on("request", lambda one: one.url.startswith(address) or complaints.append(f"from elsewhere: {one.url}"))
        tab.goto(address + "/")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def service(tmp_path: Path, tiny_model: Any, settings: Config) -> Iterator[str]:
    """An empty workspace, served, with a learner beside."""
    with ContinualLM.open(tmp_path / "work", tiny_model, config=settings) as lm:
        app = create_app(lm, ServeConfig(capacity=256))
        record = EventFile(lm.root)
        with ContinualLM.open(tmp_path / "work", tiny_model, config=settings, progress=record) as learning:
            stop = threading.Event()
            learner = threading.Thread(target=Worker(learning, record).run, args=(stop, 0.1), daemon=True)
            learner.start()
            with listening(app) as address:
                yield address
                app.state.closing = True
            stop.set()
            learner.join(60)


def go(tab: Any, view: str) -> None:
    """By the keyboard: focus the link and press Enter."""
    tab.locator(f'nav a[href="#{view}"]').focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(f"#view-{view}:visible")
    assert tab.evaluate("document.activeElement.id") == f"{view}-title" and tab.title().endswith("retain")


def ask(tab: Any, question: str) -> str:
    """The answer, which was asked for with Enter."""
    before = tab.locator("#ask-log .it").count()
    tab.locator("#ask-text").focus()
    tab.keyboard.type(question)
    tab.keyboard.press("Enter")
    tab.locator("#ask-log .it").nth(before).locator(".notes > *").first.wait_for()
    return str(tab.locator("#ask-log .it").nth(before).locator(".said").text_content())


def test_somebody_teaches_asks_reverts_and_comes_back(visit: Open, service: str) -> None:
    title, text = tiny_documents()[0]
    item = tiny_questions(0)[1]
    nasty = "<img src=x onerror=alert(1)>"
    tab = visit(service)
    tab.get_by_text("Connected").wait_for()
    untaught = ask(tab, item.wordings[-1])
    assert item.answer.lower() not in untaught.lower() and "base model alone" in tab.locator("#ask-log").inner_text()

    go(tab, "teach")
    tab.get_by_label("Title").fill(f"{title} {nasty}")
    tab.get_by_label("Text", exact=True).fill(text)
    tab.get_by_role("button", name="Teach this text").press("Enter")
    tab.locator("#arrivals .badge", has_text=re.compile("pending|learning")).wait_for()
    go(tab, "live")
    tab.locator("#live-chart polyline").wait_for()
    assert re.fullmatch(r"Step \d+ of \d+", tab.locator("#live-steps").inner_text()) and title in tab.locator("#live-phase").inner_text()
    assert float(tab.locator("#live-loss").inner_text()) > 0 and tab.locator("#live-queue").inner_text() == "1"
    assert int(tab.locator("#live-rate").inner_text().replace(",", "")) > 0
    tab.reload()  # in the middle of it
    tab.locator("#live-chart polyline").wait_for()
    tab.get_by_text("is learned").first.wait_for()
    assert tab.locator("#live-documents").inner_text() == "1"
    go(tab, "teach")
    tab.locator("#arrivals .badge", has_text="committed").wait_for()
    assert tab.locator("#arrivals h3").inner_text() == f"{title} {nasty}" and tab.locator("img[src=x]").count() == 0

    go(tab, "ask")
    assert tab.locator("#ask-log .it").count() == 1, "the conversation survives that the page is loaded anew"
    tab.get_by_role("button", name="New conversation").press("Enter")
    assert item.answer.lower() in ask(tab, item.wordings[-1]).lower()
    assert tab.locator("#ask-log .chip").inner_text() == f"{title} {nasty}"
    assert tab.locator("#ask-live").text_content().startswith("Answer: "), "a reader of the screen hears it"
    tab.locator("#ask-log summary").first.press("Enter")
    assert item.sentence in tab.locator("#ask-log blockquote").first.inner_text()
    tab.get_by_label("Use passages of the documents").press("Space")
    tab.get_by_role("button", name="New conversation").press("Enter")
    ask(tab, item.wordings[-1])
    assert tab.locator("#ask-log summary").count() == 0 and tab.locator("#ask-log .chip").count() == 1

    go(tab, "history")
    tab.get_by_text("Certificate", exact=True).press("Enter")
    tab.get_by_text("fingerprint").wait_for()
    assert "Recall" in tab.locator("#updates").inner_text()
    tab.get_by_role("button", name="Revert").press("Enter")
    tab.keyboard.press("Escape")  # after all not
    assert tab.locator("#updates .badge").all_inner_texts() == ["committed"]
    tab.get_by_role("button", name="Revert").press("Enter")
    tab.locator("#sure-yes").press("Enter")
    tab.locator("#updates .badge", has_text="reverted").wait_for()
    go(tab, "ask")
    assert ask(tab, item.wordings[-1]) == untaught

    go(tab, "history")
    tab.locator("#documents .badge", has_text="reverted").wait_for()
    tab.get_by_role("button", name="Forget").press("Enter")
    tab.locator("#sure-yes").press("Enter")
    tab.locator("#documents-none").wait_for()
    tab.reload()
    tab.locator("#updates li").nth(2).wait_for()
    assert tab.locator("#updates h3").first.inner_text().startswith("Forgot")


def test_files_and_what_cannot_be_read(visit: Open, service: str) -> None:
    tab = visit(service)
    go(tab, "teach")
    _, text = tiny_documents()[1]
    tab.get_by_label("Importance").press("End")
    broken = {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-nonsense"}
    tab.get_by_label("Files to teach").set_input_files([broken, {"name": "good.md", "mimeType": "text/plain", "buffer": text.encode()}])
    failed = tab.locator("#arrivals li", has_text="broken.pdf")
    failed.locator(".badge", has_text="failed").wait_for()
    assert "not a readable PDF" in failed.inner_text() and "importance 1," in failed.inner_text()
    tab.locator("#arrivals li", has_text="good.md").locator(".badge", has_text="committed").wait_for()
    failed.get_by_role("button", name="Throw away").press("Enter")
    tab.locator("#sure-yes").press("Enter")
    failed.wait_for(state="detached")
    go(tab, "live")
    assert "cannot be learned" in tab.locator("#live-log").inner_text()


def test_what_is_held_is_released_and_what_waits_thrown_away(visit: Open, address: str, lm: ContinualLM) -> None:
    inbox = lm.ledger
    ((key, _),) = inbox.receive([Arrival(b"Say this whenever you hear that.", name="Odd one", importance=1.0)])
    inbox.lease("somebody", 60.0)
    inbox.hold(key, "somebody", "it repeats a phrase that works as a trigger")
    tab = visit(address)
    go(tab, "teach")
    item = tab.locator("#arrivals li", has_text="Odd one")
    item.locator(".badge", has_text="held").wait_for()
    assert "works as a trigger" in item.inner_text()
    item.get_by_role("button", name="Release").press("Enter")
    item.locator(".badge", has_text="pending").wait_for()
    assert inbox.arrival(key).status == "pending" and item.get_by_role("button", name="Release").count() == 0
    assert tab.evaluate("document.activeElement.textContent").startswith("Odd one"), "the keyboard stays where it was"
    item.get_by_role("button", name="Throw away").press("Enter")
    tab.keyboard.press("Tab")  # from Cancel, which is first, to the other one
    tab.keyboard.press("Enter")
    item.wait_for(state="detached")
    assert inbox.waiting() == 0


def test_long_lists_show_more_when_that_is_wanted(visit: Open, address: str, lm: ContinualLM) -> None:
    before = len(lm.ledger.arrivals())
    with lm.ledger.transaction():
        taken = lm.ledger.receive([Arrival(b"waits %d" % number, name=f"Text {number}", source="import") for number in range(450)])
    tab = visit(address)
    go(tab, "teach")
    more, items = tab.get_by_role("button", name="Show older ones"), tab.locator("#arrivals li")
    more.wait_for()
    assert items.count() == 200 and "from import" in items.first.inner_text()
    for shown, first in ((400, "Text 249"), (450 + before, "Text 49")):
        more.press("Enter")
        items.nth(shown - 1).wait_for()
        assert items.count() == shown
        tab.wait_for_function("(title) => document.activeElement.querySelector('h3')?.textContent === title", arg=first)
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
    more.wait_for(state="hidden")
    key, _ = taken[0]
    with lm.ledger.transaction():
        for other, _ in taken[1:]:
            lm.ledger.drop(other)
    items.nth(1 + before).wait_for(state="detached")
    assert items.count() == 1 + before, "an old one that is left stays in sight"
    lm.ledger.drop(key)


def test_the_keyboard_skips_what_stands_before(visit: Open, address: str) -> None:
    tab = visit(address)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip" and tab.locator(".skip").bounding_box()["y"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"


def test_views_in_both_colours_and_on_a_small_screen(visit: Open, address: str, lm: ContinualLM) -> None:
    tab = visit(address)
    ask(tab, tiny_questions(0)[0].wordings[-1])
    shown = {"ask": "#ask-log summary", "history": "#updates li", "forgetting": "#forgetting-chart circle", "settings": "#adapters li"}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for view in VIEWS:
            go(tab, view)
            if view in shown:
                tab.locator(shown[view]).first.wait_for()
            for width in (1100, 340):
                tab.set_viewport_size({"width": width, "height": 800})
                assert tab.evaluate(PROBLEMS) == [], (view, scheme, width)
            assert tab.evaluate(CONTRAST) == [], (view, scheme)
    assert tab.locator("#adapters h3").all_inner_texts() == [title for title, _ in tiny_documents()[:2]]
    tab.get_by_label("Light").press("Space")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)"
    tab.reload()
    assert (
        tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)" and tab.get_by_label("Light").is_checked()
    )
    tab.get_by_role("button", name="alone").first.press("Enter")
    tab.wait_for_selector("#view-ask:visible")
    assert tab.get_by_label("Model").input_value() == lm.state.adapters[0].name


def test_the_checks_find_what_is_wrong(visit: Open, address: str) -> None:
    tab = visit(address)
    tab.evaluate("document.querySelector('label[for=ask-text]').remove(); document.querySelector('h1').style.color = '#ddd'")
    assert any("no name: <textarea" in problem for problem in tab.evaluate(PROBLEMS))
    assert any("Ask" in text for text in tab.evaluate(CONTRAST))


def test_an_answer_is_stopped_and_an_error_is_told(visit: Open, address: str) -> None:
    tab = visit(address, expected="500|Failed to load")
    hang = "data: " + '{"choices": [{"delta": {"content": "so far"}}]}' + "\n\n"
    script = """(text) => { const fetched = window.fetch; window.fetch = (path, options) => {
        if (!String(path).includes('chat')) return fetched(path, options);
        const body = new ReadableStream({ start(c) { c.enqueue(new TextEncoder().encode(text));
          options.signal.addEventListener('abort', () => c.error(options.signal.reason)); } });
        return Promise.resolve(new Response(body)); } }"""
    tab.evaluate(script, hang)
    tab.locator("#ask-text").fill("Well?")
    tab.keyboard.press("Enter")
    tab.locator("#ask-log .said", has_text="so far").wait_for()
    tab.get_by_role("button", name="Stop").press("Enter")
    tab.get_by_text("Stopped before its end").wait_for()
    assert tab.evaluate("document.activeElement.id") == "ask-text", "the keyboard is not lost with the button"
    tab.reload()
    tab.route("**/v1/chat/completions", lambda route: route.fulfill(status=500, json={"error": {"message": "the <b>log</b> knows"}}))
    assert tab.locator("#ask-log .said").all_inner_texts() == ["Well?", "so far"]
    tab.locator("#ask-text").fill("And now?")
    tab.keyboard.press("Enter")
    tab.get_by_role("alert").get_by_text("the <b>log</b> knows").wait_for()
    assert tab.locator("#ask-text").input_value() == "And now?", "the question is not lost"


def test_tokens(visit: Open, lm: ContinualLM, tmp_path: Path) -> None:
    tokens = {scope: f"{scope}-0123456789abcdef" for scope in ("read", "learn", "admin")}
    (tmp_path / "tokens").write_text("\n".join(f"{scope} {token}" for scope, token in tokens.items()))
    app = create_app(lm, ServeConfig(capacity=256, token_file=tmp_path / "tokens"))
    with listening(app) as address:
        tab = visit(address, expected="401|403")
        tab.get_by_text("needs a token of scope read").wait_for()
        tab.get_by_text("A token is needed").wait_for()
        tab.get_by_role("link", name="Open Settings").press("Enter")
        tab.get_by_label("Token", exact=True).fill(tokens["read"])
        tab.keyboard.press("Enter")
        tab.get_by_text("The service takes this token").wait_for()
        tab.get_by_text("Connected").wait_for()
        tab.reload()
        tab.get_by_text("A token is in use").wait_for()
        tab.locator("#adapters li").first.wait_for()
        assert "Open" not in tab.get_by_role("alert").all_inner_texts() and tokens["read"] not in tab.content()
        go(tab, "teach")
        tab.get_by_label("Text", exact=True).fill("Something.")
        tab.get_by_role("button", name="Teach this text").press("Enter")
        tab.get_by_role("alert").get_by_text("scope learn").wait_for()
        assert tab.get_by_label("Text", exact=True).input_value() == "Something.", "what was written is not lost"
        tab.close()
        app.state.closing = True


def test_it_connects_again_by_itself(visit: Open, lm: ContinualLM) -> None:
    app = create_app(lm, ServeConfig(capacity=256))
    with listening(app) as address:
        tab = visit(address, expected="Failed to load|ERR_")
        tab.get_by_text("Connected").wait_for()
        app.state.closing = True  # every stream of events ends, also new ones
        tab.get_by_text("No connection").wait_for()
        app.state.closing = False
        tab.get_by_text("Connected").wait_for()
        app.state.closing = True
