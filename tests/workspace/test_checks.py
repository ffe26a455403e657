"""What is wrong is said before anything is queued: names, what does not fit the model, what a learner lacks, another base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents
from tests.tiny_models import gpt2

from retain.config import Config, ConfigError, load_config
from retain.data.document import Document
from retain.learners.base import LearnerError
from retain.learners.checks import check_names, check_ready
from retain.lm.loading import load_model
from retain.lm.model import LanguageModelError
from retain.workspace import Conflict, WorkspaceError
from retain.workspace.base import base_of
from retain.workspace.continual import ContinualLM
from retain.workspace.learning import with_learner

FIRST, SECOND = (Document.from_text(text, title) for title, text in tiny_documents()[:2])
QUICK = {"learn.learner": "jitrl", "study.writer": "none", "model.precision": "float32", "gate.max_perplexity_rise": 9.0}


def config_of(**values: Any) -> Config:
    return load_config(None, {**QUICK, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learn.learner": "lorra"}, "command line: learn.learner: unknown learner 'lorra': did you mean 'lora'?"),
        ({"retention.methods": "kll"}, "command line: retention.methods: there is no retention method 'kll': did you mean 'kl'?"),
        ({"retention.methods": "kl,kl"}, "command line: retention.methods: retention method 'kl' is asked for twice"),
    ],
)
def test_names_are_checked_before_a_workspace_is_made(values: dict[str, Any], said: str, tmp_path: Path, tiny_model: Any) -> None:
    with pytest.raises(ConfigError) as wrong:
        ContinualLM.open(tmp_path / "work", tiny_model, config=load_config(None, values))
    assert str(wrong.value) == said and not (tmp_path / "work").exists()
    ContinualLM.open(tmp_path / "work", tiny_model, config=load_config(None, {"retention.methods": "kl,ewc"})).close()


def test_an_option_wins_over_a_wrong_name(tmp_path: Path, tiny_model: Any) -> None:
    ContinualLM.open(tmp_path / "work", tiny_model, learner="jitrl", config=load_config(None, {"learn.learner": "lorra"})).close()
    with pytest.raises(LearnerError, match="did you mean 'lora'"):
        ContinualLM.open(tmp_path / "work", tiny_model, learner="lorra")


@pytest.mark.parametrize("learner", ["lora", "packnet"])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learn.targets", "nope", "command line: learn.targets: no linear layer of .* matches targets 'nope'; it has down_proj, "),
        ("learn.targets", "q_proj,nope", "command line: learn.targets: no linear layer of .* matches targets 'nope'"),
        ("learn.layers", "99", "command line: learn.layers: .* has 4 layers, not 99"),
    ],
)
def test_what_the_model_does_not_have(key: str, value: str, said: str, learner: str, tmp_path: Path, tiny_model: Any) -> None:
    config = load_config(None, {key: value, "study.writer": "none"})
    with ContinualLM.open(tmp_path / "work", tiny_model, learner=learner, config=config) as lm:
        for dry in (True, False):
            with pytest.raises(LearnerError, match=said):
                lm.learn(FIRST, dry_run=dry)
        assert lm.documents() == [] and base_of(lm.ledger) == {}


def test_what_fits_is_ready(tiny_model: Any) -> None:
    for values in ({"learn.layers": "4"}, {"learn.targets": "q_proj,*.mlp.*"}, {"learn.targets": "all-linear"}):
        check_ready(tiny_model, load_config(None, values))
    for learner in ("ttt", "jitrl", "jitrl-full", "ace", "progressive", "packnet"):
        check_ready(tiny_model, with_learner(load_config(None), learner))


@pytest.mark.parametrize(
    ("learner", "values", "said"),
    [
        ("doc2lora", {}, "no trained hypernetwork comes with retain"),
        ("doc2lora", {"doc2lora.weights": "/nowhere/net.safetensors"}, "/nowhere/net.safetensors"),
        ("ace", {"ace.url": "http://localhost:1/v1", "ace.model": "null"}, "ace.model is not set"),
        ("progressive", {"learn.layers": "99"}, "has 4 layers, not 99"),
        ("lora", {"study.writer": "teacher"}, "study.teacher.url is not set"),
    ],
)
def test_what_a_learner_lacks(learner: str, values: dict[str, Any], said: str, tmp_path: Path, tiny_model: Any) -> None:
    with ContinualLM.open(tmp_path / "work", tiny_model, learner=learner, config=load_config(None, values)) as lm:
        for dry in (True, False):
            with pytest.raises(LearnerError) as wrong:
                lm.learn(FIRST, dry_run=dry)
            assert said in str(wrong.value) and "\n" not in str(wrong.value)
        assert lm.documents() == []


def test_a_learner_that_the_model_cannot_have() -> None:
    with pytest.raises(LearnerError, match="no MLP with gate"):
        check_ready(gpt2(), with_learner(load_config(None), "ttt"))


def test_a_learner_that_does_not_study_needs_no_teacher(tiny_model: Any) -> None:
    check_ready(tiny_model, load_config(None, {"study.writer": "teacher", "learn.learner": "jitrl"}))


def test_pending_documents_stay_pending(tmp_path: Path, tiny_model: Any) -> None:
    with ContinualLM.open(tmp_path / "work", tiny_model, config=config_of()) as lm:
        lm._learning.queue(FIRST)
    wrong = config_of(**{"learn.learner": "lora", "learn.targets": "nope"})
    with ContinualLM.open(tmp_path / "work", tiny_model, config=wrong) as lm:
        with pytest.raises(LearnerError, match="targets 'nope'"):
            lm.learn_pending()
        assert [record.status for record in lm.documents()] == ["pending"]


def test_a_model_that_is_not_there_queues_nothing(tmp_path: Path) -> None:
    with ContinualLM.open(tmp_path / "work", "/nonexist", config=config_of()) as lm:
        with pytest.raises(LanguageModelError, match="there is no model at /nonexist"):
            lm.learn(FIRST)
        assert lm.documents() == []


def test_names_of_a_file_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("retention: {methods: [replya]}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: retention\.methods: .*did you mean 'replay'"):
        check_names(load_config(tmp_path))


@pytest.fixture
def bases(tmp_path: Path, tiny_model_dir: Path) -> tuple[Path, Path]:
    """Two folders with models of other weights."""
    from safetensors.torch import load_file, save_file

    first, second = tmp_path / "models" / "one", tmp_path / "models" / "two"
    for place in (first, second):
        shutil.copytree(tiny_model_dir, place)
    file = next(second.glob("*.safetensors"))
    tensors = load_file(file)
    tensors[min(tensors)][0] += 1.0
    save_file(tensors, file, {"format": "pt"})
    return first, second


def opened(tmp_path: Path, model: Path | None = None, name: Path | None = None, **options: Any) -> ContinualLM:
    settings = {"precision": "float32", "cache_dir": str(tmp_path / "cache")} | ({"name": str(name)} if name else {})
    return ContinualLM.open(tmp_path / "work", None if model is None else str(model), config=config_of(model=settings), **options)


def test_asking_ties_a_workspace_to_nothing(bases: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = bases
    with opened(tmp_path, name=first) as lm:
        lm.ask("Who built it?")
        assert base_of(lm.ledger) == {} and lm.model.name == "one"
    with opened(tmp_path, name=second) as lm:
        lm.ask("Who built it?")
        assert lm.learn(FIRST).status == "committed"
        assert base_of(lm.ledger)["place"] == str(second)
    assert not caplog.records
    with opened(tmp_path, name=first) as lm:
        lm.ask("Who built it?")
        assert lm.model.name == "two", "the workspace does not keep its base"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"model.name {first} (command line) is not used: ") and f"belongs to {second}" in said
    caplog.clear()
    for same in (second, None):  # named, and not named at all
        with opened(tmp_path, name=same) as lm:
            assert lm.model.name == "two"
    assert not caplog.records


def test_an_option_with_another_base_is_an_error(bases: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = bases
    with opened(tmp_path, model=first) as lm:
        lm.learn(FIRST)
    with opened(tmp_path, model=second) as lm:
        for what in (lambda: lm.ask("Who?"), lambda: lm.learn(SECOND)):
            with pytest.raises(Conflict, match="made with one"):
                what()
        assert len(lm.documents()) == 1


def test_another_base_may_take_the_place_while_nothing_is_learned(bases: tuple[Path, Path], tmp_path: Path) -> None:
    """A process that loaded its base before another one learned first is stopped before it learns."""
    first, second = bases
    with opened(tmp_path, model=first) as early, opened(tmp_path, model=second) as late:
        assert early.model.name == "one"
        late.learn(FIRST)
        with pytest.raises(Conflict, match="made with two"):
            early.learn(SECOND)
        assert [record.id for record in late.documents()] == [FIRST.id]


def test_a_refused_document_ties_to_nothing(bases: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = bases
    with opened(tmp_path, model=first) as lm:
        lm.config.gate.min_recall_gain, lm.config.gate.attempts = 1.0, 1
        assert lm.learn(FIRST).status == "rejected" and base_of(lm.ledger) == {}
    with opened(tmp_path, model=second) as lm:
        assert lm.learn(FIRST).status == "committed" and base_of(lm.ledger)["name"] == "two"


def test_a_base_that_is_gone(bases: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = bases
    with opened(tmp_path, model=first) as lm:
        lm.learn(FIRST)
    first.rename(tmp_path / "moved")
    with opened(tmp_path) as lm, pytest.raises(WorkspaceError, match="models/one any more"):
        lm.ask("Who?")
    with opened(tmp_path, name=second) as lm, pytest.raises(Conflict, match="made with one"):
        lm.ask("Who?")
    with opened(tmp_path, name=tmp_path / "moved") as lm:
        lm.ask("Who?")
        assert base_of(lm.ledger)["place"] == str(tmp_path / "moved")


def test_the_copy_is_another_model(bases: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = (load_model(place, precision="float32", cache_dir=tmp_path / "cache") for place in bases)
    assert one.fingerprint != two.fingerprint
