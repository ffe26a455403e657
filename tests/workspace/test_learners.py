"""Every learner in a workspace: unknown before, answered after, kept beside a second document, forgotten without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import TINY_SETTINGS, known_questions, tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.learners import registry
from retain.learners.base import Aid, Learned, LearnerError, Memory
from retain.learners.registry import injects, learner_named, names, register
from retain.workspace import Conflict, NotFound, WorkspaceError
from retain.workspace.continual import ContinualLM

LEARNERS = [name for name in names() if name not in ("lora", "doc2lora")]  # doc2lora has no weights for the small model
FIRST, SECOND = (Document.from_text(text, title) for title, text in tiny_documents()[:2])


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(
        None,
        {
            **TINY_SETTINGS,
            "gate": {"attempts": 1},
            "ace": {"url": None},
        },
    )


def right(lm: ContinualLM, number: int, **options: Any) -> float:
    questions = tiny_questions(number)
    said = [lm.ask(item.wordings[-1], retrieval=False, **options).text.lower() for item in questions]
    return sum(item.answer.lower() in text for item, text in zip(questions, said, strict=True)) / len(questions)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_in_a_workspace(name: str, tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    weights = {key: tensor.clone() for key, tensor in tiny_model.parameters().items()}
    general = [item.wordings[0] for item in known_questions()[:3]]
    with ContinualLM.open(tmp_path / "work", tiny_model, learner=name, config=settings) as lm:
        base = [lm.ask(question).text for question in general]
        unknown = right(lm, 0)
        one = lm.learn(FIRST)
        assert one.status == "committed", one.reason
        assert one.certificate["learner"] == name and one.certificate["cost"]["bytes"] > 0
        learned = right(lm, 0)
        assert learned > unknown + 0.2, (unknown, learned)
        two = lm.learn(SECOND)
        assert two.status == "committed", two.reason
        assert right(lm, 0) == learned, "learning the second document changed answers about the first"
        assert right(lm, 1) > 0.2
        assert [lm.ask(question).text for question in general] == base, "a prompt that needs nothing learned did not get the base"
        assert all(weights[key].equal(tensor) for key, tensor in tiny_model.parameters().items())
        assert lm.learn(FIRST).status == "unchanged" and lm.verify().ok
        infos = lm.adapters
        assert {info.learner for info in infos} == {name} and all(info.bytes > 0 for info in infos)
        assert right(lm, 0, learner=name) == learned and right(lm, 0, learner="lora") == unknown

        lm.checkpoint("both")
        with pytest.raises(Conflict):
            lm.forget(FIRST.id)
        lm.forget(FIRST.id, drop_checkpoints=True)
        assert right(lm, 0) == unknown, "a forgotten document is still answered"
        assert right(lm, 1) > 0.2, "forgetting one document lost the other"
        assert lm.verify().ok
        stored = b"".join(path.read_bytes() for path in lm.root.rglob("*") if path.is_file())
        assert FIRST.text.split(". ")[0].encode() not in stored
    with ContinualLM.open(tmp_path / "work", tiny_model, learner=name, config=settings) as again:
        assert right(again, 1) > 0.2
        assert again.learn(FIRST).status == "committed" and right(again, 0) > unknown + 0.2


def test_two_learners_know_one_document(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    with ContinualLM.open(tmp_path / "work", tiny_model, learner="jitrl", config=settings) as lm:
        lm.learn(FIRST)
    with ContinualLM.open(tmp_path / "work", tiny_model, config=settings) as lm:
        probes = len(lm.ledger.probes(FIRST.id))
        assert lm.learn(FIRST).status == "committed"
        assert {info.learner for info in lm.adapters} == {"jitrl", "lora"} and len(lm.ledger.probes(FIRST.id)) == probes
        assert right(lm, 0, learner="lora") > 0.3 and right(lm, 0, learner="jitrl") > 0.2
        assert lm.documents()[0].status == "committed" and lm.verify().ok


def test_what_is_no_lora_adapter_is_neither_merged_nor_exported(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    with ContinualLM.open(tmp_path / "work", tiny_model, learner="jitrl", config=settings) as lm:
        lm.learn(FIRST)
        lm.learn(SECOND)
        names = [info.name for info in lm.adapters]
        with pytest.raises(WorkspaceError, match="is no adapter"):
            lm.merge(names)
        with pytest.raises(WorkspaceError, match="is no adapter"):
            lm.export_adapter(names[0], tmp_path / "out")
        assert lm.consolidate() is None


def test_playbooks_have_names(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    with ContinualLM.open(tmp_path / "work", tiny_model, learner="ace", config=settings) as lm:
        with pytest.raises(WorkspaceError, match="there is no playbook yet"):
            lm.playbook()
        lm.learn(FIRST)
        lm.save_playbook("one")
        one = lm.playbook()
        lm.learn(SECOND)
        assert lm.playbook() != one == lm.playbook("one")
        with pytest.raises(NotFound, match="did you mean"):
            lm.playbook("onee")
        lm.load_playbook("one")
        assert lm.playbook() == one and lm.adapters[0].documents == [FIRST.id] and lm.verify().ok
        lm.forget(FIRST.id)
        with pytest.raises(NotFound):
            lm.playbook("one")


def test_the_registry_agrees_with_the_learners(tiny_model: Any, tmp_path: Path, settings: Config) -> None:
    for name in names()[1:]:
        learner = learner_named(name)
        assert learner.name == name and learner.injected == injects(name)
    with pytest.raises(LearnerError, match="did you mean 'packnet'"):
        ContinualLM.open(tmp_path / "x", tiny_model, learner="pakcnet", config=settings)


def test_a_learner_of_ones_own(tmp_path: Path, tiny_model: Any, settings: Config) -> None:
    class Whole:
        """Shows the whole document."""

        name, form, studies, injected = "whole", "document", False, False

        def check(self, model: Any, config: Any) -> None:
            if config.learn.rank == 1:
                raise LearnerError("whole needs a rank")

        def learn(self, model: Any, lesson: Any, config: Any, tell: Any) -> Learned:
            return Learned(Memory(facts={"text": lesson.document.text}), {"tokens": 0})

        def aid(self, model: Any, question: str, memories: Any, passages: Any, config: Any) -> Aid:
            return Aid(memories[0].facts["text"])

        def without(self, memory: Memory, document: str) -> None:
            return None

    register(Whole())
    try:
        with pytest.raises(LearnerError, match="already"):
            register(Whole())
        with ContinualLM.open(tmp_path / "work", tiny_model, learner="whole", config=settings) as lm:
            assert lm.learn(FIRST).status == "committed" and right(lm, 0) > 0.5
        flat = settings.model_copy(update={"learn": settings.learn.model_copy(update={"rank": 1})})
        with ContinualLM.open(tmp_path / "other", tiny_model, learner="whole", config=flat) as lm:
            for dry in (True, False):
                with pytest.raises(LearnerError, match="whole needs a rank"):
                    lm.learn(FIRST, dry_run=dry)
            assert lm.documents() == []
    finally:
        registry._OWN.clear()
