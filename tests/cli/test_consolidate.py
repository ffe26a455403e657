"""`retain consolidate`, and bytes per document where adapters and updates are listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def five(run: Any, tmp_path: Path) -> None:
    """Five documents were learned, three of them about law."""
    for number in range(5):
        path = tmp_path / f"{number}.md"
        path.write_text(f"# Document {number}\nWhat document {number} says is said nowhere else.\n")
        run("learn", path, "--domain", "law" if number < 3 else "other")


def test_adapters_become_one_and_the_bytes_are_told(run: Any, world: Any, five: None) -> None:
    result = run("consolidate", "--domain", "law")
    assert result.exit_code == 0 and world.calls[-1] == ("consolidate", {"domain": "law"})
    assert "3 adapters of law became shared: 2.4 MB → 810.7 kB a document: update u00000006" in result.stdout
    text = run("adapters", "list").stdout
    assert "Document 0, Document 1, Document 2" in text and "810.7 kB" in text
    assert "5 documents in 3 adapters: 1.5 MB a document" in run("adapters", "list").stderr
    assert "810.7 kB" in run("adapters", "show", "shared").stdout
    listed = {item["name"]: item["bytes_per_document"] for item in json.loads(run("adapters", "list", "--json").stdout)}
    assert listed["shared"] == 810_666 and listed["a4"] == 2_432_000
    row = run("log", "--limit", "1").stdout
    assert "joined" in row and "3 adapters of law became shared: 2.4 MB → 810.7 kB a document" in row and "92 % → 90 %" in row
    panel = run("show", "u00000006").stdout
    for expected in ("3 → 1", "7.3 MB → 2.4 MB", "2.4 MB → 810.7 kB", "Document 2", "2.0 %"):
        assert expected in panel, expected


def test_without_a_domain_and_for_programs(run: Any, world: Any, five: None) -> None:
    facts = json.loads(run("consolidate", "--json").stdout)["certificate"]["consolidated"]
    assert world.calls[-1] == ("consolidate", {"domain": None})
    assert (facts["adapters_before"], facts["documents"], facts["bytes_per_document_after"]) == (5, 5, 486_400)
    assert "Document 0, Document 1 and 3 more" in run("adapters", "list").stdout


def test_nothing_to_consolidate_is_no_error(run: Any, five: None) -> None:
    result = run("consolidate", "--domain", "cooking")
    assert result.exit_code == 0 and result.stdout == "nothing to consolidate: cooking has fewer than two adapters to join\n"
    assert json.loads(run("consolidate", "--domain", "cooking", "--json").stdout) is None


def test_a_refusal_is_told_and_has_its_own_exit_code(run: Any, world: Any, five: None) -> None:
    world.reject = "earlier documents would lose 20.0% of their answers, the limit is 5.0%"
    result = run("consolidate")
    assert result.exit_code == 3 and "rejected: earlier documents would lose 20.0%" in result.stdout
    assert "5 adapters of law stay as they are" in run("log", "--limit", "1").stdout
    assert len(world.adapters) == 5
