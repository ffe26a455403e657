"""jitrl and jitrl-full on the small model: unknown before, answered with the aid, and not with a wrong or shuffled one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny import known_questions, tiny_documents, tiny_questions

from retain.config import Config, load_config
from retain.data.document import Document
from retain.data.examples import prompt_tokens
from retain.learners.base import Aid, Learned, Lesson, Memory, Passage, guided
from retain.learners.jitrl import Passages, Rarity, WordBias
from retain.learners.registry import learner_named
from retain.learners.retrieval import context_of, cosines, fused, key_of, text_vectors
from retain.learners.states import FIRST, LATER, HiddenStates, StateGuide, Store, votes
from retain.lm.generation import Sampling, generate, stream
from retain.training.loop import TrainingError

SHORT = Sampling(max_tokens=12)


def settings(**sections: dict[str, Any]) -> Config:
    return load_config(None, {"model": {"precision": "float32"}, **sections})


def document(number: int) -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title)


def passages(number: int) -> tuple[Passage, ...]:
    """Every sentence of a document as a passage."""
    source = document(number)
    return tuple(Passage(source.id, source.title, f"{text}.") for text in source.text.rstrip(".").split(". "))


def lesson(number: int) -> Lesson:
    """The document with all wordings of its questions but the last, which is held out."""
    pairs = [(wording, item.answer) for item in tiny_questions(number) for wording in item.wordings[:-1]]
    return Lesson(document(number), passages(number), pairs=tuple(pairs))


def learned(learner: Any, model: Any, number: int, config: Config) -> Learned:
    return learner.learn(model, lesson(number), config, lambda *told: None)


def answers(model: Any, questions: Sequence[str], aids: Sequence[Aid]) -> list[str]:
    """Greedy answers in one batch, each question with its aid."""
    prompts = [prompt_tokens(model.tokenizer, question, aid.context) for question, aid in zip(questions, aids, strict=True)]
    return generate(model, prompts, SHORT, processors=[guided({n: aid.guide for n, aid in enumerate(aids) if aid.guide})])


def recall(model: Any, learner: Any, memory: Memory, number: int, config: Config) -> float:
    """Share of a document's facts that are answered in the wording that was held out."""
    questions = tiny_questions(number)
    asked = [item.wordings[-1] for item in questions]
    found = answers(model, asked, [learner.aid(model, text, [memory], passages(number), config) for text in asked])
    return sum(item.answer.lower() in text.lower() for item, text in zip(questions, found, strict=True)) / len(questions)


def bare(model: Any, number: int) -> float:
    questions = tiny_questions(number)
    found = answers(model, [item.wordings[-1] for item in questions], [Aid()] * len(questions))
    return sum(item.answer.lower() in text.lower() for item, text in zip(questions, found, strict=True)) / len(questions)


def tokens_of(model: Any, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


# --- jitrl -------------------------------------------------------------------------------------------------------------------------


def test_jitrl_answers_what_was_unknown(tiny_model: Any) -> None:
    config, learner = settings(), learner_named("jitrl")
    for number in (0, 1):
        made = learned(learner, tiny_model, number, config)
        assert isinstance(made.memory, Memory) and made.cost["bytes"] > 0 and made.cost["tokens"] == 0
        assert bare(tiny_model, number) < 0.3
        assert recall(tiny_model, learner, made.memory, number, config) > 0.7


def test_the_bias_makes_the_documents_words_likelier_and_a_wrong_document_does_not(tiny_model: Any) -> None:
    config, learner = settings(jitrl={"bias": 4.0}), Passages()
    memories = [learned(learner, tiny_model, number, config).memory for number in (0, 1)]

    def loss(number: int | None) -> float:
        total = 0.0
        for item in tiny_questions(0):
            guide = None
            if number is not None:
                guide = learner.aid(tiny_model, item.wordings[-1], [memories[number]], passages(number), config).guide
            written = tokens_of(tiny_model, item.answer)
            prompt = prompt_tokens(tiny_model.tokenizer, item.wordings[-1])
            total -= guided_likelihood(tiny_model, prompt, written, guide)
        return total

    assert loss(0) < loss(None) - 4.0
    assert loss(1) > loss(0) + 4.0


def guided_likelihood(model: Any, prompt: Sequence[int], written: Sequence[int], guide: Any) -> float:
    """Log-likelihood in nats of tokens after a prompt, each step through the guide."""
    decoding, last, total = model.decode([prompt], None, len(prompt) + len(written)), None, 0.0
    for token in written:
        logits = guide(decoding.hidden[0], decoding.logits[0], last) if guide else decoding.logits[0]
        total += float(torch.log_softmax(logits, -1)[token])
        last = token
        decoding.advance(torch.tensor([token]))
    return total


def test_common_words_are_never_raised(tiny_model: Any) -> None:
    config, learner = settings(jitrl={"bias": 3.0}), Passages()
    source = document(2)
    text = f"The {source.title}, the one of the two, is in the town. It was a 3, and the {source.text}"
    piece = Passage(source.id, source.title, text)
    memory = learner.learn(tiny_model, Lesson(source, (piece,)), config, lambda *told: None).memory
    guide = learner.aid(tiny_model, "Who?", [memory], [piece], config).guide
    assert isinstance(guide, WordBias)
    common = {token for word in (" the", "The", ",", ".", " of", " in", " a", " was", " and", " ", "t", "3", " is")
              if len(tokens := tokens_of(tiny_model, word)) == 1 for token in tokens}  # fmt: skip
    assert len(common) > 8
    everything = [None, *tokens_of(tiny_model, f" {text}")]
    for last in everything:
        guide(torch.zeros(1), torch.zeros(tiny_model.vocabulary), last)
        begun = {token for node in guide.open for token in node.after}
        assert not common & (set(guide.raised()) - begun)
        assert not {token for token in guide.raised() if tiny_model.tokenizer.decode([token]).strip() in ("the", "The", ",", ".", "")}
    assert guide.raised(), "nothing is raised at all"


def test_a_word_that_was_begun_is_finished_and_counts_less_when_it_was_written() -> None:
    logits = torch.zeros(20)
    guide = WordBias([((5, 6, 7), 1.0), ((5, 9), 0.5), ((11,), 0.8)], frozenset({11}), 2.0)

    def step(last: int | None) -> dict[int, float]:
        changed = guide(torch.zeros(3), logits, last)
        return {place: round(float(value), 3) for place, value in enumerate(changed) if value}

    assert step(None) == {5: 2.0}, "11 is barred from the beginning"
    assert step(5) == {5: 1.0, 6: 2.0, 9: 1.0}, "both words that begin with 5 can go on; beginning again counts half"
    assert step(6) == {5: 1.0, 7: 2.0}
    assert step(7) == {5: 1.0}
    assert step(5) == {5: 0.5, 6: 2.0, 9: 1.0}
    assert step(1) == {5: 0.5}, "a word that was left is not taken up again"
    assert step(None) == {5: 2.0}, "a new answer begins anew"
    assert torch.equal(logits, torch.zeros(20)), "the logits were written to"


def test_words_of_the_question_are_not_raised(tiny_model: Any) -> None:
    config, learner = settings(), Passages()
    memory = learned(learner, tiny_model, 0, config).memory
    item = tiny_questions(0)[0]
    everything = learner.aid(tiny_model, "Tell me more.", [memory], passages(0), config).guide
    asked = learner.aid(tiny_model, item.wordings[0], [memory], passages(0), config).guide
    assert isinstance(everything, WordBias) and isinstance(asked, WordBias)
    name = tokens_of(tiny_model, f" {item.title.split()[-1]}")[0]
    assert name in everything.raised() and name not in asked.raised()


def test_rarity_orders_words(tiny_model: Any) -> None:
    rarity = Rarity(tiny_model)
    assert rarity.of("the") == rarity.of("of") == rarity.of("a") == rarity.of("7") == 0.0
    assert rarity.of("Zyxquillian") == 1.0 > rarity.of(known_questions()[0].title.split()[0]) >= 0.0
    assert set(rarity.words("the ferry, the Zyxquillian of 1871")) >= {"Zyxquillian", "1871"}


def test_the_context_is_budgeted_and_the_question_never_cut(tiny_model: Any) -> None:
    pieces = passages(0)
    memory = Memory({}, {"document": document(0).id, "title": document(0).title, "passages": [key_of(piece) for piece in pieces]})
    size = len(tokens_of(tiny_model, f"{document(0).title}\n\n{pieces[2].text}\n{pieces[3].text}"))
    text, chosen = context_of(tiny_model, "Who?", [pieces[3], pieces[2], pieces[0]], [memory], size, 8)
    assert chosen == [pieces[3], pieces[2]], "the worst gives way"
    assert text == f"{document(0).title}\n\n{pieces[2].text}\n{pieces[3].text}", "passages stand as in their document"
    everything, _ = context_of(tiny_model, "Who?", pieces, [memory], 10_000, 8)
    assert everything == f"{document(0).title}\n\n" + "\n".join(piece.text for piece in pieces)

    room = tiny_model.context - 8
    for words in (150, 200, 400):
        question = " ".join(["heron"] * words) + " Who built the bridge?"
        long = len(prompt_tokens(tiny_model.tokenizer, question))
        text, _ = context_of(tiny_model, question, pieces * 40, [memory], 10_000, 8)
        prompt = prompt_tokens(tiny_model.tokenizer, question, text)
        assert len(prompt) <= room and prompt == prompt_tokens(tiny_model.tokenizer, question, text, max_tokens=room)
        assert question in tiny_model.tokenizer.decode(prompt)
        assert text or long > room - 80
    long_passage = Passage("x", "Title", " ".join(["heron"] * 300))
    text, _ = context_of(tiny_model, "Who?", [long_passage], [], 40, 8)
    assert text and 30 < len(tokens_of(tiny_model, text)) <= 40, "the best passage is shortened when not even it fits"


def test_vectors_reorder_passages(tiny_model: Any) -> None:
    config, learner = settings(jitrl={"dense": True, "passages": 1, "bias": 0.0}), Passages()
    made = learned(learner, tiny_model, 0, config)
    assert isinstance(made.memory, Memory)
    vectors = made.memory.tensors["vectors"]
    assert vectors.dtype == torch.float16 and vectors.shape == (len(passages(0)), tiny_model.width) and made.cost["tokens"] > 0
    for number, piece in enumerate(passages(0)):
        query = text_vectors(tiny_model, [tokens_of(tiny_model, f"{piece.heading}\n{piece.text}")])[0]
        assert int(cosines(query, vectors.float(), vectors.float().mean(0)).argmax()) == number
    best = [learner.aid(tiny_model, piece.text, [made.memory], passages(0), config).context for piece in passages(0)]
    assert len(set(best)) > 1, "the order never changes"
    assert fused([[0, 1, 2], [2, 0, 1]]) == [0, 2, 1]


# --- jitrl-full --------------------------------------------------------------------------------------------------------------------


def test_states_answer_what_was_unknown_without_the_document(tiny_model: Any) -> None:
    config, learner = settings(), learner_named("jitrl-full")
    for number in (0, 1, 2):
        made = learned(learner, tiny_model, number, config)
        assert isinstance(made.memory, Memory)
        states = made.memory.tensors["states"]
        assert states.dtype == torch.float16 and states.shape[1] == tiny_model.width
        assert made.cost["bytes"] >= states.numel() * 2 and made.cost["strength"] > 0
        assert made.cost["last_loss"] < made.cost["first_loss"] - 0.5
        assert bare(tiny_model, number) < 0.3
        assert recall(tiny_model, learner, made.memory, number, config) > 0.7
        assert learner.aid(tiny_model, "Who?", [made.memory], passages(number), config).context is None


def test_a_shuffled_or_wrong_memory_does_not_help(tiny_model: Any) -> None:
    config, learner = settings(), HiddenStates()
    memory = learned(learner, tiny_model, 0, config).memory
    assert isinstance(memory, Memory)
    order = torch.randperm(len(memory.tensors["tokens"]), generator=torch.Generator().manual_seed(0))
    shuffled = replace(memory, tensors={**memory.tensors, "tokens": memory.tensors["tokens"][order]})
    wrong = learned(learner, tiny_model, 1, config).memory
    assert isinstance(wrong, Memory)
    right = recall(tiny_model, learner, memory, 0, config)
    assert right > 0.7
    assert recall(tiny_model, learner, shuffled, 0, config) < 0.3
    assert recall(tiny_model, learner, wrong, 0, config) < 0.3


def test_a_memory_that_does_not_help_is_refused(tiny_model: Any) -> None:
    """Questions that the model answers by itself: what is stored could only mislead."""
    source = replace(lesson(0), pairs=tuple((item.wordings[0], item.answer) for item in known_questions()[:24]))
    with pytest.raises(TrainingError, match="make no answer about it likelier"):
        HiddenStates().learn(tiny_model, source, settings(), lambda *told: None)
    beside = settings(states={"context": True})
    kept = HiddenStates().learn(tiny_model, source, beside, lambda *told: None)
    assert isinstance(kept.memory, Memory)
    aid = HiddenStates().aid(tiny_model, "Who?", [kept.memory], passages(0), beside)
    assert kept.cost["strength"] == 0.0 and aid.guide is None and aid.context, "passages can still help"


def test_without_questions_the_document_alone_is_stored(tiny_model: Any) -> None:
    config, learner = settings(), HiddenStates()
    made = learner.learn(tiny_model, replace(lesson(0), pairs=()), config, lambda *told: None)
    assert "first_loss" not in made.cost and set(made.memory.tensors["source"].tolist()) == set(range(len(passages(0))))
    guide = learner.aid(tiny_model, "Who?", [made.memory], passages(0), config).guide
    sentence = tokens_of(tiny_model, passages(0)[0].text)
    prompt = tokens_of(tiny_model, f"{document(0).title}\n\n")
    with_store, without = (guided_likelihood(tiny_model, prompt, sentence, choice) for choice in (guide, None))
    assert with_store > without + 3.0


def test_only_the_best_passages_of_a_long_document_are_searched(tiny_model: Any) -> None:
    config, learner = settings(states={"passages": 2}), HiddenStates()
    memory = learned(learner, tiny_model, 0, config).memory
    pieces = passages(0)
    guide = learner.aid(tiny_model, "Who?", [memory], [pieces[2], pieces[0], pieces[1], pieces[3]], config).guide
    assert isinstance(guide, StateGuide)
    source = memory.tensors["source"]
    wanted = (source == LATER) | (source == 2) | (source == 0)
    assert len(guide.later[0].tokens) == int(wanted.sum()) and len(guide.first[0].tokens) == int((source == FIRST).sum())


def test_votes_are_for_what_followed_the_nearest_and_silent_when_none_is_near() -> None:
    states = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    store = Store.of(states, torch.tensor([4, 4, 5, 6, 7, 8]), torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 1.0]), "cpu")
    tokens, values = votes([store], states[2:3], 3)
    assert int(tokens[0, 0]) == 5 and 0.45 < float(values[0, 0]) <= 0.5 and float(values[0, 1:].sum()) < 0.01
    _, far = votes([store], torch.randn(1, 64, generator=torch.Generator().manual_seed(1)), 3)
    assert float(far.sum()) < 0.1
    unseen, _ = votes([store], states[2:3], 3, torch.tensor([[False, False, True, False, False, False]]))
    assert 5 not in unseen[0].tolist()


# --- both --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [Passages(), HiddenStates()])
def test_strength_zero_is_plain_decoding(tiny_model: Any, learner: Any) -> None:
    config = settings(jitrl={"bias": 0.0}, states={"strength": 0.0, "context": True})
    memory = learned(learner, tiny_model, 0, config).memory
    question = tiny_questions(0)[0].wordings[-1]
    aid = learner.aid(tiny_model, question, [memory], passages(0), config)
    assert aid.guide is None
    words = WordBias([((5, 6), 1.0)], frozenset(), 0.0)
    silent = Store.of(torch.randn(5, tiny_model.width), torch.arange(5), torch.zeros(5), "cpu")
    for guide in (words, StateGuide([silent], [silent], 3)):
        prompt = prompt_tokens(tiny_model.tokenizer, question)
        seen: list[torch.Tensor] = []

        def watch(step: Any, logits: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(logits.clone())
            return logits

        plain = list(stream(tiny_model, [prompt], SHORT, processors=[watch]))
        same = list(stream(tiny_model, [prompt], SHORT, processors=[guided({0: guide}), watch]))
        half = len(seen) // 2
        assert plain == same and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


@pytest.mark.parametrize("learner", [Passages(), HiddenStates()])
def test_guides_in_a_batch_are_as_alone(tiny_model: Any, learner: Any) -> None:
    config = settings(jitrl={"bias": 3.0})
    memories = [learned(learner, tiny_model, number, config).memory for number in (0, 1)]
    asked = [(item.wordings[-1], number) for number in (0, 1) for item in tiny_questions(number)[:2]]
    asked.append((known_questions()[0].wordings[0], -1))

    def aids() -> list[Aid]:
        return [
            Aid() if number < 0 else replace(learner.aid(tiny_model, text, [memories[number]], passages(number), config), context=None)
            for text, number in asked
        ]

    together = answers(tiny_model, [text for text, _ in asked], aids())
    alone = [answers(tiny_model, [text], [aid])[0] for (text, _), aid in zip(asked, aids(), strict=True)]
    assert together == alone


@pytest.mark.parametrize("learner", [Passages(), HiddenStates()])
def test_a_document_without_passages_is_refused(tiny_model: Any, learner: Any) -> None:
    with pytest.raises(TrainingError, match="gives no passage"):
        learner.learn(tiny_model, Lesson(document(0), ()), settings(), lambda *told: None)
    assert learner.without(Memory(), "d0") is None


def test_guided_steps_cost_less_than_plain_ones(tiny_model: Any) -> None:
    """Multiplications of a guided step beside those of the model: far below the budget of twice the cost of plain decoding."""
    config, learner = settings(), HiddenStates()
    memory = learned(learner, tiny_model, 0, config).memory
    guide = learner.aid(tiny_model, "Who?", [memory], passages(0), config).guide
    assert isinstance(guide, StateGuide)
    stored = sum(len(store.tokens) for store in guide.later)
    model = sum(tensor.numel() for name, tensor in tiny_model.parameters().items() if "proj" in name or "embed" in name)
    assert stored * tiny_model.width < 0.2 * model
    assert stored < 8 * 128 + len(lesson(0).pairs) * 12
