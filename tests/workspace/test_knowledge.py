"""Routing and answering do not become slower or larger with the number of documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.growth import duplicate
from benchmarks.growth_fill import fill, invented

from retain.adapters.routing import _FUNCTION
from retain.config import Config
from retain.lm.packing import Packed
from retain.workspace import knowledge as module
from retain.workspace.continual import ContinualLM

DOCUMENTS = 6
CONFIG = Config.model_validate({"study": {"writer": "none"}, "learn": {"rank": 4, "consolidate_after": 0}})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    root = tmp_path_factory.mktemp("filled") / "work"
    with ContinualLM.open(root, tiny_model, config=CONFIG) as opened:
        fill(opened, DOCUMENTS)
    return root


@pytest.fixture
def lm(tmp_path: Path, filled: Path, tiny_model: Any) -> Iterator[ContinualLM]:
    with ContinualLM.open(duplicate(filled, tmp_path / "work"), tiny_model, config=CONFIG) as opened:
        yield opened


def _questions() -> list[str]:
    return [f"Who founded the {invented(number).subject}?" for number in range(DOCUMENTS)]


def test_the_adapters_used_last_stay_in_memory(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [lm.ask(question, max_tokens=4) for question in _questions()]
    assert [answer.adapters for answer in everything] == [[invented(number).document.id] for number in range(DOCUMENTS)]
    monkeypatch.setattr(module, "KEPT", 2)
    with ContinualLM.open(lm.root, lm.model, config=lm.config) as bounded:
        for _ in range(2):
            answers = [bounded.ask(question, max_tokens=4) for question in _questions()]
            assert [answer.text for answer in answers] == [answer.text for answer in everything]
        wanted = [item.digest for item in bounded.state.adapters[-2:]]
        assert list(bounded.knowledge._adapters) == wanted


def test_an_adapter_is_read_once_for_routing(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    reads: list[str] = []
    original = lm.store.get_tensors
    monkeypatch.setattr(lm.store, "get_tensors", lambda digest: reads.append(digest) or original(digest))
    for _ in range(3):
        routed = [lm.knowledge.decide(question, lm.state) for question in _questions()]
        assert all(decision.adapters for decision in routed)
    assert sorted(reads) == sorted(item.digest for item in lm.state.adapters)


def test_an_adapter_that_went_missing_after_routing_is_an_error_once(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    first, second = _questions()[:2]
    assert lm.ask(first, max_tokens=2).adapters and lm.ask(second, max_tokens=2).adapters
    lm.store.path(lm.state.adapters[0].digest).unlink()
    with pytest.raises(module.NotFound):
        lm.ask(first, max_tokens=2)
    assert lm.ask(first, max_tokens=2).adapters == [] and lm.ask(second, max_tokens=2).adapters


def test_words_that_everybody_uses_do_not_hide_the_document(lm: ContinualLM) -> None:
    asked = f"{' '.join(sorted(_FUNCTION)[:90])} {invented(3).subject}"
    assert lm.knowledge.decide(asked, lm.state).documents == (invented(3).document.id,)
    assert lm.knowledge.decide(" ".join(sorted(_FUNCTION)), lm.state).documents == ()


def test_passages_of_every_routed_document(lm: ContinualLM) -> None:
    one, other = (invented(number) for number in (3, 1))
    both = module.Decision(documents=(one.document.id, other.document.id))
    text, hits = lm.knowledge.context(f"Who founded the {other.subject}?", both)
    assert text is not None and text.index(one.document.title) < text.index(other.document.title)
    assert list(dict.fromkeys(hit.document for hit in hits)) == [one.document.id, other.document.id]
    alone, first = lm.knowledge.context(f"Who founded the {other.subject}?", module.Decision(documents=(one.document.id,)))
    assert {hit.chunk for hit in hits if hit.document == one.document.id} <= {hit.chunk for hit in first} and alone is not None
    tokens = len(lm.model.tokenizer("\n".join(hit.text for hit in hits), add_special_tokens=False).input_ids)
    assert tokens <= lm.config.generate.context_tokens + len(hits)
    assert lm.knowledge.context("Who?", module.Decision()) == (None, [])


def test_beside_passages_an_adapter_counts_less(lm: ContinualLM) -> None:
    question = _questions()[2]
    decision = lm.knowledge.decide(question, lm.state)
    context, _ = lm.knowledge.context(question, decision)
    assert [item.weight for item in decision.beside_passages(0.25).adapters] == [0.25]
    assert decision.beside_passages(0.0).adapters == () and decision.beside_passages(0.0).documents == decision.documents

    def answer(weight: float, passages: str | None) -> str:
        generate = lm.config.generate.model_copy(update={"weight_beside_passages": weight, "max_tokens": 12})
        lm.config = lm.knowledge.config = lm.config.model_copy(update={"generate": generate})
        text = lm.knowledge.answers([question], [decision], lm.state, [passages])[0]
        if passages:
            assert lm.ask(question).text == text.strip()
        return text

    assert answer(1.0, None) == answer(0.0, None)  # without passages it counts whole
    assert answer(0.0, context) == lm.knowledge.answers([question], [module.Decision()], lm.state, [context])[0]
    packed = Packed.of([lm.model.tokenizer(question).input_ids])
    read = [lm.model.hidden(packed, lm.knowledge.injection(decision.beside_passages(weight), lm.state)) for weight in (0.0, 0.25, 1.0)]
    assert 0 < (read[1] - read[0]).norm() < (read[2] - read[0]).norm()


def test_questions_about_the_same_passages_share_a_pass(lm: ContinualLM) -> None:
    questions = [*_questions(), *(question.replace("Who", "By whom was it that one") for question in _questions())]
    decisions = [lm.knowledge.decide(question, lm.state) for question in questions]
    contexts = [lm.knowledge.context(question, decision)[0] for question, decision in zip(questions, decisions, strict=True)]
    together = lm.knowledge.answers(questions, decisions, lm.state, contexts)
    alone = [
        lm.knowledge.answers([question], [decision], lm.state, [context])[0]
        for question, decision, context in zip(questions, decisions, contexts, strict=True)
    ]
    assert together == alone


def test_going_back_to_an_adapter_compiles_nothing(lm: ContinualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = [lm.knowledge.decide(question, lm.state) for question in _questions()]
    first = [lm.knowledge.injection(decision, lm.state) for decision in decisions[:2]]
    assert [lm.knowledge.injection(decision, lm.state) for decision in decisions[:2]] == first and first[0] is not first[1]
    assert lm.knowledge.injection(decisions[0].beside_passages(0.5), lm.state) is not first[0]
    monkeypatch.setattr(module, "COMPILED", 1)
    again = lm.knowledge.injection(decisions[2], lm.state)
    assert lm.knowledge._compiled[-1][1] is again and len(lm.knowledge._compiled) == 1
    assert lm.knowledge.injection(decisions[0], lm.state) is not first[0]
