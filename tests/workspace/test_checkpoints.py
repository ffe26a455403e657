"""Checkpoints: learning on from a loaded one gives, bit for bit, what learning without a break gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.workspace.continual import ContinualLM

FIRST, SECOND, OTHER = 1, 0, 4  # numbers of tests.tiny's documents


def document(number: int) -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title, domain="law")


def configured(adapter_per: str) -> Config:
    learn = {"rank": 4, "alpha": 8.0, "layers": "all", "epochs": 8, "learning_rate": 5e-3, "adapter_per": adapter_per}
    return load_config(
        None,
        {
            "learn": learn,
            "gate": {"max_forgetting": 1.0, "max_perplexity_rise": 1e9},
            "study": {"writer": "none", "held_out_fraction": 0.5},
            "route": {"least_bits": 2.0, "threshold": 0.4},
            "model": {"precision": "float32"},
            "retention": {"methods": ["replay", "ewc", "kl"] if adapter_per == "domain" else []},
        },
    )


def answers(lm: ContinualLM) -> list[str]:
    return [lm.ask(item.wordings[-1]).text for number in (FIRST, SECOND) for item in tiny_questions(number)[:3]]


@pytest.mark.parametrize("adapter_per", ["document", "domain"])
def test_a_load_goes_on_bit_for_bit(tmp_path: Path, tiny_model: Any, adapter_per: str) -> None:
    """Straight: first, second. With a break: first, saved, other, loaded in a process of its own, second."""
    settings = configured(adapter_per)
    with ContinualLM.open(tmp_path / "straight", tiny_model, config=settings) as lm:
        assert [lm.learn(document(number)).status for number in (FIRST, SECOND)] == ["committed", "committed"]
        straight, expected = lm.state, answers(lm)
    with ContinualLM.open(tmp_path / "broken", tiny_model, config=settings) as lm:
        lm.learn(document(FIRST))
        lm.checkpoint("first")
        saved = lm.state
        assert lm.learn(document(OTHER)).status == "committed" and lm.learn(document(SECOND)).status == "committed"
        elsewhere = lm.state
    with ContinualLM.open(tmp_path / "broken", tiny_model, config=settings) as lm:
        lm.load_checkpoint("first")
        assert lm.state == saved != elsewhere
        assert lm.learn(document(SECOND)).status == "committed"
        assert lm.state == straight  # digests of the adapters and of what their retention methods remember
        assert answers(lm) == expected
        assert lm.verify().ok
    if adapter_per == "domain":  # the control: an adapter that went on from elsewhere is another one
        assert straight.retention and elsewhere.adapters[0].digest != straight.adapters[0].digest
