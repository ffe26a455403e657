"""The official client of OpenAI, as it comes, against the service on a real port."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import listening
from tests.tiny import tiny_questions

from retain.config.serving import ServeConfig
from retain.serving.app import create_app
from retain.workspace.continual import ContinualLM

openai = pytest.importorskip("openai")

QUESTION, ANSWER = tiny_questions(0)[0].wordings[-1], tiny_questions(0)[0].answer
ASKED: dict[str, Any] = {
    "model": "retain", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "extra_body": {"retrieval": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def official(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="not needed here", max_retries=0, timeout=60) as made:
        yield made


def test_models(official: Any, lm: ContinualLM) -> None:
    names = [model.id for model in official.models.list()]
    assert names == ["retain", lm.model.name, *(item.name for item in lm.state.adapters)]
    assert official.models.retrieve(names[2]).object == "model"


def test_an_answer(official: Any, lm: ContinualLM) -> None:
    found = official.chat.completions.create(**ASKED)
    assert found.object == "chat.completion" and found.model == "retain" and found.id.startswith("chatcmpl-")
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert (
        choice.message.content == lm.ask(QUESTION, retrieval=False, max_tokens=16).text and ANSWER.lower() in choice.message.content.lower()
    )
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model_extra["retain"]["adapters"] == [lm.state.adapters[0].name]
    base = official.chat.completions.create(**{**ASKED, "model": lm.model.name})
    assert base.choices[0].message.content != choice.message.content, "the base has not learned it"
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert official.chat.completions.create(**{**ASKED, "messages": parts}).choices[0].message.content == choice.message.content


def test_streaming(official: Any) -> None:
    whole = official.chat.completions.create(**ASKED).choices[0].message.content
    pieces = list(official.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text.strip() == whole and len(pieces) > 3 and pieces[0].object == "chat.completion.chunk"
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens > 0
    with official.chat.completions.stream(**ASKED) as events:  # the client puts the pieces together itself
        assert events.get_final_completion().choices[0].message.content.strip() == whole


def test_sampling_options(official: Any) -> None:
    hot = {**ASKED, "temperature": 1.5, "n": 3}

    def texts(seed: int) -> list[str]:
        return [choice.message.content for choice in official.chat.completions.create(**hot, seed=seed).choices]

    assert texts(7) == texts(7) != texts(8) and len(set(texts(7))) > 1
    greedy = official.chat.completions.create(**ASKED).choices[0].message.content
    cut = official.chat.completions.create(**ASKED, stop=[greedy[3:6], "never"]).choices[0]
    assert cut.message.content == greedy[:3].strip() and cut.finish_reason == "stop"
    short = official.chat.completions.create(**{**ASKED, "max_tokens": openai.omit}, max_completion_tokens=1).choices[0]
    assert short.finish_reason == "length"


def test_likelihoods(official: Any) -> None:
    choice = official.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens).strip().startswith(choice.message.content)
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0 and bytes(token.bytes).decode() == token.token
        assert token.logprob == pytest.approx(max(other.logprob for other in token.top_logprobs), abs=1e-4), "greedy takes the likeliest"


def test_texts_and_vectors(official: Any, lm: ContinualLM) -> None:
    found = official.completions.create(model=lm.model.name, prompt=["The river", "A house"], max_tokens=4, logprobs=2)
    assert found.object == "text_completion" and [choice.index for choice in found.choices] == [0, 1]
    assert len(found.choices[0].logprobs.tokens) == len(found.choices[0].logprobs.token_logprobs) <= 4
    one = official.completions.create(model=lm.model.name, prompt="The river", max_tokens=4).choices[0].text
    pieces = official.completions.create(model=lm.model.name, prompt="The river", max_tokens=4, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == one == found.choices[0].text
    vectors = official.embeddings.create(model="retain", input=["one", "another"]).data  # the client asks for base64 by itself
    plain = official.embeddings.create(model="retain", input=["one", "another"], encoding_format="float").data
    assert vectors[0].embedding == pytest.approx(plain[0].embedding, abs=1e-6) != plain[1].embedding
    coded = official.embeddings.create(model="retain", input="one", encoding_format="base64").data[0].embedding
    assert len(base64.b64decode(coded)) == 4 * lm.model.width


def test_errors_are_the_client_s_own(official: Any, lm: ContinualLM, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'") as missing:
        official.chat.completions.create(**{**ASKED, "model": "gpt-4"})
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    for changes, param in (
        ({"temperature": 9}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"messages": []}, "messages"),
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            official.chat.completions.create(**{**ASKED, **changes})
        assert bad.value.param == param and bad.value.type == "invalid_request_error"
    (tmp_path / "tokens").write_text("read reader-0123456789abcdef\n")
    with listening(create_app(lm, ServeConfig(capacity=256, token_file=tmp_path / "tokens", requests_per_minute=2))) as guarded:
        wrong = openai.OpenAI(base_url=f"{guarded}/v1", api_key="wrong-0123456789abcdef", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        right = openai.OpenAI(base_url=f"{guarded}/v1", api_key="reader-0123456789abcdef", max_retries=0)
        assert right.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            right.post("/documents", body={"text": "A text."}, cast_to=object)
        with pytest.raises(openai.RateLimitError):
            for _ in range(3):
                right.models.list()
