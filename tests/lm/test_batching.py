"""Requests that join and leave a running batch get what they would get alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_models import gpt2, llama, lora

from retain.adapters import Adapter, Composer, inject
from retain.lm.batching import Batch, Ended, OneByOne, Request, Written
from retain.lm.decoder import DecoderLM
from retain.lm.generation import Sampling, stream
from retain.lm.model import LanguageModel, LanguageModelError
from retain.lm.packing import Packed, targets

Active = tuple[tuple[Adapter, float], ...]


class Marks:
    """Token 59 ends a text; a text is its tokens' numbers."""

    eos_token_id, unk_token_id = 59, None

    def convert_tokens_to_ids(self, mark: str) -> None:
        return None

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def model() -> DecoderLM:
    made = llama()
    made.tokenizer = Marks()
    return made


def alone(model: LanguageModel, request: Request) -> list[int]:
    injection = inject(request.adapters, torch.float32)
    return [token for _, token in stream(model, [request.prompt], request.sampling, injection)]


def run(batch: Batch, requests: Sequence[Request], every: int = 1) -> dict[int, list[int]]:
    """Tokens by request; a new one joins after each ``every`` steps."""
    found: dict[int, list[int]] = {}
    waiting, numbers, step = list(requests), {}, 0
    while waiting or batch.busy:
        if waiting and step % every == 0:
            request = waiting.pop(0)
            numbers[batch.join(request)] = len(numbers)
        for event in batch.step():
            if isinstance(event, Written):
                found.setdefault(numbers[event.request], []).append(event.token)
        assert batch.live <= batch.slots
        step += 1
    return found


def test_models_without_slots_answer_one_by_one() -> None:
    model = gpt2()
    model.tokenizer = Marks()
    batch: Any = OneByOne(model, compose=Composer(torch.float32))
    asked = [
        Request([5, 9, 31], Sampling(6)),
        Request([7, 3], Sampling(4), ((lora(model, 1), 1.0),)),
        Request([8, 8, 1], Sampling(90)),
        Request([4], Sampling(3)),
    ]
    numbers = [batch.join(request) for request in asked]
    batch.leave(numbers[2])
    events = []
    while batch.busy:
        events += batch.step()
    for place in (0, 1, 3):
        expected = alone(model, asked[place])
        assert [event.token for event in events if isinstance(event, Written) and event.request == numbers[place]] == expected
        assert Ended(numbers[place], "length" if len(expected) == asked[place].sampling.max_tokens else "stop") in events
    assert not any(event.request == numbers[2] for event in events)


def requests(count: int, adapters: Sequence[Active], seed: int = 0) -> list[Request]:
    draw = random.Random(seed)
    return [
        Request(
            [draw.randint(3, 58) for _ in range(draw.randint(1, 40))],
            Sampling(draw.randint(1, 20), temperature=draw.choice([0.0, 0.0, 1.0]), top_p=draw.choice([0.9, 1.0]), seed=number),
            draw.choice(adapters),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("slots", "every"), [(1, 1), (3, 2), (8, 1)])
def test_together_as_alone(model: DecoderLM, slots: int, every: int) -> None:
    a, b, c = (lora(model, number) for number in range(3))
    asked = requests(14, [(), ((a, 1.0),), ((b, 1.0),), ((a, 0.5), (c, 1.0))])
    found = run(Batch(model, slots, compose=Composer(torch.float32)), asked, every)
    expected = {number: tokens for number, request in enumerate(asked) if (tokens := alone(model, request))}
    assert found == expected
    assert len({tuple(tokens) for tokens in expected.values()}) > 5, "the requests were meant to differ"


def test_a_long_prompt_is_read_in_pieces_while_others_write(model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.lm.batching.PIECE", 8)
    short, long = Request([5, 9], Sampling(12)), Request([7, 3, 11, 20, 21] * 9, Sampling(6), ((lora(model, 1), 1.0),))
    batch = Batch(model, 2, compose=Composer(torch.float32))
    first = batch.join(short)
    batch.step()
    second = batch.join(long)
    order = []
    while batch.busy:
        order += [event.request for event in batch.step() if isinstance(event, Written)]
    assert order.index(second) >= 5, "the prompt of 45 tokens was to be read in six pieces"
    assert order[:5] == [first] * 5
    assert run(Batch(model, 2, compose=Composer(torch.float32)), [short, long]) == {0: alone(model, short), 1: alone(model, long)}


def test_a_prompt_that_begins_like_the_last_goes_on_from_there(model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> None:
    active = ((lora(model, 1), 1.0),)
    turns = [Request([5, 9, 31, 7, *range(10, 10 + n)], Sampling(6), active) for n in (4, 12, 2, 12)]
    turns.append(Request(turns[-1].prompt, Sampling(6), ()))  # the same text with other adapters shares nothing
    batch, read = Batch(model, 2, compose=Composer(torch.float32)), []
    hidden = DecoderLM.hidden
    monkeypatch.setattr(DecoderLM, "hidden", lambda self, packed, *a, **k: read.append(packed.total) or hidden(self, packed, *a, **k))
    for turn in turns:
        read.clear()
        assert run(batch, [turn])[0] == alone(model, turn)
        turn_read = read[0]
        assert turn_read == {0: 8, 1: 8, 2: 1, 3: 10, 4: 16}[turns.index(turn)]


def test_leaving_frees_the_slot(model: DecoderLM) -> None:
    asked = requests(6, [(), ((lora(model, 1), 1.0),)], seed=3)
    asked = [Request(request.prompt, Sampling(30), request.adapters) for request in asked]
    batch = Batch(model, 3, compose=Composer(torch.float32))
    numbers = [batch.join(request) for request in asked]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    for step in range(200):
        for event in batch.step():
            if isinstance(event, Written):
                found[event.request].append(event.token)
        if step == 4:
            batch.leave(numbers[0])
            batch.leave(numbers[5])  # it waits still
            kept = list(found[numbers[0]])
    assert not batch.busy and found[numbers[0]] == kept and not found[numbers[5]]
    for place in (1, 2, 3, 4):
        assert found[numbers[place]] == alone(model, asked[place])


def test_ends_and_likelihoods(model: DecoderLM) -> None:
    greedy = alone(model, Request([5, 9, 31], Sampling(20)))
    batch = Batch(model, 1, capacity=12)
    batch.join(Request([5, 9, 31], Sampling(20), top=3))
    events = []
    while batch.busy:
        events += batch.step()
    written = [event for event in events if isinstance(event, Written)]
    assert [event.token for event in written] == greedy[:9] and events[-1] == Ended(1, "length"), "12 places hold 3 tokens and 9"
    for event in written:
        assert event.top[0] == (event.token, event.log_likelihood) and len(event.top) == 3 and event.top[0][1] > event.top[2][1]
    score = model.score([[5, 9, 31]], [greedy[:9]])[0]
    assert sum(event.log_likelihood or 0.0 for event in written) == pytest.approx(score, abs=1e-3)
    stop = f"{greedy[2]} {greedy[3]}"
    batch.join(Request([5, 9, 31], Sampling(20, stop=(stop,))))
    events = []
    while batch.busy:
        events += batch.step()
    assert [event.token for event in events if isinstance(event, Written)] == greedy[:4] and events[-1] == Ended(2, "stop")
    for prompt in ([], [3] * 12):
        with pytest.raises(LanguageModelError, match="between 1 and 11"):
            batch.join(Request(prompt))


def test_a_guide_changes_its_own_row_only(model: DecoderLM) -> None:
    def guide(hidden: torch.Tensor, logits: torch.Tensor, last: int | None) -> torch.Tensor:
        assert hidden.shape == (model.width,)
        changed = logits.clone()
        changed[(last or 40) + 1] += 1000
        return changed

    asked = [Request([5, 9, 31], Sampling(5)), Request([5, 9, 31], Sampling(5), guide=guide)]
    found = run(Batch(model, 2), asked)
    assert found[0] == alone(model, asked[0]) and found[1] == [41, 42, 43, 44, 45]


def test_eight_bits(model: DecoderLM) -> None:
    """Logits stay close, a row's do not depend on its neighbours, and training sees the weights as they are."""
    exact, narrow = llama(seed=7), llama(seed=7)
    narrow.quantise()
    prompts = [[5, 9, 31, 7], [8, 51, 6, 33], [60, 2, 17, 40]]
    with torch.inference_mode():
        a, b = exact.decode(prompts, None, 20), narrow.decode(prompts, None, 20)
        for _ in range(4):
            tokens = a.logits.argmax(-1)
            assert not torch.equal(a.logits, b.logits)
            error = (a.logits - b.logits).norm() / a.logits.norm()
            assert float(error) < 0.06, error
            a.advance(tokens)
            b.advance(tokens)
        alone, beside = narrow.decode(prompts[:1], None, 20), narrow.decode(prompts, None, 20)
        torch.testing.assert_close(alone.logits[0], beside.logits[0], atol=1e-4, rtol=1e-5)
    packed = Packed.of([[5, 9, 31, 7, 12]])
    positions, labels = targets(packed, [[False] + [True] * 4])
    losses = [float(model.token_loss(model.hidden(packed)[positions], labels)) for model in (exact, narrow)]
    assert losses[0] == losses[1]


def test_short_prompts_are_read_together(model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Request([5 + number, 9, 31], Sampling(4), ((lora(model, number % 2), 1.0),)) for number in range(5)]
    read: list[int] = []
    hidden = DecoderLM.hidden
    monkeypatch.setattr(
        DecoderLM, "hidden", lambda self, packed, *a, **k: read.append(len(packed.lengths)) or hidden(self, packed, *a, **k)
    )
    batch, found = Batch(model, 4, compose=Composer(torch.float32)), dict[int, list[int]]()
    for request in asked:
        batch.join(request)
    while batch.busy:
        for event in batch.step():
            if isinstance(event, Written):
                found.setdefault(event.request - 1, []).append(event.token)
    assert read[0] == 4, "four free slots, one pass"
    monkeypatch.undo()
    assert found == {number: alone(model, request) for number, request in enumerate(asked)}
