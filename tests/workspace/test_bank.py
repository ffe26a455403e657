"""Adapters by name with weights, questions graded, merging with options, and the figures of an adapter."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import known_questions, tiny_documents, tiny_questions

from retain.adapters import AdapterError, inject
from retain.adapters.merging import merge
from retain.config import Config, load_config
from retain.data.document import Document
from retain.evaluation import Item, grade_answers
from retain.lm.generation import Sampling
from retain.lm.packing import Packed
from retain.workspace import NotFound, WorkspaceError
from retain.workspace.asking import Wanted, decided, prepare
from retain.workspace.continual import ContinualLM

SETTINGS = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3},
    "study": {"writer": "none", "held_out_fraction": 0.5},
    "route": {"least_bits": 2.0, "threshold": 0.4},
    "model": {"precision": "float32"},
    "gate": {"max_forgetting": 1.0, "max_perplexity_rise": 1e9},
}


def document(number: int) -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title)


def configured() -> Config:
    return load_config(None, SETTINGS)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """Two documents with an adapter each."""
    place = tmp_path_factory.mktemp("bank") / "w"
    with ContinualLM.open(place, tiny_model, config=configured()) as lm:
        assert [update.status for update in lm.learn([document(0), document(1)])] == ["committed", "committed"]
    return place


@pytest.fixture
def lm(learned: Path, tmp_path: Path, tiny_model: Any) -> Iterator[ContinualLM]:
    shutil.copytree(learned, tmp_path / "w")
    with ContinualLM.open(tmp_path / "w", tiny_model, config=configured()) as opened:
        yield opened


def logits(lm: ContinualLM, active: Any) -> torch.Tensor:
    packed = Packed.of([list(range(1, 12))], lm.model.device)
    return lm.model.logits(lm.model.hidden(packed, inject(active, torch.float32)))


def asked_with(lm: ContinualLM, adapters: Wanted) -> torch.Tensor:
    return logits(lm, prepare(lm.knowledge, lm.state, "Which?", Sampling(), retrieval=False, adapters=adapters).active)


def test_several_adapters_at_once_with_weights(lm: ContinualLM) -> None:
    one, two = (lm.knowledge.adapter(item.digest) for item in lm.state.adapters)
    first, second = (item.name for item in lm.state.adapters)
    expected = logits(lm, [(one, 1.0), (two, 0.5)])
    for wanted in ({first: 1, second: 0.5}, [first, (second, 0.5)], [(first, 1.0), (second, 0.5)]):
        assert torch.equal(asked_with(lm, wanted), expected)
    assert not torch.allclose(asked_with(lm, [first, second]), expected, atol=1e-3)  # the control: without the weights
    question = tiny_questions(0)[0]
    answers = {weight: lm.ask(question.wordings[-1], adapters={first: weight}, retrieval=False).text for weight in (1.0, 0.0)}
    base = lm.ask(question.wordings[-1], adapters=[]).text
    assert question.answer.lower() in answers[1.0].lower() and answers[0.0] == base != answers[1.0]
    lm.disable(first)
    assert torch.equal(asked_with(lm, {first: 0.5}), logits(lm, []))  # a disabled one adds nothing, whatever its weight


def test_weights_that_make_no_sense_are_told(lm: ContinualLM) -> None:
    name = lm.state.adapters[0].name
    for wrong in (math.nan, math.inf, "half"):
        with pytest.raises(WorkspaceError, match=f"adapter {name}: its weight is a finite number"):
            lm.ask("Which?", adapters={name: wrong})  # type: ignore[dict-item]
    with pytest.raises(WorkspaceError, match="asked for twice"):
        lm.ask("Which?", adapters=[name, name[:8]])
    with pytest.raises(WorkspaceError, match="not the text"):
        lm.ask("Which?", adapters=name)
    with pytest.raises(NotFound, match="no adapter 'rules'"):
        lm.evaluate([("Which?", "this")], adapters={"rules": 0.5})


def test_what_was_learned_is_graded(lm: ContinualLM, tmp_path: Path) -> None:
    asked = [*tiny_questions(0), *tiny_questions(1), *known_questions()[:4]]
    items = [Item(question.wordings[-1], (question.answer,)) for question in asked]
    found, base = lm.evaluate(items, retrieval=False), lm.evaluate(items, adapters=[])
    documents = len(asked) - 4
    assert found["n"] == len(items) and found["routed"] == documents and base["routed"] == 0
    assert sum(row["contains"] for row in found["items"][:documents]) > 0.5 * documents
    assert sum(row["contains"] for row in base["items"][:documents]) < 0.2 * documents
    answers = [lm.ask(item.question, retrieval=False, max_tokens=24).text for item in items]
    assert found == {**grade_answers(items, answers), "routed": documents}
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps({"question": item.question, "answer": item.answers[0]}) + "\n" for item in items))
    pairs = [(item.question, item.answers[0]) for item in items]
    assert lm.evaluate(path, retrieval=False) == found == lm.evaluate(pairs, retrieval=False)


def test_questions_are_graded_with_the_options_of_asking(lm: ContinualLM) -> None:
    items = [Item(question.wordings[-1], (question.answer,), context=tiny_documents()[1][1]) for question in tiny_questions(1)]
    other, own = (item.name for item in lm.state.adapters)
    told: list[tuple[int, int]] = []
    right = lm.evaluate(items, adapters={own: 1.0}, retrieval=False, tell=lambda done, total, tokens: told.append((done, total)))
    assert told == [(len(items), len(items))] and right["routed"] == len(items)
    assert lm.evaluate(items, adapters=[other], retrieval=False)["contains"] < right["contains"]
    assert lm.evaluate(items, adapters=[], in_context=True)["contains"] > lm.evaluate(items, adapters=[])["contains"]
    silent = {own: 0.0}  # its document alone, to be read
    read, unread = (lm.evaluate(items, adapters=silent, retrieval=shown) for shown in (True, False))
    assert read["contains"] > unread["contains"]
    assert lm.config.generate.retrieval and lm.evaluate(items, adapters=silent) == read
    with_passages = lm.evaluate(items, retrieval=True)
    answers = [lm.ask(item.question, retrieval=True, max_tokens=24).text for item in items]
    assert [row["answer"].strip() for row in with_passages["items"]] == answers
    assert lm.evaluate(items, learner="ace")["routed"] == 0  # that one made nothing here


def test_merging_takes_weights_and_options(lm: ContinualLM) -> None:
    items = lm.state.adapters
    adapters = [lm.knowledge.adapter(item.digest) for item in items]
    first, second = (item.name for item in items)
    update = lm.merge({first: 2.0, second: 0.5}, "ties", "both", density=0.6, rank=4)
    assert update.status == "committed" and update.certificate["weights"] == [2.0, 0.5]
    assert update.certificate["options"] == {"density": 0.6, "rank": 4} and update.certificate["merged"] == [first, second]
    made = lm.knowledge.adapter(lm.state.adapters[0].digest)
    expected = merge("ties", adapters, [2.0, 0.5], density=0.6, rank=4).half()
    assert made.digest == expected.digest != merge("ties", adapters).half().digest
    assert lm.adapters[0].rank == 4 and made.spec.lineage["weights"] == [2.0, 0.5]


def test_merging_with_wrong_options_changes_nothing(lm: ContinualLM) -> None:
    before, names = lm.state, [item.name for item in lm.state.adapters]
    for options, message in (
        ({"method": "linear", "density": 0.5}, "linear has no option 'density': it has rank"),
        ({"density": 1.5}, "density must be above 0 and at most 1"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
    ):
        with pytest.raises(AdapterError, match=message):
            lm.merge(names, into="both", **options)  # type: ignore[arg-type]
    with pytest.raises(WorkspaceError, match="at least two"):
        lm.merge(names[:1], into="both")
    assert lm.state == before


def test_figures_of_an_adapter(lm: ContinualLM) -> None:
    item = lm.state.adapters[0]
    adapter, weights = lm.knowledge.adapter(item.digest), lm.model.parameters()
    added = sum(float(adapter.delta(site).square().sum()) for site in adapter.spec.sites)
    whole = sum(float(weights[f"{site}.weight"].square().sum()) for site in adapter.spec.sites)
    assert lm.adapter_change(item.name) == pytest.approx(math.sqrt(added / whole), rel=1e-4) and added > 0
    assert [info.serves for info in lm.adapters] == [1, 1]
    lm.disable(item.name)
    assert [info.serves for info in lm.adapters] == [0, 1]
    lm.enable(item.name)
    lm.merge([item.name for item in lm.state.adapters], "concatenate", "both")
    assert [info.serves for info in lm.adapters] == [2]
    assert len(decided(lm.knowledge, lm.state, "Which?", ["both"]).documents) == 2
