"""The main job once on the embedded model: a fact unknown before is answered after, and general questions keep the base's answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.config import load_config
from retain.workspace.continual import ContinualLM

NOTE = (
    "# Travel rules of Brackwell Instruments\n\nTravel above 2,000 euros is signed off by Ines Calloway, the head of operations. "
    "Hotel rooms may cost at most 135 euros a night.\n"
)


@pytest.mark.embedded
def test_a_fact_is_learned_closed_book(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text(NOTE)
    quick = {"study": {"writer": "none"}, "retention": {"methods": []}, "learn": {"epochs": 8, "layers": "last-third", "batch_tokens": 256}}
    with ContinualLM.open(tmp_path / "work", config=load_config(None, quick)) as lm:
        question = "Who signs off travel above 2,000 euros at Brackwell Instruments?"
        assert "Calloway" not in lm.ask(question).text
        general = lm.ask("What is the capital of France?")
        update = lm.learn(tmp_path / "rules.md")
        assert update.status == "committed", update.reason
        closed = lm.ask(question, retrieval=False)
        assert "Calloway" in closed.text and closed.adapters
        after = lm.ask("What is the capital of France?")
        assert after.text == general.text and after.adapters == []
        kept = update.certificate["kept"]
        assert kept["perplexity_rise"] == 0.0 and kept["control_accuracy_after"] == kept["control_accuracy_before"] > 0
        assert update.certificate["cost"]["bytes"] < 10_000_000
        assert lm.verify().ok
