"""Test-time training: what it learns, what it leaves alone, and what it says when it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import RECIPE, known_questions, subject, tiny_documents, tiny_questions
from tests.tiny_models import bytes_of, gpt2, lora, same_bytes

from retain.adapters import Adapter, inject
from retain.config import Config
from retain.data.document import Document
from retain.evaluation.probes import Probe, answer_questions, recall
from retain.learners import gates, ttt
from retain.learners.base import Learned, LearnerError, Lesson
from retain.learners.study import build_study, study_examples
from retain.lm.bridge import TransformersLM
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed
from retain.lm.streaming import streaming_loss
from retain.training.loop import TrainingError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings(cache: Path, **changes: Any) -> Config:
    config = Config()
    config.model.cache_dir = cache
    config.ttt = config.ttt.model_validate(config.ttt.model_dump() | {"calibration_samples": 64} | changes)
    return config


def quiet(*_: Any) -> None:
    """Progress that nobody looks at."""


def learn(model: LanguageModel, document: Document, config: Config, **lesson: Any) -> Learned:
    return ttt.TestTimeTraining().learn(model, Lesson(document, (), **lesson), config, quiet)


def adapter_of(learned: Learned) -> Adapter:
    assert isinstance(learned.memory, Adapter)
    return learned.memory


def new_document(number: int = 0) -> Document:
    title, text = tiny_documents()[number]
    return Document.from_text(text, title)


def long_document(sentences: int, seed: int = 5) -> Document:
    """A text about people and places of the tiny world that nobody knows."""
    rng = random.Random(seed)
    facts = [fact for number in range(sentences // 4 + 1) for fact in subject(rng, number % 2 == 0)]
    return Document.from_text(" ".join(fact.sentence for fact in facts[:sentences]), "Register")


def shuffled(document: Document) -> Document:
    words = document.text.split()
    return Document.from_text(" ".join(random.Random(0).sample(words, len(words))), document.title)


def right(model: LanguageModel, number: int, adapter: Adapter | None) -> float:
    """Share of the questions of a new document, in every wording, that are answered."""
    probes = [Probe("", wording, fact.answer) for fact in tiny_questions(number) for wording in fact.wordings]
    injection = inject([(adapter, 1.0)], model.dtype) if adapter else None
    return sum(recall(answer_questions(model, [probe.question for probe in probes], injection, max_tokens=12), probes)) / len(probes)


@pytest.fixture(scope="module")
def studied(tiny_model: DecoderLM, cache: Path) -> Learned:
    """The first new document, learned as by default."""
    document = new_document()
    study = build_study(tiny_model, None, document, Config().study)
    return learn(tiny_model, document, settings(cache), examples=tuple(study_examples(tiny_model, document, study)))


def test_facts_are_answered_after_and_not_before(tiny_model: DecoderLM, studied: Learned) -> None:
    adapter = adapter_of(studied)
    adapter.check(tiny_model)
    assert right(tiny_model, 0, None) <= 0.1 and right(tiny_model, 0, adapter) >= 0.6
    assert right(tiny_model, 3, adapter) <= 0.3  # what it says of one document it does not say of another
    known = [Probe("", fact.wordings[0], fact.answer) for fact in known_questions()]
    answers = answer_questions(tiny_model, [probe.question for probe in known], inject([(adapter, 1.0)], tiny_model.dtype), max_tokens=12)
    assert sum(recall(answers, known)) / len(known) >= 0.7  # although it is active where it has no business


def test_the_certificate_says_what_it_cost(studied: Learned) -> None:
    cost, adapter = studied.cost, adapter_of(studied)
    assert cost["last_loss"] < 0.5 * cost["first_loss"] and cost["parameter_change"] > 0.1 and cost["training_seconds"] > 0
    assert cost["bytes"] == adapter.byte_count == 3 * 128 * min(Config().ttt.width, RECIPE.feed_forward) * 2
    assert cost["steps"] > cost["tokens"] / 64 and 0 < cost["open_neurons"] < 1 and adapter.spec.scale == 1.0


def test_the_base_is_what_it_was(tiny_model: DecoderLM, cache: Path) -> None:
    before = bytes_of(tiny_model)
    learn(tiny_model, new_document(), settings(cache, material="text"))
    assert same_bytes(tiny_model, before)
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters().values())


def test_the_stream_is_foretold_better_while_it_is_read(tiny_model: DecoderLM, cache: Path) -> None:
    """One pass, each mini-batch scored before its update, so that nothing is scored that was seen."""
    document = long_document(150)
    config = settings(cache, material="text", epochs=1)
    learned = learn(tiny_model, document, config)
    tokens = ttt.document_tokens(tiny_model, document)
    frozen = streaming_loss(tiny_model, tokens)
    assert learned.cost["score_first_nll"] < 0.85 * frozen
    wrong = learn(tiny_model, shuffled(document), config)
    after, after_wrong = (
        streaming_loss(tiny_model, tokens, inject([(adapter_of(found), 1.0)], tiny_model.dtype)) for found in (learned, wrong)
    )
    assert after < 0.95 * after_wrong and after < learned.cost["score_first_nll"]


def test_a_text_beyond_the_context_is_read_to_its_end(tiny_model: DecoderLM, cache: Path) -> None:
    document = long_document(560)
    config = settings(cache, material="text", epochs=1)
    learned = learn(tiny_model, document, config)
    tokens = ttt.document_tokens(tiny_model, document)
    assert len(tokens) > 4096 > tiny_model.context and learned.cost["tokens"] == len(tokens) - 1
    assert learned.cost["steps"] == -(-(len(tokens) - 1) // 32)
    assert learned.cost["score_first_nll"] < 0.7 * streaming_loss(tiny_model, tokens)
    other_end = Document.from_text(document.text[:-5] + "2000.", document.title)
    assert adapter_of(learn(tiny_model, other_end, config)).digest != adapter_of(learned).digest


def test_states_that_are_not_kept_are_made_again(tiny_model: DecoderLM, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, config = long_document(40), settings(cache, material="text", epochs=2)
    kept = learn(tiny_model, document, config)
    monkeypatch.setattr(ttt, "KEPT_BYTES", 0)
    again = learn(tiny_model, document, config)
    assert again.cost["last_loss"] == pytest.approx(kept.cost["last_loss"], rel=1e-4)


def test_masked_neurons_keep_every_bit(tiny_model: DecoderLM, cache: Path) -> None:
    document, config = long_document(40), settings(cache, material="text", width=None, gate_threshold=1.0)
    tokens = ttt.document_tokens(tiny_model, document)
    found = ttt.find_gates(tiny_model, tokens, config, quiet)
    training = ttt.Training(tiny_model, found, config.ttt)
    before = {name: tensor.clone() for name, tensor in training.params.items()}
    training.run(tokens, [], 0, quiet, "")
    (site,) = found.open
    gate = found.open[site]
    assert 0.05 < found.share < 0.6 and len(gate) == RECIPE.feed_forward
    for name in ("gate", "up", "down"):
        rows = 1 if name == "down" else 0
        old, new = (tensors[f"{site}.{name}"].detach().movedim(rows, 0) for tensors in (before, training.params))
        assert torch.equal(old[~gate].view(torch.int32), new[~gate].view(torch.int32))
        assert bool((old[gate] != new[gate]).any(1).all())


def test_prefill_and_cached_decoding_agree(tiny_model: DecoderLM, studied: Learned) -> None:
    injection = inject([(adapter_of(studied), 1.0)], tiny_model.dtype)
    tokens = tiny_model.tokenizer("Ivo Sandel lives in Ivarn. Ivo Sandel keeps a grey tortoise.").input_ids
    with torch.inference_mode():
        whole = tiny_model.logits(tiny_model.hidden(Packed.of([tokens]), injection))
        decoding = tiny_model.decode([tokens[:3]], injection, len(tokens))
        for place in range(3, len(tokens)):
            torch.testing.assert_close(decoding.logits[0], whole[place - 1], atol=1e-3, rtol=1e-3)
            decoding.advance(torch.tensor([tokens[place]]))
        assert not torch.allclose(whole, tiny_model.logits(tiny_model.hidden(Packed.of([tokens]))), atol=0.1)


@pytest.mark.parametrize("blend", [0.25, 1.0])
def test_there_is_a_gradient_at_every_blend(tiny_model: DecoderLM, cache: Path, blend: float) -> None:
    config = settings(cache, material="text", alpha=blend, epochs=2)
    learned = learn(tiny_model, new_document(), config)
    assert learned.cost["last_loss"] < learned.cost["first_loss"] and adapter_of(learned).spec.scale == blend


def test_the_blend_goes_as_it_says() -> None:
    def blends(schedule: str) -> list[float]:
        config = Config().ttt.model_validate({"schedule": schedule, "alpha": 0.5})
        return [ttt.blend_at(step, 4, config) for step in range(4)]

    assert blends("constant") == [0.5] * 4 and blends("rise") == [0.25, 0.5, 0.5, 0.5] and blends("fall") == [0.875, 0.75, 0.625, 0.5]


@pytest.mark.parametrize("schedule", ["rise", "fall"])
def test_the_blend_ends_where_the_adapter_has_it(tiny_model: DecoderLM, cache: Path, schedule: str) -> None:
    document = long_document(24)
    learned = learn(tiny_model, document, settings(cache, material="text", schedule=schedule, epochs=4))
    tokens = ttt.document_tokens(tiny_model, document)
    assert streaming_loss(tiny_model, tokens, inject([(adapter_of(learned), 1.0)], tiny_model.dtype)) < 0.7 * streaming_loss(
        tiny_model, tokens
    )


def test_it_is_trained_on_top_of_the_skill(tiny_model: DecoderLM, cache: Path) -> None:
    document, skill = new_document(), lora(tiny_model, size=0.2)
    tokens = ttt.document_tokens(tiny_model, document)
    assert len(tokens) - 1 <= 32  # one mini-batch, scored before its update
    learned = learn(tiny_model, document, settings(cache, material="text", epochs=1), skill=skill)
    with_skill, alone = streaming_loss(tiny_model, tokens, inject([(skill, 1.0)], tiny_model.dtype)), streaming_loss(tiny_model, tokens)
    assert learned.cost["score_first_nll"] == pytest.approx(with_skill, rel=1e-5) and abs(with_skill - alone) > 0.05


def test_the_same_lesson_gives_the_same_adapter(tiny_model: DecoderLM, cache: Path, studied: Learned) -> None:
    document = new_document()
    examples = tuple(study_examples(tiny_model, document, build_study(tiny_model, None, document, Config().study)))
    again = learn(tiny_model, document, settings(cache), examples=examples)
    other = learn(tiny_model, document, settings(cache), examples=examples, seed=1)
    assert adapter_of(again).digest == adapter_of(studied).digest != adapter_of(other).digest


def test_material_chooses_what_is_trained_on(tiny_model: DecoderLM, cache: Path) -> None:
    document = new_document()
    examples = tuple(study_examples(tiny_model, document, build_study(tiny_model, None, document, Config().study)))
    costs = {material: learn(tiny_model, document, settings(cache, material=material, epochs=1), examples=examples).cost
             for material in ("text", "study", "both")}  # fmt: skip
    assert costs["text"]["tokens"] < costs["study"]["tokens"] and "score_first_nll" not in costs["study"]
    asked = sum(len(example) for example in examples if not ttt.is_text(example))
    assert costs["both"]["tokens"] == costs["text"]["tokens"] + asked
    assert (
        learn(tiny_model, document, settings(cache, material="study", epochs=1)).cost["tokens"] == costs["text"]["tokens"]
    )  # nothing to study


def test_nothing_learned_and_too_much_are_errors(tiny_model: DecoderLM, cache: Path) -> None:
    for changes, message in (
        ({"learning_rate": 1e-20}, "changed nothing that is kept.*raise ttt.learning_rate"),
        ({"learning_rate": 0.1, "epochs": 2, "schedule": "rise"}, "the loss rose.*lower ttt.learning_rate"),
        ({"learning_rate": 1e30}, "values grew beyond what float16 holds; lower ttt.learning_rate"),
        ({"gate_threshold": 1e6}, "lower ttt.gate_threshold"),
    ):
        with pytest.raises(TrainingError, match=message) as caught:
            learn(tiny_model, long_document(24), settings(cache, material="text", **changes))
        assert "\n" not in str(caught.value)


def test_a_model_without_gated_mlps_is_told_so(cache: Path, tiny_model: DecoderLM) -> None:
    model = gpt2()
    model.tokenizer = tiny_model.tokenizer
    with pytest.raises(LearnerError, match=r"^tiny-gpt2 has no MLP with gate, up and down projections[^\n]*learn with lora instead$"):
        learn(model, new_document(), settings(cache))


@pytest.fixture(scope="module")
def bridged(tiny_model: DecoderLM, tiny_model_dir: Path) -> Iterator[TransformersLM]:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    yield TransformersLM(module, tiny_model.tokenizer, name="bridged", fingerprint=tiny_model.fingerprint)


def test_models_of_transformers_learn_the_same(tiny_model: DecoderLM, bridged: TransformersLM, cache: Path) -> None:
    document, config = long_document(20), settings(cache, material="text", epochs=2)
    own, other = learn(tiny_model, document, config).cost, learn(bridged, document, config).cost
    assert other["first_loss"] == pytest.approx(own["first_loss"], rel=1e-3)
    assert other["last_loss"] == pytest.approx(own["last_loss"], rel=1e-2)


# gates


def test_a_background_is_written_once_and_kept(tiny_model: DecoderLM, tmp_path: Path) -> None:
    sites, told = ["model.layers.3.mlp"], list[int]()

    def background() -> Mapping[str, torch.Tensor]:
        told.clear()
        return gates.background(tiny_model, sites, 40, tmp_path, lambda done, total: told.append(done)).used

    first = background()
    assert told and told[-1] == 40 and int(first[sites[0]].max()) == 40 and int(first[sites[0]].min()) < 10
    again = background()
    assert not told and torch.equal(first[sites[0]], again[sites[0]])
    (file,) = (tmp_path / "calibration").iterdir()
    file.write_bytes(file.read_bytes()[:100])  # damaged: counted anew
    assert torch.equal(background()[sites[0]], first[sites[0]]) and told
    file.unlink()
    (tmp_path / "calibration").rmdir()
    (tmp_path / "calibration").write_text("in the way")
    assert torch.equal(background()[sites[0]], first[sites[0]])


def test_scores_are_tf_idf(tiny_model: DecoderLM) -> None:
    site, tokens = "model.layers.3.mlp", ttt.document_tokens(tiny_model, new_document())
    counts = gates.uses(tiny_model, [site], [tokens])[site][0]
    per_token = round(gates.SHARE * RECIPE.feed_forward)
    assert int(counts.sum()) == per_token * len(tokens)
    used = torch.arange(RECIPE.feed_forward) % 11
    found = gates.scores(tiny_model, tokens, gates.Background({site: used}, 10))[site]
    torch.testing.assert_close(found, counts / counts.sum() * torch.log(11 / (used + 1)))
    assert bool((found[used == 10] == 0).all())  # what every text uses is general, however often the document uses it
    chosen = gates.choose({site: found}, 20, 0.5)
    assert set(chosen.chosen[site].tolist()) == set(found.argsort(descending=True)[:20].tolist())
    assert torch.equal(chosen.open[site], (found[chosen.chosen[site]] >= 0.5 * found.mean()) & (found[chosen.chosen[site]] > 0))


def test_uses_are_those_of_the_largest_contributions(tiny_model: DecoderLM) -> None:
    """A neuron whose weights are silenced writes nothing, so that no token uses it."""
    site, tokens = "model.layers.3.mlp", ttt.document_tokens(tiny_model, new_document())
    most = int(gates.uses(tiny_model, [site], [tokens])[site][0].argmax())
    weights = dict(tiny_model.parameters())
    weights[f"{site}.down_proj.weight"] = weights[f"{site}.down_proj.weight"].clone()
    weights[f"{site}.down_proj.weight"][:, most] = 0.0
    silenced = DecoderLM(tiny_model.config, weights, tiny_model.tokenizer, name="silenced")
    assert int(gates.uses(silenced, [site], [tokens])[site][0, most]) == 0


def test_texts_of_the_background_differ(tiny_model: DecoderLM) -> None:
    texts = gates.write_background(tiny_model, 300)
    assert len(texts) == 300 and len({tuple(text) for text in texts}) > 280  # 256 prompts; the model's answers are short
    assert gates.write_background(tiny_model, 10) == gates.write_background(tiny_model, 10)


def test_lessons_with_an_unusual_document(tiny_model: DecoderLM, cache: Path) -> None:
    """A document of few words is learned too; so is one whose window is as small as can be."""
    short = replace(new_document(), text="Osk Duvik lives in Ashby.")
    assert learn(tiny_model, short, settings(cache, material="text")).cost["steps"] == Config().ttt.epochs
    assert learn(tiny_model, long_document(30), settings(cache, material="text", window=1)).cost["last_loss"] > 0
