"""Methods by name, and consolidation on schedule."""

from __future__ import annotations

import pytest
import torch
from tests.retention.tiny import learn, objective_of, ragged, table, tiny_model, tiny_params

from retain.config import RetentionConfig
from retain.retention import (
    EWC,
    L2,
    DarkReplay,
    Distillation,
    OrthogonalLora,
    Replay,
    Resources,
    Retention,
    RetentionError,
    build,
    consolidate,
    describe,
    method,
    methods,
)  # fmt: skip


def test_every_method_declares_what_it_is() -> None:
    assert [description.name for description in methods()] == ["agem", "derpp", "ewc", "kl", "l2", "ogd", "olora", "replay"]
    for description in methods():
        assert description.summary and description.paper[4] == "." and description.cls.__doc__
        built = description.build(RetentionConfig(), Resources())
        assert type(built) is description.cls and built.name == description.name


def test_settings_reach_the_methods() -> None:
    config = RetentionConfig.model_validate(
        {"ewc": {"lambda": 7.0, "gamma": 0.9, "form": "online"}, "replay": {"capacity": 12, "strategy": "diversity", "fraction": 0.25},
         "kl": {"weight": 2.0}, "olora": {"weight": 0.3}, "derpp": {"alpha": 0.1, "beta": 0.9}}
    )  # fmt: skip
    resources = Resources(general=ragged(3), earlier=[tiny_params(tiny_model())], seed=4)
    ewc, replay, kl, olora, derpp = build(["ewc", "replay", "kl", "olora", "derpp"], config, resources)
    assert isinstance(ewc, EWC) and (ewc.strength, ewc.gamma, ewc.form) == (7.0, 0.9, "online")
    assert isinstance(replay, Replay) and (replay.buffer.capacity, replay.buffer.strategy, replay.fraction) == (12, "diversity", 0.25)
    assert isinstance(kl, Distillation) and kl.weight == 2.0 and kl.general == tuple(ragged(3)) and not kl.on_replayed
    assert isinstance(olora, OrthogonalLora) and olora.weight == 0.3 and olora.tasks == 1
    assert isinstance(derpp, DarkReplay) and (derpp.alpha, derpp.beta) == (0.1, 0.9)
    (l2,) = build(["l2"], config)
    assert isinstance(l2, L2) and l2.form == "online"
    (alone,) = build(["kl"], config)
    assert isinstance(alone, Distillation) and alone.on_replayed  # without general text, replayed text is what it has


@pytest.mark.parametrize(
    ("wrong", "right"), [("ewcc", "ewc"), ("der++", "derpp"), ("O-LoRA", "olora"), ("A-GEM", "agem"), ("repaly", "replay")]
)
def test_did_you_mean(wrong: str, right: str) -> None:
    with pytest.raises(RetentionError, match=f"did you mean '{right}'"):
        describe(wrong)


def test_unknown_repeated_and_taken_names() -> None:
    with pytest.raises(RetentionError, match="there are agem, derpp"):
        build(["zzzzzz"])
    with pytest.raises(RetentionError, match="twice"):
        build(["ewc", "ewc"])
    with pytest.raises(RetentionError, match="registered twice"):
        method("ewc", paper="0000.00000", kind="penalty", summary="", build=lambda config, resources: Retention())(Retention)


def test_consolidation_of_real_methods() -> None:
    """Fisher information, anchor, scores and stored logits are those of the model as it is."""
    model = tiny_model()
    params = tiny_params(model)
    ewc, replay, dark = EWC(10.0), Replay(), DarkReplay()
    for number in range(2):
        learn(model, number, params, [ewc, replay, dark])
    objective = objective_of(model, params)
    stale = dark.state_dict()["stored/logs"]
    scores = replay.buffer.state_dict()["scores"]
    consolidate([ewc, replay, dark], objective, params)
    assert not torch.equal(replay.buffer.state_dict()["scores"], scores)
    assert float(ewc.penalty(params)) == 0.0 and len(replay.buffer) == 24
    fresh = dark.state_dict()["stored/logs"]
    logits, _ = objective.logits(dark.buffer.items, params)
    assert not torch.equal(stale, fresh)
    torch.testing.assert_close(fresh.float(), logits.log_softmax(-1).topk(16).values, rtol=2e-3, atol=2e-2)
    assert {example.document for example in table(0)} <= {item.document for item in replay.buffer.items}
