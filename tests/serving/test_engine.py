"""Many questions at once are answered as each would be alone, while the workspace changes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions

from retain.config import Config
from retain.data.document import Document, Message
from retain.lm.batching import Request
from retain.lm.generation import Sampling
from retain.lm.model import LanguageModelError
from retain.serving.engine import Engine, Piece, Text, request_of
from retain.workspace.asking import Asked
from retain.workspace.continual import ContinualLM


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, settings: Config) -> Iterator[ContinualLM]:
    with ContinualLM.open(tmp_path_factory.mktemp("work"), tiny_model, config=settings) as made:
        for title, text in tiny_documents()[:3]:
            made.learn(Document.from_text(text, title))
        yield made


@pytest.fixture
def engine(lm: ContinualLM) -> Iterator[Engine]:
    made = Engine(lm, slots=3, capacity=256)
    yield made
    made.close()


def asked(engine: Engine, question: str, retrieval: bool = False, **sampling: Any) -> Any:
    return engine.prepare([Message("user", question)], Sampling(**{"max_tokens": 16, **sampling}), retrieval=retrieval)


def answer(engine: Engine, asked: Asked) -> str:
    """The whole answer of one question."""
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    engine.submit(request_of(asked), pieces.put)
    parts = []
    while (piece := pieces.get()).finish is None:
        parts.append(piece.text)
    return "".join([*parts, piece.text]).strip()


def test_together_as_alone(lm: ContinualLM, engine: Engine) -> None:
    questions = [item.wordings[-1] for number in range(3) for item in tiny_questions(number)]
    expected = [lm.ask(question, retrieval=False, max_tokens=16).text for question in questions]
    found: dict[int, str] = {}

    def client(number: int) -> None:
        for place in range(number, len(questions), 4):
            found[place] = answer(engine, asked(engine, questions[place]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(questions))] == expected
    assert len(set(expected)) > 4 and engine.counters.answers == len(questions) and len(engine.counters.first_token) > 0


def test_a_question_ends_with_what_it_began_with(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    title, text = tiny_documents()[0]
    question = tiny_questions(0)[0].wordings[-1]
    with ContinualLM.open(tmp_path / "work", tiny_model, config=settings) as lm:
        update = lm.learn(Document.from_text(text, title))
        learned = lm.ask(question, retrieval=False, max_tokens=16).text
        engine = Engine(lm, slots=2, capacity=256)
        before = asked(engine, question)
        lm.forget(update.documents[0])
        assert answer(engine, before) == learned, "the adapter was read before it was forgotten"
        after = asked(engine, question)
        assert not after.active and answer(engine, after) == lm.ask(question, retrieval=False, max_tokens=16).text != learned
        engine.close()


def test_pieces_are_the_text(engine: Engine) -> None:
    one = asked(engine, tiny_questions(0)[0].wordings[-1])
    whole = answer(engine, one)
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    engine.submit(request_of(one, top=2), pieces.put)
    found = []
    while not found or found[-1].finish is None:
        found.append(pieces.get(timeout=30))
    assert "".join(piece.text for piece in found).strip() == whole and found[-1].finish == "stop"
    assert all(len(token.top) == 2 and token.log_likelihood is not None for piece in found for token in piece.tokens)


def test_cancelling_frees_the_slot_and_a_long_prompt_is_refused(engine: Engine) -> None:
    never: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    long = Request([5, 6, 7], Sampling(max_tokens=250))
    running = [engine.submit(long, never.put) for _ in range(3)]
    for one in running:
        engine.cancel(one)
    assert answer(engine, asked(engine, tiny_questions(1)[0].wordings[-1]))
    assert engine.batch.live == 0
    with pytest.raises(LanguageModelError, match="between 1 and 255"):
        engine.submit(Request([5] * 256), never.put)


def test_an_error_ends_what_it_hit_and_nothing_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = asked(engine, tiny_questions(0)[0].wordings[-1])
    expected = answer(engine, one)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(engine.batch, "step", broken)
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    engine.submit(request_of(one), pieces.put)
    assert pieces.get(timeout=30) == Piece("no memory left", finish="error")
    assert answer(engine, one) == expected and engine.counters.errors == 1


class Letters:
    """Token n is the nth byte of a text."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_no_half_characters_and_no_half_stop_strings() -> None:
    text = Text(Letters(), ["END", "\n\n"])
    shown = [text.add(byte) for byte in "caf\xe9 EN, E\n.".encode()]
    assert "".join(shown) + text.end() == "caf\xe9 EN, E\n." and "\ufffd" not in "".join(shown)
    assert shown[3:5] == ["", "\xe9"] and shown[6:9] == ["", "", "EN,"]
    text = Text(Letters(), ["END"])
    assert "".join(text.add(byte) for byte in b"so it goes END of") + text.end() == "so it goes "
