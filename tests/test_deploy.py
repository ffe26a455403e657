"""The files of deploy/: what they start exists, and they take away what a service does not need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from tests.test_docs import parse

ROOT = Path(__file__).resolve().parent.parent
UNIT, IMAGE = ROOT / "deploy" / "retain.service", ROOT / "deploy" / "Dockerfile"


class Unit(ConfigParser):
    """A unit file: the case of names counts, and a name may occur again."""

    def __init__(self) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[assignment, method-assign]


@pytest.fixture
def unit() -> Unit:
    made = Unit()
    made.read_string(UNIT.read_text())
    return made


def instructions() -> list[tuple[str, str]]:
    """(NAME, value) of every instruction of the Dockerfile."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in IMAGE.read_text().splitlines() if not line.startswith("#")))
    return [(name, value) for name, _, value in (line.partition(" ") for line in text.splitlines() if line)]


def test_the_unit_starts_the_service(unit: Unit) -> None:
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/bin/retain")
    parse(arguments)
    assert service["User"] not in ("root", "") and service["Restart"] == "on-failure"
    assert arguments[arguments.index("--workspace") + 1].startswith("/var/lib/" + service["StateDirectory"]), "where it may write"
    assert int(service["TimeoutStopSec"]) > 30, "the learner and the answers get their time to stop"


def test_the_unit_is_hardened(unit: Unit) -> None:
    service = unit["Service"]
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes"}
    assert {name: service.get(name) for name in wanted} == wanted and service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
def test_systemd_finds_no_mistake(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text())  # the program is not installed here
    (tmp_path / "retain.service").write_text(text)
    (tmp_path / "wrong.service").write_text(text.replace("ProtectSystem=strict", "ProtectSystm=strict"))
    found = {}
    for name in ("retain", "wrong"):
        command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{name}.service")]
        found[name] = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr
    if "ProtectSystm" not in found["wrong"]:
        pytest.skip("systemd-analyze cannot verify here")
    assert f"{tmp_path}/retain.service" not in found["retain"], found["retain"]


def test_the_image(unit: Unit) -> None:
    steps = instructions()
    names = [name for name, _ in steps]
    assert steps[0][0] == "FROM" and "-slim" in steps[0][1] and ":latest" not in steps[0][1]
    assert set(names) <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}
    values = dict(steps)
    assert values["USER"] not in ("root", "0") and names.index("USER") < names.index("CMD")
    assert f"useradd --system --create-home --home-dir /home/retain --uid 10001 {values['USER']}" in " ".join(value for _, value in steps)
    program, *arguments = json.loads(values["CMD"])
    assert program == "retain" and "--token-file" in arguments, "everybody can reach it: not without tokens"
    parse(arguments)
    assert arguments[arguments.index("--port") + 1] == values["EXPOSE"]
    check = json.loads(values["HEALTHCHECK"].partition("CMD ")[2])
    assert f":{values['EXPOSE']}/healthz" in check[-1]
    compile(check[-1], "healthcheck", "exec")
    for name, value in steps:
        for source in value.split()[:-1] if name == "COPY" else ():
            assert (ROOT / source).exists(), source
    assert "serve" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
