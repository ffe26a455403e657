"""`retain ask` and `retain chat`."""

from __future__ import annotations

import json
from typing import Any


def test_the_answer_alone_is_standard_output(run: Any) -> None:
    result = run("ask", "Who approves travel?")
    assert result.exit_code == 0
    assert result.stdout == "The [head] of travel.\n"
    assert result.stderr == "sources: Travel policy · adapters: a1 · 6 tokens in 1.4 s\n"


def test_options_reach_the_api(run: Any, world: Any) -> None:
    run("ask", "Who?", "--max-tokens", "9", "--temperature", "0.5", "--no-retrieval")
    call = world.calls[0][1]
    assert (call["max_tokens"], call["temperature"], call["retrieval"]) == (9, 0.5, False)
    run("ask", "Who?")
    call = world.calls[1][1]
    assert (call["max_tokens"], call["temperature"], call["retrieval"]) == (None, None, None)


def test_sources(run: Any) -> None:
    assert "The head of travel approves." in run("ask", "Who?", "--sources").stdout
    result = run("ask", "Who?", "--sources", "--no-retrieval")
    assert "sources: none" in result.stderr and "no passage was used" in result.stderr


def test_json(run: Any) -> None:
    answer = json.loads(run("ask", "Who?", "--json").stdout)
    assert answer["adapters"] == ["a1"] and answer["sources"][0]["score"] == 0.83


def test_chat_remembers(run: Any, world: Any) -> None:
    result = run("chat", input="Who approves?\n/sources\n\nAnd who else?\n/clear\nAgain?\n/quit\nnever asked\n")
    assert result.exit_code == 0 and result.stdout.count("The [head] of travel.") == 3
    assert "The head of travel approves." in result.stdout
    histories = [call["history"] for _, call in world.calls]
    assert [len(history) for history in histories] == [0, 2, 0]
    assert [(message.role, message.content) for message in histories[1]] == [
        ("user", "Who approves?"),
        ("assistant", " The [head] of travel."),
    ]


def test_chat_for_programs(run: Any) -> None:
    lines = run("chat", "--json", input="a\nb\n").stdout.splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [6, 6]


def test_an_interrupted_answer_leads_back_to_the_prompt(run: Any, world: Any) -> None:
    world.fail = KeyboardInterrupt()
    result = run("chat", input="a\nb\n")
    assert result.exit_code == 0 and result.stderr.count("stopped") == 2


def test_adapters_by_name(run: Any, world: Any) -> None:
    run("ask", "Who?", "--adapter", "law", "--adapter", "rules")
    run("ask", "Who?", "--base")
    run("ask", "Who?")
    run("chat", "--base", input="Who?\n")
    assert [call[1]["adapters"] for call in world.calls if call[0] == "ask"] == [["law", "rules"], [], None, []]
    run("ask", "Who?", "--adapter", "law=0.5", "--adapter", "rules")
    assert world.calls[-1][1]["adapters"] == [("law", 0.5), "rules"]
    wrong = run("ask", "Who?", "--adapter", "law=half")
    assert wrong.exit_code == 2 and "law=half: behind = stands the weight of law, a number, as in law=0.5" in wrong.stderr
    refused = run("ask", "Who?", "--base", "--adapter", "law")
    assert refused.exit_code == 2 and "leave out --adapter" in refused.stderr
