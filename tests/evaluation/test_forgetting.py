"""The forgetting experiment on a small model that really learns: what it reports against direct computation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.tiny import tiny_questions

from retain.adapters import Adapter, AdapterSpec, select_sites
from retain.adapters.peft_format import export_peft
from retain.config import ConfigError
from retain.data.errors import DataError
from retain.evaluation.curvature import HessianOperator, adapter_loss, dense_deltas, lanczos, loss_at
from retain.evaluation.forgetting import (
    PRESETS,
    Checkpoint,
    CurvatureConfig,
    ForgettingConfig,
    Product,
    checkpoint,
    checkpoints,
    correlations,
    load_forgetting,
    moved,
    peft_checkpoint,
    run_curvature,
    run_forgetting,
    run_study,
    spearman,
    study_cells,
    study_values,
    task_examples,
)
from retain.evaluation.forgetting.curvature import plan_search, sample, space_size
from retain.evaluation.forgetting.spectra import run_examples, settings_of
from retain.evaluation.runs import Run
from retain.evaluation.sequences import Learned, make_sequence
from retain.lm.decoder import DecoderLM

FAST: dict[str, Any] = {
    "training.epochs": 9, "training.batch": 6, "training.learning_rate": 8e-3, "rank": 4, "alpha": 8, "dropout": 0.0, "held_out": 0.1,
    "measure": "learned", "max_tokens": 8, "targets": "q_proj,v_proj", "curvature.top": 3, "curvature.tokens": 120, "curvature.points": 5,
}  # fmt: skip


QUICK: dict[str, Any] = {
    "training.epochs": 1, "max_tokens": 1, "curvature.top": 1, "curvature.tokens": 60, "curvature.points": 3, "targets": "q_proj",
}  # fmt: skip


class Done(NamedTuple):
    """A finished experiment."""

    config: ForgettingConfig
    run: Run
    results: dict[str, Any]


def files(place: Path, documents: int = 2) -> tuple[Path, Path]:
    """Two tasks: facts about some people and places, and about others, in three wordings each."""
    for name, first in (("a", 0), ("b", 3)):
        facts = [fact for number in range(first, first + documents) for fact in tiny_questions(number)]
        rows = [{"question": wording, "answer": fact.answer} for fact in facts for wording in fact.wordings[:3]]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "a.jsonl", place / "b.jsonl"


def settings(place: Path, documents: int = 2, **overrides: Any) -> ForgettingConfig:
    return load_forgetting(*files(place, documents), "lora-small", FAST | overrides)


def experiment(config: ForgettingConfig, place: Path, model: DecoderLM, **options: Any) -> dict[str, Any]:
    with Run.create(place, config.model_dump(mode="json"), resume=True) as run:
        return run_forgetting(config, run, model, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: DecoderLM) -> Iterator[Done]:
    place = tmp_path_factory.mktemp("forgetting")
    config = settings(place, methods="naive,er,joint")
    results = experiment(config, place / "run", tiny_model)
    yield Done(config, Run.open(place / "run"), results)


def test_presets() -> None:
    large, small = (load_forgetting("a", "b", name) for name in ("lora-seft", "lora-small"))
    assert (large.rank, large.alpha, large.dropout, len(large.targets)) == (64, 128.0, 0.1, 7)
    training = large.training
    assert (training.batch, training.accumulation, training.epochs, training.learning_rate, training.clip) == (8, 2, 10, 3e-4, 1.0)
    assert (small.rank, small.alpha, small.dropout, small.targets) == (16, 32.0, 0.05, ["q_proj", "k_proj", "v_proj", "o_proj"])
    training = small.training
    assert (training.batch, training.accumulation, training.epochs, training.learning_rate) == (16, 1, 3, 2e-4)
    assert load_forgetting("a", "b", "lora-seft", {"training.epochs": 2}).training.accumulation == 2
    assert PRESETS["lora-seft"]["training"]["epochs"] == 10  # an override changes no preset


def test_mistakes() -> None:
    with pytest.raises(DataError, match="did you mean 'lora-seft'"):
        load_forgetting("a", "b", "lora-sft")
    with pytest.raises(ConfigError, match=r"curvature\.topp: unknown key; did you mean curvature\.top"):
        load_forgetting("a", "b", overrides={"curvature.topp": 3})
    with pytest.raises(DataError, match="is not KEY=VALUE,VALUE"):
        study_values(["rank"])


def test_fine_tuning_forgets_and_replay_keeps(done: Done) -> None:
    naive, replay = ({row["method"]: row for row in done.results["moves"]}[name] for name in ("naive", "replay"))
    matrix = done.results["methods"]["naive"]["seeds"]["0"]["matrix"]
    assert matrix[1][0] > matrix[0][0] + 0.4
    assert naive["forgetting_score"] == pytest.approx(matrix[1][0] - matrix[2][0]) and naive["forgetting_score"] > 0.25
    assert naive["forgetting_rate"] == pytest.approx(1 - matrix[2][0] / matrix[1][0])
    assert naive["forgetting_loss"] > 0.5 > replay["forgetting_loss"] + 0.3
    assert {row["method"] for row in done.results["moves"]} == {"naive", "replay"}  # joint training starts afresh: nothing moves


def test_numbers_are_those_of_the_checkpoints(done: Done, tiny_model: DecoderLM) -> None:
    sequence = make_sequence(done.config, 0, tiny_model)
    w1, w2 = (checkpoint(done.run, "naive", 0, task) for task in (0, 1))
    row = done.results["methods"]["naive"]["seeds"]["0"]
    for after, at in ((1, w1), (2, w2)):
        for task in range(2):
            assert sequence.loss(task, at.params) == pytest.approx(row["loss_matrix"][after][task], rel=1e-5)
            assert sequence.score(task, at.params) == row["matrix"][after][task]
    assert done.results["loss_matrix"]["naive"] == row["loss_matrix"]
    assert row["parameters"] == sum(tensor.numel() for tensor in w1.params.values()) and row["steps"] == 2 * 9 * 4
    distance = moved(w1, w2)
    flat = [torch.cat([tensor.flatten() for tensor in at.params.values()]) for at in (w1, w2)]
    dense = [torch.cat([tensor.flatten() for tensor in dense_deltas(at.params, at.scale).values()]) for at in (w1, w2)]
    assert w1.scale == 2.0
    assert distance["factors"] == pytest.approx(float((flat[1] - flat[0]).norm()), rel=1e-5)
    assert distance["product"] == pytest.approx(float((dense[1] - dense[0]).norm()), rel=1e-5)


@pytest.mark.parametrize("space", ["factors", "product"])
def test_bound_and_prediction_are_those_of_the_loss(done: Done, tiny_model: DecoderLM, space: Any) -> None:
    """g'd and d'Hd from differences of the loss on the line through w1 and w2, lambda_max from a search of its own."""
    entry = next(part for part in done.results["bound"] if part["method"] == "naive" and part["space"] == space)
    w1, w2 = (checkpoint(done.run, "naive", 0, task) for task in (0, 1))
    loss, start = adapter_loss(tiny_model, task_examples(done.config, tiny_model, 0), w1.params, w1.scale, space=space)
    end = w2.params if space == "factors" else dense_deltas(w2.params, w2.scale)
    d = {name: end[name] - start[name] for name in start}
    at = {t: loss_at(loss, {name: start[name] + t * d[name] for name in start}) for t in (-0.03, 0.0, 0.03, 0.5, 1.0)}
    slope, bend = (at[0.03] - at[-0.03]) / 0.06, (at[0.03] - 2 * at[0.0] + at[-0.03]) / 0.03**2
    assert entry["measured"] == pytest.approx(at[1.0] - at[0.0], abs=1e-4)
    assert entry["gradient_term"] == pytest.approx(slope, rel=0.05, abs=2e-3)
    assert entry["second_order"] == pytest.approx(slope + bend / 2, rel=0.1, abs=0.01)
    squared = sum(float(part.double().square().sum()) for part in d.values())
    assert entry["displacement"] == pytest.approx(math.sqrt(squared), rel=1e-5)
    top = lanczos(HessianOperator(loss, start), 1, which=("largest",)).largest()[0].value
    assert entry["lambda_max"] == pytest.approx(top, rel=1e-3) and top > 0
    assert entry["bound"] == pytest.approx(
        entry["gradient_term"] + (entry["lambda_max"] + entry["lambda_residual"]) * squared / 2, rel=1e-5
    )
    assert entry["holds"] and entry["path"]["points"] == [0, 0.25, 0.5, 0.75, 1]
    assert entry["path"]["loss"][2] == pytest.approx(at[0.5], rel=1e-4)


def test_spectra_of_both_spaces(done: Done, tiny_model: DecoderLM) -> None:
    assert list(done.results["curvature"]) == ["after a (factors)", "after a (product)"]  # one w1: replay has nothing to replay before it
    for name, facts in done.results["curvature"].items():
        assert len(facts["eigenvalues"]) == 3 and all(facts["converged"]) and min(map(abs, facts["eigenvalues"])) > 1e-3
        assert facts["tokens"] <= 120 and facts["examples"] > 2 and facts["products"] <= 200
        space: Any = "factors" if "factors" in name else "product"
        assert facts["parameters"] == space_size(tiny_model, checkpoint(done.run, "naive", 0, 0), space)
    # what is measured in one space is the same number in the other
    measured = {part["space"]: part["measured"] for part in done.results["bound"] if part["method"] == "naive"}
    assert measured["factors"] == pytest.approx(measured["product"], abs=1e-4)


def test_an_interrupted_run_ends_the_same(tmp_path: Path, model: DecoderLM) -> None:
    """Interrupted after the first task of the second method, and in the middle of the curvature."""
    config = settings(tmp_path, 1, **QUICK, methods="naive,er", dropout=0.1)

    def after_a_task(learned: Learned) -> None:
        if learned.method == "replay" and not learned.again:
            raise KeyboardInterrupt

    def in_product_space(product: Product) -> None:
        if product.about == "eigenvalues in product space" and product.done == 3:
            raise KeyboardInterrupt

    for hook in ({"tell": after_a_task}, {"tell_product": in_product_space}):
        with pytest.raises(KeyboardInterrupt):
            experiment(config, tmp_path / "run", model, **hook)  # type: ignore[arg-type]
    products: list[Product] = []
    resumed = experiment(config, tmp_path / "run", model, tell_product=products.append)
    straight = experiment(config, tmp_path / "straight", model)
    assert "eigenvalues in factors space" not in {product.about for product in products}  # what was found is not searched again
    for results in (resumed, straight):
        for method in results["methods"].values():
            method["seeds"]["0"].pop("seconds")
    assert json.dumps(resumed) == json.dumps(straight)  # as text: NaN is equal to itself


def test_curvature_is_left_out_and_it_is_said(tmp_path: Path, model: DecoderLM) -> None:
    quick = {"training.epochs": 1, "max_tokens": 1, "training.warmup": 0.9, "held_out": 0.2, "measure": "held-out"}
    small = experiment(settings(tmp_path, 1, **{**quick, "curvature.limit": 10}), tmp_path / "large", model)
    said = " ".join(small["warnings"])
    assert small["curvature"] == {} and "more than curvature.limit (10); --curvature" in said
    assert "2 optimizer steps for a can teach little" in said and "the warm-up takes 2 of 2" in said
    assert "a was not learned (recall" in said and "questions are few" in said
    (entry,) = small["bound"]  # how far it went and what that cost are known all the same
    assert entry["displacement"] == small["moves"][0]["distance_product"] and entry["measured"] == small["moves"][0]["forgetting_loss"]
    assert experiment(settings(tmp_path, 1, **{**quick, "curvature.compute": "no"}), tmp_path / "no", model)["curvature"] == {}


def test_the_search_fits_into_the_memory() -> None:
    config = CurvatureConfig(top=20, memory=1.0)
    assert plan_search(1_000_000, config) == (20, 60)  # no more vectors than products
    assert plan_search(1_000_000, CurvatureConfig(top=20, memory=1.0, products=200)) == (20, 90)
    assert plan_search(5_000_000, config) == (20, 32)
    assert plan_search(7_500_000, CurvatureConfig(top=30, memory=1.0)) == (1, 33)
    assert plan_search(20_000_000, config) == (1, 10)
    assert plan_search(30_000_000, config) is None
    assert plan_search(5, config) == (5, 5)


def test_a_sample_is_drawn_until_its_tokens_are_reached(done: Done, tiny_model: DecoderLM) -> None:
    sequence = make_sequence(done.config, 0, tiny_model)
    pool = list(sequence.task(0).examples)
    assert sum(map(len, sample(pool, 100, 0))) <= 100 and len(sample(pool, 1, 0)) == 1
    assert sample(pool, 10**6, 0) != pool and sorted(map(repr, sample(pool, 10**6, 0))) == sorted(map(repr, pool))


def test_checkpoints_of_a_run_and_of_peft_agree(done: Done, tmp_path: Path, tiny_model: DecoderLM) -> None:
    config = settings_of(done.run)
    names, examples, every = run_examples(config, tiny_model, 0, [])
    first, second = checkpoints(done.run, every, tiny_model)
    assert (names, first.name, second.name) == (["a"], "after a", "after b")
    sites = select_sites(tiny_model, targets=["q_proj", "v_proj"])
    export_peft(Adapter(first.params, AdapterSpec("lora", tiny_model.fingerprint, sites, 4, 8.0)), tmp_path / "peft", "tiny")
    imported = peft_checkpoint(tmp_path / "peft", tiny_model)
    assert moved(first, imported) == {"factors": 0.0, "product": 0.0}
    quick = CurvatureConfig(compute="yes", spaces=["factors"], top=3, tokens=120, trace=9, density=1)
    with Run.create(tmp_path / "spectrum", {}) as run:
        results = run_curvature(quick, run, tiny_model, [imported], examples, names)
    facts = results["curvature"]["peft"]
    assert facts["eigenvalues"] == pytest.approx(done.results["curvature"]["after a (factors)"]["eigenvalues"], rel=1e-3)
    assert facts["trace"] is not None and len(facts["density"]["grid"]) == len(facts["density"]["values"])
    assert results["kind"] == "curvature" and results["warnings"] == []


def test_checkpoints_that_are_not_there(done: Done, model: DecoderLM, tiny_model: DecoderLM) -> None:
    with pytest.raises(DataError, match="nothing that ewc learned from seed 0: there is joint, naive, replay"):
        checkpoints(done.run, ["a", "b"], tiny_model, "ewc")
    with pytest.raises(DataError, match="was made with another base model"):
        checkpoints(done.run, ["a", "b"], model)


def test_study(tmp_path: Path, model: DecoderLM) -> None:
    values = study_values(["rank=1,2,3 training.learning_rate=1e-2"])
    assert values == {"rank": [1, 2, 3], "training.learning_rate": [0.01]}
    cells = [(cell, settings(tmp_path, 1, **{**QUICK, **cell})) for cell in study_cells(values)]
    with Run.create(tmp_path / "study", {"study": values}) as run:
        results = run_study(cells, run, model)
    assert len(results["study"]["points"]) == 6 and len(results["bound"]) == 3 and set(results["methods"]) > {"naive, rank=2 lr=0.01"}
    assert all(entry["space"] == "product" for entry in results["bound"])
    found = {(part["space"], part["predictor"], part["target"]): part for part in results["study"]["correlations"]}
    assert found["factors", "displacement", "measured"]["n"] == 3
    assert Run.open(tmp_path / "study" / "cells" / "rank-1_lr-0.01").results is not None
    with pytest.raises(DataError, match="is a study"):
        settings_of(Run.open(tmp_path / "study"))


def test_correlations_are_of_ranks() -> None:
    x = [float(value) for value in range(12)]
    rho, low, high = spearman(x, [math.exp(value) for value in x])
    assert rho == pytest.approx(1.0) and low == pytest.approx(1.0) and high == pytest.approx(1.0)
    rho, low, high = spearman(x, [5, 1, 4, 2, 8, 3, 7, 0, 6, 11, 9, 10])
    assert -1 <= low < rho < high <= 1 and rho == pytest.approx(1 - 6 * 110 / (12 * 143))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert all(math.isnan(value) for value in spearman([1.0, 2.0], [1.0, 2.0]))
    points = [{"space": "factors", "displacement": value, "measured": -value, "forgetting_score": None} for value in x]
    (only,) = correlations(points)
    assert only["rho"] == pytest.approx(-1.0) and (only["predictor"], only["target"]) == ("displacement", "measured")


def test_a_grown_adapter_has_no_way_among_the_factors() -> None:
    site = "model.layers.0.q_proj"
    before = Checkpoint("w1", {f"{site}.lora_A.weight": torch.ones(1, 3), f"{site}.lora_B.weight": torch.ones(2, 1)}, 2.0)
    after = Checkpoint("w2", {f"{site}.lora_A.weight": torch.ones(2, 3), f"{site}.lora_B.weight": torch.ones(2, 2)}, 2.0)
    assert moved(before, after) == {"factors": None, "product": pytest.approx(2.0 * math.sqrt(6))}
