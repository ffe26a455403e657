"""What README and docs/ say exists: commands, options, imports, links, keys, names. No model is loaded."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[Any]:
    """The fenced blocks of some languages, each with a name that says where it stands."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def command_lines(block: str) -> Iterator[list[str]]:
    """Arguments of every call of retain in a shell block: behind a prompt, variables or a pipe, without comments."""
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        part: list[str] = []
        for word in [*words, "|"]:
            if word != "|":
                part.append(word)
                continue
            while part and re.fullmatch(r"RETAIN_\w+=.*", part[0]):
                part.pop(0)
            if part and part[0] == "retain":
                yield part[1:]
            part = []


def parse(arguments: list[str]) -> None:
    """Parse as the real program does, without running anything. Raises click's errors."""
    from retain.cli.main import app

    command: Any = typer.main.get_command(app)
    name, context = "retain", None
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        rest = [*getattr(context, "_protected_args", ()), *context.args] if hasattr(command, "commands") else []
        if not rest:
            return
        name, command, arguments = command.resolve_command(context, rest)


@pytest.mark.parametrize("block", blocks("console", "bash"))
def test_commands_and_options_exist(block: str) -> None:
    for arguments in command_lines(block):
        try:
            parse(arguments)
        except Exception as error:
            if type(error).__name__ != "Exit":  # --help and --version
                pytest.fail(f"retain {shlex.join(arguments)}: {error!r}", pytrace=False)


def test_the_check_of_commands_finds_mistakes() -> None:
    parse(["learn", "a.md", "--domain", "law"])
    for wrong in (
        ["lern", "a.md"],
        ["learn", "a.md", "--domian", "law"],
        ["adapters", "rename", "a"],
        ["show"],
        ["learn", "--importance", "2"],
    ):
        with pytest.raises(Exception, match=r".") as caught:
            parse(wrong)
        assert type(caught.value).__name__ != "Exit"


def test_commands_in_running_text_exist() -> None:
    from retain.cli.main import app

    command: Any = typer.main.get_command(app)
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for words in re.findall(r"`retain ([a-z]+(?: [a-z]+)?)", text):
            first, _, second = words.partition(" ")
            assert first in command.commands, f"{page.name}: retain {words}"
            nested = getattr(command.commands[first], "commands", None)
            assert not (nested and second) or second in nested, f"{page.name}: retain {words}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_its_imports_resolve(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lm":
            from retain import ContinualLM

            assert hasattr(ContinualLM, node.attr), f"lm.{node.attr}"


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.id.startswith("extend.md")])
def test_the_extensions_work(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from retain.adapters import merging
    from retain.data.readers import RICH
    from retain.retention import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registries: tuple[dict[str, Any], ...] = (merging.MERGE_METHODS, RICH)
    before = [dict(registered) for registered in registries]
    try:
        exec(compile(block, "extend.md", "exec"), {"__name__": "extend"})
    finally:
        for registered, known in zip(registries, before, strict=True):
            registered.clear()
            registered.update(known)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", place.read_text(encoding="utf-8")), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page.name}: {target}"


def test_every_key_of_the_configuration_is_listed_with_its_default() -> None:
    from retain.config import describe, parse_yaml

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    listed = {key: parse_yaml(default) for key, default in re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", text, re.MULTILINE)}
    assert listed == {row.key: row.default for row in describe()}


def test_keys_in_running_text_exist() -> None:
    from retain.config import Config, describe

    known = {row.key for row in describe()}
    sections = set(Config.model_fields) - {"workspace"}
    others = {"gate.limits", "gate.verdict", "gate.reason", "retention.registry"}  # fields of a certificate, a module
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)[:`]", text):
            assert key.split(".")[0] not in sections or key in known | others, f"{page.name}: {key}"


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_valid_configuration(block: str) -> None:
    from retain.config import Config, parse_yaml

    Config.model_validate(parse_yaml(block))


@pytest.mark.parametrize("block", blocks("jsonl"))
def test_json_lines_are_read(block: str, tmp_path: Path) -> None:
    from retain.data import load_questions, read_path

    file = tmp_path / "records.jsonl"
    file.write_text(block, encoding="utf-8")
    if {"question", "answer"} <= json.loads(block.splitlines()[0]).keys():
        assert load_questions(file)
    else:
        assert list(read_path(file))


def test_methods_metrics_and_fields_are_those_of_the_code() -> None:
    import retain.evaluation as evaluation
    from retain.adapters.merging import MERGE_METHODS
    from retain.retention import methods

    def first_column(name: str) -> list[str]:
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
        return [word for row in rows for word in re.findall(r"`(\w+)`", row)]

    named = first_column("methods.md")
    assert {method.name for method in methods()} <= set(named)
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for method in methods():
        assert re.search(rf"^\| `{method.name}` \| {method.kind} \| .* \| {re.escape(method.paper)} \|$", text, re.MULTILINE), method.name
        assert f"\n## {method.name}\n" in text, method.name
    assert set(first_column("adapters.md")) == set(MERGE_METHODS)
    measured = [
        name for name in first_column("measure.md") if name not in ("nothing", "context", "text", "study", "ewc", "replay", "default")
    ]
    assert measured and all(name in evaluation.__all__ for name in measured)


def test_benchmarks_named_in_the_documentation_exist() -> None:
    text = (ROOT / "docs" / "measure.md").read_text(encoding="utf-8")
    named = set(re.findall(r"python -m (benchmarks\.[\w.]+)", text))
    assert named
    for module in named:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
