"""The built wheel works outside the repository, with everything it ships.

The wheel is installed alone into a fresh environment that borrows the dependencies installed beside this test through a .pth file: nothing
is downloaded, and retain itself comes from the wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tests.tiny import tiny_documents, tiny_questions

import retain

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".typed", ".safetensors", ".json", ".jsonl", ".yaml", ".html", ".css", ".js", ".svg"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that the repository stays clean."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(place.glob("retain-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that holds the wheel."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    purelib = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    borrowed = _run([sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    # Only the folder goes on the path: .pth files inside it, such as the one of an editable retain, are not read.
    (Path(purelib) / "borrowed.pth").write_text(f"{borrowed}\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel]
    _run(command)
    return programs


def _run(command: list[str | Path], cwd: Path | None = None) -> str:
    """The standard output of a command that must succeed, without anything of this repository in its environment."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "retain").rglob("*")
        if path.is_file() and path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("retain/")}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert wanted - held == set() and "retain/py.typed" in held and len(licences) == 1


def test_it_runs_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    place = _run([installed / "python", "-c", "import retain; print(retain.__file__)"], cwd=tmp_path)
    assert Path(place).is_relative_to(installed.parent), f"retain came from {place}, not from the wheel"
    assert retain.__version__ in _run([installed / "retain", "--version"], cwd=tmp_path)


def test_it_learns_a_document_and_answers(installed: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    title, text = tiny_documents()[0]
    (tmp_path / "note.md").write_text(f"# {title}\n\n{text}\n")
    work = tmp_path / "work"
    work.mkdir()
    settings = {
        "model": {"precision": "float32", "cache_dir": str(tmp_path / "cache")},
        "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "learning_rate": 5e-3},
        "route": {"least_bits": 2.0, "threshold": 0.4},
    }
    (work / "config.yaml").write_text(json.dumps(settings))
    program = [installed / "retain", "--workspace", work, "--json"]
    (update,) = json.loads(_run([*program, "learn", "note.md", "--model", tiny_model_dir], cwd=tmp_path))
    learned = update["certificate"]["learned"]
    assert update["status"] == "committed" and learned["recall_after"] > learned["recall_before"], update
    fact = tiny_questions(0)[0]
    answer = json.loads(_run([*program, "ask", "--no-retrieval", fact.wordings[-1]], cwd=tmp_path))
    assert fact.answer in answer["text"] and answer["adapters"] == update["documents"]
    assert json.loads(_run([*program, "verify"], cwd=tmp_path))["ok"]
