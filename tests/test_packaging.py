"""What the package promises before anything is run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import retain

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_importing_retain_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "pydantic", "yaml", "typer", "rich", "trafilatura")
    assert python(f"import sys, retain; dir(retain); print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_reading_the_configuration_does_not_import_torch() -> None:
    assert python("import sys, retain.config as c; c.load_config(); print([m for m in ('torch', 'numpy') if m in sys.modules])") == "[]"


def test_public_names_are_found_on_first_use() -> None:
    assert set(retain.__all__) <= set(dir(retain))
    from retain.data import Document

    assert retain.Document is Document and "Document" in vars(retain)
    for name in retain.__all__:
        assert getattr(retain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Documents'"):
        _ = retain.Documents


def test_version_licence_and_command_agree() -> None:
    project = PROJECT["project"]
    assert project["version"] == retain.__version__
    assert project["license"] == "Apache-2.0" and "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert project["scripts"] == {"retain": "retain.cli.main:main"}
    assert f"## [{retain.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned_for_the_tests() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), f"not an exact version without a build suffix: {line}"
            pins[normal(name)] = version
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    installed = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installed
    for extra in installed[1].split(","):
        wanted += extras[extra]
    missing = [text for text in wanted if normal(re.split(r"[<>=!~\[; ]", text)[0]) not in pins]
    assert not missing
    assert "torchvision" not in pins


def test_extras_named_together_exist() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = re.search(r"\[(.*)\]", extras["all"][0])
    assert named and set(named[1].split(",")) == set(extras) - {"all", "dev", "vision", "cuda"}, "these bring large libraries"
