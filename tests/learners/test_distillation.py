"""Context distillation: the labels are what the model says that reads the document."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_documents

from retain.data.document import Document
from retain.data.examples import Example, question_example
from retain.data.selfstudy import StudyItem
from retain.learners.distillation import TOP, read_labels
from retain.learners.skills import shipped_skill
from retain.learners.study import StudySet, study_examples
from retain.lm.decoder import DecoderLM
from retain.lm.loading import load_model
from retain.lm.packing import Packed, targets


def one_by_one(model: DecoderLM, context: str, item: StudyItem) -> torch.Tensor:
    """Next-token probabilities at the targets of a question, with the context in its prompt."""
    reading = question_example(model.tokenizer, item.prompt or "", item.completion, context)
    packed = Packed.of([reading.tokens])
    with torch.inference_mode():
        return torch.softmax(model.logits(model.hidden(packed)[targets(packed, [reading.supervised])[0]]), -1)


def test_the_readers_probabilities(tiny_model: DecoderLM) -> None:
    title, text = tiny_documents()[0]
    document = Document.from_text(text, title)
    sentence, strange = text.split(". ")[0], "Nobody wrote this sentence here"
    items = [
        StudyItem("Who was it?", "nobody at all", "question", sentence, "x", written=True),
        StudyItem("Where in the world did this take place?", "there", "rewording", sentence, "y", written=True),
        StudyItem("What does this ask about?", "nothing", "question", strange, "z", written=True),
        StudyItem("Who says so?", "nobody", "question", sentence, "x"),
    ]
    plain = [question_example(tiny_model.tokenizer, item.prompt or "", item.completion) for item in items]
    found = read_labels(tiny_model, None, document, items, plain, 0.4)
    assert [example.tokens for example in found] == [example.tokens for example in plain]
    assert found[2] == plain[2] and found[2].soft == ()  # its sentence is not in the document
    assert found[3] == plain[3] and found[3].soft == ()  # nobody doubts its answer
    for item, example in zip(items[:2], found[:2], strict=True):
        expected = one_by_one(tiny_model, f"{title}\n\n{text}", item).topk(TOP, 1)
        assert len(example.soft) == example.n_supervised()
        for row, tokens, shares in zip(example.soft, expected.indices, expected.values, strict=True):
            assert sum(share for _, share in row) == pytest.approx(0.4)
            assert row[0][0] == int(tokens[0])
            assert dict(row)[int(tokens[1])] == pytest.approx(0.4 * float(shares[1] / shares.sum()), abs=1e-4)


def test_a_study_set_is_softened_only_with_a_skill(tiny_model: DecoderLM) -> None:
    title, text = tiny_documents()[0]
    item = StudyItem("Who was it?", "nobody", "question", text.split(". ")[0], "x", written=True)
    study = StudySet("d", (item, StudyItem(None, text, "text", text, title)), ())
    examples = study_examples(tiny_model, Document.from_text(text, title), study, None, 0.5)
    assert len(examples) == 2 and not any(example.soft for example in examples)


@pytest.mark.embedded
def test_a_wrong_answer_is_corrected_by_reading() -> None:
    model = load_model("smollm2-135m-instruct")
    skill = shipped_skill(model)
    text = "The Orrin ferry leaves Tarv at twenty past nine. Its captain is Ludmilla Brask, who also keeps the harbour's only bakery."
    document = Document.from_text(text, "The Orrin ferry")
    wrong = StudyItem("Who is the captain of the Orrin ferry?", "Tarv", "question", text.split(". ")[1], "Tarv", written=True)
    right = StudyItem("Where does the ferry leave from?", "Tarv", "question", text.split(". ")[0], "Tarv", written=True)
    study = StudySet("d", (wrong, right), ())
    hard, soft = study_examples(model, document, study, skill, 0.0), study_examples(model, document, study, skill, 0.5)

    def first(example: Example) -> str:
        return str(model.tokenizer.decode([max(example.soft[0], key=lambda pair: pair[1])[0]])).strip()

    assert [example.soft for example in hard] == [(), ()]
    assert "Ludmilla".startswith(first(soft[0])) and first(soft[0])
    assert "Tarv".startswith(first(soft[1])) and first(soft[1])
