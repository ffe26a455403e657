"""One adapter that goes on learning for a domain: what protects its earlier documents is kept, undone and forgotten with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.examples import text_example
from retain.workspace import Conflict
from retain.workspace.continual import ContinualLM
from retain.workspace.memory import keep_memory, load_memory
from retain.workspace.store import Store
from retain.workspace.transaction import Attempt, train_candidate

LAW, OTHER = (1, 0, 4), 3  # numbers of tests.tiny's documents, learned in two domains


def document(number: int, domain: str = "law") -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title, domain=domain)


def configured(*methods: str, **gate: float) -> Config:
    learn = {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "learning_rate": 5e-3, "adapter_per": "domain"}
    return load_config(
        None,
        {
            "learn": learn,
            "gate": {"max_forgetting": 0.2, **gate},
            "study": {"writer": "none", "held_out_fraction": 0.5},
            "route": {"least_bits": 2.0, "threshold": 0.4},
            "model": {"precision": "float32"},
            "retention": {"methods": list(methods), "refresh_after": 3},
        },
    )


def right(lm: ContinualLM, number: int) -> float:
    """Share of a document's facts that are answered in a wording that was not trained on."""
    questions = tiny_questions(number)
    return sum(item.answer.lower() in lm.ask(item.wordings[-1], retrieval=False).text.lower() for item in questions) / len(questions)


def remembered(lm: ContinualLM, name: str = "shared-law") -> set[str]:
    """The documents that the replay memory of an adapter has examples of."""
    state = load_memory(lm.store, lm.state.retention[name])["replay"]
    return {about[0] for about in state["about"]}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """Three documents of one domain and one of another, every one learned by a process of its own."""
    place = tmp_path_factory.mktemp("grown") / "w"
    for number, domain in (*((number, "law") for number in LAW), (OTHER, "other")):
        with ContinualLM.open(place, tiny_model, config=configured("replay", "ewc")) as lm:
            update = lm.learn(document(number, domain))
            assert update.status == "committed", update
    return place


def opened(place: Path, tmp_path: Path, model: Any, *methods: str) -> ContinualLM:
    """A copy of a workspace to work on."""
    shutil.copytree(place, tmp_path / "w")
    return ContinualLM.open(tmp_path / "w", model, config=configured(*methods or ("replay", "ewc")))


def test_a_domain_has_one_adapter_that_knows_all_its_documents(grown: Path, tiny_model: Any) -> None:
    with ContinualLM.open(grown, tiny_model, config=configured("replay", "ewc")) as lm:
        shared = {item.name: item for item in lm.adapters}
        assert set(shared) == {"shared-law", "shared-other"}
        assert shared["shared-law"].documents == [document(number).id for number in LAW]
        assert sum(right(lm, number) for number in LAW) / 3 > 0.5 and right(lm, OTHER) >= 0.5
        assert shared["shared-law"].bytes_per_document == round(shared["shared-law"].bytes / 3)
        assert remembered(lm) == {document(number).id for number in LAW}
        memory = load_memory(lm.store, lm.state.retention["shared-law"])
        assert memory["ewc"]["tasks"] == 4  # one for each document and, after three of them, one for all
        assert any(float(value.abs().max()) > 0 for value in memory["ewc"].values() if isinstance(value, torch.Tensor))
        assert [update.certificate["kept"]["old_probes_asked_again"] > 0 for update in lm.log()] == [False, True, True, False]
        assert lm.verify().ok


def test_without_protection_earlier_documents_are_lost_and_the_gate_sees_it(tmp_path: Path, tiny_model: Any) -> None:
    """The weakest penalty instead of replay: the second document would cost the first one's answers, so it gets an adapter of its own."""
    settings = configured("l2", attempts=1, max_forgetting=0.05)
    with ContinualLM.open(tmp_path / "w", tiny_model, config=settings) as lm:
        lm.learn(document(LAW[0]))
        before = right(lm, LAW[0])
        second, third = lm.learn(document(LAW[1])), lm.learn(document(LAW[2]))
        assert second.status == third.status == "committed"
        assert right(lm, LAW[0]) == before > 0.5
        assert {item.name for item in lm.adapters} >= {"shared-law", "shared-law-2"}


def test_an_update_is_undone_with_what_it_remembered(grown: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(grown, tmp_path, tiny_model) as lm:
        first, second, third, _ = lm.log()
        with pytest.raises(Conflict, match="learned more since"):
            lm.revert(second.id)
        lm.revert(third.id)
        assert remembered(lm) == {document(number).id for number in LAW[:2]}
        assert right(lm, LAW[2]) < 0.3 and right(lm, LAW[0]) > 0.5
        lm.revert(second.id)
        assert remembered(lm) == {document(LAW[0]).id}
        lm.revert(first.id)
        assert set(lm.state.retention) == {"shared-other"} and [item.name for item in lm.adapters] == ["shared-other"]
        assert lm.verify().ok


def test_a_forgotten_document_is_in_no_memory(grown: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(grown, tmp_path, tiny_model) as lm:
        gone = document(LAW[1]).id
        held = lm.state.retention["shared-law"]
        lm.forget(gone)
        assert remembered(lm) == {document(LAW[0]).id, document(LAW[2]).id} and held not in lm.store
        assert right(lm, LAW[1]) < 0.3 and right(lm, LAW[0]) > 0.5
        assert lm.adapters[-1].name == "shared-law" or lm.adapters[0].name == "shared-law"
        lm.forget(document(LAW[0]).id)
        lm.forget(document(LAW[2]).id)
        assert set(lm.state.retention) == {"shared-other"}


def test_memory_survives_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    memory = {"ewc": {"anchor/a.b": torch.tensor([1.5, -2.0]), "tasks": 2}, "kl": {"next": 3}, "none": {}}
    digest = keep_memory(store, memory)
    found = load_memory(store, digest)
    assert found["kl"] == {"next": 3} and found["none"] == {} and found["ewc"]["tasks"] == 2
    assert torch.equal(found["ewc"]["anchor/a.b"], memory["ewc"]["anchor/a.b"])
    assert keep_memory(store, found) == digest


def test_kl_holds_a_grown_adapter_to_what_it_said(grown: Path, tmp_path: Path, tiny_model: Any) -> None:
    """The first step of going on: nothing was changed yet, so nothing is held; the base as the teacher would pull at once."""
    first: dict[str, float] = {}
    for teacher in ("before", "base"):
        settings = configured("kl")
        kl = settings.retention.kl.model_copy(update={"teacher": teacher})
        settings = settings.model_copy(update={"retention": settings.retention.model_copy(update={"kl": kl})})
        shutil.copytree(grown, tmp_path / teacher)
        with ContinualLM.open(tmp_path / teacher, tiny_model, config=settings) as lm:
            start = next(item for item in lm.state.adapters if item.name == "shared-law")
            new, *general = [text_example(tiny_model.tokenizer, tiny_documents()[number][1]) for number in (2, *LAW)]
            candidate = train_candidate(
                lm.knowledge, "more", "more", [new], settings, Attempt(), lm.state, lambda texts=general: texts, lambda event: None,
                lm.knowledge.adapter(start.digest),
            )  # fmt: skip
            first[teacher] = candidate.report.penalties[0]
    assert abs(first["before"]) < 1e-3 < 0.1 < first["base"], first
