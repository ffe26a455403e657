from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retain.data import (
    DataError,
    Example,
    Message,
    dialogue_example,
    dialogue_examples,
    prompt_tokens,
    question_example,
    text_example,
    text_examples,
)

ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot|>", "gemma": "<end_of_turn>", "thinking": "<|im_end|>", "plain": "<|endoftext|>"}
FAMILIES = sorted(ENDS)
TALK = [Message("user", "Hello?"), Message("assistant", "Good day."), Message("user", "A cat?"), Message("assistant", "Four cats.")]
words = st.text(st.sampled_from("aé 字.\n<|>e_imndtopx"), min_size=1, max_size=30).filter(str.strip)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answer_and_its_end_token_are_supervised(tokenizers, supervised_text, family):
    tokenizer = tokenizers[family]
    example = question_example(tokenizer, "What is it?", "a cat")
    assert supervised_text(tokenizer, example).strip() == "a cat" + ENDS[family]
    assert example.supervised[-1]
    assert example.n_supervised() == sum(example.supervised)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("context", [None, "The fox is lazy."])
def test_the_prompt_is_a_token_prefix_of_the_example(tokenizers, family, system, context):
    tokenizer = tokenizers[family]
    prompt = prompt_tokens(tokenizer, "What?", context, system)
    example = question_example(tokenizer, "What?", "It is a fox.", context, system)
    assert example.tokens[: len(prompt)] == prompt
    assert not any(example.supervised[: len(prompt)])
    assert all(example.supervised[len(prompt) :])
    shown = tokenizer.decode(prompt)
    assert (system or "") in shown and (context or "") in shown


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_with_history_is_a_token_prefix_of_the_dialogue(tokenizers, supervised_text, family):
    tokenizer = tokenizers[family]
    example = dialogue_example(tokenizer, [*TALK, Message("user", "Bye")])
    prompt = prompt_tokens(tokenizer, TALK[2].content, history=TALK[:2])
    assert example.tokens[: len(prompt)] == prompt
    taught = supervised_text(tokenizer, example)
    assert "".join(taught.split()) == "".join(f"Good day.{ENDS[family]}Four cats.{ENDS[family]}".split())
    assert "Bye" not in tokenizer.decode(example.tokens)


@pytest.mark.parametrize(
    ("family", "start"), [("chatml", "<|im_start|>user\n"), ("llama3", "<bos><|header|>user"), ("gemma", "<bos><start_of_turn>user")]
)
def test_no_default_system_prompt_but_the_bos_token_stays(tokenizers, family, start):
    shown = tokenizers[family].decode(prompt_tokens(tokenizers[family], "What is it?"))
    assert shown.startswith(start)
    assert "helpful" not in shown and "Today Date" not in shown


def test_a_given_system_prompt_makes_the_templates_own_tokens(tokenizers):
    tokenizer = tokenizers["chatml"]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompt_tokens(tokenizer, "What is it?", system="Be brief.") == tuple(wanted)


def test_a_template_without_system_role_gets_it_in_the_first_user_turn(tokenizers):
    shown = tokenizers["gemma"].decode(prompt_tokens(tokenizers["gemma"], "What is it?", system="Be brief."))
    assert shown == "<bos><start_of_turn>user\nBe brief.\n\nWhat is it?<end_of_turn>\n<start_of_turn>model\n"


def test_a_refused_order_of_turns_is_told(tokenizers):
    with pytest.raises(DataError, match=r"does not accept turns in the order user, user, assistant: .*alternate"):
        dialogue_example(tokenizers["gemma"], [TALK[0], TALK[0], TALK[1]])


def test_special_tokens_spelled_out_by_a_user_stay_letters(tokenizers, supervised_text):
    tokenizer = tokenizers["chatml"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    example = question_example(tokenizer, "Say <|im_end|>", "Here: <|im_end|> and on.")
    assert example.tokens.count(end) == 2  # one ends the user's turn, one the assistant's
    assert supervised_text(tokenizer, example) == "Here: <|im_end|> and on.<|im_end|>"
    assert end not in text_example(tokenizer, "a <|im_end|> b", end=False).tokens


@given(question=words, answer=words, context=words)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_keep_the_prompt_a_prefix(tokenizers, question, answer, context):
    for family in ("chatml", "llama3", "plain"):
        tokenizer = tokenizers[family]
        example = question_example(tokenizer, question, answer, context)
        prompt = prompt_tokens(tokenizer, question, context)
        assert example.tokens[: len(prompt)] == prompt
        assert tokenizer.decode(example.tokens[len(prompt) :]).strip().removesuffix(ENDS[family]).strip() == answer.strip()


def test_the_context_is_shortened_first_and_the_question_never(tokenizers):
    tokenizer = tokenizers["chatml"]
    context = "one two three four. " * 100
    full = question_example(tokenizer, "Which colour was the fox?", "brown", context)
    short = question_example(tokenizer, "Which colour was the fox?", "brown", context, max_tokens=80)
    assert 70 < len(short) <= 80 < len(full)
    shown = tokenizer.decode(short.tokens)
    assert "Which colour was the fox?" in shown and "one two three four. one" in shown and "brown" in shown
    with pytest.raises(DataError, match=r"question and answer have \d+ tokens, the window 10"):
        question_example(tokenizer, "Which colour was the fox?", "brown", context, max_tokens=10)


def test_a_long_prompt_loses_context_then_history(tokenizers):
    tokenizer = tokenizers["chatml"]
    assert len(prompt_tokens(tokenizer, "What?", "one two " * 200, max_tokens=50)) <= 50
    shown = tokenizer.decode(prompt_tokens(tokenizer, "What?", history=TALK * 5, max_tokens=60))
    assert "Four cats." in shown and "What?" in shown and len(shown) < 300
    with pytest.raises(DataError, match="window 3"):
        prompt_tokens(tokenizer, "What?", max_tokens=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_supervised_but_for_its_first_token(tokenizers, family):
    tokenizer = tokenizers[family]
    example = text_example(tokenizer, "The quick brown fox.", document="d1", importance=0.9)
    assert example.supervised == (False, *[True] * (len(example) - 1))
    assert example.tokens[-1] == tokenizer.eos_token_id
    assert (example.tokens[0] == tokenizer.bos_token_id) == (family == "llama3")
    assert (example.document, example.importance, example.kind) == ("d1", 0.9, "text")
    with pytest.raises(DataError, match="use text_examples"):
        text_example(tokenizer, "The quick brown fox.", max_tokens=3)


@given(text=st.text(st.sampled_from("ab \n字."), min_size=3, max_size=200), window=st.integers(8, 40), overlap=st.integers(1, 6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_token_of_a_long_text_is_a_target_once(tokenizers, text, window, overlap):
    for family in ("chatml", "llama3"):
        tokenizer = tokenizers[family]
        whole = text_example(tokenizer, text)
        pieces = text_examples(tokenizer, text, window, overlap=overlap)
        targets = [token for piece in pieces for token, mark in zip(piece.tokens, piece.supervised, strict=True) if mark]
        assert tuple(targets) == whole.tokens[1:]
        assert all(len(piece) <= window for piece in pieces)


def test_a_long_dialogue_is_cut_between_exchanges(tokenizers, supervised_text):
    tokenizer = tokenizers["chatml"]
    talk = [Message("system", "Be brief."), *TALK * 4]
    with pytest.raises(DataError, match="use dialogue_examples"):
        dialogue_example(tokenizer, talk, max_tokens=80)
    pieces = dialogue_examples(tokenizer, talk, 80)
    assert len(pieces) > 1 and all(len(piece) <= 80 for piece in pieces)
    assert all("Be brief." in tokenizer.decode(piece.tokens) for piece in pieces)
    assert "".join(supervised_text(tokenizer, piece) for piece in pieces) == "Good day.<|im_end|>Four cats.<|im_end|>" * 4
    with pytest.raises(DataError, match="an exchange has"):
        dialogue_examples(tokenizer, talk, 10)


def test_nothing_to_learn_is_an_error(tokenizers):
    tokenizer = tokenizers["chatml"]
    with pytest.raises(DataError, match="nothing to learn"):
        dialogue_example(tokenizer, TALK[:1])
    with pytest.raises(DataError, match="too short"):
        text_example(tokenizer, "")
    with pytest.raises(DataError, match="answer"):
        question_example(tokenizer, "What?", "  ")
    with pytest.raises(DataError, match="empty"):
        prompt_tokens(tokenizer, " ")


def test_an_example_checks_itself():
    with pytest.raises(DataError, match="nothing before it"):
        Example((1, 2), (True, True))
    with pytest.raises(DataError, match="2 tokens and 1 marks"):
        Example((1, 2), (False,))
    assert Example([1, 2], [False, True]).tokens == (1, 2)  # type: ignore[arg-type]
