"""Documents that share an adapter: fewer bytes, the same answers; undone, forgotten, refused, interrupted, and grown."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import subject, tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.learners import lora
from retain.workspace import Conflict, NotFound
from retain.workspace.consolidation import forgetting
from retain.workspace.continual import ContinualLM
from retain.workspace.transaction import shared_name

LAW, OTHER = (1, 0, 4), 3  # numbers of tests.tiny's documents, learned in two domains


def document(number: int, domain: str = "law") -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title, domain=domain)


def later(seed: int) -> Document:
    """One more document about law."""
    facts = subject(random.Random(seed), person=True)
    return Document.from_text(" ".join(fact.sentence for fact in facts), facts[0].title, domain="law")


def configured(**sections: dict[str, Any]) -> Config:
    """The settings of these tests; a section given replaces single keys."""
    chosen: dict[str, dict[str, Any]] = {
        "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "learning_rate": 5e-3, "consolidate_after": 0},
        "gate": {"max_forgetting": 0.2},  # one of the six probes
        "study": {"writer": "none", "held_out_fraction": 0.5},
        "route": {"least_bits": 2.0, "threshold": 0.4},
        "model": {"precision": "float32"},
    }
    return load_config(None, {name: {**chosen.get(name, {}), **sections.get(name, {})} for name in {*chosen, *sections}})


IDLE = {"epochs": 1, "learning_rate": 1e-7}  # training that teaches nothing


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """A workspace with three documents about law and one about something else."""
    place = tmp_path_factory.mktemp("learned") / "w"
    with ContinualLM.open(place, tiny_model, config=configured()) as lm:
        for number in LAW:
            assert lm.learn(document(number)).status == "committed"
        lm.learn(document(OTHER, "other"))
    return place


@pytest.fixture(scope="module")
def joined(learned: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """The same workspace after those about law were consolidated."""
    place = tmp_path_factory.mktemp("joined") / "w"
    shutil.copytree(learned, place)
    with ContinualLM.open(place, tiny_model, config=configured()) as lm:
        update = lm.consolidate("law")
        assert update is not None and update.status == "committed", update
    return place


def opened(place: Path, tmp_path: Path, model: Any, **sections: dict[str, Any]) -> ContinualLM:
    """A copy of a workspace to work on."""
    shutil.copytree(place, tmp_path / "w")
    return ContinualLM.open(tmp_path / "w", model, config=configured(**sections))


def right(lm: ContinualLM, *numbers: int) -> float:
    """Share of the facts of documents that are answered in a wording that was not trained on."""
    questions = [question for number in numbers for question in tiny_questions(number)]
    return sum(item.answer.lower() in lm.ask(item.wordings[-1], retrieval=False).text.lower() for item in questions) / len(questions)


def answers(lm: ContinualLM, number: int) -> list[str]:
    return [lm.ask(item.wordings[-1], retrieval=False).text for item in tiny_questions(number)]


def test_adapters_become_one_that_answers_the_same(learned: Path, joined: Path, tiny_model: Any) -> None:
    with (
        ContinualLM.open(learned, tiny_model, config=configured()) as before,
        ContinualLM.open(joined, tiny_model, config=configured()) as lm,
    ):
        ids = [document(number).id for number in LAW]
        *_, update = lm.log()
        assert (update.kind, update.documents) == ("consolidate", ids)
        separate = {item.name: item for item in before.adapters}
        shared = next(item for item in lm.adapters if item.name == "shared-law")
        assert len(before.adapters) == 4 and len(lm.adapters) == 2 and shared.documents == ids

        facts, size = update.certificate["consolidated"], sum(separate[key].bytes for key in ids)
        assert (facts["domain"], facts["adapters_before"], facts["adapters_after"], facts["documents"]) == ("law", 3, 1, 3)
        assert (facts["bytes_before"], facts["bytes_after"]) == (size, shared.bytes) and shared.bytes < 0.4 * size
        assert (facts["bytes_per_document_before"], facts["bytes_per_document_after"]) == (round(size / 3), round(shared.bytes / 3))
        assert shared.bytes_per_document == round(shared.bytes / 3)

        kept, scores = update.certificate["kept"], update.certificate["learned"]
        assert kept["forgetting"] <= lm.config.gate.max_forgetting and scores["recall_before"] > 0.5
        assert scores["recall_after"] >= 0.8 * scores["recall_before"] and scores["recall_before"] == scores["recall_when_learned"]
        assert [entry["id"] for entry in update.certificate["documents"]] == ids
        assert sum(entry["probes"] for entry in update.certificate["documents"]) == scores["probes"] > 0
        assert right(lm, *LAW) > 0.5 and right(before, *LAW) > 0.5
        assert lm.ask(tiny_questions(LAW[0])[0].wordings[0]).adapters == ["shared-law"]
        assert update.certificate["cost"]["parameter_change"] > 0 and lm.verify().ok

        other = [item for item in lm.state.adapters if item.documents == (document(OTHER).id,)]
        assert other == [item for item in before.state.adapters if item.documents == (document(OTHER).id,)]
        assert lm.store.get(other[0].digest) == before.store.get(other[0].digest)
        assert answers(lm, OTHER) == answers(before, OTHER), "another domain's answers moved"
        assert [record.update for record in lm.documents()] == [record.update for record in before.documents()]
        assert lm.consolidate("law") is None and lm.consolidate() is None, "one adapter is nothing to consolidate"
        with pytest.raises(NotFound, match="did you mean law"):
            lm.consolidate("laws")


def test_revert_brings_the_separate_adapters_back(learned: Path, joined: Path, tmp_path: Path, tiny_model: Any) -> None:
    with ContinualLM.open(learned, tiny_model, config=configured()) as before, opened(joined, tmp_path, tiny_model) as lm:
        lm.revert(lm.log()[-1].id)
        assert {item.name: item for item in lm.state.adapters} == {item.name: item for item in before.state.adapters}
        assert [answers(lm, number) for number in LAW] == [answers(before, number) for number in LAW]
        assert {record.status for record in lm.documents()} == {"committed"} and lm.verify().ok
        lm.revert(lm.log()[-1].id)
        assert len(lm.adapters) == 2, "a revert can be reverted"


def test_forgetting_a_document_of_a_shared_adapter(learned: Path, joined: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(joined, tmp_path, tiny_model) as lm:
        gone, *stay = LAW
        assert right(lm, gone) > 0.5
        other = answers(lm, OTHER)
        tainted = [item.digest for item in lm.state.adapters if document(gone).id in item.documents]
        with ContinualLM.open(learned, tiny_model, config=configured()) as before:
            tainted += [item.digest for item in before.state.adapters if document(gone).id in item.documents]
        made = lm.forget(document(gone).id)
        assert right(lm, gone) < 0.3, "a forgotten document is still answered"
        assert right(lm, *stay) > 0.5 and answers(lm, OTHER) == other
        assert made.certificate["removed_adapters"] == ["shared-law"]
        assert made.certificate["retrained"][0]["documents"] == [document(number).id for number in stay]
        assert [item.documents for item in lm.adapters] == [[document(OTHER).id], [document(number).id for number in stay]]
        assert len(tainted) == 2 and not any(digest in lm.store for digest in tainted)
        stored = b"".join(path.read_bytes() for path in lm.root.rglob("*") if path.is_file())
        assert document(gone).text.split(". ")[0].encode() not in stored
        with pytest.raises(Conflict, match="forgotten"):
            lm.revert(next(update.id for update in lm.log() if update.kind == "consolidate"))
        assert lm.verify().ok


def test_a_refused_consolidation_changes_nothing_and_is_told(learned: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(learned, tmp_path, tiny_model, learn=IDLE, gate={"attempts": 2}) as lm:
        before, head = lm.state, lm.ledger.head()
        update = lm.consolidate()
        assert update is not None and update.status == "rejected" and "of their answers" in update.reason
        assert (lm.state, lm.ledger.head()) == (before, head)
        assert update.certificate["gate"]["verdict"] == "refused" and update.certificate["kept"]["forgetting"] == 1.0
        assert lm.log()[-1] == update and {record.status for record in lm.documents()} == {"committed"}
        assert right(lm, *LAW) > 0.5 and lm.verify().ok


def test_training_that_fails_is_refused(learned: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(learned, tmp_path, tiny_model, learn={"learning_rate": 1e30, "clip": 1e30}, gate={"attempts": 1}) as lm:
        before = lm.state
        update = lm.consolidate("law")
        assert update is not None and update.status == "rejected" and "loss" in update.reason
        assert "bytes_after" not in update.certificate["consolidated"] and lm.state == before


def test_it_happens_by_itself_at_the_configured_count(tmp_path: Path, tiny_model: Any) -> None:
    quick = {"epochs": 1, "layers": "last-quarter", "consolidate_after": 2}
    with ContinualLM.open(tmp_path / "w", tiny_model, config=configured(learn=quick, gate={"max_forgetting": 1.0})) as lm:
        for number, domain in ((0, "law"), (1, "other"), (2, "law"), (4, "law"), (5, "law")):
            assert lm.learn(document(number, domain)).kind == "learn"
        kinds = [(update.kind, update.status) for update in lm.log()]
        once = [("learn", "committed")] * 2
        assert kinds == [*once, ("learn", "committed"), ("consolidate", "committed"), *once, ("consolidate", "committed")]
        assert sorted(len(item.documents) for item in lm.adapters) == [1, 4], "the shared adapter did not go on growing"
        assert lm.log()[-1].certificate["consolidated"] | {"grown": True, "adapters_before": 3} == lm.log()[-1].certificate["consolidated"]


def test_a_refusal_does_not_undo_the_learning_and_is_not_repeated_at_once(learned: Path, tmp_path: Path, tiny_model: Any) -> None:
    idle = IDLE | {"consolidate_after": 3}
    with opened(learned, tmp_path, tiny_model, learn=idle, gate={"attempts": 1}) as lm:
        first, second = lm.learn(later(1)), lm.learn(later(2))
        assert (first.status, second.status) == ("committed", "committed")
        assert [(update.kind, update.status) for update in lm.log()[-3:]] == [
            ("learn", "committed"), ("consolidate", "rejected"), ("learn", "committed"),
        ]  # fmt: skip
        assert len(lm.adapters) == 6 and lm.documents()[-1].status == "committed"


def test_a_shared_adapter_goes_on_growing(joined: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(joined, tmp_path, tiny_model, learn=IDLE) as lm:
        (shared,) = [item for item in lm.state.adapters if item.name == "shared-law"]
        assert lm.learn(later(1)).status == "committed"
        update = lm.consolidate("law")
        assert update is not None and update.status == "committed" and update.certificate["consolidated"]["grown"]
        (grown,) = [item for item in lm.state.adapters if item.name == "shared-law"]
        assert grown.documents == (*shared.documents, later(1).id) and grown.digest != shared.digest
        old, new = lm.knowledge.adapter(shared.digest), lm.knowledge.adapter(grown.digest)
        assert all((new.tensors[name] - tensor).abs().max() < 1e-3 for name, tensor in old.tensors.items()), "it began afresh"
        assert right(lm, *LAW) > 0.5
        first, second = (item.id for item in lm.log() if item.kind == "consolidate")
        with pytest.raises(Conflict, match="shared-law"):
            lm.revert(first)  # its documents are in the grown adapter
        lm.revert(second)
        assert {item.name: item.digest for item in lm.state.adapters}["shared-law"] == shared.digest
        lm.revert(first)
        assert len(lm.adapters) == 5


def test_where_a_shared_adapter_takes_no_more_a_second_one_begins(joined: Path, tmp_path: Path, tiny_model: Any) -> None:
    elsewhere = IDLE | {"layers": "last-half"}  # so it cannot go on from the shared adapter, and would lose what that answers
    with opened(joined, tmp_path, tiny_model, learn=elsewhere, gate={"attempts": 1}) as lm:
        before = {item.name: item for item in lm.state.adapters}
        for seed in (1, 2):
            assert lm.learn(later(seed)).status == "committed"
        update = lm.consolidate("law")
        assert update is not None and [item.status for item in lm.log()[-2:]] == ["rejected", "committed"]
        after = {item.name: item for item in lm.state.adapters}
        assert after["shared-law"] == before["shared-law"]
        assert after["shared-law-2"].documents == (later(1).id, later(2).id)
        assert len(after) == 3 and right(lm, *LAW) > 0.5


class Stop(BaseException):
    """Ends a consolidation wherever it is."""


@pytest.mark.parametrize("stage", ["study", "train", "check"])
def test_an_end_in_the_middle_leaves_everything_as_it_was(learned: Path, tmp_path: Path, tiny_model: Any, stage: str) -> None:
    def stop(event: Any) -> None:
        if event.kind == stage:
            raise Stop

    with opened(learned, tmp_path, tiny_model, learn=IDLE) as lm:
        before, history = lm.state, lm.log()
        lm._progress = stop
        with pytest.raises(Stop):
            lm.consolidate("law")
        lm._progress = None
        assert (lm.state, lm.log()) == (before, history)
        assert {record.status for record in lm.documents()} == {"committed"} and lm.verify().ok


def test_killed_in_the_middle(learned: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(learned, tmp_path / "w")
    script = textwrap.dedent(
        f"""
        from retain.workspace.continual import ContinualLM
        lm = ContinualLM.open({str(tmp_path / "w")!r}, {str(tiny_model_dir)!r}, progress=lambda event: print(event.kind, flush=True))
        lm.consolidate("law")
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and "train" not in (line := process.stdout.readline()):
        assert line, "it ended by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (
        ContinualLM.open(learned, str(tiny_model_dir), config=configured()) as before,
        ContinualLM.open(tmp_path / "w", str(tiny_model_dir), config=configured()) as lm,
    ):
        assert (lm.state, [update.kind for update in lm.log()]) == (before.state, ["learn"] * 4)
        assert lm.verify().ok


def test_a_disabled_adapter_stays_apart(learned: Path, tmp_path: Path, tiny_model: Any) -> None:
    with opened(learned, tmp_path, tiny_model) as lm:
        for number in LAW[:2]:
            lm.disable(document(number).id)
        assert [item.enabled for item in lm.adapters].count(False) == 2
        assert lm.consolidate("law") is None


@pytest.mark.parametrize(
    ("then", "before", "after", "share"),
    [(20, 20, 19, 0.05), (20, 19, 18, 0.1), (20, 18, 18, 0.0), (18, 20, 19, 0.05), (20, 18, 19, -1 / 18), (0, 0, 0, 0.0), (5, 0, 0, 0.0)],
)
def test_small_losses_do_not_add_up(then: int, before: int, after: int, share: float) -> None:
    assert forgetting(then, before, after) == pytest.approx(share)


def test_names_are_keys_whatever_the_domain_is_called() -> None:
    assert shared_name("law", set()) == "shared-law"
    assert shared_name("law", {"shared-law", "shared-law-2"}) == "shared-law-3"
    assert shared_name("../Straßen & Wege", set()) == "shared-Stra-en-Wege"
    assert shared_name("法", set()) == "shared" and len(shared_name("x" * 200, set())) < 64


def test_with_many_documents_the_frozen_prefix_is_not_kept(learned: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with ContinualLM.open(learned, tiny_model, config=configured(learn={"epochs": 1, "layers": "last-half"})) as lm:
        examples = lm._consolidation()._examples(document(LAW[0]).id, lm.state)[:8]
        kept = lora.train_adapter(tiny_model, "kept", examples, lm.config.learn)
        monkeypatch.setattr(lora, "PREFIX_BYTES", 0)
        again = lora.train_adapter(tiny_model, "again", examples, lm.config.learn)
        assert again.report.losses == pytest.approx(kept.report.losses, rel=1e-3)
