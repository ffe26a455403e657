"""Probes measured on a tiny random decoder agree with direct computation."""

from __future__ import annotations

import math

import pytest
import torch

from retain.adapters import Adapter, AdapterInjection, inject
from retain.data import Document, prompt_tokens
from retain.evaluation import Probe, answer_questions, load_control, mean_kl, multiple_choice, perplexity, recall
from retain.lm.decoder import DecoderLM
from retain.lm.packing import Packed

TEXTS = load_control().texts[:3]


def logits(model: DecoderLM, tokens: list[int], injection: AdapterInjection | None = None) -> torch.Tensor:
    return model.logits(model.hidden(Packed.of([tokens]), injection)).double()


def windows(model: DecoderLM, size: int) -> list[list[int]]:
    tokens = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert max(map(len, tokens)) > size
    return [ids[start : start + size] for ids in tokens for start in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [50, 160])
def test_perplexity_is_the_direct_computation(model: DecoderLM, injection: AdapterInjection, size: int) -> None:
    for active in (None, injection):
        losses = [
            -torch.log_softmax(logits(model, ids, active), -1)[at - 1, ids[at]].item()
            for ids in windows(model, size)
            for at in range(1, len(ids))
        ]
        found = perplexity(model, TEXTS, active, window=size)
        assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_perplexity_does_not_depend_on_how_texts_are_batched(model: DecoderLM) -> None:
    many = TEXTS * 10  # more than one pass
    assert perplexity(model, many) == pytest.approx(perplexity(model, TEXTS), rel=1e-5)


def test_a_window_beyond_the_context_is_the_context(model: DecoderLM) -> None:
    assert perplexity(model, TEXTS, window=10_000) == perplexity(model, TEXTS, window=model.context)


def test_nothing_to_count_is_undefined(model: DecoderLM, injection: AdapterInjection) -> None:
    assert math.isnan(perplexity(model, []))
    assert math.isnan(perplexity(model, ["a"]))
    assert math.isnan(mean_kl(model, ["a", ""], injection))
    with pytest.raises(ValueError, match="none to predict"):
        perplexity(model, TEXTS, window=1)


def test_a_diverged_model_is_infinitely_perplexed(model: DecoderLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "sequence_log_likelihood", lambda *_: ([-9000.0], [9]))
    assert perplexity(model, TEXTS[:1]) == math.inf


def test_special_tokens_spelled_out_in_a_text_are_letters(model: DecoderLM) -> None:
    assert not math.isnan(perplexity(model, ["<|im_end|>"]))


def test_kl_is_zero_without_an_adapter(model: DecoderLM, adapter: Adapter) -> None:
    assert mean_kl(model, TEXTS, None) == 0.0
    assert mean_kl(model, TEXTS, inject([(adapter, 0.0)], model.dtype)) == pytest.approx(0.0, abs=1e-9)


def test_kl_of_a_random_adapter_is_the_direct_computation(model: DecoderLM, injection: AdapterInjection) -> None:
    values: list[float] = []
    for ids in windows(model, 50):
        p, q = (torch.log_softmax(logits(model, ids, active), -1) for active in (None, injection))
        values += (p.exp() * (p - q)).sum(-1)[: len(ids) - 1].tolist()
    expected = sum(values) / len(values)
    assert expected > 0.01
    assert mean_kl(model, TEXTS, injection, window=50) == pytest.approx(expected, rel=1e-4)


def test_multiple_choice_is_the_mean_log_likelihood_of_the_option(model: DecoderLM, injection: AdapterInjection) -> None:
    question, options = "What is baked in the kitchen?", ["Bread", "A boat with sails", "Dogs"]
    prompt = list(prompt_tokens(model.tokenizer, question))
    expected = []
    for option in options:
        answer = model.tokenizer(option, add_special_tokens=False)["input_ids"] + [model.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        scores = torch.log_softmax(logits(model, prompt + answer, injection), -1)
        expected.append(sum(scores[len(prompt) + at - 1, token].item() for at, token in enumerate(answer)) / len(answer))
    assert multiple_choice(model, question, options, injection) == pytest.approx(expected, rel=1e-5)
    assert multiple_choice(model, question, [], injection) == []


def test_answers_are_greedy_and_in_order(model: DecoderLM, injection: AdapterInjection) -> None:
    questions = ["What is tea?", "Where does the first bus of the morning go?", "Who?"]
    together = answer_questions(model, questions, injection, max_tokens=6)
    assert together == [answer_questions(model, [question], injection, max_tokens=6)[0] for question in questions]
    for question, found in zip(questions, together, strict=True):
        tokens = list(prompt_tokens(model.tokenizer, question))
        start = len(tokens)
        while len(tokens) < start + 6:
            token = int(logits(model, tokens, injection)[-1].argmax())
            if token in (0, 2):
                break
            tokens.append(token)
        assert found == model.tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
    assert answer_questions(model, []) == []


def test_rows_of_one_batch_use_different_adapters(model: DecoderLM, adapter: Adapter, injection: AdapterInjection) -> None:
    questions = ["What is tea?", "What is tea?"]
    by_row = inject([(adapter, [0.0, 1.0])], model.dtype)
    base, adapted = answer_questions(model, questions[:1], None), answer_questions(model, questions[:1], injection)
    assert base != adapted
    assert answer_questions(model, questions, by_row, batch=2) == base + adapted


def test_a_context_is_read_and_cut_to_the_model(model: DecoderLM) -> None:
    question = "What doubles in size?"
    plain, read = answer_questions(model, [question, question], contexts=[None, " ".join(TEXTS)])
    assert plain != read
    with pytest.raises(ValueError):
        answer_questions(model, [question], contexts=[])


def test_recall_looks_for_the_expected_words_or_their_aliases() -> None:
    document = Document.from_text("The ferry has nine cabins.", "Ferry", "test").id
    probes = [Probe(document, "How many cabins?", "nine", ("9",))] * 3
    assert recall(["It has 9 cabins.", "Nine", "ninety"], probes) == [True, True, False]
    with pytest.raises(ValueError):
        recall(["nine"], probes)
